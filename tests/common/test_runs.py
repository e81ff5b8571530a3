import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import cli, runs
from common.cli import UserError
from common.runs import Run

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from common import cli, runs
run = runs.Run.open(cli.RunConfig(out=sys.argv[1], resume=True), "")
print("held", flush=True)
sys.stdin.read()
"""


def open_run(out, **flags):
    return Run.open(cli.RunConfig(out=str(out), **flags), "unused")


def release(run):
    """What the end of the process does."""
    run._lock.close()


def test_a_new_run_writes_its_config(tmp_path):
    run = open_run(tmp_path / "a" / "b", seed=3)
    assert json.loads((run.path / "config.json").read_text())["seed"] == 3
    assert not run.finished()


def test_without_out_the_script_names_the_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run.open(cli.RunConfig(), "step2_bert/x").path == Path("runs/step2_bert/x")
    assert Path("runs/step2_bert/x/config.json").exists()


def test_a_directory_in_use_is_refused_even_to_resume(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another process"):
            open_run(tmp_path / "run", resume=True)
        other.kill()
    open_run(tmp_path / "run", resume=True)


def test_an_existing_run_is_refused_unless_resumed(tmp_path):
    run = open_run(tmp_path, seed=1)
    run.log("train", step=1)
    release(run)
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        open_run(tmp_path)
    open_run(tmp_path, seed=2, resume=True)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_a_run_that_failed_at_once_may_be_tried_again(tmp_path):
    release(open_run(tmp_path, seed=1))
    open_run(tmp_path, seed=2)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 2


def test_processes_that_only_compute_touch_nothing(tmp_path):
    run = Run.open(cli.RunConfig(out=str(tmp_path / "run")), "", main=False)
    run.log("train", step=1)
    run.rewind(0)
    run.result(metrics={})
    assert not run.path.exists()


def test_metrics_come_back_and_a_torn_last_line_is_dropped(tmp_path):
    run = open_run(tmp_path)
    assert run.metrics() == []
    run.log("train", step=1, loss=0.5)
    run.log("eval", step=2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "st')
    assert run.metrics() == [
        {"event": "train", "step": 1, "loss": 0.5},
        {"event": "eval", "step": 2},
    ]


def test_rewind_forgets_later_steps_and_mends_a_torn_line(tmp_path):
    run = open_run(tmp_path)
    for step in range(5):
        run.log("train", step=step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"event"')
    run.rewind(2)
    run.log("train", step=3)
    assert [event["step"] for event in run.metrics()] == [0, 1, 2, 3]


def test_only_the_newest_checkpoints_stay(tmp_path):
    run = open_run(tmp_path)
    for step in (5, 90, 1000):
        unfinished = tmp_path / "checkpoints" / f".step-{step}"
        unfinished.mkdir(parents=True)
        (unfinished / "weights").write_text(str(step))
        assert run.publish_checkpoint(unfinished, step).name == f"step-{step:08d}"
    assert [c.name for c in run.checkpoints()] == ["step-00000090", "step-00001000"]
    assert (run.checkpoints()[-1] / "weights").read_text() == "1000"


def test_an_unfinished_checkpoint_is_none(tmp_path):
    run = open_run(tmp_path)
    (tmp_path / "checkpoints" / ".step-7").mkdir(parents=True)
    assert run.checkpoints() == []


def test_writing_replaces_a_file_and_leaves_nothing_beside(tmp_path):
    runs.write_json(tmp_path / "x.json", {"é": 1})
    runs.write_json(tmp_path / "x.json", {"é": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"é": 2}
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    runs.write_text(tmp_path / "x.json", "old")
    (tmp_path / f".x.json.{os.getpid()}.new").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        runs.write_text(tmp_path / "x.json", "new")
    assert error.value.errno == errno.ENOSPC
    assert (tmp_path / "x.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_result_says_where_it_comes_from_and_is_the_last_line(tmp_path, capsys):
    run = open_run(tmp_path)
    path = run.result(step="step2_bert", metrics={"loss": runs.metric(1.5, unit="nats")})
    values = json.loads(path.read_text())
    assert values["metrics"]["loss"] == {
        "value": 1.5, "sd": None, "n": 1, "unit": "nats", "higher_is_better": True
    }  # fmt: skip
    assert values["hardware"]["device"] == "cpu" and values["hardware"]["cores"] >= 1
    assert values["hardware"]["processes"] == 1
    assert {"command", "commit", "date"} <= values.keys()
    assert capsys.readouterr().out.splitlines()[-1] == f"result: {path}"
    assert run.finished()
    assert capsys.readouterr().out.splitlines()[-1] == f"result: {path}"


def test_what_a_result_ran_on_is_what_its_parts_ran_on_if_they_agree(tmp_path):
    with_parts = lambda *parts: json.loads(  # noqa: E731
        Run(tmp_path).result(parts, step="step2_bert").read_text()
    )["hardware"]
    one, other = {"hardware": {"cores": 77}}, {"hardware": {"cores": 78}}
    assert with_parts(one, one) == {"cores": 77}
    for parts in ((), (one, other), ({}, {}), (one, {})):
        assert with_parts(*parts) == runs.hardware()


@pytest.mark.usefixtures("drawn")
def test_curves_are_drawn_from_the_metrics(tmp_path):
    run = open_run(tmp_path)
    assert run.plot() is None
    for step in (1, 2):
        run.log("train", step=step, tokens=step * 10, **{"train/mlm_loss": 3.0 / step})
    run.log("eval", step=2, tokens=20, **{"heldout/mlm_loss": 2.0})
    assert run.plot().read_bytes().startswith(b"\x89PNG")
