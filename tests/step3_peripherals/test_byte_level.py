import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cli import UserError
from step3_peripherals.vocabulary.base import valid_unicode
from step3_peripherals.vocabulary.byte_level import WRITTEN, ByteLevelBPE

CORPUS = ["The cat's hat, the cats' hats; 12 文字 👩‍👩‍👧 \n\n and  a\t tab."] * 3


@functools.cache
def trained():
    return ByteLevelBPE.train(CORPUS, 300)


def test_every_byte_has_a_character_that_can_be_seen():
    assert sorted(WRITTEN) == list(range(256)) and len(set(WRITTEN.values())) == 256
    assert all(character.isprintable() and character != " " for character in WRITTEN.values())
    assert "".join(WRITTEN[byte] for byte in b"a b\n\x00~\x7f\xa0\xad\xff") == "aĠbĊĀ~ġłŃÿ"


@settings(max_examples=300)
@given(text=st.text(), dropout=st.sampled_from([0, 0.3, 1]))
def test_round_trip(text, dropout):
    ids = trained().encode(text, dropout=dropout, rng=np.random.default_rng(0))
    assert trained().decode(ids) == text
    assert "".join(trained()._split(text)) == text
    if dropout == 1:
        assert len(ids) == len(text.encode())


def test_words_are_split_as_by_gpt2():
    words = list(ByteLevelBPE._split("it's WE'LL  x12 $5.\n\n y "))
    assert words == [
        "it",
        "'s",
        " WE",
        "'",
        "LL",
        " ",
        " x",
        "12",
        " $",
        "5",
        ".",
        "\n\n",
        " y",
        " ",
    ]


@settings(max_examples=300)
@given(
    text=st.text(
        st.sampled_from("a\ud800\udbff\udc00\udfff\ud83d\ude00\ufeff文👍") | st.characters()
    )
)
def test_surrogates_are_mended(text):
    mended = trained().decode(trained().encode(text))
    assert mended == valid_unicode(text)
    assert mended.encode().decode() == mended
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert mended == text


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("\ufeff\ud800", "\ufeff\ufffd"),
    ],
)
def test_a_pair_of_surrogates_is_a_character_and_one_alone_is_replaced(text, mended):
    assert trained().decode(trained().encode(text)) == mended
    assert ByteLevelBPE.train([text], 300).merges  # a surrogate does not stop the learning


def test_bytes_that_are_no_utf8_are_replaced():
    half = trained().encode("文", dropout=1, rng=np.random.default_rng(0))[:2]
    assert len(half) == 2 and trained().decode(half) == "\ufffd"


def test_special_tokens_are_written_as_they_are_called():
    vocabulary = ByteLevelBPE.train(["a"], 300, special_tokens=["<文>", "<é>"])
    assert vocabulary.decode([0, 1, 2]) == "<|endoftext|><文><é>"
    assert 0 not in vocabulary.encode("<|endoftext|>")


def test_bad_sizes_and_vocabularies(tmp_path):
    with pytest.raises(UserError, match="of 256 is too small: .* are 257"):
        ByteLevelBPE.train(["a"], 256)
    with pytest.raises(UserError, match="no text"):
        ByteLevelBPE.train([""], 300)
    with pytest.raises(UserError, match="no byte-level vocabulary: 255 bytes are not in it"):
        ByteLevelBPE({"a": 0}, [])
    with pytest.raises(UserError, match="no byte-level vocabulary"):
        ByteLevelBPE.train(["abc"], 300, limit_alphabet=100)
    single = ByteLevelBPE.train(["a"], 300)
    assert single.vocab_size == 257 and single.merges == []


def test_save_and_load(tmp_path):
    trained().save(tmp_path)
    loaded = ByteLevelBPE.load(tmp_path)
    assert loaded.encode(CORPUS[0]) == trained().encode(CORPUS[0])
    assert (loaded.vocab, loaded.merges) == (trained().vocab, trained().merges)


def test_an_id_out_of_range_is_an_error():
    for index in (-1, trained().vocab_size):
        with pytest.raises(UserError, match=f"id {index} is not from 0 to 293"):
            trained().decode([index])
