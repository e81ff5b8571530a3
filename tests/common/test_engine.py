import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from common import engine
from common.cli import Interrupted, UserError
from common.runs import Run
from tests import scripts
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
    run(out, **flags)
    return weights(out)


def run(out, data_key="", **flags):
    """Train the toy in this process; returns the final state."""
    return toy.main(toy.Config(**{**toy.PRESETS["cpu"], "out": str(out), **flags}), data_key)


def checkpoints(out):
    return sorted(Path(out).glob("checkpoints/step-*"))


def weights(out):
    state = load_file(checkpoints(out)[-1] / "model.safetensors")
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

    real = engine.Trainer._step

    def own_count(self, window):
        first = window.micro_batches[0]["targets"]
        window.targets = {name: n * len(window.micro_batches) for name, n in first.items()}
        return real(self, window)

    monkeypatch.setattr(engine.Trainer, "_step", own_count)
    wrong = train(tmp_path / "run", micro_batch_size=16)
    assert (wrong - one_batch[0]).abs().max() > 1e-5


TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TWO += TOY[1:]


def call(command, *flags, **options):
    flags = map(str, flags)
    return subprocess.run([*command, *flags], capture_output=True, text=True, **options)


def test_two_processes_equal_one(tmp_path):
    """Of 103 samples one process computes 4 x 13, the other 3 x 17; of the last batch of an epoch,
    a single sample, the other computes nothing."""
    one = train(tmp_path / "one", batch_size=103, micro_batch_size=103)
    flags = ("--batch-size", 103, "--micro-batch-size", 17)
    done = call(TWO, "--out", tmp_path / "two", *flags)
    assert done.returncode == 0 and "2 process(es)" in done.stdout
    assert torch.allclose(weights(tmp_path / "two"), one, rtol=0, atol=1e-9)
    for ours, wanted in zip(scores(tmp_path / "two"), scores(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(wanted, abs=1e-9)


def wait_for_training(out):
    metrics, began = out / "metrics.jsonl", time.monotonic()
    while not (metrics.exists() and "train/" in metrics.read_text()):
        assert time.monotonic() < began + 60, "no step of training in a minute"
        time.sleep(0.05)


@contextlib.contextmanager
def ended_with_the_test(command, **options):
    """A process that does not outlive the test, however that ends."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.terminate()  # a launcher then ends its own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()


def test_two_processes_stop_together_and_go_on_to_an_early_stop(tmp_path):
    flags = ["--out", tmp_path / "run", "--resume", "--eval-every", 2, "--stop-at", 4]
    stopped = call(TWO, *flags, "--slice-minutes", "1e-9")
    assert 1 <= stopped.stderr.count("stopped at step 1, saved") <= 2
    done = call(TWO, *flags)
    assert done.returncode == 0 and "stopped early at step 6" in done.stdout
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000006"
    one = train(tmp_path / "one", eval_every=2, stop_at=4)
    assert torch.allclose(weights(tmp_path / "run"), one, rtol=0, atol=1e-9)
    steps = [[e["step"] for e in scores(tmp_path / name)] for name in ("run", "one")]
    assert steps[0] == steps[1]
    stays_ended(tmp_path / "run")


def stays_ended(out):
    """Nothing is left to do for a run that stopped early at step 6."""
    before = weights(out)
    state = run(out, eval_every=2, stop_at=4, resume=True)
    assert state.step == state.total_steps == 6
    assert torch.equal(weights(out), before)


def test_an_early_stop_is_an_end(tmp_path, capsys):
    stopped = train(tmp_path / "run", eval_every=2, stop_at=4)
    assert "stopped early at step 6" in capsys.readouterr().out
    assert checkpoints(tmp_path / "run")[-1].name == "step-00000006"
    stays_ended(tmp_path / "run")
    assert not torch.equal(train(tmp_path / "whole", eval_every=2), stopped)


def test_a_signal_to_one_of_two_processes_stops_both(tmp_path):
    out = tmp_path / "run"
    command = [*TWO, "--out", str(out), "--max-steps", "1000000"]
    with ended_with_the_test(command, stdout=-3, stderr=subprocess.PIPE, text=True) as launcher:
        wait_for_training(out)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGTERM)
        _, told = launcher.communicate(timeout=60)
    assert 1 <= told.count("stopped at step") <= 2  # the launcher may end one before it speaks
    assert f"saved {checkpoints(out)[-1]}" in told


def test_settings_of_accelerate_do_not_change_the_training(tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)  # which bf16 would replace: it leaves float64 alone
    whole = train(tmp_path / "whole", double=False)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(True)  # or it would keep those of an earlier test
    try:
        assert torch.equal(train(tmp_path / "run", double=False), whole)
    finally:
        AcceleratorState._reset_state(True)


def test_fsdp_is_refused(monkeypatch):
    made = SimpleNamespace(distributed_type=DistributedType.FSDP)
    monkeypatch.setattr("accelerate.Accelerator", lambda **options: made)
    with pytest.raises(UserError, match="FSDP is not supported yet; use DDP"):
        engine.accelerator(toy.Config())


def test_resume_after_kill_is_bit_identical(tmp_path):
    """kill -9 at random moments, resume each time: same weights, same metrics, to the last bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    slow = dict(dropout=0.3, max_steps=150, save_minutes=0.001)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in slow.items()]
    kills = 0
    for _ in range(2):
        before = checkpoints(killed)
        process = subprocess.Popen(
            [*TOY, *flags, "--out", str(killed), "--resume"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and checkpoints(killed) in (before, before[1:]):
            time.sleep(0.005)
        time.sleep(random.random() * 0.2)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills, "every attempt ended before it was killed"
    assert torch.equal(train(killed, **slow, resume=True), train(whole, **slow))
    assert scores(killed) == scores(whole)
    assert not list(killed.glob("checkpoints/.step*"))


def test_a_kill_before_the_first_step_keeps_the_plan(tmp_path, one_batch, monkeypatch):
    def never(self, *args):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "_step", never)
        with pytest.raises(AssertionError):
            run(tmp_path / "run")
    monkeypatch.setattr(engine.Trainer, "_plan", never)
    assert torch.equal(train(tmp_path / "run", resume=True), one_batch[0])
    assert scores(tmp_path / "run") == one_batch[1]


def test_a_signal_saves_and_tells_how_to_resume(tmp_path):
    out = tmp_path / "run"
    command = [*TOY, "--max-steps", "100000", "--out", str(out)]
    with ended_with_the_test(command, stdout=-3, stderr=subprocess.PIPE, text=True) as process:
        wait_for_training(out)
        os.kill(process.pid, signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert f"saved {checkpoints(out)[-1]}" in said and "--resume" in said


def test_ctrl_c_saves_and_tells_how_to_resume(tmp_path, monkeypatch, capsys):
    out, handler = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    poison(monkeypatch, 5, lambda loss, model: os.kill(os.getpid(), signal.SIGINT) or loss)
    try:
        assert scripts.call(toy, "--max-steps", 100000, "--out", out) == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, handler)
    said = capsys.readouterr().err
    assert f"saved {checkpoints(out)[-1]}" in said and "--resume" in said
    assert checkpoints(out)[-1].name == "step-00000006"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once_with_its_own_code(number):
    with pytest.raises(Interrupted) as stop, engine._noting_signals() as received:
        os.kill(os.getpid(), number)
        assert received == [number]
        os.kill(os.getpid(), number)
    assert stop.value.signum == number


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_slices_equal_the_whole(tmp_path, optimizer):
    flags = dict(max_steps=30, dropout=0.2, optimizer=optimizer)
    whole = train(tmp_path / "whole", **flags)
    slices = 0
    while True:
        try:
            sliced = train(tmp_path / "sliced", **flags, slice_minutes=1e-5, resume=True)
            break
        except Interrupted as stop:
            assert stop.signum == 0
            slices += 1
    assert 1 < slices < 30
    assert torch.equal(sliced, whole)
    assert scores(tmp_path / "sliced") == scores(tmp_path / "whole")


@pytest.mark.parametrize("command", [TOY, TWO], ids=["one process", "two"])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, command):
    """Files may hold 4,000 bytes: the weights fit, AdamW's moments after the first step do not."""
    out = tmp_path / "run"
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4000, 4000))
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = call(command, "--out", out, "--max-steps", 5, preexec_fn=limit, env=env)
    kept = out / "checkpoints" / "step-00000000"
    told = [line for line in done.stderr.splitlines() if "cannot write a checkpoint" in line]
    # Of two processes one may be ended by the launcher before it has spoken
    assert 1 <= len(told) <= (1 if command is TOY else 2)
    assert told[0].startswith("error: ") and told[0].endswith(f"{kept} is complete")
    assert done.returncode != 0 and "Traceback" not in done.stderr.split("torch/distributed")[0]
    assert list((out / "checkpoints").iterdir()) == [kept]
    assert torch.isfinite(weights(out)).all()


def test_what_a_killed_save_left_is_removed(tmp_path):
    left = tmp_path / "run" / "checkpoints" / ".step-00000007"
    left.mkdir(parents=True)
    run(tmp_path / "run", max_steps=1)
    assert checkpoints(tmp_path / "run") and not left.exists()


@pytest.mark.parametrize("name", ["state.json", "optimizer-0.safetensors"])
def test_a_truncated_checkpoint_is_not_resumed(tmp_path, name):
    run(tmp_path / "run", max_steps=2)
    file = checkpoints(tmp_path / "run")[-1] / "trainer" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{file.parent} cannot be read"):
        run(tmp_path / "run", max_steps=2, resume=True)


def poison(monkeypatch, after, change):
    """Let `change(loss, model)` replace the losses from the `after`th batch of training on."""
    real, seen = toy.losses, Counter()

    def poisoned(model, batch):
        parts = real(model, batch)
        seen.update(batches=int(model.training))
        if seen["batches"] > after and model.training:
            parts["word_loss"] = change(parts["word_loss"], model)
        return parts

    monkeypatch.setattr(toy, "losses", poisoned)


def test_a_second_training_ends_the_tracker_of_the_first(tmp_path, monkeypatch):
    told = []

    class Tracker:
        def __init__(self, name):
            self.name = name

        def log(self, values, step):
            told.append((self.name, step))

        def finish(self):
            told.append((self.name, "finished"))

    made = toy.engine.accelerator(toy.Config())
    monkeypatch.setattr(toy.engine, "accelerator", lambda config: made)
    monkeypatch.setattr(
        made, "init_trackers", lambda name, settings: made.trackers.append(Tracker(name))
    )
    monkeypatch.setattr(made, "log", lambda v, step: [t.log(v, step) for t in made.trackers])
    for name in ("a", "b"):
        run(tmp_path / name, tracker="tensorboard", max_steps=1)
    names = [name for name, _ in told]
    assert ("a", "finished") in told and names == sorted(names)


def test_a_loss_of_nan_stops_and_the_last_checkpoint_is_good(tmp_path, monkeypatch):
    poison(monkeypatch, 5, lambda loss, model: loss * float("nan"))
    with pytest.raises(UserError, match=r"diverged at step 6 \(loss nan.*is .*step-00000005;"):
        run(tmp_path / "run", save_minutes=0)
    assert torch.isfinite(weights(tmp_path / "run")).all()


def test_a_gradient_of_nan_stops_and_the_loss_is_told(tmp_path, monkeypatch):
    poison(monkeypatch, 5, lambda loss, model: loss + (0 * model.word.weight).sqrt().sum())
    with pytest.raises(UserError, match=r"diverged at step 6 \(loss 2\.\d+, gradient norm nan\)"):
        run(tmp_path / "run", save_minutes=0)


def test_a_gradient_of_nan_is_told_before_it_is_evaluated(tmp_path, monkeypatch):
    poison(monkeypatch, 5, lambda loss, model: loss * float("nan"))

    def finite(model, *rest):
        assert torch.isfinite(model.word.weight).all()
        return {"word_loss": 0.0}

    monkeypatch.setattr(engine, "evaluate", finite)
    with pytest.raises(engine.Diverged, match=r"diverged at step 6 \(loss nan"):
        run(tmp_path / "run", log_every=4, eval_every=2)


def test_a_loss_that_stays_two_nats_higher_stops(tmp_path, monkeypatch):
    poison(monkeypatch, 5, lambda loss, model: 3 * loss)
    with pytest.raises(UserError, match=r"at step 8 \(loss 6.*is .*step-00000005;"):
        run(tmp_path / "run", save_minutes=0, log_every=1)


def test_other_settings_are_not_resumed(tmp_path):
    train(tmp_path / "run", max_steps=5)
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path / "run", max_steps=9, resume=True)


def test_other_data_is_not_resumed(tmp_path):
    run(tmp_path / "run", max_steps=5, data_key="a")
    with pytest.raises(UserError, match="other data"):
        run(tmp_path / "run", max_steps=5, data_key="b", resume=True)


def test_max_minutes_fits_the_schedule(tmp_path, monkeypatch):
    """Room is left for twelve evaluations, which take their time on a busy machine."""
    monkeypatch.setattr(engine.Trainer, "_measure", lambda self, precision: 1.0)
    state = run(tmp_path / "run", max_steps=None, max_minutes=5.0)
    assert 200 < state.step == state.total_steps <= 0.97 * 300
    last = [event for event in scores(tmp_path / "run") if event["event"] == "train"][-1]
    decaying = state.total_steps - round(0.06 * state.total_steps)
    assert last["step"] == state.total_steps
    assert last["lr"] == pytest.approx(1e-3 / decaying)


@pytest.mark.parametrize("native", [True, False])
def test_only_a_machine_that_multiplies_in_bf16_is_asked_how_fast(native, tmp_path, monkeypatch):
    asked = []
    measure = lambda self, precision: asked.append(precision) or len(asked)  # noqa: E731
    monkeypatch.setattr(engine.Trainer, "_measure", measure)
    monkeypatch.setattr(engine.optim, "multiplies_bf16", lambda device: native)
    state = run(tmp_path / "run", max_steps=1, precision="auto")
    assert state.precision == "fp32"
    assert asked == (["fp32", "bf16"] if native else [])


def test_measuring_changes_nothing(tmp_path, one_batch):
    assert torch.equal(train(tmp_path / "run", max_minutes=100.0), one_batch[0])


@pytest.mark.parametrize(
    "flags",
    [
        {"batch_size": 0},
        {"micro_batch_size": 0},
        {"log_every": 0},
        {"eval_every": 0},
        {"max_steps": 0},
        {"max_minutes": -1.0},
        {"seed": -1},
        {"learning_rate": -1.0},
        {"weight_decay": -0.1},
        {"warmup_ratio": 1.5},
        {"min_lr_ratio": -0.1},
        {"adam_beta2": 1.0},
    ],
)
def test_impossible_settings_are_refused(flags):
    ((name, value),) = flags.items()
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value} must be"):
        engine.TrainConfig(**flags)


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


@pytest.mark.skipif(not hasattr(engine.LIBC, "mallopt"), reason="no glibc")
def test_freed_memory_is_kept():
    """Page faults of a large tensor made again and again, in a process that nothing has warmed."""
    code = """
import resource, torch
from common import engine
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(3)))
engine.keep_memory()
print(min(faults() for _ in range(20)))  # the first still move: the heap is in pieces
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, told.stdout.split())
    assert after < before / 10
