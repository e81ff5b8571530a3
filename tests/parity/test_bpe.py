"""Our BPE against the `tokenizers` library and GPT-2's tokenizer: same merges, same ids."""

import functools
import json
import os
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from common import data
from step3_peripherals.vocabulary.base import valid_unicode
from step3_peripherals.vocabulary.bpe import BPE, learn
from step3_peripherals.vocabulary.byte_level import END_OF_TEXT, ByteLevelBPE

GPT2 = Path(os.environ.get("GYM_DATA") or "/nowhere") / "vocab"
needs_gpt2 = pytest.mark.skipif(not (GPT2 / "gpt2-vocab.json").exists(), reason="needs GYM_DATA")
BYTES = pre_tokenizers.ByteLevel.alphabet()


def library(pre_tokenizer, texts, vocab_size, **options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    return train(tokenizer, texts, vocab_size, **options)


def train(tokenizer, texts, vocab_size, **options):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def learned(tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def byte_level():
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


@functools.cache
def agrees(character):
    """Whether it is a letter or a digit for both: their tables are of other years of Unicode, and
    differ only in what Python's does not know."""
    texts = [f"{before}{character}" for before in "a1"]
    ours = [list(ByteLevelBPE._split(text)) for text in texts]
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    alike = list(map(len, ours)) == [len(split(text)) for text in texts]
    assert alike or unicodedata.category(character) == "Cn", f"U+{ord(character):04X}"
    return alike


PIECES = [
    "the", " the", "The", "'s", "'LL", "n't", " 12", "½²", " ", "  ", "\n\n", "\t ", "\r\n",
    "\xa0", "\u3000", "\u2028", "\x00", "\x1f", "\x7f", "\x85", "\xad", "文字", "中文。", "日本語",
    "한국어", "👩‍👩‍👧", "🏳️‍🌈", "🇨🇳", "e\u0301", "ก็", "नमस्ते", "مرحبا", "\u200f", "\ufeff",
    "\ufffd", "\uffff", "\U0010ffff", "𝒳", "Ġ", "Ċ", "▁", "<|endoftext", "----", "aaaaaaa",
]  # fmt: skip
texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]).filter(agrees), max_size=6)
    | st.sampled_from(PIECES),
    max_size=12,
).map("".join)
surrogates = st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3)
broken = st.tuples(texts, surrogates | st.just("\ud83d\ude00"), texts).map("".join)


# --- learning ------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    words=st.one_of(
        st.lists(st.text(letters, min_size=1, max_size=30), min_size=1, max_size=10)
        for letters in ("a", "ab", "aabc", "abcdefé文👍")
    ),
    vocab_size=st.integers(0, 60),
    special_tokens=st.lists(st.sampled_from(["<unk>", "<s>", "ab", "c"]), max_size=3, unique=True),
    alphabet=st.sets(st.sampled_from("abxyz")),
    min_frequency=st.integers(0, 4),
)
def test_merges_of_words(words, vocab_size, special_tokens, alphabet, min_frequency):
    vocab_size += len({*special_tokens, *alphabet, *"".join(words)})
    options = {"special_tokens": special_tokens, "min_frequency": min_frequency}
    ours = learn(Counter(words), vocab_size, alphabet=alphabet, **options)
    options["initial_alphabet"] = sorted(alphabet)
    split = pre_tokenizers.WhitespaceSplit()
    assert ours == learned(library(split, [" ".join(words)], vocab_size, **options))


@settings(max_examples=100)
@given(
    words=st.lists(st.text("aaabbcde", min_size=1, max_size=20), min_size=1, max_size=10),
    limit=st.integers(1, 5),
)
def test_merges_with_a_limited_alphabet(words, limit):
    common = [count for _, count in Counter("".join(words)).most_common()]
    assume(limit >= len(common) or common[limit - 1] > common[limit])  # it breaks ties by chance
    theirs = library(pre_tokenizers.WhitespaceSplit(), [" ".join(words)], 30, limit_alphabet=limit)
    assert learn(Counter(words), 30, limit_alphabet=limit) == learned(theirs)


@settings(max_examples=60)
@given(corpus=st.lists(texts, min_size=1), more=st.integers(0, 80))
def test_merges_of_bytes(corpus, more):
    assume(any(corpus))
    ours = ByteLevelBPE.train(corpus, 257 + more)
    options = {"initial_alphabet": BYTES, "special_tokens": [END_OF_TEXT]}
    theirs = library(byte_level(), corpus, 257 + more, **options)
    assert (ours.vocab, ours.merges) == learned(theirs)


@pytest.fixture(scope="module")
def addresses():
    return [text for document in data.documents(data.resolve("sotu")) for text in document]


def test_8000_merges_of_12_megabytes_in_a_minute_on_one_core(addresses):
    start = time.process_time()
    ours = ByteLevelBPE.train(addresses, 8257)
    assert time.process_time() - start < 60
    options = {"initial_alphabet": BYTES, "special_tokens": [END_OF_TEXT]}
    theirs = library(byte_level(), addresses, 8257, **options)
    assert (ours.vocab, ours.merges) == learned(theirs)
    assert len(ours.merges) == 8000
    for text in addresses[::50]:
        assert ours.encode(text) == theirs.encode(text).ids


def test_the_library_opens_what_bpe_saves_and_learns_the_same_with_it(addresses, tmp_path):
    ours = BPE.train(addresses[:2000], 3000, min_frequency=3)
    ours.save(tmp_path)
    opened = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*addresses[2000::200], " two  spaces\n▁ and 文 is unknown "]:
        assert opened.encode(text).ids == ours.encode(text)
        assert opened.encode(text).tokens == ours.tokens(text)
        assert opened.decode(ours.encode(text), False) == ours.decode(ours.encode(text))
    options = {"min_frequency": 3, "special_tokens": ["<unk>"]}
    assert learned(train(opened, addresses[:2000], 3000, **options)) == (ours.vocab, ours.merges)


# --- encoding ------------------------------------------------------------------------------------


@functools.cache
def trained():
    """Ours and the library's, of a vocabulary with pieces of many scripts."""
    corpus = [piece * (3 + i % 5) for i, piece in enumerate(PIECES)] * 3 + [" the cat's hat 12"] * 9
    options = {"initial_alphabet": BYTES, "special_tokens": [END_OF_TEXT]}
    theirs = library(byte_level(), corpus, 700, **options)
    return ByteLevelBPE(*learned(theirs)), theirs


@functools.cache
def gpt2():
    """Ours, the library's and transformers'."""
    files = str(GPT2 / "gpt2-vocab.json"), str(GPT2 / "gpt2-merges.txt")
    theirs = Tokenizer(models.BPE.from_file(*files))
    theirs.pre_tokenizer, theirs.decoder = byte_level(), decoders.ByteLevel()
    return (
        ByteLevelBPE.from_files(*files),
        theirs,
        transformers.GPT2Tokenizer(vocab=files[0], merges=files[1]),
    )


@settings(max_examples=250)
@given(text=texts)
def test_ids_of_any_text(text):
    ours, theirs = trained()
    assert ours.encode(text) == theirs.encode(text).ids
    assert ours.tokens(text) == theirs.encode(text).tokens
    assert ours.decode(ours.encode(text)) == text


@settings(max_examples=150)
@given(text=broken)
def test_ids_of_broken_surrogates_are_those_of_the_mended_text(text):
    """The library itself refuses such strings."""
    ours, theirs = trained()
    mended = valid_unicode(text)
    with pytest.raises(TypeError, match="must be str"):
        theirs.encode(text)
    assert ours.encode(text) == theirs.encode(mended).ids
    assert ours.decode(ours.encode(text)) == mended


def test_a_pair_of_surrogates_is_its_character_and_half_a_pair_is_u_fffd():
    assert valid_unicode("a\ud83d\ude00 \ud83d \ude00\ud83d文") == "a😀 \ufffd \ufffd\ufffd文"


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 400)))
def test_text_of_any_ids(ids):
    ours, theirs = trained()
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@needs_gpt2
@settings(max_examples=250)
@given(text=texts)
def test_gpt2_ids_of_any_text(text):
    ours, theirs, hf = gpt2()
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids == hf.encode(text)
    assert ours.decode(ids) == text


@needs_gpt2
@settings(max_examples=150)
@given(text=broken)
def test_gpt2_ids_of_broken_surrogates(text):
    ours, theirs, hf = gpt2()
    mended = valid_unicode(text)
    assert ours.encode(text) == theirs.encode(mended).ids == hf.encode(mended)


@needs_gpt2
@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 50256), max_size=30))
def test_gpt2_text_of_any_ids(ids):
    ours, _, hf = gpt2()
    assert ours.decode(ids) == hf.decode(ids)


@needs_gpt2
def test_gpt2_ids_of_real_text(addresses):
    ours, theirs, _ = gpt2()
    assert ours.vocab_size == 50257 and len(ours.merges) == 50000
    assert ours.decode([50256]) == END_OF_TEXT and 50256 not in ours.encode(END_OF_TEXT)
    long = "".join(addresses[:300]).replace(" ", "") + "-" * 5000 + "文" * 5000
    for text in [*addresses[::20], long]:
        assert ours.encode(text) == theirs.encode(text).ids


def test_the_library_opens_what_byte_level_bpe_saves(tmp_path):
    ours, _ = trained()
    ours.save(tmp_path)
    text = "the cat's 文字 \n\n hat\x00 👩‍👩‍👧"
    opened = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    hf = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    assert opened.encode(text).ids == hf.encode(text) == ours.encode(text)
    assert opened.decode(ours.encode(text)) == text
    assert opened.encode(END_OF_TEXT).ids == [0]
