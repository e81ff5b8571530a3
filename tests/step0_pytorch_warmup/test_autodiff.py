"""Our gradients against torch's, on graphs that nobody chose."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from step0_pytorch_warmup import autodiff
from step0_pytorch_warmup.autodiff import Value, record, softmax_cross_entropy

LARGEST_DIFFERENCE = 1e-6
LARGEST_NODE = 300  # elements


def ours(x):
    return isinstance(x, Value)


def swap_last(x):
    axes = (*range(x.data.ndim - 2), -1, -2)
    return x.transpose(*axes) if ours(x) else x.permute(axes)


def largest(x, axis, keep):
    if ours(x):
        return x.max(axis, keep)
    return x.amax(tuple(range(x.dim())) if axis is None else axis, keep)


# One table for both engines: torch's tensors and our values answer to nearly the same names.
UNARY = {
    "relu": lambda x: x.relu(),
    "tanh": lambda x: x.tanh(),
    "minus": lambda x: -x,
    "exp": lambda x: x.tanh().exp(),
    "log": lambda x: (x * x + 0.5).log(),
    "power": lambda x: (x**2 + 1) ** -1.5,
    "1 -": lambda x: 1 - x,
    "1 /": lambda x: 1 / (x**2 + 1),
    "flat": lambda x: x.reshape(-1),
    "mirrored": lambda x: x.transpose() if ours(x) else x.permute(tuple(range(x.dim()))[::-1]),
    "[0, 0, -1]": lambda x: x[np.array([0, 0, -1])] if x.shape else x,
    "[0]": lambda x: x[0] if x.shape else x,
    "[..., 1:]": lambda x: x[..., 1:] if x.shape and x.shape[-1] > 1 else x,
    "gram": lambda x: swap_last(x) @ x if len(x.shape) > 1 else x,
}
BINARY = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / (y**2 + 1),
}
REDUCE = {
    "sum": lambda x, axis, keep: x.sum(axis, keep),
    "mean": lambda x, axis, keep: x.mean(axis, keep),
    "max": largest,
}


def smooth(name, x, axis=None):
    """Whether an operation has one slope at x: away from relu's 0 and from ties of max."""
    if name == "relu":
        return np.abs(x).min() > 1e-6
    if name == "max":
        x = np.sort(x.reshape(-1) if axis is None else x, 0 if axis is None else axis)
        return x.size < 2 or np.diff(x, axis=0 if axis is None else axis).min(initial=1.0) > 1e-6
    return True


class Graph:
    """The same random graph twice: node i of `mine` and node i of `torchs` hold the same array."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.mine, self.torchs, self.leaves = [], [], []

    def leaf(self, shape):
        array = self.rng.normal(size=shape)
        mine, torchs = Value(array), torch.tensor(array, requires_grad=True)
        self.leaves.append((mine, torchs))
        self.mine.append(mine)
        self.torchs.append(torchs)
        return len(self.mine) - 1

    def add(self, compute, *nodes):
        out = compute(*(self.mine[i] for i in nodes))
        if 0 < out.data.size <= LARGEST_NODE and np.abs(out.data).max() < 1e3:
            self.mine.append(out)
            self.torchs.append(compute(*(self.torchs[i] for i in nodes)))

    def losses(self):
        """All nodes weighted and summed, so that every node counts and many have several users."""
        loss, torchs_loss = 0.0, 0.0
        for mine, torchs in zip(self.mine, self.torchs, strict=True):
            weight = self.rng.normal(size=mine.shape)
            loss = loss + (mine * weight).sum()
            torchs_loss = torchs_loss + (torchs * torch.tensor(weight)).sum()
        return loss, torchs_loss


@st.composite
def graphs(draw):
    graph = Graph(draw(st.integers(0, 2**32 - 1)))
    whole = draw(st.lists(st.integers(1, 4), min_size=0, max_size=4))
    for _ in range(draw(st.integers(1, 3))):  # leaves that broadcast against each other
        shape = [draw(st.sampled_from([1, n])) for n in whole]
        graph.leaf(tuple(shape[draw(st.integers(0, len(shape))) :]))
    for _ in range(draw(st.integers(1, 12))):
        node = st.integers(0, len(graph.mine) - 1)
        x = draw(node)
        value = graph.mine[x].data
        kind = draw(st.sampled_from(["unary", "binary", "reduce", "matmul"]))
        if kind == "unary":
            name = draw(st.sampled_from(sorted(UNARY)))
            if smooth(name, value):
                graph.add(UNARY[name], x)
        elif kind == "binary":
            partners = [j for j, y in enumerate(graph.mine) if fits(value.shape, y.shape)]
            y = draw(st.sampled_from(partners))
            graph.add(BINARY[draw(st.sampled_from(sorted(BINARY)))], x, y)
        elif kind == "reduce":
            name, keep = draw(st.sampled_from(sorted(REDUCE))), draw(st.booleans())
            axis = draw(st.sampled_from([None, *range(-value.ndim, value.ndim)]))
            if smooth(name, value, axis):
                graph.add(lambda x, f=REDUCE[name], a=axis, k=keep: f(x, a, k), x)
        elif value.ndim >= 2:
            batch = [draw(st.sampled_from([1, n])) for n in value.shape[:-2]]
            batch = batch[draw(st.integers(0, len(batch))) :]
            y = graph.leaf((*batch, value.shape[-1], draw(st.integers(1, 4))))
            graph.add(lambda x, y: x @ y, x, y)
    return graph


def fits(a, b):
    try:
        return bool(np.broadcast_shapes(a, b)) or True
    except ValueError:
        return False


def largest_difference(graph):
    """Of any gradient from torch's, relative to its largest entry if that is above 1."""
    (loss, torchs_loss), worst = graph.losses(), 0.0
    loss.backward()
    torchs_loss.backward()
    assert loss.data == pytest.approx(torchs_loss.item(), rel=1e-9, abs=1e-9)
    for mine, torchs in graph.leaves:
        assert mine.grad.shape == mine.shape
        size = max(1.0, torchs.grad.abs().max().item())
        worst = np.maximum(worst, np.abs(mine.grad - torchs.grad.numpy()).max() / size)  # or NaN
    return worst


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_gradients_of_random_graphs_are_torchs(graph):
    assert largest_difference(graph) <= LARGEST_DIFFERENCE


def wrong_tanh(x):
    y = np.tanh(x.data)
    return record(y, (x, lambda g: g * (1 - y)))


def wrong_mean(x, axis=None, keepdims=False):
    total = x.sum(axis, keepdims)
    total.data = total.data * total.data.size / x.data.size
    return total


def wrong_getitem(x, index):
    def scatter(g):
        back = np.zeros_like(x.data)
        back[index] += g  # one of two equal indices is lost
        return back

    return record(x.data[index], (x, scatter))


@pytest.mark.parametrize(
    "name, wrong",
    {"tanh": wrong_tanh, "mean": wrong_mean, "__getitem__": wrong_getitem}.items(),
)
def test_the_random_graphs_find_a_wrong_slope(monkeypatch, name, wrong):
    monkeypatch.setattr(Value, name, wrong)
    quick = settings(max_examples=300, database=None, phases=[Phase.generate])
    find(graphs(), lambda graph: largest_difference(graph) > 1e-3, settings=quick)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1.0, 30.0, 1000.0]), st.data())
def test_softmax_cross_entropy_is_torchs_at_any_size(B, C, size, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    logits, labels = size * rng.normal(size=(B, C)), rng.integers(0, C, B)
    mine, torchs = Value(logits), torch.tensor(logits, requires_grad=True)
    loss = softmax_cross_entropy(mine, labels) * 3
    torchs_loss = 3 * F.cross_entropy(torchs, torch.tensor(labels))
    loss.backward()
    torchs_loss.backward()
    assert loss.data == pytest.approx(torchs_loss.item(), rel=1e-12)
    assert np.allclose(mine.grad, torchs.grad, rtol=0, atol=1e-12)


def test_at_a_kink_and_at_a_tie_we_choose_as_torch_does():
    array = np.array([[0.0, 2.0, 2.0], [-1.0, -1.0, -1.0]])
    mine, torchs = Value(array), torch.tensor(array, requires_grad=True)
    (mine.relu() + mine.max(1, keepdims=True)).sum().backward()
    (torchs.relu() + torchs.amax(1, keepdim=True)).sum().backward()
    assert np.array_equal(mine.grad, torchs.grad.numpy())


def test_a_shared_value_collects_from_all_its_users():
    x = Value(3.0)
    y = x * x  # two edges to the same value
    (y + y * x).backward()  # x^2 + x^3
    assert x.grad == 2 * 3 + 3 * 3**2


def test_gradients_add_up_over_backward_calls():
    x = Value([1.0, 2.0])
    for _ in range(3):
        (x * x).sum().backward()
    assert np.array_equal(x.grad, [6.0, 12.0])


def test_long_chains_need_no_recursion_and_wide_ones_no_second_visit():
    x = y = Value(1.0)
    for _ in range(20_000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1.0
    x = y = Value(1.0)
    for _ in range(60):
        y = (y + y) * 0.5  # 2^60 paths from y to x
    y.backward()
    assert x.grad == 1.0


def test_constants_cost_nothing():
    x, constant = Value([2.0]), np.array([5.0])
    y = constant * x + constant
    assert isinstance(y, Value) and [parent for parent, _ in y.edges[0][0].edges] == [x]
    fixed = Value([1.0], needs_grad=False)
    (fixed * x).sum().backward()
    assert fixed.grad is None and x.grad == 1.0


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="single number"):
        Value([1.0, 2.0]).backward()
    with pytest.raises(ValueError, match="depends on a leaf"):
        Value(1.0, needs_grad=False).backward()
    with pytest.raises(ValueError, match="needs matrices"):
        Value([1.0, 2.0]) @ Value([1.0, 2.0])


def test_the_engine_is_short():
    with open(autodiff.__file__) as file:
        assert len(file.readlines()) < 250
