"""A run of many trainings goes on with --resume as it was begun; but more can be added to it."""

import json
import signal
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from common import cli, data, runs
from common.cli import UserError

ALWAYS_FREE = {"out", "resume", "tracker"}  # where a run lies and how it is watched


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError if there is anything else."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("an object was expected")
    return found


def read(path: Path) -> dict[str, Any]:
    """A JSON object that a run wrote; UserError if it is damaged."""
    try:
        return json_object(path)
    except ValueError as error:
        told = "delete it and go on with --resume, or choose another --out"
        raise UserError(f"{path} is damaged ({error}): {told}") from None


def check(folder: Path, settings: dict[str, Any], free: Set[str]) -> None:
    """Raises UserError if the run in `folder` was begun with other settings than these.

    Its results would be mixed, for what is done is never done again. Those that are `free`, and
    ALWAYS_FREE, decide no result.
    """
    begun = read(folder / "config.json")
    now = json.loads(json.dumps(settings))
    for name in sorted(now.keys() - free - ALWAYS_FREE):
        flag = f"--{name.replace('_', '-')}"
        if name not in begun:
            raise UserError(f"{folder} was begun before there was {flag}: choose another --out")
        if begun[name] != now[name]:
            told = f"{flag} {begun[name]}: go on so, or choose another --out"
            raise UserError(f"{folder} was begun with {told}")


def record(
    run: runs.Run, facts: dict[str, Any], name: str = "source", what: str = "other data"
) -> None:
    """State in the run's config.json what it reads.

    Raises UserError if it was begun with `what`: what is done would stand beside what is not.
    """
    data.record(run.path, facts, name)
    begun = read(run.path / "config.json")[name]
    place = {"name": None, "kind": None}  # the same text may be had from somewhere else
    if begun | place != json.loads(json.dumps(facts)) | place:
        raise UserError(f"{run.path} was begun with {what}: choose another --out")


def finished(
    run: runs.Run, config: cli.RunConfig, *, free: Set[str], more: Set[str] = frozenset()
) -> bool:
    """Whether nothing is left to do, as `Run.finished` says it; raises what `check` raises.

    Settings in `more`, such as the number of seeds, say how much there is to compare: where they
    differ from those of the result, there is work left.
    """
    settings = cli.as_dict(config)
    if run.main:  # the others may be on a machine that does not have the directory
        check(run.path, settings, free | more)
    result = run.path / "result.json"
    if result.exists():
        now = json.loads(json.dumps(settings))
        done = read(result).get("config", {})
        if any(done.get(name) != now[name] for name in more):
            return False
    return run.finished()


def seconds_of(results: Iterable[dict[str, Any]]) -> float:
    """Seconds in which one of these runs or several trained, by their `seconds` and their `date`,
    which is the end: what ran side by side counts once."""
    total, end = 0.0, 0.0
    ends = [(datetime.fromisoformat(one["date"]).timestamp(), one["seconds"]) for one in results]
    for begun, ended in sorted((ended - seconds, ended) for ended, seconds in ends):
        total += max(0.0, ended - max(begun, end))
        end = max(end, ended)
    return round(total, 1)


@contextmanager
def tells_how(out: Path, told: str = "") -> Iterator[None]:
    """What stops the block ends with the command that goes on with the whole run in `out`.

    A training within it knows only how to go on with itself. Raises cli.Interrupted, which says
    `told`, or else what the one that it caught had said.
    """
    try:
        yield
    except (KeyboardInterrupt, cli.Interrupted) as stop:
        said = f"{told or str(stop) or 'stopped'}; go on with:\n{cli.resume_command(out)}"
        raise cli.Interrupted(getattr(stop, "signum", signal.SIGINT), said) from None
