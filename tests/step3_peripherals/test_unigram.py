import contextlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from common.cli import UserError
from step3_peripherals.vocabulary import scored_bpe
from step3_peripherals.vocabulary import unigram_training as training
from step3_peripherals.vocabulary.scored_bpe import ScoredBPE
from step3_peripherals.vocabulary.sentencepiece_model import (
    BPE,
    SPACE,
    Kind,
    Model,
    Piece,
    messages,
)
from step3_peripherals.vocabulary.unigram import Unigram

SCORES = {"▁": -3.0, "a": -2.0, "b": -2.5, "ab": -3.5, "▁a": -3.25, "ba": -4.0, "aba": -5.0}
SPECIAL = [Piece("<unk>", 0.0, Kind.UNKNOWN), Piece("<s>", 0.0, Kind.CONTROL)]
MODEL = Unigram(Model([*SPECIAL, *(Piece(text, score) for text, score in SCORES.items())]))


def segmentations(text, scores=SCORES):
    """Every way to cut `text` into pieces, with its log probability."""
    if not text:
        return {(): 0.0}
    return {
        (text[:end], *rest): scores[text[:end]] + score
        for end in range(1, len(text) + 1)
        if text[:end] in scores
        for rest, score in segmentations(text[end:], scores).items()
    }


@given(st.text("ab", min_size=1, max_size=9))
def test_viterbi_and_nbest_equal_enumeration(word):
    ways = segmentations(SPACE + word)
    ranked = sorted(ways.values(), reverse=True)
    assert ways[tuple(MODEL.tokens(word))] == pytest.approx(ranked[0])
    found = MODEL.nbest(word, 6)
    assert [score for _, score in found] == pytest.approx(ranked[:6])
    assert all(ways[tuple(pieces)] == pytest.approx(score) for pieces, score in found)
    assert len({tuple(pieces) for pieces, _ in found}) == len(found)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_samples_have_the_probability_of_the_formula(alpha):
    ways = segmentations(f"{SPACE}ababa")
    weight = np.exp([alpha * score for score in ways.values()])
    rng, n = np.random.default_rng(1), 6_000
    drawn = Counter(tuple(MODEL.tokens("ababa", alpha=alpha, rng=rng)) for _ in range(n))
    assert drawn.keys() <= ways.keys() and len(ways) > 10
    expected = n * weight / weight.sum()
    assert stats.chisquare([drawn[way] for way in ways], expected).pvalue > 1e-3
    if alpha:  # and the test can tell
        assert stats.chisquare([drawn[way] for way in reversed(ways)], expected).pvalue < 1e-3


@given(st.text("ab ", min_size=1, max_size=8))
def test_viterbi_is_the_best_of_all_ways_and_sentencepiece_decides_only_ties(text):
    text = MODEL.normalize(text)
    if not text:
        return
    best = max(segmentations(text).values())
    for way in (MODEL.viterbi(text), [*MODEL.as_sentencepiece(text)]):
        assert "".join(way) == text
        assert sum(SCORES[piece] for piece in way) == pytest.approx(best, abs=1e-4)


def test_a_large_alpha_draws_the_likeliest():
    rng = np.random.default_rng(1)
    assert MODEL.encode("ababa ab", alpha=1e3, rng=rng) == MODEL.encode("ababa ab")


@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"alpha": -1, "rng": np.random.default_rng()}])
def test_sampling_needs_a_generator_and_an_alpha_from_0_up(options):
    with pytest.raises(UserError, match="alpha"):
        MODEL.encode("ab", **options)


@given(st.text(st.characters()))
def test_any_string_can_be_encoded_surrogates_and_all(text):
    assert all(0 <= index < MODEL.vocab_size for index in MODEL.encode(text))


# --- training ---


@given(
    st.dictionaries(
        st.text("ab", min_size=1, max_size=7), st.integers(1, 5), min_size=1, max_size=5
    )
)
def test_expected_counts_likelihood_and_viterbi_equal_enumeration(words):
    scores = {piece: score for piece, score in SCORES.items() if SPACE not in piece}
    lattice = training.Lattice(words, list(scores), max_length=3)
    frequency = np.array([words[word] for word in lattice.words], float)
    log_p = np.array(list(scores.values()))
    counts, likely, total = Counter(), Counter(), 0.0
    for word, n in words.items():
        ways = segmentations(word, scores)
        z = special.logsumexp(list(ways.values()))
        total += n * z
        for way, score in ways.items():
            for piece in way:
                counts[piece] += n * math.exp(score - z)
        best = max(ways.values())
        likely[word] = n * best
    expected, likelihood = lattice.expected_counts(log_p, frequency)
    assert likelihood == pytest.approx(total)
    assert expected == pytest.approx([counts[piece] for piece in scores])
    used = lattice.viterbi_counts(log_p, frequency)
    assert used @ log_p == pytest.approx(sum(likely.values()))


@given(st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=4))
def test_seeds_are_the_repeated_substrings_that_go_on_in_several_ways(words):
    counts = Counter()
    for word in words:
        for start, end in itertools.combinations(range(len(word) + 1), 2):
            counts[word[start:end]] += 1
    wanted = {
        piece: n
        for piece, n in counts.items()
        if n > 1 and len(piece) > 1 and all(counts[piece + c] < n for c in "abc")
    }
    assert training.seed_pieces(Counter(words), max_length=8) == wanted


def test_digamma():
    x = np.array([1e-3, 0.5, 1, 3.7, 6.99, 7, 100, 1e6])
    np.testing.assert_allclose(training._digamma(x), special.digamma(x), rtol=1e-8)


def test_the_loss_of_a_piece_is_what_its_own_segmentation_costs():
    pieces, words = ["a", "b", "ab", "abab"], Counter({"ab": 6, "a": 4, "b": 2, "bb": 1})
    lattice = training.Lattice(words, pieces, 4)
    scores = np.log([0.2, 0.2, 0.5, 0.1])
    frequency = np.array([words[word] for word in lattice.words], float)
    # used: a 4, b 4, ab 6, abab 0; without ab: a 10, b 10 of 20
    loss = 6 * (math.log(6 / 14) - 2 * math.log(10 / 20))
    found = training.losses(lattice, scores, frequency, 4)
    assert found[2] == pytest.approx(loss) and found[3] == -np.inf


def test_training_has_the_size_asked_for_all_characters_and_whole_words():
    texts = ["the cat and the dog", "the cats and dogs, the dog catches the cat"] * 5
    model = Unigram.train(texts, 20)
    assert model.vocab_size == 20 and len(model.vocab) == 20
    assert set("▁thecandogs,") <= model.vocab.keys()
    assert "▁the" in model.vocab
    assert model.decode(model.encode(texts[1])) == texts[1]
    assert 0.5 < sum(math.exp(p.score) for p in model.model.pieces[3:]) < 1


@pytest.mark.parametrize("texts", [[], [""], ["  "]])
def test_no_text_is_an_error(texts):
    with pytest.raises(UserError, match="no text .*; give texts"):
        Unigram.train(texts, 100)


def test_one_text_in_place_of_several_is_an_error():
    with pytest.raises(UserError, match="list of texts"):
        Unigram.train("the cat", 100)


def test_sizes_that_the_text_cannot_have_are_errors():
    with pytest.raises(UserError, match="too small.*are 12; give 12 or more"):
        Unigram.train(["abcdefgh"], 11)
    with pytest.raises(UserError, match="too large.*; give no more, or more text"):
        Unigram.train(["abcdefgh"], 1000)
    assert Unigram.train(["a"], 5).tokens("aa a") == ["▁", "a", "a", "▁", "a"]


def test_a_very_long_line_is_learned_from_and_encoded():
    line = "ab" * 200_000
    model = Unigram.train([line], 10)
    assert "".join(model.tokens(line)) == SPACE + line


# --- files ---


def test_files_that_are_broken_or_foreign(tmp_path):
    MODEL.save(tmp_path)
    file = tmp_path / "spiece.model"
    whole = file.read_bytes()
    assert Unigram.load(tmp_path).model == MODEL.model
    for content in (
        whole[:-3],
        whole[:30],
        b"",
        b"no model at all",
        bytes(range(256)),
        b"PK\x03\x04",
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"spiece\.model: truncated, or no SentencePiece model"):
            Unigram.load(tmp_path)
    with pytest.raises(UserError, match="absent"):
        Unigram.from_sentencepiece(tmp_path / "absent")
    Model(MODEL.model.pieces, algorithm=BPE).write(file)
    with pytest.raises(UserError, match=r"spiece\.model: .*not of the kind that Unigram reads"):
        Unigram.load(tmp_path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    MODEL.save(tmp_path)
    whole = (tmp_path / "spiece.model").read_bytes()
    for size in range(len(whole)):  # also between two fields, of which none may be missing
        (tmp_path / "spiece.model").write_bytes(whole[:size])
        with pytest.raises(UserError, match="truncated"):
            Unigram.load(tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(ValueError, IndexError):
        list(messages(data))


def test_an_id_out_of_range_is_an_error():
    for index in (-1, MODEL.vocab_size):
        with pytest.raises(UserError, match="is not from 0 to 8"):
            MODEL.decode([index])


def test_the_score_of_what_is_unknown_is_rounded_as_all_are():
    model = Model([*SPECIAL, Piece("a", float(np.float32(-13.5323)))])
    score = Unigram(model).unknown_score
    assert score == float(np.float32(score)) == pytest.approx(-23.5323)


# --- scored BPE ----------------------------------------------------------------------------------


def scored(*merges, kind=Kind.NORMAL):
    """A BPE model of ▁, a, b and `merges`, the best first."""
    pieces = [Piece(text, -float(i), kind) for i, text in enumerate(merges)]
    pieces += [Piece(c, -99.0) for c in "▁ab"]
    return ScoredBPE(Model([*SPECIAL, *pieces], algorithm=BPE))


@pytest.mark.parametrize("merges", [("▁▁", "▁▁▁▁", "▁a", "ab", "▁ab", "ba"), ("a▁", "a▁b", "▁b")])
@given(text=st.text("▁▁ab\n", max_size=20))
def test_words_are_merged_as_in_the_whole_text(merges, text):
    vocabulary = scored(*merges)
    assert vocabulary.divisible == ("a▁" not in merges)
    for _ in range(2):  # the second time, from the cache
        assert [*vocabulary.segment(text)] == vocabulary._merge_all(text)
    assert not scored("a▁b", kind=Kind.USER_DEFINED).divisible


def test_a_word_is_merged_once_and_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(scored_bpe, "CACHED_WORDS", 2)
    monkeypatch.setattr(scored_bpe, "CACHED_LENGTH", 4)
    vocabulary, merged = scored("ab", "▁a"), []
    plain = vocabulary._merge_all
    monkeypatch.setattr(vocabulary, "_merge_all", lambda word: merged.append(word) or plain(word))
    vocabulary.encode("ab ab abaab ab ba b")
    assert merged == ["▁ab", "▁abaab", "▁ba", "▁b"] and list(vocabulary._cache) == ["▁ab", "▁ba"]
