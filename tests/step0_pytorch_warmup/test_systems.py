"""Mixed precision, profiling and data parallelism as a learner runs them, and what they rest on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import cli
from common.cli import UserError
from step0_pytorch_warmup import data_parallel, digits, mixed_precision, mlp, profiling

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def call(script, out, *flags):
    """Run a script's main in this process; its result."""
    args = ["--preset", "smoke", "--out", str(out), *flags]
    script.main(cli.parse(script.Config, script.PRESETS, args))
    return json.loads((out / "result.json").read_text())


@pytest.mark.usefixtures("drawn")
def test_mixed_precision(tmp_path, capsys):
    metrics = call(mixed_precision, tmp_path, "--epochs", "4")["metrics"]
    found = {name: m["value"] for name, m in metrics.items() if name.startswith("accuracy")}
    assert len(found) == len(mixed_precision.WAYS)
    assert max(found.values()) - min(found.values()) < 3 and min(found.values()) > 85
    text = capsys.readouterr().out
    assert re.search(r"fp16 +6.55e\+04 .* inf +0e\+00", text)
    assert re.search(r"bf16 .* 256 +70144 ", text)
    assert "bf16 1.000" in text and (tmp_path / "curves.png").exists()


def test_a_scale_that_overflows_is_halved_until_it_fits():
    """Without the skipping of steps, the weights would be NaN after the first."""
    train = [x.to(mixed_precision.DEVICE) for x in mlp.tensors(digits.load()[0])]
    config = mixed_precision.Config(epochs=1)
    model = mixed_precision.fit(train, config, torch.float32, torch.float16, 2**30)
    assert all(p.isfinite().all() for p in model.parameters())
    assert mlp.score(model, *train)[1] > 60


def test_a_lesson_done_again_takes_the_place_of_its_earlier_self(tmp_path, capsys):
    assert call(profiling, tmp_path, "--threads", "1")["config"]["threads"] == 1
    assert call(profiling, tmp_path, "--threads", "2")["config"]["threads"] == 2
    capsys.readouterr()
    assert call(profiling, tmp_path, "--resume")["config"]["threads"] == 2
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="another script's run"):
        call(mixed_precision, tmp_path)
    with pytest.raises(UserError, match="brings its own data"):
        call(profiling, tmp_path, "--data", "sotu")
    assert json.loads((tmp_path / "config.json").read_text())["threads"] == 2


@pytest.mark.usefixtures("drawn")
def test_profiling(tmp_path, capsys):
    metrics = call(profiling, tmp_path, "--threads", "1")["metrics"]
    assert metrics["microseconds of a small operation"]["value"] > 0
    text = capsys.readouterr().out
    assert "aten::addmm" in text and "1 thread " in text and "4 GELU" not in text
    assert (tmp_path / "curves.png").exists()


def test_the_joined_gelu_is_gelu():
    x = torch.linspace(-5, 5, 101)
    theirs = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(profiling.gelu(x), theirs, rtol=0, atol=1e-5)


def test_compile_is_skipped_without_a_compiler(monkeypatch, capsys):
    def refuse(function):
        def call(*arguments):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    assert profiling.compiled(profiling.Config(width=8, rounds=1)) is None
    assert "torch.compile is skipped" in capsys.readouterr().out


def parallel(out, *flags):
    """Run data_parallel.py as a script, for it starts processes of its own."""
    script = str(ROOT / "step0_pytorch_warmup/data_parallel.py")
    command = [sys.executable, script, "--preset", "smoke", "--out", str(out), *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    return done.returncode, done.stdout, done.stderr


def test_two_processes_are_one(tmp_path):
    code, out, err = parallel(tmp_path)
    assert code == 0, err
    assert "17 + 16 digits" in out and out.splitlines()[-1].startswith("result: ")
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    found = {name: entry["value"] for name, entry in metrics.items()}
    assert found["by_hand"] <= 1e-6 and found["DDP"] <= 1e-6
    assert found["DDP_mean_of_means"] > 1e-4, "ragged shards should tell the wrong mean"


@pytest.mark.parametrize(
    ("script", "flags", "told"),
    [
        (data_parallel, ["--processes", "1"], "--processes 1 must be 2 or more"),
        (data_parallel, ["--batch-size", "1"], "--batch-size 1 must be 2 or more, a digit for"),
        (mixed_precision, ["--width", "0"], "--width 0 must be 1 or more"),
        (profiling, ["--threads", "0"], "--threads 0 must be 1 or more"),
    ],
)
def test_bad_input(script, flags, told):
    with pytest.raises(UserError, match=told):
        cli.parse(script.Config, script.PRESETS, flags)
