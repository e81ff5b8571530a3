"""The costs we predict are those that torch counts; the script tells them."""

import json
import sys

import pytest
import torch

from common import cli
from step0_pytorch_warmup import cost, tensors


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def operations():
    return cost.operations()


def test_predicted_flops_are_those_that_torch_counts(operations):
    counted = {op.name: cost.counted_flops(op.run) for op in operations}
    products = {op.name: op.flops for op in operations if counted[op.name]}
    assert products == {name: flops for name, flops in counted.items() if flops}
    assert set(products) >= {"A @ A", "einsum q k", "S @ S, 32 wide"}


def test_predicted_memory_is_what_is_allocated(operations):
    for op in operations:
        assert cost.allocated_bytes(op.run) == op.memory, op.name


def test_allocations_count_temporaries_and_no_views():
    x = torch.randn(10, 10)
    assert cost.allocated_bytes(lambda: x.t()[2:].view(-1, 2, 5)) == 0
    assert cost.allocated_bytes(lambda: x.add_(1)) == 0
    assert cost.allocated_bytes(lambda: (x + 1).sum()) == 400 + 4


def test_the_slower_limit_decides():
    peaks = cost.Peaks(flops=100.0, bandwidth=10.0)
    operation = cost.Operation("any", lambda: None, flops=200, traffic=10, memory=0)
    assert peaks.seconds(operation) == 2.0
    assert peaks.seconds(operation._replace(traffic=50)) == 5.0


def test_the_best_time_is_the_shortest(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    assert cost.best_seconds(lambda: None, budget=1.0) == 2.0


@pytest.mark.usefixtures("drawn")
def test_the_script_runs_on_small_tensors(tmp_path, monkeypatch, capsys):
    """With the long measurements cut short: what is told is proved above."""
    monkeypatch.setattr(cost, "best_seconds", lambda run: 1e-3)
    monkeypatch.setattr(cost, "measure_peaks", lambda: cost.Peaks(1e11, 1e10))
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["tensors.py", "--out", str(out)])
    cli.run(tensors.main, tensors.Config, tensors.PRESETS)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"result: {out / 'result.json'}"
    ends = ("view", "copy")
    kinds = dict(line.rsplit(maxsplit=1) for line in printed.splitlines() if line[-4:] in ends)
    assert kinds["x.t(), x.permute(1, 0)"] == "view" and kinds["x.t().reshape(12)"] == "copy"
    assert "(100,) with (100, 1)  -> (100, 100)" in printed
    assert "x[0, 0] is now 100" in printed and "x[0, 0] is still 100" in printed
    assert json.loads((out / "result.json").read_text())["metrics"]["peak"]["value"] == 100
    assert (out / "curves.png").stat().st_size > 10_000
