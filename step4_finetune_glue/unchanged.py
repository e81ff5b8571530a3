"""That a run of many trainings goes on as it began: those it has already are not done again."""

import json
from pathlib import Path
from typing import Any

from common.cli import UserError

FREE = {"out", "resume", "tracker", "preset", "slice_minutes"}


def check(folder: Path, now: dict[str, Any], free: set[str] = frozenset()) -> None:
    """Raises UserError where `now` is not what config.json of the run in `folder` says.

    What is in FREE or `free` decides no score and may differ.
    """
    begun = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(now))
    for name in sorted(now.keys() - FREE - free):
        if name == "source" and begun.get(name) != now[name]:
            raise UserError(f"{folder} was begun with other data: choose another --out")
        if begun.get(name) != now[name]:
            flag = f"--{name.replace('_', '-')} {begun.get(name)}"
            raise UserError(f"{folder} was begun with {flag}: go on so, or choose another --out")
