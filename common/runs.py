"""The run directory: everything that a run leaves behind, and that a resumed run needs.

config.json     complete, enough to repeat the run
metrics.jsonl   one event a line: step, tokens, losses, learning rate, tokens/s
result.json     the scores, with hardware, seconds and command
curves.png      drawn from metrics.jsonl
checkpoints/    step-00000100/: a Hugging Face directory plus trainer/
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import cli
from common.cli import UserError

KEEP_CHECKPOINTS = 2


class Run:
    """A run directory, held by one process at a time."""

    def __init__(self, path: Path, *, main: bool = True):
        self.path = path
        self.main = main
        self.commit: str | None = None
        self._lock = None

    @classmethod
    def open(cls, config: cli.RunConfig, default: str, *, main: bool = True) -> "Run":
        """Take the directory of a new run, or of one to resume.

        `default` names the run (`step2_bert/pretrain-cpu`) when `--out` is empty. `main` is False
        on the processes of a distributed run that only compute.

        Raises UserError if the directory is in use, or holds a run and `--resume` is not given.
        """
        run = cls(Path(config.out or Path("runs") / default), main=main)
        if main:
            run._take(config)
        return run

    def _take(self, config: cli.RunConfig) -> None:
        self.commit = commit()  # of the code that starts, not of a later edit
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 (held as long as the run)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            told = f"{self.path} is in use by another process; wait for it or choose another --out"
            one = " (what compares runs is one process: start it with python)"
            raise UserError(told + one * ("WORLD_SIZE" in os.environ)) from None
        written = self.path / "config.json"
        begun = {entry.name for entry in self.path.iterdir() if entry.suffix != ".new"}
        begun -= {".lock", "config.json"}
        if written.exists() and begun and not config.resume:
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume, "
                "choose another --out, or delete it"
            )
        if not (written.exists() and begun):  # a run that failed at once leaves only its config
            write_json(written, cli.as_dict(config))

    def finished(self) -> bool:
        """True, after printing where the result is, if the run being resumed had ended."""
        done = (self.path / "result.json").exists()
        if done and self.main:
            print(f"{self.path} is complete\nresult: {self.path / 'result.json'}", flush=True)
        return done

    # -- metrics ---------------------------------------------------------------------------

    def log(self, event: str, **values: Any) -> None:
        """Append one event to metrics.jsonl."""
        if self.main:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All events so far; a last line cut short by a kill is dropped."""
        path = self.path / "metrics.jsonl"
        events = []
        with contextlib.suppress(json.JSONDecodeError):
            for line in path.read_text().splitlines() if path.exists() else []:
                events.append(json.loads(line))
        return events

    def rewind(self, step: int) -> None:
        """Forget the events after `step`, which the resumed run will write again."""
        if self.main:
            kept = [e for e in self.metrics() if e.get("step", 0) <= step]
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in kept))

    # -- checkpoints -----------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*"))

    def publish_checkpoint(self, unfinished: Path, step: int) -> Path:
        """Rename a fully written directory into place, then drop all but the newest two."""
        sync(*unfinished.rglob("*"), unfinished)
        final = self.path / "checkpoints" / f"step-{step:08d}"
        unfinished.rename(final)
        sync(final.parent)
        for old in self.checkpoints()[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)
        return final

    # -- the end ---------------------------------------------------------------------------

    def result(self, parts: Iterable[dict[str, Any]] = (), **fields: Any) -> Path:
        """Write result.json, add what every result states, and print its path as the last line.

        `fields` holds step, script, system, dataset, split, metrics (name -> value, sd, n, unit,
        higher_is_better), compare_to, model, tokens, seconds, seeds, config. `parts` are what the
        runs within this one stated: its hardware is theirs if they agree, for it may have been
        resumed on another.
        """
        path = self.path / "result.json"
        if self.main:
            theirs = [part.get("hardware") for part in parts]
            alike = theirs and theirs.count(theirs[0]) == len(theirs)
            fields["hardware"] = (alike and theirs[0]) or hardware()
            fields |= {"command": cli.command(), "commit": self.commit}
            fields["date"] = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(path, fields)
            print(f"result: {path}", flush=True)
        return path

    def plot(self, x: str = "tokens") -> Path | None:
        """Draw curves.png: one panel a quantity, one line a split (train, heldout, ...)."""
        events = self.metrics()
        if not self.main or not events:
            return None
        path = self.path / "curves.png"
        plot_curves({"": events}, path, x=x, title=self.path.name)
        return path


def metric(
    value: float | list, *, sd: float | None = None, n: int = 1, unit="", higher_is_better=True
) -> dict[str, Any]:
    """One entry of a result's `metrics`; of a list of values, one a seed, their mean and sd."""
    if isinstance(value, list):
        n, sd = len(value), statistics.stdev(value) if len(value) > 1 else None
        value = statistics.mean(value)
    return {"value": value, "sd": sd, "n": n, "unit": unit, "higher_is_better": higher_is_better}


def plot_curves(
    runs: dict[str, list[dict[str, Any]]], path: Path, *, x: str = "tokens", title: str = ""
) -> None:
    """One panel for each quantity logged as `split/quantity`, one line for each run and split."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    names = {key for events in runs.values() for event in events for key in event if "/" in key}
    quantities = in_order({name.split("/", 1)[1] for name in names})
    if not quantities:
        return
    figure = Figure((4 * len(quantities), 3.4 + 0.15 * len(runs)), layout="tight")
    axes = figure.subplots(1, len(quantities), squeeze=False)
    for axis, quantity in zip(axes[0], quantities, strict=True):
        for key in sorted(name for name in names if name.endswith(f"/{quantity}")):
            split = key.split("/")[0]
            style = {"alpha": 0.6, "linewidth": 1} if split == "train" else {"marker": "o"}
            for i, (label, events) in enumerate(runs.items()):
                if points := [(event[x], event[key]) for event in events if key in event]:
                    line = "-" if points[2:] or split == "train" else ""  # two are no curve
                    named = dict(label=f"{label} {split}".strip(), markersize=3, linestyle=line)
                    if len(runs) > 1:  # a run has one colour in all panels
                        named["color"] = f"C{i % 10}"
                    axis.plot(*zip(*points, strict=True), **named, **style)
        axis.set(title=words(quantity), xlabel=x)
        axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def in_order(quantities: Iterable[str]) -> list[str]:
    """Quantities of one target together, its loss first."""
    return sorted(quantities, key=lambda name: (name.split("_")[0], "loss" not in name, name))


def words(name: str) -> str:
    """`mlm_loss` -> `MLM loss`."""
    short = ("mlm", "nsp", "mfu", "bleu")
    return " ".join(w.upper() if w in short else w for w in name.split("_"))


def hardware() -> dict[str, Any]:
    """What the run ran on: device, CPU model, cores of this process, processes, torch version."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ran_on = {"device": name, "cpu": _cpu_name(), "cores": cores, "torch": torch.__version__}
    return ran_on | {"processes": int(os.environ.get("WORLD_SIZE", "1"))}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the code that ran, with `-dirty` if files differ from it."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        beside.write_bytes(content)
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync(*paths: Path) -> None:
    """Ask the disk to keep what was written to files or directories."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def progress(total: int | None, **options: Any):
    """A tqdm bar; where stderr is no terminal, a plain line every 15 seconds instead."""
    from tqdm import tqdm

    class Lines(tqdm):
        def display(self, msg=None, pos=None):
            self.fp.write(f"{self}\n")
            self.fp.flush()

    if sys.stderr.isatty():
        return tqdm(total=total, dynamic_ncols=True, **options)
    return Lines(total=total, mininterval=15, delay=15, ascii=True, ncols=100, **options)


def say(text: str) -> None:
    """Print a line of the run's story; progress bars on stderr stay whole."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stdout)
    else:
        print(text)
    sys.stdout.flush()
