"""train.py as a user runs it, and what it is made of, on few and short sentences."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from common import cli
from step1_transformer import averaging, objective, train
from step1_transformer.corpus import Corpus
from step1_transformer.model import Transformer, TransformerConfig
from tests import scripts

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--preset", "smoke", "--d-model", 32, "--n-heads", 2, "--d-ff", 64, "--max-seq-len", 40]
SHORT = [*TINY, "--max-steps", 12, "--eval-every", 2, "--average", 3, "--dropout", 0.1]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    handler = signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with 600 pairs in it: prepared data stays there from test to test."""
    folder, rng = tmp_path_factory.mktemp("place"), random.Random(0)
    before = Path.cwd()
    os.chdir(folder)
    with open("pairs.tsv", "w") as file:
        for _ in range(600):
            words = rng.choices(["eins", "zwei", "drei", "vier"], k=rng.randint(1, 9))
            file.write(f"{' '.join(words)}\t{' '.join(w.upper() for w in words[::-1])}\n")
    yield folder
    os.chdir(before)


def call(*flags):
    """Run train.py in this process; its exit code."""
    return scripts.call(train, *flags)


def result(folder):
    return json.loads(Path(folder, "result.json").read_text())


def same_weights(one, other):
    one, other = (load_file(Path(folder, "model/model.safetensors")) for folder in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def evaluations(folder):
    events = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "eval"]


PAIRS = ["--data", "pairs.tsv", "--source", "de", "--target", "en"]


@pytest.fixture(scope="module")
def trained(place):
    assert call(*SHORT, *PAIRS, "--out", "trained") == 0
    return place / "trained"


def test_the_copy_task_is_solved(place):
    # Half the tokens a step of the preset, and more steps: as good, in half the time
    smaller = ["--max-tokens", 256, "--max-steps", 600, "--eval-every", 600]
    assert call("--preset", "smoke", *smaller, "--out", "copied") == 0
    assert result("copied")["metrics"]["exact"]["value"] >= 99


def test_the_result_says_what_was_trained_and_what_was_kept(trained):
    said = result(trained)
    assert said["dataset"] == "pairs.tsv de-en" and said["split"] == "test"
    assert said["steps"] == 12 and said["tokens"] > 0
    assert said["chosen"] == min(said["dev"], key=said["dev"].get)
    metrics = said["metrics"]
    assert metrics["dev_nll"]["value"] == said["dev"][said["chosen"]]
    for split in ("dev", "test"):
        folder = Path(said["prepared"])
        scores = objective.heldout_scores(
            Transformer.load(trained / "model"), Corpus.open(folder, split)
        )
        prefix = "dev_" if split == "dev" else ""
        for name, metric in objective.metrics(scores, prefix).items():
            assert metrics[name]["value"] == pytest.approx(metric["value"], rel=1e-6)
    assert (trained / "model" / "tokenizer.json").exists() and (trained / "curves.png").exists()
    facts = json.loads((trained / "config.json").read_text())["data_source"]
    assert facts["name"] == "pairs.tsv" and len(facts["fingerprint"]) == 64


def test_the_snapshots_are_the_last_three_and_the_best(trained):
    kept = sorted(file.stem for file in (trained / "snapshots").iterdir())
    best = min(evaluations(trained)[1:], key=lambda event: event["heldout/token_nll"])["step"]
    assert kept == sorted({f"step-{step:08d}" for step in (8, 10, 12, best)})


def test_a_run_that_is_killed_ends_the_same(trained, place):
    """Killed between a checkpoint and a later snapshot, which is then taken a second time."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from common import cli
from step1_transformer import averaging, train
torch.set_num_threads(1)
take = averaging.Snapshots.take
def and_die(self, model, step, score):
    take(self, model, step, score)
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
averaging.Snapshots.take = and_die
cli.run(train.main, train.Config, train.PRESETS)
"""
    flags = [*SHORT, *PAIRS, "--out", "killed", "--save-minutes", "0.0001"]
    process = subprocess.run([sys.executable, "-c", script, *map(str, flags)], cwd=place)
    assert process.returncode == -signal.SIGKILL
    assert call(*flags, "--resume") == 0
    assert same_weights("killed", trained)
    assert result("killed")["metrics"] == result(trained)["metrics"]
    scores = [[event["heldout/token_nll"] for event in evaluations(f)] for f in (trained, "killed")]
    assert scores[0] == scores[1]


def test_training_stops_when_patience_is_over(place):
    flags = [*SHORT, *PAIRS, "--learning-rate", 1e-12, "--max-steps", 40, "--patience", 2]
    assert call(*flags, "--schedule", "constant", "--out", "patient") == 0
    nll = [event["heldout/token_nll"] for event in evaluations("patient")]
    assert result("patient")["steps"] < 40
    assert len(nll) - 1 - nll.index(min(nll)) == 2


@pytest.mark.parametrize(
    ("nll", "stops"), [([3, 2, 1], False), ([3, 2, 2, 2], True), ([3, 2, 4, 1, 5], False)]
)
def test_patience_counts_from_the_best(nll, stops):
    events = [{"heldout/token_nll": value} for value in nll]
    assert objective.no_better(events, patience=2) is stops
    assert not objective.no_better(events, patience=None)


def test_the_losses_are_torchs(trained):
    corpus = Corpus.open(result(trained)["prepared"], "dev")
    model = Transformer.load(trained / "model")
    batch = corpus.batch(range(len(corpus)))
    sums = objective.losses(model, batch, label_smoothing=0.2)
    logits = model(batch["input_ids"], batch["decoder_input_ids"], batch["attention_mask"])
    logits, labels = logits.flatten(0, 1)[batch["positions"]], batch["labels"]
    wanted = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2)
    assert sums["token_loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    nll = F.cross_entropy(logits, labels, reduction="sum")
    assert sums["token_nll"].item() == pytest.approx(nll.item(), rel=1e-5)
    assert sums["token_accuracy"] == (logits.argmax(-1) == labels).sum()


def test_rows_of_a_batch_do_not_see_each_other(trained):
    """Padding is not masked in the decoder: all of it comes after the last label."""
    corpus = Corpus.open(result(trained)["prepared"], "dev")
    model = Transformer.load(trained / "model")
    together = objective.losses(model, corpus.batch(range(9)))["token_nll"]
    alone = sum(objective.losses(model, corpus.batch([row]))["token_nll"] for row in range(9))
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_the_average_is_the_mean_and_the_better_candidate_stays(tmp_path):
    model = nn.Linear(2, 1)
    snapshots = averaging.Snapshots(tmp_path / "snapshots", keep=2)
    for step, (value, score) in enumerate([(9.0, 3.0), (1.0, 0.5), (4.0, 2.0), (6.0, 1.0)], 1):
        nn.init.constant_(model.weight, value)
        snapshots.take(model, step, score)
    assert [file.stem[-1] for file in sorted(snapshots.folder.iterdir())] == ["2", "3", "4"]
    assert snapshots.best().stem.endswith("2")
    for wanted, chosen in ((5.0, "average of 2"), (1.0, "step 2")):

        def judge(model, wanted=wanted):
            return {"token_nll": abs(model.weight.mean().item() - wanted)}

        scores = averaging.choose(model, snapshots, judge)
        assert list(scores) == ["average of 2", "step 2"]
        assert min(scores, key=lambda name: scores[name]["token_nll"]) == chosen
        assert model.weight.tolist() == [[wanted, wanted]]


def test_one_snapshot_is_no_average_and_judged_once(tmp_path):
    model = nn.Linear(2, 1)
    snapshots = averaging.Snapshots(tmp_path / "snapshots", keep=1)
    snapshots.take(model, 1000, 1.0)
    assert list(averaging.choose(model, snapshots, lambda model: {"token_nll": 1.0})) == [
        "step 1,000"
    ]


BROKEN_PAIRS = {"uneven": ("ein\nzwei\n", "one\ntwo\nthree\n"), "gaps": ("ein\n\n", "one\ntwo\n")}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--data", "pairs.tsv"], "say which languages"),
        (["--data", "uneven", "--source", "de", "--target", "en"], "has 3 lines"),
        (["--data", "gaps", "--source", "de", "--target", "en"], "train.de:2: empty line"),
        (["--data", "kjv-bbe", "--source", "de"], "its languages: bbe, kjv"),
        (["--data", "multi31k", "--source", "de", "--target", "en"], "unknown data 'multi31k'"),
        ([*PAIRS, "--max-seq-len", "8"], "more than 8 tokens"),
        ([*PAIRS, "--n-heads", "3"], "d_model 32 is not a multiple of n_heads 3"),
        ([*PAIRS, "--dropout", "1"], "--dropout 1.0 must be at least 0 and below 1"),
        ([*PAIRS, "--patience", "0"], "--patience 0 must be above 0"),
        ([*PAIRS, "--vocab-size", "99"], "give a size from 260"),
    ],
)
def test_bad_input_is_one_line(place, capfd, monkeypatch, flags, told):
    monkeypatch.delenv("GYM_DATA", raising=False)
    for folder, sides in BROKEN_PAIRS.items():
        (place / folder).mkdir(exist_ok=True)
        for language, text in zip(("de", "en"), sides, strict=True):
            for split in ("train", "val", "test"):
                (place / folder / f"{split}.{language}").write_text(text)
    capfd.readouterr()
    assert call(*SHORT, *flags, "--out", "bad", "--resume") == 2
    line = capfd.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and told in line


def test_a_checkpoint_of_another_vocabulary_is_refused(trained):
    corpus = Corpus.open(result(trained)["prepared"], "dev")
    shape = dict(d_model=8, n_heads=1, d_ff=8)
    other = Transformer(TransformerConfig.named("tiny", vocab_size=70, **shape))
    with pytest.raises(cli.UserError, match="a vocabulary of 70 tokens"):
        objective.check_fit(other, corpus, "other")
    vocabulary = dict(vocab_size=corpus.vocab_size, max_seq_len=4)
    short = Transformer(TransformerConfig.named("tiny", **vocabulary, **shape))
    with pytest.raises(cli.UserError, match="has 4 positions"):
        objective.check_fit(short, corpus, "short")


@pytest.mark.parametrize(("preset", "parameters"), [("paper", "63.1 M"), ("paper-big", "214.2 M")])
def test_a_plan_starts_nothing(preset, parameters, tmp_path, capfd, monkeypatch):
    """The paper counts 65 M and 213 M parameters (table 3), with its vocabulary."""
    monkeypatch.chdir(tmp_path)
    assert call("--preset", preset, "--plan", "h100") == 0
    told = capfd.readouterr().out
    assert parameters in told
    assert all(word in told for word in ("steps", "FLOPs", "GB", "hours", "cost"))
    assert not list(tmp_path.iterdir())


def test_two_processes_equal_one(place):
    flags = [*TINY, "--data", "pairs.tsv", "--source", "de", "--target", "en", "--max-steps", 6]
    flags = [*flags, "--eval-every", 3, "--adam-eps", 1e-6, "--vocab-size", 300]
    assert call(*flags, "--out", "one") == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, ROOT / "step1_transformer/train.py", *flags, "--out", "two"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    assert done.stdout.splitlines()[-1] == "result: two/result.json"
    one, two = (load_file(Path(name, "model", "model.safetensors")) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    nll = [json.loads(Path(n, "result.json").read_text())["metrics"]["nll"] for n in ("one", "two")]
    assert nll[0]["value"] == pytest.approx(nll[1]["value"], abs=1e-4)
