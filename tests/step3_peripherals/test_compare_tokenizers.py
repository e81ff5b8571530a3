"""compare_tokenizers.py on a few short documents, and what it counts."""

import json
import math
import random
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import cli, engine, runs
from step3_peripherals import (
    compare_tokenizers,
    tokenizer_lm,
    tokenizer_study,
    tokenizer_table,
)
from step3_peripherals.language_model import LanguageModel, LanguageModelConfig
from step3_peripherals.tokenizer_study import ALGORITHMS, Text
from step3_peripherals.vocabulary.byte_level import ByteLevelBPE
from tests import scripts

SMALL = ["--preset", "smoke", "--data", "corpus.jsonl", "--sizes", 60, 320, "--lm-sizes", 320,
         "--sampling-size", 60, "--teraflops", 1e-4]  # fmt: skip
PARTS = ["con", "gress", "na", "tion", "sta", "te", "un", "ion", "ye", "ar", "law", "ful"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with 40 documents in it; two of them, held out, have signs of their own.
    One thread."""
    handler, rng = signal.getsignal(signal.SIGTERM), random.Random(0)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    with open("corpus.jsonl", "w") as file:
        for i in range(1, 41):
            words = ["".join(rng.choices(PARTS, k=rng.randint(1, 4))) for _ in range(200)]
            text = " ".join(words) + (
                ". con  §law€.\nA nation" if i % 20 == 0 else ", 'so'.\nAnd so"
            )
            file.write(json.dumps({"text": text}) + "\n")
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def text(train, heldout, by_character=False):
    return Text(train, heldout, by_character, {})


def call(*flags):
    """Run compare_tokenizers.py in this process; its exit code."""
    return scripts.call(compare_tokenizers, *flags)


def read(path):
    return json.loads(Path(path).read_text())


@pytest.mark.usefixtures("drawn")
def test_a_comparison_is_made_once_and_told_whole(capsys, monkeypatch):
    three = [*SMALL, "--sizes", 60, "--lm-sizes", 60, "--out", "run"]
    three += ["--algorithms", "bpe", "byte-level", "wordpiece"]
    assert call(*three, "--seeds", 2) == 0
    told = capsys.readouterr().out
    assert "no byte-level of 60: " in told
    assert "target " in told and told.endswith("result: run/result.json\n")
    assert Path("run/curves.png").stat().st_size > 20_000
    assert not list(Path("run").rglob("*.safetensors"))  # nothing would read them

    found = read("run/result.json")
    assert str(Path.cwd()) not in Path("run/result.json").read_text()
    metrics, trained, facts = found["metrics"], found["trainings"], found["vocabularies"]
    assert [name for name in facts if "skipped" in facts[name]] == ["byte-level at 60"]
    scored = {name for name in metrics if name.startswith("bits per byte")}
    assert scored == {
        *(f"bits per byte of {name} at 60" for name in ("bpe", "wordpiece")),
        *(f"bits per byte of bpe, {sampling}" for sampling in ("plain", "dropout 0.1")),
    }
    for name in scored:
        training = name.removeprefix("bits per byte of ").replace(",", "").replace(" at", "")
        values = [one["bits_per_byte"] for one in trained[training]]
        assert len(values) == metrics[name]["n"] == 2
        assert metrics[name]["value"] == pytest.approx(np.mean(values))
        assert metrics[name]["sd"] == pytest.approx(np.std(values, ddof=1)) and values[0] < 8
    assert all(one["teraflops"] == pytest.approx(1e-4, rel=0.3)
               for several in trained.values() for one in several)  # fmt: skip
    assert facts["bpe at 60"]["unknown_tokens"] > 0

    assert found["timing"].endswith("median of 1")

    # What is done is not done again, and not under other settings
    Path("run/result.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(tokenizer_study, "measure", None)
        patched.setattr(engine, "train", None)
        patched.setattr(runs, "hardware", lambda: {"cores": 99})
        assert call(*three, "--seeds", 2, "--resume") == 0
    again = read("run/result.json")
    assert again["metrics"] == metrics and again["hardware"] == found["hardware"]
    assert found["tokens_per_second"] > 0 and "1 layers, 32 wide" in found["model"]["name"]
    assert call(*three, "--seeds", 2, "--dropout", 0.5, "--resume") == 2
    assert "was begun with --dropout 0.1" in capsys.readouterr().err

    # To a run that is complete, seeds and sizes can be added
    assert call(*three, "--seeds", 3, "--sizes", 60, 70, "--resume") == 0
    more = read("run/result.json")["metrics"]
    assert more["bits per byte of bpe at 60"]["n"] == 3 and "bytes per token of bpe at 70" in more

    # But not from a text that has changed
    with open("corpus.jsonl", "a") as file:
        file.write('{"text": "One more."}\n')
    assert call(*three, "--seeds", 4, "--sizes", 60, 70, "--resume") == 2
    assert "run was begun with other data" in capsys.readouterr().err


@pytest.mark.parametrize("name", ALGORITHMS)
def test_facts_by_hand(name, tmp_path):
    """Passages that the library encodes alike; the counts are of what it says."""
    study = tokenizer_study.read("corpus.jsonl", None, 20)
    found = tokenizer_study.build(name, 320, study, tmp_path / "v", 1)
    encode = ALGORITHMS[name].library(tmp_path / "v")
    ids = [i for passage in study.heldout for i in encode(passage)]
    n_bytes = len("".join(study.heldout).encode())
    assert found["equal"] == 1 and found["tokens"] == len(ids)
    assert found["bytes_per_token"] == pytest.approx(n_bytes / len(ids))
    assert found["fertility"] == pytest.approx(len(ids) / len(" ".join(study.heldout).split()))
    assert found["in_use"] == pytest.approx(len(set(ids)) / found["vocab_size"])
    # Both held-out documents have § and €, 2 and 3 bytes in UTF-8
    unknown = {"byte-level": [], "wordpiece": ["§", "law€"]}.get(name, ["§", "€"])
    assert found["unknown_bits"] == 2 * sum(8 * (len(part.encode()) + 1) for part in unknown)
    assert found["unknown_tokens"] == pytest.approx(2 * len(unknown) / len(ids))
    n_characters = sum(map(len, study.heldout))
    assert found["unknown_characters"] == pytest.approx(2 * len("".join(unknown)) / n_characters)


def test_a_space_that_is_unknown_is_charged_like_any_character(tmp_path):
    study = text(["abab", "aabb"], ["ab a", "b b"])
    found = tokenizer_study.build("bpe", 5, study, tmp_path / "v", 1)
    assert found["unknown_characters"] == 2 / 7 and found["unknown_bits"] == 2 * 8 * 2


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_size_that_a_text_cannot_fill_is_measured_as_it_is_or_skipped(name, tmp_path):
    found = tokenizer_study.build(name, 999, text(["a b"], ["b"]), tmp_path / "v", 1)
    if name == "unigram":  # it is trimmed from above to a size
        told = "a vocabulary of 999 is too large: this text has use for"
        assert found["skipped"].startswith(told)
    else:
        assert found["vocab_size"] < 999 and found["equal"] == 1


def test_what_cannot_grow_is_compared_once(capsys):
    few = [*SMALL[:4], "--sizes", 400, 20_000, 21_000, "--lm-sizes", 400, "--sampling-size", 0]
    few += ["--teraflops", 1e-5, "--algorithms", "wordpiece", "--out", "run"]
    assert call(*few) == 0
    facts = read("run/result.json")["vocabularies"]
    size = facts["wordpiece at 20000"]["vocab_size"]
    assert 400 < size < 20_000
    printed = capsys.readouterr().out
    assert f"no wordpiece of 21,000: this text has use for {size:,} tokens\n" in printed
    assert f"wordpiece of 20,000 has {size:,} tokens\n" in printed
    assert "skipped" in facts["wordpiece at 21000"]


@pytest.mark.parametrize("name", ["bpe", "wordpiece", "unigram"])
def test_rare_characters_have_no_place_in_a_small_vocabulary(name, tmp_path):
    """Of forty letters and a space the commonest fifteen are in a vocabulary of 24."""
    letters = "".join(map(chr, range(0x4E00, 0x4E28)))
    train = [" ".join(letters[: n + 1]) for n in range(len(letters))]
    study = text(train, [letters], by_character=True)
    found = tokenizer_study.build(name, 24, study, tmp_path / "v", 1, 0.625)
    assert found["unknown_characters"] == (40 - 14) / 40 and found["equal"] == 1
    assert found["left_out"] == 26 and not tokenizer_study.exhausted(found)


def test_speeds_are_medians_of_turns_in_processor_time(monkeypatch):
    clock, turns = [0.0], []

    def load(name, durations):
        durations = iter(durations)

        def encode(passage):
            turns.append(name)
            clock[0] += next(durations)
            return [len(passage)]

        return lambda: encode

    monkeypatch.setattr(tokenizer_study.time, "process_time", lambda: clock[0])
    loaders = load("ours", [9.0, 2.0, 1.0]), load("library", [4.0, 4.0, 5.0])
    found = tokenizer_study._speeds(loaders, text([], ["x" * 10**6]), 3)
    assert turns == ["ours", "library"] * 3
    assert found == [(0.5, [[10**6]]), (0.25, [[10**6]])]


def test_text_is_tidied_and_cut_in_whole_paragraphs():
    paragraphs = ["a \t b\u200b\x07c▁d ", "x" * 1995, "\x00", "last\u00a0line"]
    found = list(tokenizer_study.passages(paragraphs))
    assert found == ["a bc_d\n" + "x" * 1995, "last line"]


def test_chinese_is_counted_by_characters():
    Path("zh.txt").write_text("\n\n".join(["我们 今天\n2026年。", "你好，世界 hi"] * 2))
    study = tokenizer_study.read("zh.txt", None, 2)
    assert study.by_character and study.n_words == 2 * 7
    assert not tokenizer_study.read("corpus.jsonl", None, 20).by_character


@pytest.mark.parametrize("every", [1, 41])
def test_both_splits_must_have_documents(every):
    with pytest.raises(cli.UserError, match="too few documents"):
        tokenizer_study.read("corpus.jsonl", None, every)


def test_gaps_and_words_are_the_whole_text():
    passage = "It's so,\n(he said) 我们。 no"
    gaps = list(tokenizer_study._gaps(passage))
    assert [gap for _, _, gap in gaps] == ["", "", " ", "", "\n", "", " ", "", " ", "", "", " "]
    assert gaps[0] == ("t", "'", "") and gaps[4] == (",", "(", "\n")


def test_gap_bits_are_those_of_add_one_estimates():
    study = text(["a b", "a b", "a\nb"], ["a b", "b a"])
    seen = math.log2((3 + 3) / (2 + 1))  # a to b: twice a space of three times
    assert tokenizer_study.gap_bits(study) == pytest.approx(seen + math.log2(3))


def test_the_largest_vocabulary_stands_for_those_that_the_text_has_no_use_for():
    found = {("bpe", 100): {}, ("bpe", 200): {}, ("unigram", 300): {}}
    for sizes, wanted in (((300,), [200]), ((100, 300), [100, 200]), ((100,), [100]), ((), [])):
        config = SimpleNamespace(lm_sizes=sizes, sampling_size=0)
        planned = [size for name, size, *_ in tokenizer_lm.plans(config, found) if name == "bpe"]
        assert planned == wanted


def test_flops_are_those_of_the_formula():
    model = LanguageModel(LanguageModelConfig(vocab_size=50, d_model=32, n_layers=2, d_ff=128))
    matrices = 50 * 32 + 2 * (4 * 32 * 32 + 2 * 32 * 128)
    assert tokenizer_lm.flops_per_token(model) == 6 * matrices + 12 * 2 * 128 * 32


@pytest.fixture
def tokenizer():
    return ByteLevelBPE.train(["one two", "two three"], 260)


def test_a_stream_has_every_passage_once_a_round_in_new_orders(tokenizer):
    passages = [f"passage {i}" for i in range(20)]
    n = sum(len(tokenizer.encode(p)) + 1 for p in passages)
    ids, n_bytes = tokenizer_lm._stream(tokenizer, passages, 260, 2 * n, 0, {})
    assert len(ids) == 2 * n and n_bytes == 2 * sum(map(len, passages))
    rounds = [tokenizer.decode([i if i < 260 else 10 for i in part]) for part in np.split(ids, 2)]
    rounds = [[line for line in told.split(tokenizer.decode([10])) if line] for told in rounds]
    assert Counter(rounds[0]) == Counter(rounds[1]) == Counter(passages)
    assert rounds[0] != rounds[1]
    ids, n_bytes = tokenizer_lm._stream(tokenizer, ["abcdefgh"], 260, 5, 0, {})
    assert list(ids) == [260, *tokenizer.encode("abcd")] and n_bytes == round(8 * 5 / 9)


def test_sampling_cuts_the_same_text_anew_each_time(tokenizer):
    ids, _ = tokenizer_lm._stream(tokenizer, ["two two two"], 260, 40, 0, {"dropout": 0.5})
    rounds = "".join(chr(i) for i in ids).split(chr(260))[1:-1]
    assert len(set(rounds)) > 1
    assert {tokenizer.decode(map(ord, told)) for told in rounds} == {"two two two"}
    again, _ = tokenizer_lm._stream(tokenizer, ["two two two"], 260, 40, 0, {"dropout": 0.5})
    assert np.array_equal(ids, again)


def test_a_part_of_the_text_is_drawn_by_seed():
    passages = [f"{i:05}" for i in range(100)]
    some = tokenizer_lm._first(passages, 24, 0)
    assert len(some) == 5 and set(some) < set(passages)
    assert some == tokenizer_lm._first(passages, 24, 0) != tokenizer_lm._first(passages, 24, 1)
    assert tokenizer_lm._first(passages, None, 0) == passages
    assert len(tokenizer_lm._first(passages, 10**6, 0)) == 100


def test_what_is_lost_is_added_to_the_score(tokenizer):
    study = text(["one two three"] * 9, ["three two one"])
    scores = []
    for lost in (0.0, 26.0):
        config = tokenizer_lm.LMConfig(out=f"lm-{lost}", teraflops=1e-5, d_model=32, n_layers=1,
                                       batch_size=2, precision="fp32")  # fmt: skip
        accelerator = engine.accelerator(config)
        scores.append(
            tokenizer_lm.train(config, accelerator, tokenizer, study, options={}, lost_bits=lost)
        )
    assert scores[1]["bits_per_byte"] - scores[0]["bits_per_byte"] == pytest.approx(2)
    assert scores[1]["lost_bits_per_byte"] == 2 and scores[0]["lost_bits_per_byte"] == 0
    events = runs.Run(Path("lm-0.0")).metrics()
    assert events[-1]["step"] == scores[0]["steps"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--algorithms", "bytes"], "no algorithm 'bytes'; there are: bpe, byte-level"),
        (["--sizes", 0], "--sizes 0 must be above 0"),
        (["--dropout", 1.5], "--dropout 1.5 must be between 0 and 1"),
        (["--d-model", 48], "--d-model 48 must be a multiple of 32"),
        (["--n-layers", 0], "--n-layers 0 must be above 0"),
        (["--max-documents", -1], "--max-documents -1 must be above 0"),
        (["--batch-size", 0], "--batch-size 0 must be above 0"),
        (["--sampling-kilobytes", -1], "--sampling-kilobytes -1 must be above 0"),
        (["--data", "nowhere.txt"], "no such file"),
        (["--data", "empty.txt"], "empty.txt: no text in it"),
        (
            ["--algorithms", "byte-level", "--sizes", 9, "--lm-sizes", 9, "--sampling-size", 0],
            "no vocabulary",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(flags, told, capsys):
    Path("empty.txt").touch()
    assert call(*SMALL, "--out", "run", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and told in error


def test_of_a_text_of_one_character_the_vocabularies_are_what_it_has_use_for(capsys):
    Path("a.txt").write_text("a\n\n" * 40)
    assert call(*SMALL, "--data", "a.txt", "--out", "run") == 0
    told = capsys.readouterr().out
    assert "bpe of 60 has 2 tokens" in told and "no unigram of 60, 320: this text" in told
    trained = read("run/result.json")["trainings"]
    assert {"bpe 60", "wordpiece 60", "byte-level 320"} < trained.keys()  # where 320 was asked for


def test_the_target():
    def facts(equal, length):
        return {"equal": equal, "bytes_per_token": length}

    grown = {("bpe", 1): facts(1.0, 2.0), ("bpe", 2): facts(1.0, 3.0)}
    skipped = {("bpe", 0): {"skipped": "why"}}
    assert tokenizer_table.target(skipped | grown, 1.25)[1]
    assert not tokenizer_table.target(grown, 1.6)[1]
    assert not tokenizer_table.target(grown | {("bpe", 1): facts(0.99, 2.0)}, 1.25)[1]
