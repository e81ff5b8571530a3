"""What an operation costs: FLOPs, memory and time, predicted on paper and measured.

The roofline (Williams, Waterman and Patterson 2009): with a peak of P FLOP/s and a memory of
W bytes/s, an operation takes at least max(flops / P, traffic / W) seconds.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

FLOAT = 4  # bytes of a float32


class Operation(NamedTuple):
    """Something to run, with what we expect of it."""

    name: str
    run: Callable[[], Any]
    flops: int  # additions and multiplications
    traffic: int  # bytes that must be read from memory or written to it, each once
    memory: int  # bytes that it must allocate for its result


class Peaks(NamedTuple):
    """What this machine can do at best."""

    flops: float  # FLOP/s
    bandwidth: float  # bytes/s

    def seconds(self, operation: Operation) -> float:
        return max(operation.flops / self.flops, operation.traffic / self.bandwidth)


def measure_peaks() -> Peaks:
    """By a matrix product, which is nearly all arithmetic, and a long sum, nearly all traffic."""
    n = 512  # large enough, and short enough to find a moment when nothing else runs
    a, b, out = (torch.randn(n, n) for _ in range(3))
    x, y = torch.randn(2**24), torch.zeros(2**24)  # 64 MB each, more than the caches hold
    product = best_seconds(lambda: torch.mm(a, b, out=out))
    added = best_seconds(lambda: y.add_(x))  # reads two numbers, writes one
    return Peaks(2 * n**3 / product, 3 * x.numel() * FLOAT / added)


def best_seconds(run: Callable[[], Any], budget: float = 0.4) -> float:
    """The shortest of all runs that fit into `budget` seconds (three at least).

    Whatever else the machine does can make a run slower, never faster: hence the shortest.
    """
    run()  # the first call allocates, and warms caches
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 10_000):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def counted_flops(run: Callable[[], Any]) -> int:
    """FLOPs of the matrix products in a call, as torch counts them; other operations count 0."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class _Allocations(TorchDispatchMode):
    """Adds up the storages of results that are none of the inputs'."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inputs, results = (
            {leaf.untyped_storage().data_ptr(): leaf for leaf in tree_leaves(tree)
             if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )  # fmt: skip
        fresh = results.keys() - inputs.keys()
        self.bytes += sum(results[place].untyped_storage().nbytes() for place in fresh)
        return result


def allocated_bytes(run: Callable[[], Any]) -> int:
    """Bytes of all tensors that a call creates, freed again or not; views cost none."""
    with _Allocations() as allocations:
        run()
    return allocations.bytes


def operations() -> list[Operation]:
    """A few typical ones, in float32."""
    N, n, m = 2**24, 768, 4096
    long, other = torch.randn(N), torch.randn(N)
    square, wide, room = torch.randn(n, n), torch.randn(m, m), torch.randn(m, m)
    vector, small = torch.randn(m), torch.randn(32, 32)
    B, h, T, d = 8, 8, 128, 64
    q, k = torch.randn(B, h, T, d), torch.randn(B, h, T, d)
    scores = "bhqd,bhkd->bhqk"
    return [
        Operation("y.copy_(x)", lambda: other.copy_(long), 0, 2 * N * FLOAT, 0),
        Operation("x + y", lambda: long + other, N, 3 * N * FLOAT, N * FLOAT),
        Operation("x.sum()", long.sum, N, N * FLOAT, FLOAT),
        Operation("V.copy_(W.t())", lambda: room.copy_(wide.t()), 0, 2 * m * m * FLOAT, 0),
        Operation("W @ v", lambda: wide @ vector, 2 * m * m, (m * m + 2 * m) * FLOAT, m * FLOAT),
        Operation("A @ A", lambda: square @ square, 2 * n**3, 2 * n * n * FLOAT, n * n * FLOAT),
        Operation("einsum q k", lambda: torch.einsum(scores, q, k), 2 * B * h * T * T * d,
                  (2 * B * h * T * d + B * h * T * T) * FLOAT, B * h * T * T * FLOAT),
        Operation("S @ S, 32 wide", lambda: small @ small, 2 * 32**3, 2 * 32**2 * FLOAT,
                  32**2 * FLOAT),
    ]  # fmt: skip
