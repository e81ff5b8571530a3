"""Reverse-mode automatic differentiation on NumPy arrays: what `loss.backward()` does.

Forward, every operation writes down its inputs and, for each of them, how a gradient travels back
through it (its *pull*). Backward, we walk over these notes from the loss to the leaves, each node
once all its users have been visited, and add up what arrives. That is the chain rule,

    dL/dx = sum over the users y of x of  pull(dL/dy),   pull(g) = (dy/dx)^T g,

and dy/dx, which is as large as x times y, is never built (Baydin et al. 2018, section 3.2).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Pull = Callable[[np.ndarray], np.ndarray]


class Value:
    """An array of any shape, float64, that remembers how it was computed.

    data   the array
    grad   dL/d data, of the same shape, after `L.backward()`; for leaves only, None before
    edges  (input, pull) pairs: whom this value was computed from
    """

    __array_ufunc__ = None  # array + Value asks Value, and does not add element by element

    def __init__(self, data: Any, needs_grad: bool = True):
        self.data = np.asarray(data, dtype=np.float64)
        self.grad: np.ndarray | None = None
        self.needs_grad = needs_grad
        self.edges: list[tuple[Value, Pull]] = []

    def __repr__(self) -> str:
        return f"Value({self.data}, needs_grad={self.needs_grad})"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    # -- arithmetic, with NumPy's broadcasting -----------------------------------------------

    def __add__(self, other: Any) -> "Value":
        other = wrap(other)
        return record(self.data + other.data, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, other: Any) -> "Value":
        a, b = self, wrap(other)
        return record(a.data * b.data, (a, lambda g: g * b.data), (b, lambda g: g * a.data))

    def __pow__(self, exponent: float) -> "Value":
        """x ** p for a plain number p."""
        slope = exponent * self.data ** (exponent - 1) if exponent else 0.0 * self.data
        return record(self.data**exponent, (self, lambda g: g * slope))

    def __matmul__(self, other: Any) -> "Value":
        """(..., m, k) @ (..., k, n) -> (..., m, n). Raises ValueError for a vector."""
        a, b = self, wrap(other)
        if min(a.data.ndim, b.data.ndim) < 2:
            raise ValueError(f"@ needs matrices, not shapes {a.shape} and {b.shape}; reshape first")
        return record(
            a.data @ b.data,
            (a, lambda g: g @ b.data.swapaxes(-1, -2)),
            (b, lambda g: a.data.swapaxes(-1, -2) @ g),
        )

    def __neg__(self) -> "Value":
        return self * -1.0

    def __sub__(self, other: Any) -> "Value":
        return self + -wrap(other)

    def __truediv__(self, other: Any) -> "Value":
        return self * wrap(other) ** -1.0

    def __rsub__(self, other: Any) -> "Value":
        return wrap(other) - self

    def __rtruediv__(self, other: Any) -> "Value":
        return wrap(other) / self

    def __rmatmul__(self, other: Any) -> "Value":
        return wrap(other) @ self

    __radd__, __rmul__ = __add__, __mul__

    # -- one element at a time ---------------------------------------------------------------

    def relu(self) -> "Value":
        """max(x, 0); the slope at 0 is taken as 0, as torch does."""
        positive = self.data > 0
        return record(self.data * positive, (self, lambda g: g * positive))

    def tanh(self) -> "Value":
        y = np.tanh(self.data)
        return record(y, (self, lambda g: g * (1 - y**2)))

    def exp(self) -> "Value":
        y = np.exp(self.data)
        return record(y, (self, lambda g: g * y))

    def log(self) -> "Value":
        x = self.data
        return record(np.log(x), (self, lambda g: g / x))

    # -- reductions: `axis` is a number, several, or None for all ------------------------------

    def sum(self, axis: Any = None, keepdims: bool = False) -> "Value":
        """Every summand gets the gradient of the sum."""
        y = self.data.sum(axis, keepdims=True)
        back = self._pull_of_reduction(y, lambda g: np.broadcast_to(g, self.shape))
        return record(y if keepdims else y.squeeze(axis), back)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "Value":
        total = self.sum(axis, keepdims)
        return total * (total.data.size / self.data.size)

    def max(self, axis: Any = None, keepdims: bool = False) -> "Value":
        """The gradient goes to the largest element; equals share it, as in torch.amax."""
        y = self.data.max(axis, keepdims=True)
        winners = self.data == y
        share = winners / winners.sum(axis, keepdims=True)
        back = self._pull_of_reduction(y, lambda g: g * share)
        return record(y if keepdims else y.squeeze(axis), back)

    def _pull_of_reduction(self, kept: np.ndarray, pull: Pull) -> tuple["Value", Pull]:
        """The edge to self; gives the gradient back the axes that the reduction dropped."""
        return self, lambda g: pull(g.reshape(kept.shape))

    # -- the same numbers in another place -----------------------------------------------------

    def reshape(self, *shape: int) -> "Value":
        return record(self.data.reshape(shape), (self, lambda g: g.reshape(self.shape)))

    def transpose(self, *axes: int) -> "Value":
        """Axes in the order given; all of them reversed if none is."""
        order = np.arange(self.data.ndim)[list(axes) or slice(None, None, -1)]  # none is negative
        return record(self.data.transpose(order), (self, lambda g: g.transpose(np.argsort(order))))

    def __getitem__(self, index: Any) -> "Value":
        """Slices or integer arrays: an embedding lookup is `table[ids]`."""

        def scatter(g: np.ndarray) -> np.ndarray:
            back = np.zeros_like(self.data)
            np.add.at(back, index, g)  # += would count a row that was taken twice only once
            return back

        return record(self.data[index], (self, scatter))

    # -- backward ------------------------------------------------------------------------------

    def backward(self) -> None:
        """Add dself/dleaf to the `grad` of every leaf that self was computed from.

        Raises ValueError if self is not a single number, or depends on no leaf.
        """
        if self.data.size != 1 or not self.needs_grad:
            raise ValueError(f"backward() needs a single number that depends on a leaf, not {self}")
        arrived = {id(self): np.ones_like(self.data)}
        for node in reversed(topological_order(self)):
            g = arrived.pop(id(node))
            if not node.edges:
                node.grad = g + (0.0 if node.grad is None else node.grad)
            for parent, pull in node.edges:
                part = unbroadcast(pull(g), parent.shape)
                arrived[id(parent)] = part + arrived.get(id(parent), 0.0)


def wrap(x: Any) -> Value:
    """A Value as it is; a number or array as a constant, for which no gradient is computed."""
    return x if isinstance(x, Value) else Value(x, needs_grad=False)


def record(data: np.ndarray, *edges: tuple[Value, Pull]) -> Value:
    """The result of an operation, with its notes for the way back."""
    out = Value(data, needs_grad=False)
    out.edges = [edge for edge in edges if edge[0].needs_grad]
    out.needs_grad = bool(out.edges)
    return out


def unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum `g` down to `shape`: an element that broadcasting copied has many users.

    New axes in front are summed away, axes stretched from 1 are summed to 1.
    """
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 != g.shape[i])
    return g.sum(axis=stretched, keepdims=True)


def topological_order(root: Value) -> list[Value]:
    """All that needs a gradient for `root`, inputs before users.

    A stack of our own in place of recursion, which Python ends after a thousand calls.
    """
    order: list[Value] = []
    entered: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, inputs_are_in = stack.pop()
        if inputs_are_in:
            order.append(node)
        elif id(node) not in entered:
            entered.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in node.edges)
    return order


def softmax_cross_entropy(logits: Value, labels: np.ndarray) -> Value:
    """Mean over rows of -log softmax(logits)[label]; logits (B, C), labels (B,) of integers.

    One operation, not exp, sum and log in turn: shifted by the row's maximum it cannot overflow,
    and its gradient is simply (softmax - onehot) / B.
    """
    B = len(labels)
    own = np.arange(B), labels
    shifted = logits.data - logits.data.max(-1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    slope = np.exp(log_softmax)
    slope[own] -= 1
    return record(-log_softmax[own].mean(), (logits, lambda g: g * slope / B))
