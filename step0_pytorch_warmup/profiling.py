"""Where the time goes: small operations, the profiler's table, threads, and torch.compile.

    python step0_pytorch_warmup/profiling.py
    python step0_pytorch_warmup/profiling.py --no-compile --threads 4

Measure before you change anything: a small operation costs its call and a large one its memory
traffic, a training step hides which of its parts is slow, and what should help may not.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from common import cli
from common.runs import metric
from step0_pytorch_warmup import mlp
from step0_pytorch_warmup.lesson import finish, panels, start

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@dataclass
class Config(cli.RunConfig):
    width: int = 1024
    """Hidden units of the MLP that is profiled, and rows of the matrices of the thread test."""
    rounds: int = 7
    """Times that each thing is timed; the median counts."""
    threads: int = CORES
    """Most threads to try."""
    no_compile: bool = False
    """Leave torch.compile out."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "rounds", "threads"):
            cli.check(self, name, "1 or more", lambda value: value >= 1)


PRESETS = {"smoke": dict(width=64, rounds=1, no_compile=True), "cpu": {}}


def main(config: Config) -> None:
    run = start(config, "profiling")
    if run.finished():
        return
    started = time.monotonic()
    before = torch.get_num_threads()
    torch.manual_seed(config.seed)
    costs = small_operations(config)
    shares = profile_step(config)
    products = threads(config)
    torch.set_num_threads(before)
    fused = None if config.no_compile else compiled(config)
    titles = ("x + 1", "one training step", "matrix product")
    with panels(run.path / "curves.png", *titles, width=4.6) as axes:
        draw(*axes, costs, shares, products)
    finish(
        run, config, started, script="profiling", system="torch",
        metrics=measured(config, costs, products, fused),
    )  # fmt: skip


def clock(work: Callable[[], object], rounds: int, calls: int = 1) -> float:
    """Median seconds of a call, after one round to warm up."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - began) / calls)
    return median(times[1:])


def small_operations(config: Config) -> dict[int, float]:
    """Seconds of x + 1 for x of 1 to 10^7 numbers."""
    torch.set_num_threads(1)
    print("1 x + 1     numbers    time (us)   GB/s")
    costs = {}
    for n in (10**k for k in range(8)):
        x = torch.ones(n)
        costs[n] = clock(lambda x=x: x + 1, config.rounds, calls=max(1, 10**4 // n))
        print(f"  {n:17,} {1e6 * costs[n]:12.1f} {8 * n / costs[n] / 1e9:6.1f}")
    print("  A call costs the same until memory does: join small operations into large ones. Where")
    print(
        "  the rate falls at the end, so large a result is fresh memory from the system each time."
    )
    return costs


def profile_step(config: Config) -> dict[str, float]:
    """Shares of a training step's time, by operation, the largest first."""
    from torch.profiler import ProfilerActivity, profile, record_function

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would print lines of its own
    model = mlp.MLP((64, config.width, config.width, 10))
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    images, labels = torch.randn(128, 64), torch.randint(10, (128,))

    def step() -> None:
        with record_function("forward"):
            loss = F.cross_entropy(model(images), labels)
        with record_function("backward"):
            optimizer.zero_grad()
            loss.backward()
        with record_function("optimizer"):
            optimizer.step()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(config.rounds):
            step()
    events = found.key_averages()
    print('\n2 Training steps of an MLP. "Self" is an operation without those that it calls:')
    print(events.table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=40))
    print("  addmm is a layer, x W' + b; mm is backward's, twice a layer, but once for the first,")
    print("  whose input wants no gradient; sqrt and div are Adam's, whatever the batch size.\n")
    whole = sum(event.self_cpu_time_total for event in events)
    events = sorted(events, key=lambda event: -event.self_cpu_time_total)
    return {event.key: event.self_cpu_time_total / whole for event in events[:8]}


def threads(config: Config) -> dict[int, float]:
    """Seconds of a matrix product with 1, 2, ... threads."""
    a, b = torch.randn(2, config.width, config.width)
    print(f"3 product of two {config.width} x {config.width} matrices")
    times: dict[int, float] = {}
    for n in range(1, config.threads + 1):
        torch.set_num_threads(n)
        times[n] = clock(lambda: a @ b, config.rounds)
        rate = 2 * config.width**3 / times[n] / 1e9
        told = f"{n} thread{'s' if n > 1 else ' '}"
        print(f"  {told} {1e3 * times[n]:8.2f} ms {rate:7.1f} GFLOP/s {times[1] / times[n]:.2f}x")
    return times


def gelu(x: Tensor) -> Tensor:
    """Six operations, each of which reads and writes all of x."""
    return 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3)))


def compiled(config: Config) -> float | None:
    """How many times faster `gelu` is when torch.compile joins its operations; None without it."""
    x = torch.randn(1000 * config.width)
    fused = torch.compile(gelu)
    began = time.perf_counter()
    try:
        fused(x)
    except Exception as error:  # what is raised differs with the part that is missing
        print(f"\n4 torch.compile is skipped, for it wants a C++ compiler: {type(error).__name__}")
        return None
    took = time.perf_counter() - began
    plain, joined = (clock(lambda f=f: f(x), config.rounds) for f in (gelu, fused))
    print(f"\n4 GELU by hand on {len(x):,} numbers: {1e3 * plain:.1f} ms as it stands, ", end="")
    print(f"{1e3 * joined:.1f} ms compiled ({plain / joined:.1f}x); compiling took {took:.1f} s")
    return plain / joined


def measured(config: Config, costs: dict, products: dict, fused: float | None) -> dict:
    most = max(products)
    found = {
        "microseconds of a small operation": metric(
            1e6 * costs[1], n=config.rounds, unit="us", higher_is_better=False
        ),
        f"speed of {most} threads over 1": metric(
            products[1] / products[most], n=config.rounds, unit="x"
        ),
    }
    if fused:
        found["speed of compiled GELU over eager"] = metric(fused, n=config.rounds, unit="x")
    return found


def draw(left, middle, right, costs: dict, shares: dict, products: dict) -> None:
    left.loglog(list(costs), [1e6 * seconds for seconds in costs.values()], marker="o")
    left.set(xlabel="numbers", ylabel="time (us)")
    names = [name.removeprefix("aten::")[:24] for name in shares]
    middle.barh(names[::-1], [100 * share for share in shares.values()][::-1])
    middle.set(xlabel="share of the time (%)")
    middle.tick_params(axis="y", labelsize=7)
    right.plot(list(products), [products[1] / t for t in products.values()], marker="o")
    right.plot(list(products), list(products), "k:", label="ideal")
    right.set(xlabel="threads", ylabel="times faster", xticks=list(products))


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
