"""The command line of every script: a dataclass, its presets, and errors that fit in one line.

A script defines a config dataclass, a dict of named presets and `main(config)`, and ends with
`cli.run(main, Config, PRESETS)`. Every field becomes a flag; the string under a field is its help.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; its text is one line saying how."""


class Interrupted(Exception):
    """Training stopped on a signal, or (0) at the end of its slice, its checkpoint written.

    `str()` says how to resume.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@dataclass
class RunConfig:
    """The flags that every script shares."""

    preset: str = "cpu"
    """Named set of defaults: smoke (seconds), cpu (2 cores, minutes), gpu (one GPU), paper."""
    data: str = ""
    """Data to read: a known name, a file, or a folder."""
    out: str = ""
    """Run directory; empty: runs/<step>/<script>-<preset>."""
    seed: int = 0
    """Seed of every random choice."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint (or start it if there is none)."""
    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Also send metrics to this tracker."""

    def __post_init__(self):
        check(self, "seed", "0 or more", lambda value: value >= 0)


def check(config: RunConfig, name: str, rule: str, holds: Callable[[Any], bool]) -> None:
    """Raise UserError, which names the flag, unless a field is None or `holds(value)`."""
    value = getattr(config, name)
    if value is not None and not holds(value):
        raise UserError(f"--{name.replace('_', '-')} {value} must be {rule}")


Config = TypeVar("Config")
Presets = Mapping[str, Mapping[str, Any]]


def parse(
    config_class: type[Config],
    presets: Presets,
    args: list[str] | None = None,
    description: str | None = None,
) -> Config:
    """Build `config_class` from its defaults, then the preset, then the flags in `args`.

    A script without presets passes an empty mapping. Raises UserError for an unknown flag, an
    impossible value or a preset the script lacks.
    """
    args = sys.argv[1:] if args is None else args
    defaults = config_class(**_preset(args, presets)) if presets else config_class()

    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            told = dict(args=args, default=defaults, description=description)
            return tyro.cli(config_class, **told, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(complaint.getvalue())) from None


def _preset(args: list[str], presets: Presets) -> dict[str, Any]:
    """The values of the preset that `args` name."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?", const="")
    name = first.parse_known_args(args)[0].preset
    name = default_preset(presets) if name is None else name  # to ask takes an import of torch
    if name not in presets:
        raise UserError(f"unknown preset {name!r}; this script has: {', '.join(presets)}")
    chosen = {**presets[name], "preset": name}
    # A budget given by hand replaces the preset's
    given = any(a.split("=")[0] in ("--max-steps", "--max-minutes") for a in args)
    return {k: v for k, v in chosen.items() if not (given and k in ("max_steps", "max_minutes"))}


def default_preset(presets: Iterable[str]) -> str:
    """`gpu` where a GPU is present and the script has that preset, else `cpu`, else the first."""
    import torch

    wanted = ("gpu", "cpu") if torch.cuda.is_available() else ("cpu",)
    return next(name for name in (*wanted, *presets) if name in presets)


def _one_line(box: str) -> str:
    """The sentence inside the frame that tyro draws around an error."""
    inside = [line.strip("│ ").strip() for line in box.splitlines() if line.startswith("│")]
    rule = next((i for i, text in enumerate(inside) if set(text) == {"─"}), len(inside))
    sentence = " ".join(text for text in inside[:rule] if text) or box.strip()
    return re.sub(r"\s+", " ", sentence) + " (--help lists every flag)"


def run(main: Callable[[Config], Any], config_class: type[Config], presets: Presets) -> None:
    """Parse the command line, call `main(config)` and leave the process with the right exit code.

    0 success · 2 bad input, one line on stderr · 75 the slice is over: run the same command with
    --resume · 130 Ctrl-C · 143 SIGTERM. `GYM_DEBUG=1` shows the traceback instead of the line.
    """
    signal.signal(signal.SIGTERM, _terminate)
    told = getattr(sys.modules.get(main.__module__), "__doc__", None) or ""
    told = re.sub(r"(?m)^(?=(python|accelerate|torchrun) )", "    ", told)  # --help keeps the lines
    try:
        main(parse(config_class, presets, description=told))
    except (UserError, OSError) as error:
        if os.environ.get("GYM_DEBUG"):
            raise
        _leave(2, f"error: {_describe(error)}")
    except Interrupted as stop:
        _leave(128 + stop.signum if stop.signum else 75, str(stop))
    except KeyboardInterrupt:
        _leave(130, "interrupted")


def _terminate(signum, frame):
    raise Interrupted(signum, "terminated")


def _describe(error: Exception) -> str:
    if not isinstance(error, OSError):
        return " ".join(str(error).split())
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _leave(code: int, line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def command() -> str:
    """The command that started this process, as one would type it again."""
    script = Path(sys.argv[0])
    with contextlib.suppress(ValueError):
        script = script.resolve().relative_to(Path.cwd())
    world = int(os.environ.get("WORLD_SIZE", "1"))
    start = ["python"] if world == 1 else ["torchrun", "--nproc-per-node", str(world)]
    if world > 1 and "ACCELERATE_MIXED_PRECISION" in os.environ:  # set by its launcher
        start = ["accelerate", "launch", "--num_processes", str(world)]
    return shlex.join([*start, str(script), *sys.argv[1:]])


def resume_command(out: Path) -> str:
    """`command()` with what it takes to continue the run in `out`."""
    typed = {argument.split("=")[0] for argument in sys.argv[1:]}
    more = {"--out": f" --out {shlex.quote(str(out))}", "--resume": " --resume"}
    return command() + "".join(text for flag, text in more.items() if flag not in typed)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The config as JSON-ready plain values."""
    return dataclasses.asdict(config)
