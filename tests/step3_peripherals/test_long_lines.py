"""A line of 100 MB, without a space or with many: all that reads it is linear in its length, and
needs a few times its size in memory; what would need hundreds of times that goes by parts.

What is costly is tried on less, against a bound that it would exceed if it did not go by parts.
"""

import json
from functools import cache
from itertools import accumulate

import numpy as np
import pytest

from common import data, formats
from common.cli import UserError
from step3_peripherals import blocks, stream, tokenizer_study
from step3_peripherals.vocabulary import bpe, normalize, scored_bpe, unigram, unigram_training
from step3_peripherals.vocabulary.base import windows
from step3_peripherals.vocabulary.bpe import BPE
from step3_peripherals.vocabulary.byte_level import ByteLevelBPE
from step3_peripherals.vocabulary.scored_bpe import ScoredBPE
from step3_peripherals.vocabulary.sentencepiece_model import BPE as KIND
from step3_peripherals.vocabulary.sentencepiece_model import Kind, Model, Piece
from step3_peripherals.vocabulary.unigram import Unigram
from step3_peripherals.vocabulary.wordpiece import WordPiece
from tests.scripts import MB, at_most

LETTERS = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, MB, dtype=np.uint8).tobytes()
SAMPLE = ["the cat and the dog", LETTERS[:1000].decode(), " ".join(map(chr, range(97, 123)))]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """One line: 100 MB without a space, then 1 MB of words."""
    path = tmp_path_factory.mktemp("long") / "line.txt"
    with path.open("wb") as stream:
        for _ in range(100):
            stream.write(LETTERS)
        stream.write(b" the cat" * (MB // 8))
    return path


@pytest.fixture(scope="module")
def line(file):
    (text,) = formats.lines(file)
    return text


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BPE, ByteLevelBPE, WordPiece, Unigram])
def test_a_vocabulary_is_learned(kind, line):
    size = {ByteLevelBPE: 300, Unigram: 45}.get(kind, 80)
    text = line if kind is BPE else line[-11 * MB :]
    with at_most(4 * len(text) / MB + 150):  # 863 MB for 10, when WordPiece wrote all symbols down
        model = kind.train([text], size)
    plain = {token.strip("▁Ġ#") for token in model.vocab}
    assert {*"abcxyz"} <= plain and "cat" in plain
    if kind is not Unigram:  # and of it without any word, nothing can be
        with pytest.raises(UserError, match="no word in the text has at most 1,000 symbols"):
            kind.train([text[: 2 * MB]], size)


def test_what_is_too_long_to_learn_from_is_counted(monkeypatch):
    monkeypatch.setattr(unigram_training, "LONGEST_LEARNED", 6)
    monkeypatch.setattr(unigram_training, "LONGEST_WORD", 4)
    assert unigram_training.count_words(["abcdefgfg ab"]) == {
        "▁abc": 1, "de": 1, "f": 2, "g": 2, "▁ab": 1
    }  # fmt: skip
    monkeypatch.setattr(bpe, "LONGEST_LEARNED", 3)
    model = WordPiece.train(["xyxy ab ab"], 100)
    assert [*model.vocab][5:] == ["##b", "##x", "##y", "a", "b", "x", "y", "ab"]


# --- encoding ------------------------------------------------------------------------------------


def test_word_pieces_of_it_all(line):
    model = WordPiece.train(SAMPLE, 80)
    with at_most(5 * len(line) / MB):
        ids = model.encode(line)
    n_cut = -(-100 * MB // normalize.LONGEST_CHUNK)  # parts, each unknown
    assert ids == [model.vocab["[UNK]"]] * n_cut + model.encode("the cat") * (MB // 8)


@cache
def learned():
    return Unigram.train(SAMPLE, 60)


def scored():
    merges = ["".join(pair) for pair in BPE.train(SAMPLE, 200).merges]
    pieces = [Piece(text, -float(rank)) for rank, text in enumerate(dict.fromkeys(merges))]
    letters = [Piece(letter, -1e5) for letter in {*"▁abcdefghijklmnopqrstuvwxyz"}]
    return ScoredBPE(Model([Piece("<unk>", 0.0, Kind.UNKNOWN), *pieces, *letters], KIND))


@pytest.mark.parametrize(
    ("make", "cut", "first", "megabytes"),  # in one part, 300 and 200
    [
        (learned, unigram.LONGEST, unigram.LONGEST, 200),
        (scored, scored_bpe.LONGEST, 1 + scored_bpe.LONGEST, 100),
    ],
)
def test_a_word_is_cut_where_it_is_too_long(make, cut, first, megabytes, line):
    model, text = make(), line[:600_000]
    with at_most(megabytes):
        tokens = model.tokens(text)
    assert "".join(tokens) == f"▁{text}" and max(map(len, tokens)) > 1
    assert {*range(first, len(text), cut)} <= {*accumulate(map(len, tokens))}


def test_drawn_ways_are_cut_alike(monkeypatch):
    model, rng = learned(), np.random.default_rng(0)
    monkeypatch.setattr(model, "sample", lambda word, alpha, rng: [word])
    text = LETTERS.decode()
    drawn = [*model.segment(text, alpha=0.5, rng=rng)]
    assert [*map(len, drawn[:-1])] == [unigram.LONGEST] * 3
    assert hash("".join(drawn)) == hash(text)
    with pytest.raises(UserError, match="n-best of 1,000,001 characters: give at most 262,144"):
        model.nbest(text, 2)


def test_windows_end_behind_a_space_where_there_is_one():
    assert [*windows("ab cd  efghij k", 4)] == ["ab ", "cd  ", "efgh", "ij k"]
    assert [*windows("", 4)] == [] and [*windows("abcd", 4)] == ["abcd"]


# --- in a corpus ---------------------------------------------------------------------------------


def test_a_language_model_s_stream_holds_it(line, tmp_path):
    """10 MB of it: as one word, the library's trainer goes through it at every merge."""
    text = line[-11 * MB :]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in (text, "the cat and the dog")))
    options = stream.StreamOptions(heldout_every=2)
    with at_most(700):  # in one part, 1,600
        tokenizer = stream.byte_level_bpe(str(file), 266, tmp_path, options)
        separator = tokenizer.token_to_id(stream.SEPARATOR)
        made = stream.prepare(str(file), tokenizer, separator, tmp_path, options)
    assert {"Ġthe", "Ġcat"} <= tokenizer.get_vocab().keys()
    assert made.manifest["train"]["documents"] == 1
    assert made.n_bytes("train") == len(text)
    ids = made.tokens("train")
    assert (ids == separator).sum() == 1
    assert text.endswith(tokenizer.decode(ids[-20_000:].tolist()))


def test_a_stream_in_parts_is_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "LONGEST", 7)
    monkeypatch.setattr(stream, "LOT", 9)
    documents = ["one two three four", "five", "sixsevenseight nine"]
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in documents))
    options = stream.StreamOptions(heldout_every=2)
    tokenizer = stream.byte_level_bpe(str(file), 257, tmp_path, options)
    separator = tokenizer.token_to_id(stream.SEPARATOR)
    made = stream.prepare(str(file), tokenizer, separator, tmp_path, options)
    for split, mine in (("train", documents[::2]), ("heldout", documents[1::2])):
        text = tokenizer.decode(made.tokens(split).tolist(), skip_special_tokens=False)
        assert text.split(stream.SEPARATOR)[1:] == mine
        assert made.manifest[split]["documents"] == len(mine)


def test_a_comparison_of_vocabularies_cuts_it(line):
    with at_most(6 * len(line) / MB):
        found = [*tokenizer_study.passages([line])]
    assert max(map(len, found)) < tokenizer_study.LONGEST + tokenizer_study.PASSAGE
    assert hash("".join("".join(found).split())) == hash(line.replace(" ", ""))


# --- cleaning ------------------------------------------------------------------------------------


def test_the_pipeline_reads_it_and_throws_it_out(file, tmp_path):
    units = blocks.units_of(data.resolve(str(file)))
    with at_most(500):
        (doc,) = blocks.ReadUnit(units, None, False).run()
        assert len(doc.text) == 101 * MB
        doc.text = doc.text[-11 * MB :]
        found = [doc]
        for block in (
            blocks.Repair(tmp_path / "dropped", tmp_path / "repaired"),
            blocks.Language(tmp_path / "dropped", ["en", "la", "de"]),
            blocks.C4(tmp_path / "dropped"),
        ):
            found = block.run(found)
        assert [*found] == []
    assert [*(tmp_path / "dropped").iterdir()]
