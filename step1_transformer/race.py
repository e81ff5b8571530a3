"""Who is faster, and by how much: systems take turns, and the median over the rounds counts."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass
class Race:
    """What was timed, and the seconds of one call of each system, a number a round.

    The first system is the one that the others are compared to.
    """

    what: str  # forward, training step, real lengths, decoding
    width: int
    length: int  # of a side, in tokens; on real data the mean
    precision: str
    tokens: int  # target tokens of one call
    seconds: dict[str, list[float]]

    def ms(self, name: str) -> float:
        return 1000 * median(self.seconds[name])

    def rate(self, name: str) -> float:
        """Target tokens a second."""
        return self.tokens / median(self.seconds[name])

    def ratios(self, name: str = "ours") -> list[float]:
        """How many times as fast as the first system, in each round."""
        first = next(iter(self.seconds.values()))
        return [theirs / own for theirs, own in zip(first, self.seconds[name], strict=True)]

    def ratio(self, name: str = "ours") -> float:
        return median(self.ratios(name))


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
