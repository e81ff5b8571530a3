import gc
import json

import pytest

from common import cli, runs, subruns
from step4_finetune_glue import finetune, grid, spread
from tests import scripts
from tests.step4_finetune_glue import small

pytestmark = pytest.mark.usefixtures("one_thread_each")


@pytest.mark.usefixtures("drawn")
@pytest.mark.timeout(600)  # a process, on a machine that may be busy
def test_a_grid_is_shown_whole_and_its_best_cell_trained_again(tmp_path, capfd, monkeypatch):
    data, bert = small.glue(tmp_path / "glue"), small.bert(tmp_path / "bert")
    flags = ["--preset", "smoke", "--task", "RTE", "--data", data, "--model", bert]
    flags += ["--batch-sizes", 8, "--learning-rates", 1e-3, 1e-2, "--precision", "fp32"]
    flags += ["--fresh-seeds", 1, "--out", tmp_path / "grid"]
    with monkeypatch.context() as patch:
        patch.setattr(subruns, "call_all", scripts.in_this_process(finetune))
        assert small.run("grid", *flags, "--parallel", 2) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1] == f"result: {tmp_path}/grid/result.json"
    assert out.count("$ finetune.py") == 3
    assert (tmp_path / "grid" / "curves.png").stat().st_size > 10_000

    result = small.result(tmp_path / "grid")
    cells = {(c["batch_size"], c["learning_rate"]): c["accuracy"] for c in result["cells"]}
    assert set(cells) == {(8, 1e-3), (8, 1e-2)}
    for (size, rate), score in cells.items():
        one = small.result(tmp_path / "grid" / f"batch-{size}-rate-{rate:g}")
        assert one["metrics"]["accuracy"]["value"] == score and one["seeds"] == [0]
        assert (one["config"]["batch_size"], one["config"]["learning_rate"]) == (size, rate)
    metrics = {name: value["value"] for name, value in result["metrics"].items()}
    assert metrics["accuracy, grid max"] == max(cells.values())
    best = max(cells, key=cells.get)
    again = json.loads((tmp_path / "grid" / "best-seed-1" / "config.json").read_text())
    assert (again["batch_size"], again["learning_rate"], again["seed"]) == (*best, 1)
    fresh = small.result(tmp_path / "grid" / "best-seed-1")["metrics"]["accuracy"]["value"]
    assert next(iter(metrics.values())) == fresh  # the score is not the maximum

    # Stopped before its end it goes on, with what it was begun with, and does nothing twice
    (tmp_path / "grid" / "result.json").unlink()
    gc.collect()
    assert small.run("grid", *flags, "--resume", "--learning-rates", 1e-3) == 2
    assert "begun with --learning-rates" in capfd.readouterr().err
    gc.collect()
    cell = tmp_path / "grid" / "batch-8-rate-0.01"
    (cell / "result.json").unlink()  # nor did this one reach its end
    for file in (cell / "seed-0").glob("scores*"):
        file.unlink()
    for file, what in (
        (data / "RTE" / "train.tsv", "other data"),
        (data / "RTE" / "dev.tsv", "other data"),
        (bert / "model.safetensors", "another checkpoint"),
    ):
        whole = file.read_bytes()
        file.write_bytes(whole + whole.splitlines(True)[-1])
        assert small.run("grid", *flags, "--resume") == 2
        assert f"was begun with {what}" in capfd.readouterr().err
        file.write_bytes(whole)
        gc.collect()
    monkeypatch.setattr(runs, "hardware", lambda: {"cores": 99})
    assert small.run("grid", *flags, "--resume") == 0
    assert capfd.readouterr().out.count("$ finetune.py") == 1
    after = small.result(tmp_path / "grid")
    assert (after["metrics"], after["hardware"]) == (result["metrics"], result["hardware"])


def test_spread():
    assert spread.of([4, 1, 2, 3, 5]) == {
        "mean": 3, "median": 3, "min": 1, "max": 5, "lower quartile": 2, "upper quartile": 4,
    }  # fmt: skip
    table = spread.table({(8, 1e-4): 50.0, (8, 3e-4): 61.25}, (8,), (1e-4, 3e-4))
    assert table.split() == ["batch", "0.0001", "0.0003", "8", "50.00", "61.25"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--epochs", 0], "--epochs 0"),
        (["--batch-sizes", 8, 0], "--batch-sizes (8, 0)"),
        (["--settings", "impl="], "must be flags without dashes"),
        (["--settings", "=hf"], "must be flags without dashes"),
        (["--settings", "max-minutes=2"], "--settings max_minutes: this script decides it"),
        (["--task", "IMDB"], "unknown task"),
        (["--task", "AX"], "AX has nothing to train on"),
        (["--model", "/nowhere/bert"], "no such folder"),
        (["--data", "/nowhere/glue"], "no such folder"),
    ],
)
def test_grids_that_cannot_be(given, told, tmp_path, capfd):
    assert small.run("grid", *given, "--out", tmp_path / "grid") == 2
    assert told in capfd.readouterr().err
    left = {path.name for path in (tmp_path / "grid").glob("*")}
    assert left <= {"config.json", ".lock"}  # which the next command, mended, writes anew


def test_settings_are_flags_with_or_without_a_value():
    grid.Config(settings=("new-head", "layer-decay=0.9", "tracker=a b=c"))
    for bad in ("", "--impl", "impl=", "a b", "out=x", "seed=3", "train_limit=5", "resume"):
        with pytest.raises(cli.UserError, match="--settings"):
            grid.Config(settings=(bad,))
