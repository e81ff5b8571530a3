"""What a tensor is, and what an operation on it costs: predicted first, then measured.

    python step0_pytorch_warmup/tensors.py
    python step0_pytorch_warmup/tensors.py --threads 2

Shapes and broadcasting, strides, views and copies, einsum; then FLOPs, memory and time of typical
operations, held against what `cost.py` expects of this machine. Draws the roofline.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import cli
from common.runs import metric
from step0_pytorch_warmup import cost
from step0_pytorch_warmup.lesson import finish, panels, start


@dataclass
class Config(cli.RunConfig):
    threads: int = 1
    """Cores that torch may use for the measurements."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "threads", "1 or more", lambda value: value >= 1)


PRESETS = {"smoke": {}, "cpu": {}}


def main(config: Config) -> None:
    run = start(config, "tensors")
    if run.finished():
        return
    started = time.monotonic()
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    broadcasting()
    strides()
    views_and_copies()
    einsum()
    peaks, rows = costs()
    draw(run.path / "curves.png", peaks, rows)
    finish(
        run, config, started, script="tensors", system="torch operations",
        metrics={
            "peak": metric(peaks.flops / 1e9, unit="GFLOP/s"),
            "memory_bandwidth": metric(peaks.bandwidth / 1e9, unit="GB/s"),
        } | {
            f"{operation.name}/measured_over_predicted": metric(
                seconds / peaks.seconds(operation), unit="x", higher_is_better=False
            )
            for operation, seconds in rows
        },
    )  # fmt: skip


def broadcasting() -> None:
    """Shapes are aligned at their right ends; an axis of 1, or none, is repeated."""
    print("== Broadcasting")
    for left, right in [((32, 64), (64,)), ((8, 1, 5), (3, 1)), ((100,), (100, 1)), ((3, 4), (3,))]:
        try:
            result = str(tuple(torch.broadcast_shapes(left, right)))
        except RuntimeError:
            result = "error: 4 against 3 at the right end"
        print(f"{left!s:>12} with {right!s:<9} -> {result}")
    prediction, target = torch.randn(100), torch.randn(100, 1)
    wrong, right = (prediction - target) ** 2, (prediction - target.squeeze(1)) ** 2
    print("The third is a famous bug: a mean square error of (100,) against (100, 1)")
    print(
        f"compares all with all, {wrong.numel():,} pairs; it answers {wrong.mean():.3f}, the right"
    )
    print(f"one is {right.mean():.3f}, and nothing complains")


def strides() -> None:
    """A tensor is a flat storage, an offset, and a number of elements to jump for each axis."""
    print("\n== Strides: x[i, j] is storage[offset + i stride[0] + j stride[1]]")
    x = torch.arange(12).view(3, 4)
    cases = {
        "x": x,
        "x.t()": x.t(),
        "x[1:, ::2]": x[1:, ::2],
        "x[0].expand(3, 4)": x[0].expand(3, 4),
    }
    for name, y in cases.items():
        told = f"shape {tuple(y.shape)}, stride {y.stride()}, offset {y.storage_offset()}"
        print(f"{name:18} {told:46} contiguous: {y.is_contiguous()}")
    i, j = 2, 1
    y = x.t()
    place = y.storage_offset() + i * y.stride(0) + j * y.stride(1)
    print(f"x.t()[{i}, {j}] = {y[i, j]}, storage[{place}] = {x.flatten()[place]}")
    print("Nothing was moved: transposing swaps two strides, and expanding sets one to 0")


def views_and_copies() -> None:
    """Which expressions share their memory with x, so that writing to one changes the other."""
    print("\n== Views share x's memory, copies do not (x of shape (3, 4))")
    x = torch.arange(12.0).view(3, 4)
    cases = {
        "x[0], x[:, 1:3]": x[:, 1:3],
        "x.t(), x.permute(1, 0)": x.t(),
        "x.view(4, 3), x.flatten()": x.flatten(),
        "x.t().reshape(12)": x.t().reshape(12),  # no stride walks a transposed matrix in a line
        "x[[0, 1]], x[x > 3]": x[[0, 1]],
        "x.contiguous(), x.float()": x.contiguous(),  # already so: x itself
        "x.t().contiguous()": x.t().contiguous(),
        "x.double(), x.clone()": x.double(),
    }
    for name, y in cases.items():
        shared = y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        print(f"{name:28} {'view' if shared else 'copy'}")
    row = x[0]
    row += 100
    print(f"row = x[0]; row += 100 changes x: x[0, 0] is now {x[0, 0]:.0f}")
    row = row + 100
    print(f"row = row + 100 makes a new row:  x[0, 0] is still {x[0, 0]:.0f}")


def einsum() -> None:
    """Name the axes; those missing on the right are summed over."""
    print("\n== Einsum; FLOPs of a product are 2 x the size of every letter")
    A, C, v = torch.randn(5, 6), torch.randn(6, 7), torch.randn(6)
    q, k = torch.randn(2, 9, 3, 4), torch.randn(2, 8, 3, 4)
    cases = [
        ("ij,jk->ik", (A, C), A @ C, "matrix product"),
        ("ij,j->i", (A, v), A @ v, "matrix times vector"),
        ("i,j->ij", (v, v), v[:, None] * v, "outer product"),
        ("ij->j", (A,), A.sum(0), "sum over rows"),
        ("ij,ij->", (A, A), (A * A).sum(), "square of the norm"),
        ("bqhd,bkhd->bhqk", (q, k), q.transpose(1, 2) @ k.permute(0, 2, 3, 1), "attention scores"),
    ]
    for letters, inputs, wanted, meaning in cases:
        error = (torch.einsum(letters, *inputs) - wanted).abs().max()
        print(f"{letters:16} {meaning:20} shape {tuple(wanted.shape)!s:14} differs by {error:.0e}")


def costs() -> tuple[cost.Peaks, list[tuple[cost.Operation, float]]]:
    """The machine's peaks; each operation with its measured seconds."""
    peaks = cost.measure_peaks()
    print(f"\n== Costs, on {torch.get_num_threads()} core(s)")
    print(f"peak {peaks.flops / 1e9:.0f} GFLOP/s, memory {peaks.bandwidth / 1e9:.0f} GB/s: below "
          f"{peaks.flops / peaks.bandwidth:.0f} FLOP a byte, memory is the limit")  # fmt: skip
    print("Predicted beside measured: MFLOP, and those that torch counts (in products only); MB of")
    print("the result, and those allocated; from MFLOP and traffic the time, and the clock's.")
    print(f"{'':20} {'MFLOP':>8} {'counted':>8} {'MB':>8} {'allocated':>9} {'traffic MB':>10} "
          f"{'expected':>10} {'measured':>10}")  # fmt: skip
    rows = []
    for op in cost.operations():
        counted, allocated = cost.counted_flops(op.run), cost.allocated_bytes(op.run)
        seconds = cost.best_seconds(op.run)
        rows.append((op, seconds))
        products = f"{counted / 1e6:8.2f}" if counted else f"{'–':>8}"
        print(f"{op.name:20} {op.flops / 1e6:8.2f} {products} {op.memory / 1e6:8.3f} "
              f"{allocated / 1e6:9.3f} {op.traffic / 1e6:10.2f} {1e3 * peaks.seconds(op):7.3f} ms "
              f"{1e3 * seconds:7.3f} ms")  # fmt: skip
    print("Slower than expected: a copy first reads what it overwrites; x + y asks the system for")
    print(
        "fresh memory, torch.add(x, y, out=z) would not; W.t() is read with long jumps; and a tiny"
    )
    print("product is all call and no arithmetic. Faster: what lies in a cache costs no traffic.")
    return peaks, rows


def draw(path: Path, peaks: cost.Peaks, rows: list[tuple[cost.Operation, float]]) -> None:
    titles = "the roofline of this machine", "time: expected and measured"
    with panels(path, *titles, width=5.4, height=4) as (roof, times):
        intensity = np.logspace(-2, 3, 100)
        roof.plot(intensity, np.minimum(peaks.flops, intensity * peaks.bandwidth) / 1e9, "k")
        for op, seconds in rows:
            if op.flops:
                roof.plot(op.flops / op.traffic, op.flops / seconds / 1e9, "o", label=op.name)
        roof.set(xscale="log", yscale="log", xlabel="FLOP a byte of traffic", ylabel="GFLOP/s")
        expected, measured = zip(
            *((1e3 * peaks.seconds(op), 1e3 * s) for op, s in rows), strict=True
        )
        places = np.arange(len(rows))
        times.barh(places - 0.2, expected, 0.4, label="expected")
        times.barh(places + 0.2, measured, 0.4, label="measured")
        times.set_yticks(places, [op.name for op, _ in rows])
        times.invert_yaxis()  # the first on top, as printed
        times.set(xscale="log", xlabel="ms")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
