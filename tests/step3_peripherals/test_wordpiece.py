import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import UserError
from step3_peripherals.vocabulary.wordpiece import SPECIAL_TOKENS, WordPiece

VOCAB = {t: i for i, t in enumerate(["[UNK]", "un", "##aff", "##able", "a", "##a", "é", "e", "!"])}


def test_the_longest_piece_wins_and_a_gap_makes_the_word_unknown():
    model = WordPiece(VOCAB)
    assert model.tokens("Unaffable unaffablé!") == [*["un", "##aff", "##able"] * 2, "!"]
    assert model.tokens("unaffablex a") == ["[UNK]", "a"]
    assert model.tokens("unx") == ["[UNK]"]
    assert model.decode(model.encode("unaffable a!")) == "unaffable a !"


def test_a_cased_vocabulary_keeps_capitals_and_accents():
    assert WordPiece(VOCAB, lowercase=False).tokens("é É Un") == ["é", "[UNK]", "[UNK]"]


def test_a_hundred_characters_are_a_word_and_one_more_is_not():
    model = WordPiece(VOCAB)
    assert len(model.encode("a" * 100)) == 100
    assert model.tokens("a" * 101) == ["[UNK]"]
    assert model.tokens("a" * 2_000_000 + " a") == ["[UNK]", "a"]


def test_what_looks_like_a_special_token_is_text():
    model = WordPiece({token: i for i, token in enumerate([*SPECIAL_TOKENS, "[", "]", "cls"])})
    assert model.tokens("[CLS]") == ["[", "cls", "]"]


@given(st.text(st.characters()))
def test_any_string_can_be_encoded_surrogates_and_all(text):
    model = WordPiece(VOCAB)
    assert all(0 <= index < model.vocab_size for index in model.encode(text))


def test_two_halves_of_a_character_are_the_character():
    model = WordPiece.train(["a 😀 b 😀 c"], 60)
    assert model.tokens("\ud83d\ude00") == model.tokens("😀") == ["😀"]
    assert model.tokens("a\ud83d") == ["a"]  # half a one is U+FFFD, which BERT drops


def test_training_merges_by_frequency_or_by_likelihood():
    """f(ab) = 20, f(qz) = 9; but of q and z nearly all stand together, of a and b few."""
    texts = ["ab " * 20, "qz " * 9, "ca ba ac bd " * 40]
    letters = set("abcdqz") | {f"##{c}" for c in "abcdz"}
    size = len(SPECIAL_TOKENS) + len(letters) + 1
    by_frequency = WordPiece.train(texts, size)
    by_likelihood = WordPiece.train(texts, size, likelihood=True)
    assert set(by_frequency.vocab) - letters - set(SPECIAL_TOKENS) == {"ac"}
    assert set(by_likelihood.vocab) - letters - set(SPECIAL_TOKENS) == {"qz"}


def likelihood_merges(texts, n):
    """As the formula says, counted anew for each merge."""
    words = [[word[0], *(f"##{c}" for c in word[1:])] for text in texts for word in text.split()]
    found = []
    for _ in range(n):
        symbols = [symbol for word in words for symbol in word]
        pairs = [pair for word in words for pair in zip(word, word[1:], strict=False)]
        if not pairs:
            break
        a, b = min(
            pairs,
            key=lambda p: (-pairs.count(p) / (symbols.count(p[0]) * symbols.count(p[1])), p),
        )
        found.append(a + b.removeprefix("##"))
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (a, b):
                    word[i : i + 2] = [found[-1]]
                i += 1
    return found


@given(st.lists(st.text("abc ", min_size=1, max_size=12), min_size=1, max_size=5))
def test_likelihood_training_equals_counting_anew(texts):
    if not "".join(texts).strip():
        return
    model = WordPiece.train(texts, 60, likelihood=True)
    merges = dict.fromkeys(likelihood_merges(texts, 60))
    learned = [token for token in model.vocab if len(token.removeprefix("##")) > 1]
    assert [token for token in learned if token not in SPECIAL_TOKENS] == list(merges)


def test_min_frequency_ends_the_merging():
    model = WordPiece.train(["ab ab ab cd"], 50, likelihood=True, min_frequency=2)
    assert "ab" in model.vocab and "cd" not in model.vocab


def test_save_and_load_keep_everything(tmp_path):
    model = WordPiece.train(["some Words to learn"], 40, lowercase=False)
    model.save(tmp_path)
    loaded = WordPiece.load(tmp_path)
    assert (loaded.vocab, loaded.lowercase) == (model.vocab, False)


@pytest.mark.parametrize("likelihood", [False, True])
@pytest.mark.parametrize("texts", [[], [""], ["\x00 \t"]])
def test_no_text_is_an_error(texts, likelihood):
    with pytest.raises(UserError, match="no text"):
        WordPiece.train(texts, 100, likelihood=likelihood)


def test_one_text_in_place_of_several_is_an_error():
    with pytest.raises(UserError, match="list of texts"):
        WordPiece.train("the cat", 100)


def test_an_id_out_of_range_is_an_error():
    for index in (-1, len(VOCAB)):
        with pytest.raises(UserError, match=f"id {index} is not from 0 to 8"):
            WordPiece(VOCAB).decode([index])


@pytest.mark.parametrize("likelihood", [False, True])
def test_a_size_below_the_alphabet_is_an_error(likelihood):
    with pytest.raises(UserError, match="too small"):
        WordPiece.train(["abcdefgh"], 10, likelihood=likelihood)


@pytest.mark.parametrize("likelihood", [False, True])
def test_a_corpus_of_one_character_is_learned(likelihood):
    model = WordPiece.train(["a"], 100, likelihood=likelihood)
    assert model.decode(model.encode("A")) == "a" and model.vocab_size == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", r"vocab\.txt: .*no \[UNK\]"),
        (b"[UNK]\na\na\n", "same token"),
        (b"[UNK]\n\xff\n", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_vocabulary_files_that_are_bad(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        WordPiece.from_vocab(tmp_path / "vocab.txt")


def test_a_config_that_is_no_object_is_an_error(tmp_path):
    WordPiece(VOCAB).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not a JSON object"):
        WordPiece.load(tmp_path)
