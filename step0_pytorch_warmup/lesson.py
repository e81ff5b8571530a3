"""What the scripts of this step share: a figure, and the result that a run leaves behind."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import cli, runs

STEP = "step0_pytorch_warmup"


def start(config: cli.RunConfig, script: str) -> runs.Run:
    """The run directory. A lesson takes seconds: done again, it takes its earlier self's place."""
    run = runs.Run.open(replace(config, resume=True), f"{STEP}/{script}")
    runs.write_json(run.path / "config.json", cli.as_dict(config))
    return run


@contextmanager
def panels(path: Path, *titles: str, width: float = 4.2, height: float = 3.4) -> Iterator[Any]:
    """Axes side by side, one for each title; inches each. The figure is saved to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(titles), figsize=(width * len(titles), height))
    axes = [axes] if len(titles) == 1 else list(axes)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    yield axes
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
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
