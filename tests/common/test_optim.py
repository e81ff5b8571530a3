import copy
import math

import pytest
import torch
from torch import nn

from common import optim
from common.cli import UserError


def shares(name, warmup=10, total=100, **options):
    share = optim.schedule(name, warmup, total, **options)
    return [share(step) for step in range(total)]


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_every_schedule_warms_up_to_the_peak_and_never_passes_it(name):
    values = shares(name)
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(values) == 1.0 and min(values) > 0


def test_schedules_have_their_shapes():
    assert shares("linear")[55] == pytest.approx(0.5)
    assert shares("cosine")[55] == pytest.approx(0.5)
    assert shares("cosine", min_lr_ratio=0.1)[-1] == pytest.approx(0.1, abs=1e-3)
    assert shares("inverse_sqrt")[39] == pytest.approx(math.sqrt(10 / 40))
    wsd = shares("wsd")
    assert wsd[81] == 1.0 and wsd[91] == pytest.approx(0.5)
    assert set(shares("constant")[10:]) == {1.0}


def test_vectors_do_not_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, spared = optim.decay_groups(model.parameters(), 0.1)
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert len(spared["params"]) == 3 and spared["weight_decay"] == 0.0


def test_muon_takes_the_matrices_inside_layers_only():
    model = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(4, 4)), "head": nn.Linear(4, 9)})
    adamw, muon = optim.build("muon", model, 1e-3)
    assert [tuple(p.shape) for g in muon.param_groups for p in g["params"]] == [(4, 4)]
    assert sum(p.numel() for g in adamw.param_groups for p in g["params"]) == 4 + 9 * 4 + 9


def test_muon_finds_the_layers_of_transformers_too():
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.Sequential(nn.Linear(4, 4))})})
    assert len(optim.build("muon", model, 1e-3)) == 2
    with pytest.raises(UserError, match="muon found no weight matrix"):
        optim.build("muon", nn.ModuleDict({"player": nn.Linear(4, 4)}), 1e-3)


def test_each_optimizer_has_its_learning_rate():
    adamw, muon = optim.build("muon", nn.ModuleDict({"layers": nn.Linear(4, 4)}), 1e-3, 0.05)
    assert {group["lr"] for group in adamw.param_groups} == {1e-3}
    assert {group["lr"] for group in muon.param_groups} == {0.05}


def test_adamw_is_torchs_adamw_with_the_papers_exclusions():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    (optimizer,) = optim.build("adamw", ours, 0.01, weight_decay=0.1)
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.01, weight_decay=0.1, eps=1e-6,
    )  # fmt: skip
    for _ in range(3):
        for model, opt in ((ours, optimizer), (theirs, reference)):
            opt.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            opt.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-7)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-7)


@pytest.mark.parametrize("native", [True, False])
def test_muon_is_torchs_to_the_bit_or_without_its_rounding(native, monkeypatch):
    monkeypatch.setattr(optim, "multiplies_bf16", lambda device: native)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    ours = [nn.Parameter(draw(*shape)) for shape in ((8, 24), (24, 8), (16, 16))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    unused = nn.Parameter(draw(4, 4))  # has no gradient
    mine = optim.Muon([*ours, unused], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = draw(*p.shape)
            q.grad = p.grad.clone()
        mine.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q) if native else torch.allclose(p, q, atol=2e-3)
    again = optim.Muon(ours, lr=0.1, weight_decay=0.2)  # goes on from the state of torch's
    again.load_state_dict(copy.deepcopy(reference.state_dict()))
    again.step()
    reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q) if native else torch.allclose(p, q, atol=2e-3)


def test_orthogonal_draws_all_singular_values_to_one(monkeypatch):
    monkeypatch.setattr(optim, "multiplies_bf16", lambda device: False)
    torch.manual_seed(0)
    for shape in ((32, 32), (16, 64), (64, 16)):
        found = optim.orthogonal(torch.randn(shape))
        assert found.shape == shape and found.dtype == torch.float32
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
    assert optim.orthogonal(torch.zeros(3, 2)).abs().max() == 0


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown schedule"):
        optim.schedule("step", 1, 2)
    with pytest.raises(ValueError, match="unknown optimizer"):
        optim.build("sgd", nn.Linear(1, 1), 0.1)
