"""A comparison goes on with --resume as it was begun; but more can be added to it."""

import json
from collections.abc import Set

from common import cli, runs
from common.cli import UserError


def finished(
    run: runs.Run, config: cli.RunConfig, *, free: Set[str], more: Set[str] = frozenset()
) -> bool:
    """Whether nothing is left to do, as `Run.finished` says it.

    Settings that are `free` decide no result. Those in `more`, such as the number of seeds, say how
    much there is to compare: where they differ from those of the result, there is work left. Raises
    UserError if the run was begun with any other setting: its results would be mixed.
    """
    now = json.loads(json.dumps(cli.as_dict(config)))
    begun = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    for name in sorted(now.keys() - free - more):
        if begun.get(name) != now[name]:
            flag = f"--{name.replace('_', '-')} {begun.get(name)}"
            raise UserError(f"{run.path} was begun with {flag}: go on so, or choose another --out")
    result = run.path / "result.json"
    if result.exists():
        done = json.loads(result.read_text(encoding="utf-8"))["config"]
        if any(done.get(name) != now[name] for name in more):
            return False
    return run.finished()
