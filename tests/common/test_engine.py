import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common import engine
from common.cli import Interrupted, UserError
from common.runs import Run
from tests.common import toy

TOY = [sys.executable, str(Path(toy.__file__))]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train(out, **flags):
    """Train the toy in this process; returns its weights as one vector."""
    toy.main(toy.Config(**{**toy.PRESETS["cpu"], "out": str(out), **flags}))
    return weights(out)


def weights(out):
    state = load_file(sorted(Path(out).glob("checkpoints/step-*"))[-1] / "model.safetensors")
    return torch.cat([state[name].flatten() for name in sorted(state)])


def scores(out):
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    timed = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.fixture(scope="module")
def one_batch(tmp_path_factory):
    torch.set_default_dtype(torch.float64)
    out = tmp_path_factory.mktemp("engine") / "one"
    return train(out), scores(out)


@pytest.mark.parametrize("micro_batch_size", [16, 23, 7, 1])
def test_accumulation_equals_one_big_batch(tmp_path, one_batch, micro_batch_size):
    accumulated = train(tmp_path / "run", micro_batch_size=micro_batch_size)
    assert torch.allclose(accumulated, one_batch[0], rtol=0, atol=1e-9)
    for ours, big in zip(scores(tmp_path / "run"), one_batch[1], strict=True):
        assert ours == pytest.approx(big, abs=1e-9)


def test_a_mean_of_means_would_fail_this_file(tmp_path, one_batch, monkeypatch):
    """The wrong accumulation, each micro-batch divided by its own count, moves the weights."""

    def own_count(self, micro_batches):
        return {name: n * len(micro_batches) for name, n in micro_batches[0]["targets"].items()}

    monkeypatch.setattr(engine.Trainer, "_total_targets", own_count)
    wrong = train(tmp_path / "run", micro_batch_size=16)
    assert (wrong - one_batch[0]).abs().max() > 1e-5


def launch_two(*flags):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, *TOY[1:], *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("micro_batch_size", [32, 10])
def test_two_processes_equal_one(tmp_path, one_batch, micro_batch_size):
    done = launch_two("--out", tmp_path / "run", "--micro-batch-size", micro_batch_size)
    assert done.returncode == 0 and "2 process(es)" in done.stdout
    assert torch.allclose(weights(tmp_path / "run"), one_batch[0], rtol=0, atol=1e-9)
    for ours, one in zip(scores(tmp_path / "run"), one_batch[1], strict=True):
        assert ours == pytest.approx(one, abs=1e-9)


def test_two_processes_stop_together_and_go_on(tmp_path, one_batch):
    flags = ["--out", tmp_path / "run", "--resume"]
    stopped = launch_two(*flags, "--slice-minutes", "1e-9")
    assert stopped.stderr.count("stopped at step 1, saved") == 2
    assert launch_two(*flags).returncode == 0
    assert torch.allclose(weights(tmp_path / "run"), one_batch[0], rtol=0, atol=1e-9)


SLOW = ["--dropout", "0.3", "--max-steps", "400", "--save-minutes", "0.001", "--log-every", "1"]


def test_resume_after_kill_is_bit_identical(tmp_path):
    """kill -9 at random moments, resume each time: same weights, same metrics, to the last bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*TOY, *SLOW, "--out", str(whole)], check=True, capture_output=True)
    kills = 0
    for attempt in range(30):
        process = subprocess.Popen(
            [*TOY, *SLOW, "--out", str(killed), "--resume"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if attempt < 3:
            metrics = killed / "metrics.jsonl"
            had = metrics.stat().st_size if metrics.exists() else 0
            while process.poll() is None and (
                not metrics.exists() or abs(metrics.stat().st_size - had) < 4000
            ):
                time.sleep(0.005)
            time.sleep(random.random() * 0.1)
            kills += process.poll() is None
            process.kill()
        if process.wait() == 0:
            break
    assert kills, "every attempt ended before it was killed"
    assert torch.equal(weights(killed), weights(whole))
    assert scores(killed) == scores(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_tells_how_to_resume(tmp_path, number):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*TOY, "--max-steps", "100000", "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (out / "metrics.jsonl").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, number)
    said = process.communicate()[1]
    assert process.returncode == 128 + number
    assert list(out.glob("checkpoints/step-*")) and "--resume" in said


def test_slices_equal_the_whole(tmp_path):
    whole = train(tmp_path / "whole", max_steps=30, dropout=0.2)
    for _ in range(200):
        try:
            sliced = train(
                tmp_path / "s", max_steps=30, dropout=0.2, slice_minutes=1e-5, resume=True
            )
            break
        except Interrupted as stop:
            assert stop.signum == 0
    assert torch.equal(sliced, whole)


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    train(tmp_path / "run", max_steps=5)
    before = weights(tmp_path / "run")

    def full(self, folder, tokenizer=None, state_dict=None):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(toy.Toy, "save", full)
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match=r"No space left.*step-00000005 is complete"):
        train(tmp_path / "run", max_steps=8)
    assert torch.equal(weights(tmp_path / "run"), before)
    assert not list(tmp_path.glob("run/checkpoints/.step*"))


def test_divergence_stops_and_names_the_checkpoint(tmp_path, monkeypatch):
    real = toy.losses

    def poisoned(model, batch):
        return {k: v * float("nan") if "loss" in k else v for k, v in real(model, batch).items()}

    monkeypatch.setattr(toy, "losses", poisoned)
    with pytest.raises(UserError, match="diverged at step 0.*no checkpoint was written"):
        train(tmp_path / "run")


def test_other_settings_are_not_resumed(tmp_path):
    train(tmp_path / "run", max_steps=5)
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path / "run", max_steps=9, resume=True)


def test_max_minutes_fits_the_schedule(tmp_path):
    start = time.monotonic()
    train(tmp_path / "run", max_steps=None, max_minutes=0.05, precision="auto")
    assert 1 < time.monotonic() - start < 60
    events = scores(tmp_path / "run")
    assert events[-2]["lr"] < 0.2 * max(e.get("lr", 0) for e in events)


def test_evaluate_divides_by_the_targets_of_the_whole_split():
    model = toy.Toy().double()
    whole = engine.evaluate(model, [toy.make_batch(np.arange(90), 0)], toy.losses)
    parts = [toy.make_batch(np.arange(a, b), 0) for a, b in ((0, 5), (5, 70), (70, 90))]
    assert engine.evaluate(model, parts, toy.losses) == pytest.approx(whole, abs=1e-12)


def test_a_finished_checkpoint_is_complete(tmp_path):
    train(tmp_path / "run", max_steps=4)
    saved = Run(tmp_path / "run").checkpoints()[-1]
    state = json.loads((saved / "trainer" / "state.json").read_text())
    assert state["step"] == state["total_steps"] == 4
