"""A script as a user runs it, but in the process of the test; and how much memory a block takes."""

import ctypes
import gc
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from common import cli

MB = 10**6
STATUS = Path("/proc/self/status")


def call(script, *flags, config_class=None) -> int:
    """Run the main of the module `script` with these flags; its exit code."""
    name = script.__name__.replace(".", "/")
    before, sys.argv = sys.argv, [f"{name}.py", *map(str, flags)]
    try:
        cli.run(script.main, config_class or script.Config, getattr(script, "PRESETS", {}))
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
        gc.collect()  # a run directory is free when its Run is gone
    return 0


def in_this_process(script, noting=lambda out: None):
    """In place of `subruns.call_all`: commands of the module `script`, one by one in the process of
    the test, on one thread; `noting` is told the --out of each."""

    def call_all(commands, at_once=1, quiet=False) -> None:
        torch.set_num_threads(1)
        for command in commands:
            flags = command[2:]  # behind python and the script
            noting(Path(flags[flags.index("--out") + 1]))
            script.main(cli.parse(script.Config, script.PRESETS, flags))
            gc.collect()  # a run directory is free when its Run is gone

    return call_all


@contextmanager
def at_most(megabytes):
    """Fails if the block takes more memory than this, beside what is taken before it."""
    if not STATUS.exists():
        pytest.skip("memory is measured by Linux's /proc")

    def read(name):
        return int(STATUS.read_text().split(f"{name}:")[1].split()[0]) * 1024 / MB

    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests left free is no room to hide in
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    before = read("VmRSS")
    yield
    taken = read("VmHWM") - before
    assert taken < megabytes
