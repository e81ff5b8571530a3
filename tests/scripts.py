"""A script as a user runs it, but in the process of the test."""

import gc
import sys

from common import cli


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
