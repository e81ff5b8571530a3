import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from common.cli import UserError
from step1_transformer import corpus
from step1_transformer import tokenizer as bpe
from step1_transformer.corpus import Corpus, PrepareOptions

WORDS = {"Haus": "house", "Mann": "man", "Straße": "street", "grün": "green", "zwei": "two"}


def sentences(seed, n):
    rng = random.Random(seed)
    drawn = [rng.choices(list(WORDS), k=rng.randint(1, 12)) for _ in range(n)]
    return [(" ".join(words), " ".join(WORDS[w] for w in words)) for words in drawn]


def write(folder, changes=None):
    folder.mkdir(exist_ok=True)
    for split, n in {"train": 300, "dev": 120, "test": 110}.items():
        pairs = (changes or {}).get(split) or sentences(split, n)
        for side, language in enumerate(("de", "en")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(text)
    return PrepareOptions(str(folder), "de", "en", vocab_size=300, max_seq_len=64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    return corpus.prepare(write(root / "raw"), root / "out")


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_sentences_survive_the_disk(prepared, split):
    opened = Corpus.open(prepared, split)
    tokenizer = bpe.load(opened.tokenizer_dir)
    wanted = sentences(split, len(opened))
    for rows in np.array_split(np.arange(len(opened)), 7):
        batch = opened.batch(rows)
        sources = tokenizer.decode_batch(batch["input_ids"].tolist())
        ends = batch["labels"].split(opened.target_lengths[rows].tolist())
        targets = tokenizer.decode_batch([end.tolist() for end in ends])
        assert list(zip(sources, targets, strict=True)) == [wanted[row] for row in rows]
    if split != "train":
        assert list(zip(opened.text("source"), opened.text("target"), strict=True)) == wanted


@settings(max_examples=30)
@given(rows=st.lists(st.integers(0, 299), min_size=1, max_size=9))
def test_a_batch_is_what_a_loop_would_make_of_it(prepared, rows):
    opened = Corpus.open(prepared, "train")
    tokenizer = bpe.load(opened.tokenizer_dir)
    pairs = sentences("train", 300)
    sources, targets = ([tokenizer.encode(pairs[r][s]).ids for r in rows] for s in (0, 1))
    batch = opened.batch(rows)
    S, T = max(map(len, sources)), max(map(len, targets))

    def padded(lists, width):
        return [ids + [bpe.PAD] * (width - len(ids)) for ids in lists]

    assert batch["input_ids"].tolist() == padded(sources, S)
    assert batch["decoder_input_ids"].tolist() == padded(
        [[bpe.BOS, *ids[:-1]] for ids in targets], T
    )
    mask = [[i < len(ids) for i in range(S)] for ids in sources]
    if all(len(ids) == S for ids in sources):
        assert batch["attention_mask"] is None
    else:
        assert batch["attention_mask"].tolist() == mask
    positions = [row * T + i for row, ids in enumerate(targets) for i in range(len(ids))]
    assert batch["positions"].tolist() == positions
    assert batch["labels"].tolist() == [token for ids in targets for token in ids]
    assert batch["targets"] == {"token": len(positions)}
    assert batch["tokens"] == len(positions) + sum(map(len, sources))


def test_what_was_prepared_is_kept_until_something_changes(tmp_path):
    options = write(tmp_path / "raw")
    folder = corpus.prepared(options, tmp_path)
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert corpus.prepared(options, tmp_path) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    assert corpus.prepared(replace(options, vocab_size=310), tmp_path) != folder
    with pytest.raises(UserError, match="holds other prepared data"):
        corpus.prepare(replace(options, source="en", target="de"), folder)
    with (tmp_path / "raw" / "test.de").open("a") as de, (tmp_path / "raw/test.en").open("a") as en:
        de.write("Haus\n")
        en.write("house\n")
    assert corpus.prepared(options, tmp_path) != folder
    again = replace(options, data=str(folder))
    assert corpus.prepared(again, tmp_path) == folder
    assert corpus.prepared(replace(again, source="", target=""), tmp_path) == folder
    with pytest.raises(UserError, match="has target en: leave --target out"):
        corpus.prepared(replace(again, target="xx"), tmp_path)
    assert not list(tmp_path.glob(".prepared*"))


def test_the_file_is_a_safetensors_file_and_chunks_do_not_show(prepared, tmp_path, monkeypatch):
    manifest = json.loads((prepared / "manifest.json").read_text())
    options = PrepareOptions(**manifest["options"])
    monkeypatch.setattr(corpus, "CHUNK", 7)
    again = corpus.prepare(options, tmp_path / "out")
    for split in ("train", "dev", "test"):
        name = f"{split}.safetensors"
        assert (again / name).read_bytes() == (prepared / name).read_bytes()
        tensors = load_file(prepared / name)
        facts = manifest["splits"][split]
        for side in ("source", "target"):
            assert len(tensors[f"{side}_offsets"]) == facts["pairs"] + 1
            assert len(tensors[f"{side}_tokens"]) == facts[f"{side}_tokens"]


def test_long_sentences_are_counted_and_cut_only_when_asked(tmp_path):
    long = ("Mann " * 90, "man " * 80)
    options = write(tmp_path / "raw", {"train": [long, long, *sentences(0, 200)]})
    with pytest.raises(UserError, match=r"2 train pairs have more than 64 tokens \(the longest 91"):
        corpus.prepare(options, tmp_path / "out")
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".out*"))
    folder = corpus.prepare(replace(options, truncate=True), tmp_path / "out")
    train = Corpus.open(folder)
    assert train.lengths.max() == 64 and train.manifest["splits"]["train"]["truncated_pairs"] == 2
    assert train.batch([0])["input_ids"][0, -1] == bpe.EOS == train.batch([0])["labels"][-1]


def test_sides_that_are_not_aligned_are_refused(tmp_path):
    pairs = sentences("train", 300)
    shifted = [(de, en) for (de, _), (_, en) in zip(pairs, pairs[1:], strict=False)]
    with pytest.raises(UserError, match="not aligned line by line"):
        corpus.prepare(write(tmp_path / "raw", {"train": shifted}), tmp_path / "out")
    options = replace(write(tmp_path / "raw", {"train": shifted}), unaligned=True)
    assert len(Corpus.open(corpus.prepare(options, tmp_path / "out"))) == len(shifted)


def test_what_a_kill_left_is_cleared_and_two_at_once_give_one(tmp_path):
    options = write(tmp_path / "raw", {})
    (tmp_path / ".out").mkdir()
    (tmp_path / ".out" / "train.safetensors").write_bytes(b"half")
    with ThreadPoolExecutor(2) as both:
        folders = set(both.map(lambda _: corpus.prepare(options, tmp_path / "out"), range(2)))
    assert folders == {tmp_path / "out"} and Corpus.open(tmp_path / "out").lengths.any()
    assert not list(tmp_path.glob(".out*"))


def test_bad_lines_are_left_out_on_request(tmp_path):
    options = write(tmp_path / "raw", {"dev": [("Haus", ""), ("Mann", "man"), ("grün", "green")]})
    with pytest.raises(UserError, match=r"dev\.en:1: empty line.*--skip-bad-lines"):
        corpus.prepare(options, tmp_path / "out")
    folder = corpus.prepare(replace(options, skip_bad_lines=True), tmp_path / "out")
    assert json.loads((folder / "manifest.json").read_text())["splits"]["dev"]["skipped_lines"] == 1
    assert Corpus.open(folder, "dev").text("target") == ["man", "green"]


def test_broken_folders_are_said_to_be_broken(prepared, tmp_path):
    with pytest.raises(UserError, match="not a prepared directory"):
        Corpus.open(tmp_path)
    with pytest.raises(UserError, match="no split 'heldout'"):
        Corpus.open(prepared, "heldout")
    (tmp_path / "manifest.json").write_bytes((prepared / "manifest.json").read_bytes())
    (tmp_path / "train.safetensors").write_bytes((prepared / "train.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match="missing, broken or cut off"):
        Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match="format 0 is not ours"):
        Corpus.open(tmp_path)


def test_references_are_normalised_as_what_is_written_is():
    assert corpus.one_line("cafe\u0301\r\nau lait") == "caf\u00e9 au lait"
