"""Sums and counts are the big batch, however it is cut; each well-known mistake is seen."""

import json
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from common import cli
from step0_pytorch_warmup import accumulation, gradient_accumulation
from step0_pytorch_warmup.accumulation import NO_TARGET
from step0_pytorch_warmup.optimizers import SGD

LARGEST_DIFFERENCE = 1e-6
MISTAKES = ("mean_of_means", "short_last_window", "step_on_the_first")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def micro_batches(sizes, counts):
    """Random rows and labels: of sizes[j] rows in micro-batch j, counts[j] have a target."""
    torch.manual_seed(1)
    made = []
    for size, count in zip(sizes, counts, strict=True):
        labels = torch.randint(3, (size,))
        labels[torch.randperm(size)[count:]] = NO_TARGET
        made.append((torch.randn(size, 5), labels))
    return made


def weights(rule, data, K):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    getattr(accumulation, rule)(model, SGD(model.parameters(), lr=0.1, momentum=0.9), data, K)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def difference(rule, data, K):
    """Of any fp32 weight from the big batch's."""
    return (weights(rule, data, K) - weights("big_batch", data, K)).abs().max().item()


@st.composite
def ragged(draw):
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    return micro_batches(sizes, [draw(st.integers(0, size)) for size in sizes])


def has_target(window):
    return any((labels != NO_TARGET).any() for _, labels in window)


@settings(max_examples=60)
@given(ragged(), st.integers(1, 6))
def test_sums_and_counts_are_the_big_batch(data, K):
    assume(all(has_target(window) for window in accumulation.windows(data, K)))
    assert difference("sums_and_counts", data, K) <= LARGEST_DIFFERENCE


def test_a_window_without_any_target_is_no_step():
    data = micro_batches([4, 4, 4, 4], [3, 2, 0, 0])
    after, before = weights("sums_and_counts", data, 2), weights("sums_and_counts", data[:2], 2)
    assert torch.equal(after, before)


@pytest.mark.parametrize("rule", MISTAKES)
def test_each_mistake_is_another_training(rule):
    data = micro_batches([8] * 10, [8, 5, 2, 1, 7, 3, 8, 2, 6, 4])
    assert difference("sums_and_counts", data, 4) <= LARGEST_DIFFERENCE
    assert difference(rule, data, 4) > 1e-3


def test_what_hides_each_mistake():
    """Equal counts hide the mean of means; whole windows as well, the short last one."""
    equal, whole = micro_batches([8] * 10, [8] * 10), micro_batches([8] * 12, [8] * 12)
    assert difference("mean_of_means", equal, 4) <= LARGEST_DIFFERENCE
    assert difference("short_last_window", equal, 4) > 1e-3
    assert difference("short_last_window", whole, 4) <= LARGEST_DIFFERENCE
    assert difference("step_on_the_first", whole, 4) > 1e-3
    assert difference("step_on_the_first", whole, 1) <= LARGEST_DIFFERENCE


def test_the_script_tells_right_from_wrong(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["gradient_accumulation.py", "--out", str(out)])
    script = gradient_accumulation
    cli.run(script.main, script.Config, script.PRESETS)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"result: {out / 'result.json'}"
    assert "mean of the two means:     (4/1 + 3/3) / 2     = 2.50" in printed
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    found = {name: entry["value"] for name, entry in metrics.items()}
    right = {name for name, value in found.items() if value <= LARGEST_DIFFERENCE}
    assert right == {
        "sums_and_counts/equal_difference",
        "sums_and_counts/ragged_difference",
        "mean_of_means/equal_difference",
    }
    assert min(value for name, value in found.items() if name not in right) > 1e-3
