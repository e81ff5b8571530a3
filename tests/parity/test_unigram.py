"""Our unigram model and scored BPE against the `sentencepiece` library: same ids, same text."""

import io
import math
import os
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from common import data
from step3_peripherals.vocabulary.pieces import SentencePieces
from step3_peripherals.vocabulary.scored_bpe import ScoredBPE
from step3_peripherals.vocabulary.sentencepiece_model import Kind, Model, Piece
from step3_peripherals.vocabulary.unigram import Unigram

MIRROR = Path(os.environ.get("GYM_DATA") or "/nowhere") / "vocab"
PUBLISHED = {
    "albert": (Unigram, "albert-base-v2-spiece.model"),
    "llama-2": (ScoredBPE, "llama2-tokenizer.model"),
}
TRAINED = {  # by the library, here: what the published ones have not
    "unigram": (Unigram, {"user_defined_symbols": ["(", "<sep>", "ab", "e-"]}),
    "unigram-bytes": (Unigram, {"byte_fallback": True, "remove_extra_whitespaces": False}),
    "unigram-plain": (
        Unigram,
        {"normalization_rule_name": "identity", "add_dummy_prefix": False},
    ),
    "bpe": (ScoredBPE, {"model_type": "bpe", "user_defined_symbols": ["<sep>", "th"]}),
    "bpe-bytes": (
        ScoredBPE,
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
        },
    ),
}
fragments = st.sampled_from(
    ["the constitution", "  two  ", "ﬁ①", "e\u0301", "A\u030a", "\u1100\u1161\u11a8", "\u2581",
     "東京", "🙂", "<s>", "<unk>", "<0x0A>", "<sep>", "(th)", "ab-e-", "\0", "\t\n", "\u3000",
     "\ufdfa", "...", "\xad", "\u200b", "666", "ｶﾞ"]
)  # fmt: skip
texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | fragments, max_size=8
).map("".join)


def sotu(n):
    documents = data.documents(data.resolve("sotu"))
    return [text for _ in range(n) for text in next(documents)]


def train(**options):
    """The bytes of a model that the library learns from some addresses."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sotu(3)),
        model_writer=model,
        vocab_size=600,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module", params=[*PUBLISHED, *TRAINED])
def pair(request, tmp_path_factory) -> tuple[SentencePieces, sentencepiece.SentencePieceProcessor]:
    if request.param in PUBLISHED:
        kind, name = PUBLISHED[request.param]
        path = MIRROR / name
        if not path.is_file():
            pytest.skip("needs GYM_DATA")
    else:
        kind, options = TRAINED[request.param]
        path = tmp_path_factory.mktemp("model") / "spiece.model"
        path.write_bytes(train(**options))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return kind.from_sentencepiece(path), theirs


@settings(max_examples=60)
@given(text=texts)
def test_any_text_is_encoded_and_decoded_as_by_the_library(pair, text):
    ours, theirs = pair
    assert ours.normalize(text) == theirs.normalize(text)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.tokens(text) == theirs.encode(text, out_type=str)
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("pair", ["llama-2", "bpe-bytes"], indirect=True)
@settings(max_examples=100)
@given(text=texts)
def test_with_a_byte_for_all_else_and_no_rules_a_text_comes_back(pair, text):
    """But for the sign that stands for a space."""
    ours, _ = pair
    assert ours.decode(ours.encode(text)) == text.replace("\u2581", " ")


@settings(max_examples=60)
@given(seed=st.lists(st.integers(0, 599), max_size=12))
def test_any_ids_are_decoded_as_by_the_library(pair, seed):
    ours, theirs = pair
    assert ours.decode(seed) == theirs.decode(seed)


def test_long_texts_are_encoded_as_by_the_library(pair):
    ours, theirs = pair
    for text in [" ".join(sotu(2)), "0123456789" * 2000, " ".join(["666 1911"] * 3000)]:
        assert ours.encode(text) == theirs.encode(text)


def test_sums_of_a_very_long_text_begin_anew_as_the_library_s_do(tmp_path):
    """Two ways to cut aba, nearly as likely: 32-bit sums far below -100,000 are too coarse."""
    scores = {"▁x": -9.3, "a": -3.0, "ab": -3.98, "ba": -4.0, "b": -9.0, "▁": -7.0, "x": -9.1}
    special = [Piece("<unk>", 0.0, Kind.UNKNOWN), Piece("<s>", 0.0, Kind.CONTROL)]
    ours = Unigram(Model([*special, *(Piece(text, score) for text, score in scores.items())]))
    ours.save(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for text in ("xaba " * 40_000, "xaba" * 40_000):
        assert ours.encode(text) == theirs.encode(text)


def test_nbest_is_the_library_s(pair):
    ours, theirs = pair
    if isinstance(ours, ScoredBPE):
        pytest.skip("BPE has one segmentation")
    for text in ("constitutional", "the people of these states"):
        found = ours.nbest(text, 8)
        assert all(a >= b for (_, a), (_, b) in zip(found, found[1:], strict=False))
        theirs_by_score = theirs.nbest_encode(text, nbest_size=8, out_type=str)
        assert {tuple(pieces) for pieces, _ in found} == {tuple(p) for p in theirs_by_score}


def test_the_library_opens_what_save_wrote(pair, tmp_path):
    ours, theirs = pair
    ours.save(tmp_path)
    again = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    text = " Save  our ﬁne ① models (ab) <sep> 🙂 "
    assert again.encode(text) == theirs.encode(text)
    assert again.decode(again.encode(text)) == theirs.decode(theirs.encode(text))
    assert type(ours).load(tmp_path).model == ours.model


def test_our_training_is_as_good_as_the_library_s(tmp_path):
    """Bits a character of held-out text under the likeliest segmentation, at the same size."""
    texts = sotu(6)
    learn, held_out = texts[:-20], texts[-20:]
    file = tmp_path / "spiece.model"
    with file.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(learn), model_writer=model, vocab_size=800, minloglevel=2,
            normalization_rule_name="identity", character_coverage=1.0,
            split_by_number=False, split_by_unicode_script=False,
        )  # fmt: skip
    models = Unigram.train(learn, 800), Unigram.from_sentencepiece(file)
    models[0].save(tmp_path / "ours")
    bits = []
    for model in models:
        assert model.vocab_size == 800
        scores = [model.nbest(text, 1)[0][1] for text in held_out]
        bits.append(-sum(scores) / math.log(2) / sum(map(len, held_out)))
    assert bits[0] < 1.03 * bits[1]
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "ours/spiece.model"))
    assert [models[0].encode(text) for text in held_out] == [theirs.encode(t) for t in held_out]
