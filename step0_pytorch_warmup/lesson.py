"""What the scripts of this step share: a figure, and the result that a run leaves behind."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import cli, runs
from common.cli import UserError

STEP = "step0_pytorch_warmup"


def start(config: cli.RunConfig, script: str) -> runs.Run:
    """The run directory. A lesson takes seconds: done again, it takes its earlier self's place.

    Raises UserError for --data, which no lesson reads, and if another script's run is there.
    """
    if config.data:
        raise UserError(f"--data {config.data}: a lesson brings its own data; leave the flag out")
    run = runs.Run.open(replace(config, resume=True), f"{STEP}/{script}")
    written, mine = run.path / "config.json", cli.as_dict(config)
    if json.loads(written.read_text()).keys() != mine.keys():
        raise UserError(f"{run.path} holds another script's run; choose another --out")
    if not config.resume:
        (run.path / "result.json").unlink(missing_ok=True)
        runs.write_json(written, mine)
    return run


@contextmanager
def panels(
    path: Path, *titles: str, width: float = 4.2, height: float = 3.4, rows: int = 1
) -> Iterator[Any]:
    """Axes in rows, one for each title; inches each. The figure is saved to `path`."""
    from matplotlib.figure import Figure

    columns = len(titles) // rows
    size = (width * columns, height * rows)
    figure = Figure(figsize=size)
    axes = figure.subplots(rows, columns, squeeze=False)
    axes = list(axes.flat)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    yield axes
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"\nfigure: {path}")


def finish(
    run: runs.Run,
    config: cli.RunConfig,
    started: float,
    *,
    script: str,
    system: str,
    metrics: dict[str, dict],
    dataset: str = "random numbers",
    split: str = "",
    parameters: int | None = None,
) -> None:
    """Write result.json. `started` is the value of `time.monotonic()` at the script's begin."""
    run.result(
        step=STEP,
        script=script,
        system=system,
        preset=config.preset,
        dataset=dataset,
        split=split,
        metrics=metrics,
        compare_to=[],
        model={"name": system, "parameters": parameters},
        tokens=None,
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=None,
        seeds=[config.seed],
        config=cli.as_dict(config),
    )
