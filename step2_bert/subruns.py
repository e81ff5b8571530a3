"""Scripts of this step that are run by another one, each in a process of its own."""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import cli
from common.cli import UserError

SCRIPTS = Path(__file__).resolve().parent


class Slice:
    """The minutes that a script and all that it starts may take; None: no end."""

    def __init__(self, minutes: float | None):
        self.end = time.monotonic() + 60 * minutes if minutes else math.inf

    def left(self) -> float | None:
        """Minutes left; never 0, which would be no limit: what starts late does one step more."""
        return None if self.end == math.inf else max(1e-6, (self.end - time.monotonic()) / 60)


def command_of(script: str, *flags, launch: tuple = ()) -> list[str]:
    """The command line of `script`, under `python -m launch...` if that is given."""
    start = [sys.executable, *(["-m", *launch] if launch else []), SCRIPTS / script]
    return [str(part) for part in [*start, *flags]]


def call(script: str, *flags, launch: tuple = (), quiet: bool = False) -> None:
    """Run `script` to its end; `quiet` keeps back what it prints.

    Ctrl-C and SIGTERM are handed on, so that it saves where it is; `cli.Interrupted` follows, as
    it does when its slice is over. Raises UserError when it fails.
    """
    received, children = [], []

    def hand_on(signum, frame):
        received.append(signum)
        for child in children:
            child.send_signal(signum)

    before = {s: signal.signal(s, hand_on) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(
            command_of(script, *flags, launch=launch),
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
            start_new_session=True,  # or Ctrl-C would reach it twice
        )
        children.append(child)
        for signum in received:  # before there was a child
            child.send_signal(signum)
        complaint = (child.communicate()[1] or "").strip()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    stopped = {75: 0, 128 + signal.SIGINT: signal.SIGINT, 128 + signal.SIGTERM: signal.SIGTERM}
    if received or child.returncode in stopped:
        signum = received[0] if received else stopped[child.returncode]
        raise cli.Interrupted(signum, f"{script} was stopped")
    if child.returncode:
        told = complaint.splitlines()[-1] if complaint else f"exit code {child.returncode}"
        raise UserError(f"{script}: {told}; mend it and go on with --resume")
