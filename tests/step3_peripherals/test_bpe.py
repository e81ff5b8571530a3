import functools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cli import UserError
from step3_peripherals.vocabulary import bpe
from step3_peripherals.vocabulary.bpe import BPE, learn

CORPUS = ["the lowest of the low, the newest of the new: 12 lower and 12 wider fields."] * 3


@functools.cache
def trained():
    return BPE.train(CORPUS, 60)


def merge_one_by_one(word, merges):
    """What encoding means, O(merges x n): each merge in turn, from left to right."""
    symbols = list(word)
    for left, right in merges:
        i = 0
        while i < len(symbols) - 1:
            if symbols[i : i + 2] == [left, right]:
                symbols[i : i + 2] = [left + right]
            i += 1
    return symbols


# --- learning ------------------------------------------------------------------------------------


def test_the_example_of_the_paper():
    """Its algorithm 1, with "." for the end of a word. Three pairs stand there 9 times, so ours may
    take another first; the words come out the same."""
    words = {"low.": 5, "lower.": 2, "newest.": 6, "widest.": 3}
    vocab, merges = learn(words, 11 + 9)
    assert merges[:5] == [("e", "s"), ("t", "."), ("es", "t."), ("l", "o"), ("lo", "w")]
    assert {"est.", "low", "newest."} <= set(vocab)


def test_ids_are_special_tokens_then_characters_then_merges():
    vocab, merges = learn({"ba": 2, "bab": 1}, 7, special_tokens=["<unk>", "<s>"], alphabet="z")
    assert vocab == {"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "z": 4, "ba": 5, "bab": 6}
    assert merges == [("b", "a"), ("ba", "b")]


def test_of_equal_pairs_the_one_with_lower_ids_comes_first():
    assert learn({"xy": 2, "ab": 2, "zz": 3}, 8)[1] == [("z", "z"), ("a", "b"), ("x", "y")]


def test_a_pair_that_overlaps_itself_is_merged_from_the_left():
    assert learn({"aaaaa": 1}, 9)[1] == [("a", "a"), ("aa", "a"), ("aa", "aaa")]


def test_min_frequency_ends_the_learning():
    words = {"ab": 3, "cd": 2}
    assert learn(words, 100, min_frequency=3)[1] == [("a", "b")]
    assert learn(words, 100, min_frequency=4)[1] == []


def test_a_limited_alphabet_keeps_what_is_frequent():
    vocab, _ = learn({"aaabbc": 1}, 3, limit_alphabet=2)
    assert set(vocab) >= {"a", "b"} and "c" not in vocab
    assert list(learn({"aaabbc": 1}, 2, limit_alphabet=2, alphabet="z")[0]) == ["a", "z"]


def test_words_that_are_too_long_are_not_learned_from(monkeypatch):
    monkeypatch.setattr(bpe, "LONGEST_LEARNED", 10)
    vocab, merges = learn({"xy" * 6: 99, "ab": 1}, 100)
    assert merges == [("a", "b")] and {"x", "y"} <= set(vocab)
    with pytest.raises(UserError, match="no word in the text has at most 10 symbols"):
        learn({"xy" * 6: 99}, 100)


def test_a_line_without_spaces_costs_no_time():
    line = "abcdefgh" * 1_000_000
    with pytest.raises(UserError, match="add spaces"):
        BPE.train([line], 1000)
    assert BPE.train([line, "a cat"], 1000).merges


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_an_empty_corpus_is_an_error(texts):
    with pytest.raises(UserError, match="no text .*; give texts"):
        BPE.train(texts, 100)


def test_a_single_character_is_a_vocabulary_without_merges():
    vocabulary = BPE.train(["x"], 100)
    assert (vocabulary.vocab, vocabulary.merges) == ({"<unk>": 0, "x": 1}, [])
    assert vocabulary.encode("xxy") == [1, 1, 0]


def test_a_vocabulary_smaller_than_the_alphabet_is_an_error():
    with pytest.raises(UserError, match="of 4 is too small: .* are 5; give 5 or more"):
        BPE.train(["abc"], 4, special_tokens=["<s>"])
    assert BPE.train(["abc"], 5, special_tokens=["<s>"]).vocab_size == 5


def test_one_text_in_place_of_several_is_an_error():
    with pytest.raises(UserError, match=r"list of texts: write \[text\]"):
        BPE.train("the cat", 100)


def test_texts_are_gone_through_once():
    assert BPE.train(iter(CORPUS), 60).merges == trained().merges


# --- encoding ------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    corpus=st.lists(st.text("aabbc", min_size=1, max_size=12), min_size=1, max_size=8),
    word=st.text("abc", max_size=30),
)
def test_encoding_is_the_merges_in_their_order(corpus, word):
    vocabulary = BPE(*learn(Counter(corpus), 30, special_tokens=["<unk>"], alphabet="abc"))
    made = ["".join(pair) for pair in vocabulary.merges]
    if len(set(made)) == len(made):  # else a pair is merged as soon as there is one to merge
        assert vocabulary.tokens(word) == merge_one_by_one(word, vocabulary.merges)


@settings(max_examples=200)
@given(text=st.text("".join(sorted(set(CORPUS[0]))), max_size=50))
def test_round_trip(text):
    ids = trained().encode(text)
    assert trained().decode(ids) == text
    dropped = trained().encode(text, dropout=0.5, rng=np.random.default_rng(0))
    assert trained().decode(dropped) == text and len(dropped) >= len(ids)


def test_words_start_with_their_space():
    vocabulary = BPE.train(["a cat  sat.\n12 cats"], 100)
    words = list(vocabulary._split("a cat  sat.\n12 cats"))
    assert words == ["a", "▁cat", "▁", "▁sat", ".", "\n", "12", "▁cats"]
    assert "▁cat" in vocabulary.vocab and "t." not in vocabulary.vocab


def test_unknown_characters_and_special_tokens():
    vocabulary = BPE.train(["a b"], 100, special_tokens=["<s>"])
    assert vocabulary.tokens("a文b") == ["a", "<unk>", "b"]
    assert vocabulary.decode([1, 0]) == "<s><unk>"
    assert vocabulary.tokens("<s>") == ["<unk>"] * 3


def test_an_id_out_of_range_is_an_error():
    assert trained().decode([]) == ""
    for index in (-1, trained().vocab_size):
        with pytest.raises(UserError, match=f"id {index} is not from 0 to 53"):
            trained().decode([0, index, 1])


def test_long_words_are_cut(monkeypatch):
    whole = trained().tokens("thethethe")
    assert whole == ["the", "the", "the"]
    monkeypatch.setattr(bpe, "LONGEST_ENCODED", 4)
    vocabulary = BPE.train(CORPUS, 60)
    assert vocabulary.tokens("thethethe") == [
        piece for part in ("thet", "heth", "e") for piece in trained().tokens(part)
    ]


def test_a_long_word_takes_no_quadratic_time():
    ids = trained().encode("lowest" * 30_000)
    assert len(ids) < 130_000 and trained().decode(ids) == "lowest" * 30_000


def test_the_cache_is_bounded_and_gives_what_was_encoded_first(monkeypatch):
    monkeypatch.setattr(bpe, "CACHED_WORDS", 3)
    monkeypatch.setattr(bpe, "CACHED_LENGTH", 5)
    vocabulary = BPE.train(CORPUS, 60)
    text = "the low wider fields of lower and newest"
    assert vocabulary.encode(text) == vocabulary.encode(text) == trained().encode(text)
    assert list(vocabulary._cache) == ["the", "▁low", "▁of"]


# --- dropout -------------------------------------------------------------------------------------


def segmentations(symbols, merges, p):
    """Exactly, the probability of every outcome of the paper's algorithm 1."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    pairs = list(zip(symbols, symbols[1:], strict=False))
    possible = sorted((ranks[pair], i) for i, pair in enumerate(pairs) if pair in ranks)
    found = Counter({symbols: p ** len(possible)})
    for n, (_, i) in enumerate(possible):
        merged = (*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :])
        for outcome, probability in segmentations(merged, merges, p).items():
            found[outcome] += p**n * (1 - p) * probability
    return found


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_has_the_distribution_of_the_paper(p):
    from scipy.stats import chisquare

    vocabulary, n, rng = trained(), 3000, np.random.default_rng(1)
    drawn = Counter(tuple(vocabulary.tokens("lowest", dropout=p, rng=rng)) for _ in range(n))
    exact = segmentations(tuple("lowest"), vocabulary.merges, p)
    assert sum(exact.values()) == pytest.approx(1) and set(drawn) <= set(exact)
    often = [outcome for outcome, probability in exact.items() if n * probability >= 5]
    seen = np.array([drawn[outcome] for outcome in often])
    wanted = np.array([n * exact[outcome] for outcome in often])
    assert len(often) > 3 and sum(wanted) > 0.99 * n
    assert chisquare(seen, wanted * sum(seen) / sum(wanted)).pvalue > 1e-3


def test_dropout_at_its_ends():
    vocabulary, rng = trained(), np.random.default_rng(0)
    assert vocabulary.encode(CORPUS[0], dropout=0, rng=rng) == vocabulary.encode(CORPUS[0])
    assert "".join(vocabulary.tokens("the lowest", dropout=1, rng=rng)) == "the▁lowest"
    assert set(map(len, vocabulary.tokens("the lowest", dropout=1, rng=rng))) == {1}
    first, again = (
        vocabulary.encode(CORPUS[0], dropout=0.3, rng=np.random.default_rng(5)) for _ in range(2)
    )
    assert first == again != vocabulary.encode(CORPUS[0])


@pytest.mark.parametrize("options", [{"dropout": 1.1}, {"dropout": -0.1}, {"dropout": 0.1}])
def test_dropout_that_cannot_be(options):
    rng = None if options["dropout"] == 0.1 else np.random.default_rng(0)
    with pytest.raises(UserError, match="must be from 0 to 1"):
        trained().encode("the", rng=rng, **options)


# --- files ---------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    vocabulary = BPE.train(CORPUS, 60, special_tokens=["<s>"])
    vocabulary.save(tmp_path / "new" / "folder")
    loaded = BPE.load(tmp_path / "new" / "folder")
    assert (loaded.vocab, loaded.merges) == (vocabulary.vocab, vocabulary.merges)
    saved = json.loads((tmp_path / "new" / "folder" / "tokenizer.json").read_text())
    assert [token["content"] for token in saved["added_tokens"]] == ["<unk>", "<s>"]
    BPE.train(["x"], 9).save(tmp_path)
    assert BPE.load(tmp_path).merges == []


VOCAB = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}


@pytest.mark.parametrize(
    ("vocab", "merges", "complaint"),
    [
        (VOCAB, "#version: 0.2\na b\nab\n", r"merges.txt:3: 'ab' is not two tokens"),
        (VOCAB, "a b c\n", r"merges.txt:1: 'a b c' is not two tokens"),
        (VOCAB, "a b\n\nab a\n", r"merges.txt:2: '' is not two tokens"),
        (VOCAB, "a \n", r"merges.txt:1: 'a ' is not two tokens"),
        (VOCAB, "a b\na c\n", r"merges.txt: merge 2, 'a' 'c': no token 'c'"),
        (VOCAB, "b a\n", r"merge 1, 'b' 'a': no token 'ba'"),
        (VOCAB, b"a b\n\xff b\n", r"merges.txt: not UTF-8 at byte 5"),
        (VOCAB, None, r"merges.txt: cannot be read \(No such file"),
        ({"<unk>": 0, "a": 2}, "", r"ids of the 2 tokens are not 0, 1, 2"),
        ({"<unk>": 0, "a": 0}, "", r"ids of the 2 tokens are not 0, 1, 2"),
        ({"a": 0}, "", r"no token '<unk>'"),
        ({"<unk>": 0, "a": "1"}, "", r"vocab.json: not a JSON object of tokens"),
        (["a"], "", r"vocab.json: not a JSON object of tokens"),
        (None, "", r"vocab.json: not JSON"),
    ],
)
def test_files_that_are_broken(tmp_path, vocab, merges, complaint):
    (tmp_path / "vocab.json").write_text("{" if vocab is None else json.dumps(vocab))
    if merges is not None:
        content = merges if isinstance(merges, bytes) else merges.encode()
        (tmp_path / "merges.txt").write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        BPE.load(tmp_path)
    assert "\n" not in str(error.value)
