"""Who is faster, and by how much: systems take turns, and the median over the rounds counts."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev

import torch

from step0_pytorch_warmup import lesson


@dataclass
class Race:
    """What was timed, and the seconds of one call of each system, a number a round.

    The first system is the one that the others are compared to.
    """

    what: str
    width: int
    length: int  # tokens of a row; of real sentences the mean
    precision: str
    tokens: int  # target tokens of one call
    seconds: dict[str, list[float]]
    note: str = ""

    @property
    def place(self) -> str:
        return f"width {self.width}, length {self.length}, {self.precision}"

    @property
    def first(self) -> str:
        return next(iter(self.seconds))

    @property
    def others(self) -> list[str]:
        return list(self.seconds)[1:]

    def milliseconds(self, system: str) -> float:
        return 1000 * median(self.seconds[system])

    def rate(self, system: str) -> float:
        """Target tokens a second."""
        return self.tokens / median(self.seconds[system])

    def ratios(self, system: str = "ours") -> list[float]:
        """How many times as fast as the first system, in each round."""
        pairs = zip(self.seconds[self.first], self.seconds[system], strict=True)
        return [theirs / own for theirs, own in pairs]

    def ratio(self, system: str = "ours") -> float:
        return median(self.ratios(system))

    def spread(self, system: str = "ours") -> float | None:
        """Standard deviation of the ratio over the rounds."""
        return stdev(ratios) if len(ratios := self.ratios(system)) > 1 else None


def take_turns(
    systems: dict[str, Callable[[], object]], rounds: int, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a call of each system in each round.

    A turn is as many calls as fill `seconds`, one at least. A slow minute of the machine falls on
    all systems, and who goes first changes from round to round.
    """
    calls = {name: _calls(system, seconds, device) for name, system in systems.items()}
    found: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds):
        for name in list(systems)[:: 1 if number % 2 else -1]:
            found[name].append(_clock(systems[name], calls[name], device))
    return found


def _calls(system: Callable[[], object], seconds: float, device: torch.device) -> int:
    """Warm the system up, and count how often it can be called in `seconds`."""
    for _ in range(2):  # the first call is slow, but a very slow one need not be repeated
        if (took := _clock(system, 1, device)) > 5 * seconds:
            break
    return max(1, int(seconds / took))


def _clock(system: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds a call: the machine's whole time, the GPU's queue emptied before and after."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        system()
    _wait(device)
    return (time.perf_counter() - started) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- what is shown -------------------------------------------------------------------------------


def table(races: list[Race]) -> str:
    """A line for each system that is compared to another; the median, least and largest ratio."""
    lines, header = [], ""
    for race in races:
        columns = f"{race.what:14}{'width':>6}{'length':>7}  {'':6}{'system':24}"
        titles = f"{columns}{'PyTorch ms':>10}{'ms':>9}{'tokens/s':>10}{'ratio':>8}"
        if titles != header:
            header = titles
            lines += ["", titles]
        for system in race.others:
            ratios = race.ratios(system)
            lines.append(
                f"{'':14}{race.width:6}{race.length:7}  {race.precision:6}{system:24}"
                f"{race.milliseconds(race.first):10.1f}{race.milliseconds(system):9.1f}"
                f"{race.rate(system):10,.0f}{race.ratio(system):7.2f}x"
                f" ({min(ratios):.2f}-{max(ratios):.2f})"
            )
        if race.note:
            lines.append(f"{'':29}{race.note}")
    return "\n".join(lines[1:])


def draw(races: list[Race], goals: dict[str, float], path: Path) -> None:
    """A panel for each kind of race: bars from the least to the most that ours was faster."""
    kinds = list(dict.fromkeys(race.what for race in races))
    precisions = list(dict.fromkeys(race.precision for race in races))
    with lesson.panels(path, *kinds, width=4.6) as axes:
        for what, axis in zip(kinds, axes, strict=True):
            labels: list[str] = []
            shapes = {(race.width, race.length) for race in races if race.what == what}
            for number, precision in enumerate(precisions):
                bars = {}
                for race in races:
                    if (race.what, race.precision) == (what, precision):
                        shape = [f"{race.width} x {race.length}"] * (len(shapes) > 1)
                        for system in race.others:
                            names = [system] * (len(race.others) > 1) + shape
                            bars[", ".join(names)] = race.ratios(system)
                labels = list(bars)
                height = [median(ratios) for ratios in bars.values()]
                below = [m - min(r) for m, r in zip(height, bars.values(), strict=True)]
                above = [max(r) - m for m, r in zip(height, bars.values(), strict=True)]
                where = [i + 0.8 * number / len(precisions) for i in range(len(bars))]
                options = dict(width=0.8 / len(precisions), align="edge", capsize=2)
                axis.bar(where, height, yerr=(below, above), label=precision, **options)
            axis.axhline(1, color="black", linewidth=1)
            if what in goals:
                axis.axhline(goals[what], color="tab:red", linestyle="--", label="goal")
            axis.set_xticks([i + 0.4 for i in range(len(labels))], labels, rotation=30, ha="right")
            axis.tick_params(axis="x", labelsize=8)
        axes[0].set_ylabel("times as fast as nn.Transformer")
