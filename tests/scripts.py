"""A script as a user runs it, but in the process of the test; and how much memory a block takes."""

import ctypes
import gc
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

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
