"""ablations.py, its trainings in this process, on few and short sentences."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch

from common import runs, subruns
from step1_transformer import ablations, decoding, table3, train
from step1_transformer.model import Transformer
from tests import scripts

SMALL = ["--preset", "smoke", "--data", "pairs.tsv", "--source", "de", "--target", "en"]
SMALL += ["--vocab-size", 270, "--max-tokens", 200, "--max-steps", 2]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with 300 pairs in it, and one thread."""
    handler, rng = signal.getsignal(signal.SIGTERM), random.Random(0)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    with open("pairs.tsv", "w") as file:
        for _ in range(300):
            words = rng.choices(["eins", "zwei", "drei", "vier"], k=rng.randint(1, 6))
            file.write(f"{' '.join(words)}\t{' '.join(w.upper() for w in words[::-1])}\n")
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def trained(monkeypatch):
    """Trainings take place in this process; the directories that were trained, in order."""
    folders = []

    noting = lambda out: folders.append(str(out.relative_to("run")))  # noqa: E731
    monkeypatch.setattr(subruns, "call_all", scripts.in_this_process(train, noting))
    monkeypatch.setattr(runs.Run, "plot", lambda run: None)  # seconds each
    return folders


def call(*flags):
    """Run ablations.py in this process; its exit code."""
    return scripts.call(ablations, *flags)


def read(path):
    return json.loads(Path("run", path).read_text())


@pytest.mark.usefixtures("drawn")
def test_every_variant_differs_from_the_base_as_it_says(trained, capsys):
    flags = [*SMALL, "--seeds", 1, "--variants", *table3.VARIANTS, "--out", "run"]
    assert call(*flags, "--settings", "n-layers=1", "d-model=16") == 0
    same = {"d_model": 16, "n_encoder_layers": 1, "positions": "sinusoidal", "n_heads": 8}
    same |= {"norm": "post"}
    for name, changes in {"base": {}, **table3.VARIANTS}.items():
        model = vars(Transformer.load(f"run/{name}/seed-0/model").config)
        wanted = same | {key: value for key, value in changes.items() if key in same}
        assert {key: model[key] for key in same} == wanted, name
        smoothing = read(f"{name}/seed-0/config.json")["label_smoothing"]
        assert smoothing == changes.get("label_smoothing", 0.1)
    found = read("result.json")
    assert len(found["metrics"]) == 2 * 3 * 7 and len(trained) == 7
    assert found["paper"]["heads_1"] == {"bleu": -0.9, "perplexity": 0.37}
    table = capsys.readouterr().out
    assert "pre norm" in table and "-0.90" in table
    assert Path("run/curves.png").stat().st_size > 10_000


def test_what_is_done_is_never_done_again(trained, monkeypatch):
    flags = [*SMALL, "--out", "run"]
    assert call(*flags) == 0
    order = [f"{name}/seed-{seed}" for seed in (0, 1) for name in ("base", "label_smoothing_0")]
    assert trained == order
    first = read("result.json")
    # A third seed needs two trainings, and only those are translated with
    Path("run/result.json").unlink()
    translate, models = decoding.translate, []
    monkeypatch.setattr(
        decoding, "translate", lambda *a, **k: models.append(0) or translate(*a, **k)
    )
    assert call(*flags, "--seeds", 3, "--resume") == 0
    assert trained[4:] == ["base/seed-2", "label_smoothing_0/seed-2"] and len(models) == 2 * 2
    again = read("result.json")["metrics"]["perplexity base"]
    scores = [read(f"base/seed-{seed}/scores.json")["perplexity"] for seed in range(3)]
    assert again["n"] == 3 and again["value"] == pytest.approx(sum(scores) / 3)
    assert first["metrics"]["perplexity base"]["value"] == pytest.approx(sum(scores[:2]) / 2)


def test_slices_lead_to_the_same_end(trained, capfd):
    assert call(*SMALL, "--seeds", 1, "--out", "run") == 0
    whole = read("result.json")["metrics"]
    flags = [*SMALL, "--seeds", 1, "--out", "run/sliced", "--slice-minutes", 1e-6, "--resume"]
    codes = [call(*flags)]
    told = capfd.readouterr().err.splitlines()
    assert told[-2].endswith("go on with:") and told[-1].endswith("--slice-minutes 1e-06 --resume")
    while codes[-1] == 75 and len(codes) < 20:
        codes.append(call(*flags))
    assert codes[-1] == 0 and len(codes) > 3, codes  # each training and translating is a slice
    assert read("sliced/result.json")["metrics"] == whole


def test_results_of_other_settings_are_not_mixed(trained, capfd):
    assert call(*SMALL, "--seeds", 1, "--out", "run") == 0
    Path("run/result.json").unlink()
    assert call(*SMALL, "--out", "run", "--max-steps", 3, "--resume") == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "run was begun with --max-steps 2: go on so, or choose another --out" in line


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--variants", "heads_7"], "no variant 'heads_7'; there are: learned_positions"),
        (["--settings", "dropout="], "must be flags without dashes, as in: dropout=0.3"),
        (["--settings", "max-steps=3"], "--settings max_steps: this script decides it"),
        (["--seeds", 0], "--seeds 0 must be above 0"),
        (["--data", "gone.tsv"], "gone.tsv"),
    ],
)
def test_bad_input(flags, told, capfd):
    assert call(*SMALL, *flags, "--out", "run") == 2
    assert told in capfd.readouterr().err.splitlines()[-1]


def test_the_papers_own_differences():
    found = {name: table3.reported(name) for name in table3.VARIANTS}
    assert found["label_smoothing_0"] == {"bleu": -0.5, "perplexity": -0.25}
    assert found["learned_positions"] == {"bleu": -0.1, "perplexity": 0.0}
    assert found["heads_4"] == {"bleu": -0.3, "perplexity": 0.08}
    assert found["pre_norm"] == {}


def test_a_difference_is_taken_seed_by_seed():
    """Both vary by 10 points between seeds; their difference does not."""
    base = [{"bleu": 10.0, "perplexity": 5.0}, {"bleu": 20.0, "perplexity": 6.0}]
    here = [{"bleu": 11.0, "perplexity": 4.0}, {"bleu": 21.0, "perplexity": 5.0}]
    found = table3.differences(here, base)
    assert (found["bleu"]["value"], found["bleu"]["sd"], found["bleu"]["n"]) == (1, 0, 2)
    assert found["perplexity"]["value"] == -1 and not found["perplexity"]["higher_is_better"]
