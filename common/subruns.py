"""Scripts that are run by another one, each in a process of its own."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from common import cli, runs
from common.cli import UserError

STOPPED = {75: 0, **{128 + s: s for s in (signal.SIGINT, signal.SIGTERM)}}  # exit code: signal
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Slice:
    """The minutes that a script and all that it starts may take; None: no end."""

    def __init__(self, minutes: float | None):
        self.end = time.monotonic() + 60 * minutes if minutes else math.inf

    def left(self) -> float | None:
        """Minutes left; never 0, which would be no limit: what starts late does one step more."""
        return None if self.end == math.inf else max(1e-6, (self.end - time.monotonic()) / 60)

    def over(self) -> bool:
        return time.monotonic() >= self.end


def command_of(script: Path, *flags, launch: tuple = (), **settings) -> list[str]:
    """The command line of `script`, under `python -m launch...` if that is given.

    `settings` follow the flags: learning_rate=0.1 becomes --learning-rate=0.1.
    """
    start = [sys.executable, *(["-m", *launch] if launch else []), script]
    more = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [str(part) for part in [*start, *flags, *more]]


def call(script: Path, *flags, quiet: bool = False, **options) -> None:
    """Run one script to its end as `call_all` does; `options` are those of `command_of`."""
    call_all([command_of(script, *flags, **options)], quiet=quiet)


def call_all(commands: Iterable[list[str]], at_once: int = 1, quiet: bool = False) -> None:
    """Run scripts to their end, `at_once` at a time; several share the cores and GPUs among them.

    A command is taken from `commands` when there is room for it, so that an iterator can say what
    is started, and what is left of a slice. `quiet` keeps back what the scripts print.

    Ctrl-C and SIGTERM are handed on, so that each saves where it is; `cli.Interrupted` follows, as
    it does when its slice is over. Raises UserError when one fails; the others are told to save.
    One that was not quiet, and so has told what input is bad, ends this process with its exit code.
    """
    received, stopped, name, running = [], [], "", {}  # process: complaints, GPU
    environment, devices = dict(os.environ), []
    if at_once > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, runs.hardware()["cores"] // at_once))
        devices = gpus()

    def hand_on(signum, frame):
        received.append(signum)
        for process in list(running):
            process.send_signal(signum)

    before = {s: signal.signal(s, hand_on) for s in (signal.SIGINT, signal.SIGTERM)}
    commands = iter(commands)
    try:
        while True:
            while not (received or stopped) and len(running) < at_once:
                if (command := next(commands, None)) is None:
                    break
                complaints = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115
                if devices:  # that on which the fewest run
                    taken = [device for _, device in running.values()]
                    environment["CUDA_VISIBLE_DEVICES"] = min(devices, key=taken.count)
                process = _start(command, environment, complaints)
                running[process] = complaints, environment.get("CUDA_VISIBLE_DEVICES")
                name = _script(process)
                for signum in received:  # what came while it was starting
                    process.send_signal(signum)
            if not running:
                break
            for process in [process for process in running if process.poll() is not None]:
                why, code = _last_line(running.pop(process)[0]), process.returncode
                if code in STOPPED:
                    stopped.append(STOPPED[code])
                elif code == 2 and not (quiet or received):
                    sys.exit(code)
                elif code and not received:
                    told = why.removeprefix("error: ") or f"exit code {code}"
                    raise UserError(f"{_script(process)}: {told}; mend it and go on with --resume")
            time.sleep(0.05)
    finally:
        for process in running:  # another one failed
            process.terminate()
        for process in running:
            process.wait()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if received or stopped:
        raise cli.Interrupted([*received, *stopped][0], f"{name} was stopped")


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return named.split(",")[:count]


def _start(command: list[str], environment: dict[str, str], complaints) -> subprocess.Popen:
    """A process that gets SIGTERM (on Linux, by prctl) when this one is killed."""
    linux = sys.platform == "linux"
    return subprocess.Popen(
        command,
        stdout=complaints and subprocess.DEVNULL,
        stderr=complaints,
        env=environment,
        start_new_session=True,  # or Ctrl-C would reach it twice
        preexec_fn=partial(LIBC.prctl, PR_SET_PDEATHSIG, signal.SIGTERM) if linux else None,
    )


def _script(process: subprocess.Popen) -> str:
    return next(Path(part).name for part in process.args if part.endswith(".py"))


def _last_line(file) -> str:
    if file is None:
        return ""
    with file:
        file.seek(0)
        return (file.read().decode(errors="replace").strip().splitlines() or [""])[-1]
