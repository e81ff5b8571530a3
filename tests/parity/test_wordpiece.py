"""Our WordPiece against `tokenizers` and `transformers`: same ids, same vocabulary."""

import functools
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast

from common import data
from step2_bert.checkpoint import locate
from step3_peripherals.vocabulary.normalize import chunks, words
from step3_peripherals.vocabulary.wordpiece import SPECIAL_TOKENS, WordPiece

MIRROR = Path(os.environ.get("GYM_DATA") or "/nowhere") / "vocab"
VOCABULARIES = {
    "minilm": (locate("minilm") / "vocab.txt", True),
    "uncased": (MIRROR / "bert-base-uncased-vocab.txt", True),
    "cased": (MIRROR / "bert-base-cased-vocab.txt", False),
    "chinese": (MIRROR / "bert-base-chinese-vocab.txt", True),
    "unilm": (MIRROR / "unilm-base-cased-vocab.txt", False),
}
# The library's tables of categories are those of Unicode 8; ours are Python's. They differ for
# these, all of them marks, format characters and punctuation that are newer, and three corrected
# since. What no vocabulary has it makes no difference to.
CORRECTED = {0x166D, 0x1734, 0x111C9}


def library_words(lowercase):
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    return lambda text: [word for word, _ in split(normalizer.normalize_str(text))]


def our_words(text, lowercase):
    return [word for chunk in chunks(text) for word in words(chunk, lowercase)]


@functools.cache
def differing():
    """Characters that the library (uncased, which does the most) and we treat differently. Those
    that are the plain letters of a later Unicode are out of both."""
    theirs = library_words(True)
    found = set()
    for code in [*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)]:
        text = f"a{chr(code)}b"
        if theirs(text) != our_words(text, True):
            found.add(code)
    return found


characters = st.characters(exclude_categories=["Cs"]).filter(lambda c: ord(c) not in differing())
fragments = st.sampled_from(
    ["unaffable", "Crème brûlée", "東京タワー", " 中文字符", "안녕", "İstanbul", "ΟΔΟΣ ", "naïve",
     "don't", "##ing", "\x85", "\u2028", "\t\n", "\u200d", "e\u0301", "🙂", "x" * 101, "½", "$1.50"]
)  # fmt: skip
texts = st.lists(st.text(characters, max_size=12) | fragments, max_size=8).map("".join)


def test_characters_that_differ_are_newer_than_the_library_or_corrected_since():
    newer = differing()
    assert newer >= CORRECTED and len(newer) < 900
    for code in newer - CORRECTED:
        assert code > 0x600
        kind = unicodedata.category(chr(code))
        assert kind in ("Mn", "Cf") or kind[0] in "PCL" or code in (0x11938,), hex(code)


@pytest.fixture(scope="module", params=VOCABULARIES)
def pair(request):
    path, lowercase = VOCABULARIES[request.param]
    if not path.is_file():
        pytest.skip("needs GYM_DATA")
    ours = WordPiece.from_vocab(path, lowercase)
    theirs = Tokenizer(models.WordPiece(ours.vocab, unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return ours, theirs


@settings(max_examples=100)
@given(text=texts)
def test_ids_equal_the_library_s_for_any_text(pair, text):
    ours, theirs = pair
    encoding = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == encoding.ids
    assert ours.tokens(text) == encoding.tokens


@pytest.fixture(scope="module")
def fast(pair):
    ours, _ = pair
    return BertTokenizerFast(vocab=ours.vocab, do_lower_case=ours.lowercase)


@settings(max_examples=100)
@given(text=texts)
def test_ids_equal_those_of_bert_tokenizer_fast_for_any_text(pair, fast, text):
    assume(not any(name in text for name in fast.all_special_tokens))  # which it would not cut
    assert pair[0].encode(text) == fast.encode(text, add_special_tokens=False)


def test_ids_equal_those_of_bert_tokenizer_fast(pair, fast):
    ours, _ = pair
    source = data.documents(data.resolve("sotu"))
    for text in [next(source)[i] for i in range(3)] + ["Ça va? 今天很好 naïve 🙂" * 20]:
        assert ours.encode(text) == fast.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("lowercase", [True, False])
def test_training_makes_the_library_s_vocabulary(lowercase):
    document = next(iter(data.documents(data.resolve("sotu")))) + ["25¢ Öl, Ölfaß 中文 ΣΑΣ"] * 3
    ours = WordPiece.train(document, 700, lowercase=lowercase)
    theirs = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The library numbers the letters ##x in an order of chance, unless they are given.
    letters = [t for t in ours.vocab if t.startswith("##") and len(t) == 3]
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=[*SPECIAL_TOKENS, *letters], show_progress=False
    )
    theirs.train_from_iterator(document, trainer)
    assert theirs.get_vocab() == ours.vocab


def test_the_libraries_open_what_save_wrote(tmp_path):
    text = "We cut wörds into pieces, 是的."
    for lowercase in (True, False):
        ours = WordPiece.train([text, "Pieces of words."], 60, lowercase=lowercase)
        ours.save(tmp_path)
        theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert theirs.encode(text).ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))
        fast = BertTokenizerFast.from_pretrained(tmp_path)
        assert fast.encode(text, add_special_tokens=False) == ours.encode(text)
        assert WordPiece.load(tmp_path).encode(text) == ours.encode(text)
