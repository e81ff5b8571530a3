"""A run of many trainings goes on with --resume as it was begun; but more can be added to it."""

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from common import cli, runs
from common.cli import UserError

ALWAYS_FREE = {"out", "resume", "tracker"}  # where a run lies and how it is watched


def check(folder: Path, settings: dict[str, Any], free: Set[str]) -> None:
    """Raises UserError if the run in `folder` was begun with other settings than these.

    Its results would be mixed, for what is done is never done again. Those that are `free`, and
    ALWAYS_FREE, decide no result.
    """
    begun = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(settings))
    for name in sorted(now.keys() - free - ALWAYS_FREE):
        if begun.get(name) != now[name]:
            flag = f"--{name.replace('_', '-')} {begun.get(name)}"
            raise UserError(f"{folder} was begun with {flag}: go on so, or choose another --out")


def finished(
    run: runs.Run, config: cli.RunConfig, *, free: Set[str], more: Set[str] = frozenset()
) -> bool:
    """Whether nothing is left to do, as `Run.finished` says it; raises what `check` raises.

    Settings in `more`, such as the number of seeds, say how much there is to compare: where they
    differ from those of the result, there is work left.
    """
    settings = cli.as_dict(config)
    check(run.path, settings, free | more)
    result = run.path / "result.json"
    if result.exists():
        now = json.loads(json.dumps(settings))
        done = json.loads(result.read_text(encoding="utf-8"))["config"]
        if any(done.get(name) != now[name] for name in more):
            return False
    return run.finished()
