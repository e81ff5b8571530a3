"""compare_positions.py and train_lm.py on a few short documents, trainings in this process."""

import json
import math
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from common import cli, report, runs, subruns
from step3_peripherals import compare_positions, extrapolation, lm_objective, train_lm
from step3_peripherals.language_model import LanguageModel
from step3_peripherals.stream import Stream
from tests.scripts import call, in_this_process

SMALL = ["--preset", "smoke", "--data", "corpus.jsonl", "--max-steps", 2, "--cache", "cache"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with 80 documents in it, and one thread."""
    handler, rng = signal.getsignal(signal.SIGTERM), random.Random(0)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    words = ["the", "of", "people", "congress", "union", "nation", "year", "law"]
    with open("corpus.jsonl", "w") as file:
        for _ in range(80):
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=120))}) + "\n")
    monkeypatch.setattr(runs.Run, "plot", lambda run: None)  # seconds each
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def trained(monkeypatch):
    """Trainings take place in this process; the directories that were trained, in order."""
    folders = []

    noting = lambda out: folders.append(str(out.relative_to("run")))  # noqa: E731
    monkeypatch.setattr(subruns, "call_all", in_this_process(train_lm, noting))
    return folders


def read(path):
    return json.loads(Path(path).read_text())


def compare(*flags):
    return call(compare_positions, *SMALL, "--out", "run", *flags)


@pytest.mark.usefixtures("drawn")
def test_a_comparison(trained, capsys):
    assert compare() == 0
    assert trained == [f"{name}/seed-{s}" for s in (0, 1) for name in ("learned", "alibi")]
    told = capsys.readouterr().out
    assert "no such position" in told and "learned positions end at 32" in told
    assert "target " in told and told.endswith("result: run/result.json\n")
    assert Path("run/curves.png").stat().st_size > 10_000

    found, text = read("run/result.json"), Path("run/result.json").read_text()
    assert str(Path.cwd()) not in text
    metrics = found["metrics"]
    lengths = {name: [f"perplexity of {name} at {n}" in metrics for n in (32, 64)]
               for name in ("learned", "alibi")}  # fmt: skip
    assert lengths == {"learned": [True, False], "alibi": [True, True]}
    values = [read(f"run/alibi/seed-{s}/result.json")["metrics"]["perplexity at 64"]["value"]
              for s in (0, 1)]  # fmt: skip
    entry = metrics["perplexity of alibi at 64"]
    assert entry["value"] == pytest.approx(np.mean(values)) and entry["n"] == 2
    assert entry["sd"] == pytest.approx(np.std(values, ddof=1)) and entry["sd"] > 0
    assert not entry["higher_is_better"]


def test_what_is_done_is_not_done_again(trained, capsys, monkeypatch):
    assert compare("--seeds", 1, "--schemes", "none", "rope") == 0
    trained.clear()
    assert compare("--seeds", 2, "--schemes", "none", "rope", "--resume") == 0
    assert trained == ["none/seed-1", "rope/seed-1"]
    Path("run/result.json").unlink()
    monkeypatch.setattr(runs, "hardware", lambda: {"cores": 99})
    assert compare("--seeds", 2, "--schemes", "none", "rope", "--resume") == 0
    there = read("run/none/seed-0/result.json")["hardware"]
    assert read("run/result.json")["hardware"] == there != {"cores": 99}
    assert compare("--seeds", 2, "--schemes", "none", "rope", "--resume") == 0
    assert "is complete" in capsys.readouterr().out


def test_schemes_differ_in_their_positions_only(trained, monkeypatch):
    starts = {}
    real = train_lm.engine.train

    def noted(model, *, batches, **parts):
        weights = {n: p.clone() for n, p in model.named_parameters() if "positions" not in n}
        starts[model.config.positions] = weights, batches.epoch(0)
        return real(model, batches=batches, **parts)

    monkeypatch.setattr(train_lm.engine, "train", noted)
    assert compare("--seeds", 1, "--schemes", "none", "shaw", "t5", "learned") == 0
    weights, order = starts["none"]
    for name, (others, other_order) in starts.items():
        assert weights.keys() == others.keys(), name
        assert all(torch.equal(weights[n], others[n]) for n in weights), name
        assert np.array_equal(order, other_order), name


def test_a_text_shorter_than_a_row_is_told_in_a_line(capsys):
    with open("corpus.jsonl", "w") as file:
        file.write(40 * '{"text": "a"}\n')
    flags = ["--preset", "smoke", "--data", "corpus.jsonl", "--cache", "cache", "--out", "one"]
    assert call(train_lm, *flags, "--vocab-size", 257, "--max-seq-len", 200) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "do not fill one row of --max-seq-len 200: give more text" in error


def test_scores_are_those_of_the_saved_model_on_the_whole_held_out_text():
    flags = ["--preset", "smoke", "--data", "corpus.jsonl", "--cache", "cache", "--out", "one"]
    assert call(train_lm, *flags, "--positions", "t5") == 0
    found = read("one/result.json")
    model = LanguageModel.load("one/model")
    (folder,) = Path("cache").glob("stream-*")
    text = Stream.open(folder)
    assert found["heldout_tokens"] == text.manifest["heldout"]["tokens"] - 1
    for length in (32, 64):
        rows = text.rows("heldout", length)
        nll = lm_objective.heldout_scores(model, rows)["token_loss"]
        value = found["metrics"][f"perplexity at {length}"]["value"]
        assert value == pytest.approx(math.exp(nll), rel=1e-5)
        bits = nll * rows.n_targets / text.n_bytes("heldout") / math.log(2)
        value = found["metrics"][f"bits per byte at {length}"]["value"]
        assert value == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--schemes", "rotary"], "no scheme 'rotary'; there are: none, sinusoidal"),
        (["--score-lengths", 64], "--score-lengths must have that of training, 32"),
        (["--settings", "n-layers="], "must be flags without dashes"),
        (["--settings", "seed=3"], "--settings seed: this script decides it"),
        (["--settings", "max_minutes=2"], "--settings max_minutes: this script decides it"),
        (["--seeds", 0], "--seeds 0 must be above 0"),
        (["--data", "nowhere.txt"], "no such file"),
        (["--heldout-every", 200], "documents are too few"),
        (["--heldout-every", 1], "--heldout-every 1 must be 2 or more"),
        (["--max-documents", 0], "--max-documents 0 must be 1 or more"),
        (["--vocab-size", 200], "--vocab-size 200 must be 257 or more"),
        (["--score-lengths", 32, -5], "must be above 0"),
    ],
)
def test_mistakes_are_told_in_a_line(flags, told, trained, capsys):
    assert compare(*flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and told in error
    assert not trained


def test_neither_other_settings_nor_another_text_mix_with_a_run_that_was_begun(trained, capsys):
    assert compare("--seeds", 1, "--schemes", "none") == 0
    for _ in range(2):  # finished or not
        assert compare("--seeds", 1, "--schemes", "none", "--resume", "--vocab-size", 310) == 2
        assert "was begun with --vocab-size 300" in capsys.readouterr().err
        Path("run/result.json").unlink(missing_ok=True)
    with open("corpus.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    assert compare("--seeds", 1, "--schemes", "none", "--resume") == 2
    assert "run was begun with other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--positions", "rotary"], "positions is 'rotary'"),
        (["--d-model", 33], "not a multiple of n_heads"),
        (["--n-heads", 0], "n_heads 0 is not 1 or more"),
        (["--d-ff", -5], "d_ff -5 is not 1 or more"),
        (["--n-layers", 0], "n_layers 0 is not 1 or more"),
        (["--vocab-size", 200], "--vocab-size 200 must be 257 or more"),
    ],
)
def test_mistakes_of_one_training(flags, told, capsys):
    base = ["--preset", "smoke", "--data", "corpus.jsonl", "--cache", "cache", "--out", "one"]
    assert call(train_lm, *base, *flags) == 2
    assert told in capsys.readouterr().err


def test_the_papers_numbers_are_the_rows_that_are_curated(tmp_path, monkeypatch):
    header = report.REPORTED.read_text().splitlines()[0]
    file = tmp_path / "reported.csv"
    ids = {n: f"alibi-paper-alibi-train-128-eval-{n}-wt103-ppl" for n in (128, 1024)}
    rows = [f"{i},s,a,b,c,d,perplexity,{value},ppl,0,247,,t,l"
            for i, value in zip(ids.values(), (23.98, 20.36), strict=True)]  # fmt: skip
    file.write_text("\n".join([header, *rows]) + "\n")
    monkeypatch.setattr(report, "REPORTED", file)
    assert extrapolation.reported() == {("alibi", 128): {128: 23.98, 1024: 20.36}}


def test_no_scheme_at_all():
    with pytest.raises(cli.UserError, match="--schemes .* must be one name or more"):
        compare_positions.Config(schemes=())


def test_every_scheme_has_its_colour_whatever_is_compared(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure))
    ours = {"alibi": {n: runs.metric(v) for n, v in ((8, 20.0), (16, 21.0))}}
    paper = {(name, 8): {8: 20.0, 16: 21.0} for name in ("sinusoidal", "rope", "t5", "alibi")}
    curve = [{"event": "train", "tokens": n, "train/token_loss": 1.0} for n in (8, 16)]
    extrapolation.plot(ours, paper, {"alibi": [curve]}, 8, tmp_path / "curves.png")
    lines = drawn[0].axes[1].get_legend().get_lines()
    assert [len(lines), len({line.get_color() for line in lines})] == [5, 4]


def test_growth_and_spread():
    results = [
        {"metrics": {f"perplexity at {n}": runs.metric(v) for n, v in one.items()}}
        for one in ({8: 10.0, 16: 30.0}, {8: 20.0, 16: 30.0})
    ]
    scores = extrapolation.over_seeds(results, "perplexity", (8, 16, 32))
    assert list(scores) == [8, 16]
    assert scores[8]["value"] == 15 and scores[8]["sd"] == pytest.approx(np.sqrt(50))
    assert extrapolation.growth(scores, 8) == 2

    events = [
        [{"event": "train", "train/token_loss": 9.0}] * 18
        + [{"event": "train", "train/token_loss": last} for last in (two, two + 1)]
        for two in (2, 4)
    ]
    losses = extrapolation.training_loss(events)
    assert losses["value"] == 3.5 and losses["sd"] == pytest.approx(np.sqrt(2))

    paper = {("x", 8): {8: 20.0, 16: 10.0, 32: 5.0}, ("x", 512): {512: 20.0, 1024: 90.0}}
    head, line, theirs = extrapolation.table({"x": scores}, {"x": losses}, {"x": 1.0}, 8, paper)
    assert head[:3] == ["perplexity", "at 8", "at 16"]
    assert line == ["x", "15.00 ± 7.07", "30.00 ± 0.00", "2.00", "3.500 ± 1.414", "1"]
    assert theirs == ["x, in the paper", "20.00", "10.00", "0.50", "–", "–"]
