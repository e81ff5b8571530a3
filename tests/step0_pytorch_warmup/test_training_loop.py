"""Our optimizers and clipping against torch's, step by step; the loop; the script."""

import importlib
import json
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common import cli
from step0_pytorch_warmup import digits, mlp, optimizers, training_loop
from step0_pytorch_warmup.loop import fit

LARGEST_DIFFERENCE = 1e-6
STEPS = 200


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def race(ours, torchs, steps=STEPS, skip=5):
    """Largest difference of any weight at any step, given the same gradients of all sizes.

    They are drawn, and no function's: near a minimum Adam amplifies rounding without bound. The
    last parameter has none at every `skip`-th step, as an expert that was not called; the learning
    rate changes, as under a schedule.
    """
    torch.manual_seed(0)
    mine = nn.ParameterList([torch.randn(3, 4), torch.randn(4), torch.randn(())]).double()
    theirs = nn.ParameterList([p.detach().clone() for p in mine])
    ours, torchs, differences = ours(mine), torchs(theirs), []
    peak = ours.lr
    for step in range(steps):
        ours.lr = torchs.param_groups[0]["lr"] = peak * (1 - step / steps)
        ours.zero_grad()
        torchs.zero_grad()
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            if i < 2 or step % skip:
                p.grad = torch.randn_like(p) * 10 ** (4 * torch.rand(()) - 3)
                q.grad = p.grad.clone()
        ours.step()
        torchs.step()
        differences += [(p - q).abs().max() for p, q in zip(mine, theirs, strict=True)]
    return torch.stack(differences).max().item()  # NaN if any is


def pair(name, **options):
    """Makers of our optimizer and torch's of that name."""
    ours, torchs = getattr(optimizers, name), getattr(torch.optim, name)
    return lambda p: ours(p, **options), lambda p: torchs(p, **options)


momenta = st.sampled_from([0.0, 0.5, 0.9])
decays = st.sampled_from([0.0, 0.01, 0.3])
betas = st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.9999))


@settings(max_examples=10)
@given(momentum=momenta, weight_decay=decays, lr=st.floats(1e-4, 1e-2))
def test_sgd_is_torchs_at_every_step(momentum, weight_decay, lr):
    options = dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
    assert race(*pair("SGD", **options)) <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@settings(max_examples=10)
@given(betas=betas, weight_decay=decays, eps=st.sampled_from([1e-8, 1e-3]), lr=st.floats(1e-4, 0.1))
def test_adam_is_torchs_at_every_step(name, betas, weight_decay, eps, lr):
    options = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    assert race(*pair(name, **options)) <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_defaults_are_torchs(name):
    assert race(*pair(name, lr=1e-2)) <= LARGEST_DIFFERENCE


def test_the_race_sees_small_mistakes(monkeypatch):
    """Decay in the wrong place; one count of steps for all parameters."""
    decoupled, _ = pair("AdamW", lr=1e-2, weight_decay=0.1)
    _, coupled = pair("Adam", lr=1e-2, weight_decay=0.1)
    assert race(decoupled, coupled) > 1e-3
    original = optimizers.Adam.update

    def one_count(self, p, g, memory):
        self.calls = getattr(self, "calls", 0) + 1
        original(self, p, g, memory | {"t": self.calls // 3})

    monkeypatch.setattr(optimizers.Adam, "update", one_count)
    assert race(*pair("Adam", lr=1e-2)) > LARGEST_DIFFERENCE


@settings(max_examples=30)
@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
def test_clipping_is_torchs(size, max_norm):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.zeros(3, 2).double()), nn.Parameter(torch.zeros(5).double())]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    for p, q in zip(mine, theirs, strict=True):
        p.grad = size * torch.randn_like(p)
        q.grad = p.grad.clone()
    unused = nn.Parameter(torch.zeros(2))
    norm = optimizers.clip_grad_norm([*mine, unused], max_norm)
    assert norm == pytest.approx(nn.utils.clip_grad_norm_([*theirs, unused], max_norm).item())
    for p, q in zip(mine, theirs, strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-12)
    after = math.sqrt(sum((p.grad**2).sum() for p in mine))
    assert after <= max_norm and (norm > max_norm or after == pytest.approx(norm))


def test_the_loop_learns_digits_and_obeys_schedule_and_clipping():
    train, heldout = (mlp.tensors(part) for part in digits.load())
    torch.manual_seed(0)
    model = mlp.MLP()
    optimizer = optimizers.SGD(model.parameters(), lr=0.3)
    batches = list(mlp.batches(len(train[1]), 32, 3, seed=0))
    steps = len(batches)
    history = fit(model, *train, optimizer, batches, share=lambda s: 1 - s / steps, max_norm=2.0)
    assert history["lr"] == pytest.approx([0.3 * (1 - step / steps) for step in range(steps)])
    assert len(history["loss"]) == len(history["norm"]) == steps
    assert mlp.score(model, *heldout)[1] > 90
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.lr = 1.0
    fit(model, *train, optimizer, batches[:1], max_norm=1e-3)
    moved = sum(((p - q) ** 2).sum() for p, q in zip(model.parameters(), before, strict=True))
    assert moved.sqrt() <= 1.001e-3


def test_every_epoch_sees_every_digit_once():
    batches = list(mlp.batches(10, 4, 2, seed=3))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)


def test_held_out_digits_are_never_trained_on():
    train, heldout = digits.load()
    assert len(train.labels) + len(heldout.labels) == 1797
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in heldout.images)
    assert train.images.min() >= 0 and train.images.max() <= 1


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", ["autograd", "training_loop"])
def test_the_scripts_run_and_say_what_they_found(name, tmp_path, monkeypatch, capsys):
    script = importlib.import_module(f"step0_pytorch_warmup.{name}")
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", [name, "--preset", "smoke", "--out", str(out)])
    cli.run(script.main, script.Config, script.PRESETS)
    assert capsys.readouterr().out.splitlines()[-1] == f"result: {out / 'result.json'}"
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    differences = [m["value"] for key, m in metrics.items() if "difference" in key]
    accuracies = [m["value"] for key, m in metrics.items() if "accuracy" in key]
    assert differences and max(differences) <= LARGEST_DIFFERENCE
    assert accuracies and min(accuracies) > 75
    assert (out / "curves.png").stat().st_size > 10_000


def test_bad_input_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training_loop.py", "--batch-size", "0"])
    with pytest.raises(SystemExit) as stop:
        cli.run(training_loop.main, training_loop.Config, training_loop.PRESETS)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --batch-size 0 must be 1 or more\n"
