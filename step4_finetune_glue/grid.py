"""The grid of the compact BERTs (Turc et al. 2019, arXiv:1908.08962): batch size x learning rate.

    python step4_finetune_glue/grid.py --task RTE --model notes/zoo/bert-tiny --parallel 2

Published dev scores are often the best cell of such a grid. A maximum over 20 noisy numbers is no
estimate of anything: it grows with the number of cells. So all cells are shown, with their spread,
and the best one is trained again with seeds that had no part in choosing it: that is the score.

Target of the cpu preset: the best cell is 2 points or more above the mean of the grid.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from common import cli, runs, subruns
from common.report import mean_and_sd
from common.runs import metric
from step1_transformer import resuming, settings
from step4_finetune_glue import spread, tasks, trainings


@dataclass
class Config(cli.RunConfig):
    task: str = "RTE"
    """Task, as finetune.py takes it."""
    data: str = "glue"
    """Where its files are, as finetune.py takes it."""
    model: str = "minilm"
    """Checkpoint, as finetune.py takes it."""
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Rows in an optimizer step: one row of the grid each."""
    learning_rates: tuple[float, ...] = (3e-5, 5e-5, 1e-4, 3e-4)
    """Peak learning rates: one column of the grid each."""
    epochs: int = 4
    """Passes over the training rows, in every cell."""
    fresh_seeds: int = 5
    """Trainings of the best cell with seeds that had no part in choosing it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products, the same in every cell."""
    train_limit: int | None = None
    """Train on this many rows only."""
    settings: tuple[str, ...] = ()
    """More flags of finetune.py for every training, as in: layer-decay=0.9 impl=hf."""
    parallel: int = 1
    """Trainings at a time; they share the cores and the GPUs."""
    slice_minutes: float | None = None
    """Stop with checkpoints and exit code 75 after this many minutes; --resume goes on."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("epochs", "fresh_seeds", "train_limit", "parallel", "slice_minutes"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        for name in ("batch_sizes", "learning_rates"):
            cli.check(self, name, "numbers above 0", lambda v: v and min(v) > 0)
        own = {"batch_size", "micro_batch_size", "learning_rate", "epochs", "train_limit"}
        settings.check(self, "layer-decay=0.9 new-head", trainings.TAKEN | own)


PRESETS = {
    "smoke": dict(batch_sizes=(8, 16), learning_rates=(1e-4, 3e-4), epochs=1, fresh_seeds=2,
                  train_limit=32),
    "cpu": dict(model="notes/zoo/bert-tiny", parallel=2),
    "gpu": dict(precision="bf16"),
}  # fmt: skip

TARGET = 2.0  # points that the best cell is above the mean of all, at least

FREE = {"preset", "slice_minutes", "parallel"}


def main(config: Config) -> None:
    task = tasks.task(config.task)
    name = f"{task.name.lower()}-{Path(config.model).name}-{config.preset}"
    run = runs.Run.open(config, f"step4_finetune_glue/grid-{name}")
    if resuming.finished(run, config, free=FREE):
        return
    trainings.begin(run, task, config)

    # Every cell once, then the best one again; what is done is never done again
    cells = list(dict.fromkeys(product(config.batch_sizes, config.learning_rates)))
    budget = subruns.Slice(config.slice_minutes)
    at_once = dict(at_once=config.parallel, quiet=config.parallel > 1)
    with resuming.tells_how(run.path):
        folders = {(b, r): run.path / f"batch-{b}-rate-{r:g}" for b, r in cells}
        todo = [(folders[cell], config.seed, flags(config, *cell)) for cell in cells]
        subruns.call_all(trainings.commands(config, todo, budget), **at_once)
        results = {cell: trainings.read(folder) for cell, folder in folders.items()}
        ranks_by = task.metrics[0]
        scores = {cell: one["metrics"][ranks_by]["value"] for cell, one in results.items()}
        best = max(scores, key=scores.get)
        seeds = [config.seed + 1 + i for i in range(config.fresh_seeds)]
        again = [(run.path / f"best-seed-{s}", s, flags(config, *best)) for s in seeds]
        subruns.call_all(trainings.commands(config, again, budget), **at_once)

    fresh = [trainings.read(folder) for folder, *_ in again]
    honest = [one["metrics"][ranks_by]["value"] for one in fresh]
    told = spread.of(list(scores.values()))
    score = metric(honest, unit="%")
    print(f"\n{task.name}, {config.model}, {config.epochs} epochs: {ranks_by} on dev, %")
    print(spread.table(scores, config.batch_sizes, config.learning_rates))
    print(f"whole grid: {', '.join(f'{k} {v:.2f}' for k, v in told.items())}")
    ties = list(scores.values()).count(scores[best]) - 1
    also = f", as {ties} other{'s' * (ties > 1)}; this is the first of them" * bool(ties)
    print(f"best cell: batch {best[0]}, learning rate {best[1]:g}: {scores[best]:.2f}{also}")
    print(f"the same with {len(seeds)} fresh seeds: {mean_and_sd(score, '.2f')}")
    every = [*results.values(), *fresh]
    collapsed = sum(one["collapsed"] for one in every)
    print(f"collapsed to one answer: {collapsed} of {len(every)}")
    usual = (task.name, config.model) == ("RTE", PRESETS["cpu"]["model"])
    if config.preset == "cpu" and usual:
        above = scores[best] - told["mean"]
        reached = "reached" if above >= TARGET else "missed"
        print(f"target {reached}: the best cell is {above:.2f} above the mean (>= {TARGET:g})")
    print()
    title = f"{task.name}, {config.model}: {ranks_by}, %"
    spread.plot(scores, config.batch_sizes, config.learning_rates, honest, title, run.path)
    seconds, tokens = resuming.seconds_of(every), sum(one["tokens"] for one in every)
    run.result(
        every,
        step="step4_finetune_glue",
        script="grid",
        system=f"{config.model}, batch {best[0]}, learning rate {best[1]:g}",
        preset=config.preset,
        dataset=fresh[0]["dataset"],
        source=fresh[0]["source"],
        split=fresh[0]["split"].split(" and ")[0],
        metrics={f"{ranks_by}, best cell, fresh seeds": score}
        | {f"{ranks_by}, grid {k}": metric(v, n=len(cells), unit="%") for k, v in told.items()},
        cells=[{"batch_size": b, "learning_rate": r, ranks_by: v} for (b, r), v in scores.items()],
        scores_per_seed={ranks_by: honest},
        collapsed=collapsed,
        low_resource=fresh[0]["low_resource"],
        compare_to=[],
        model=fresh[0]["model"],
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=round(tokens / max(seconds, 1e-9)),
        seeds=seeds,
        config=cli.as_dict(config),
    )


def flags(config: Config, batch_size: int, rate: float) -> tuple[str, ...]:
    """What a cell differs by, and what all cells have that finetune.py would choose by itself."""
    same = (f"--micro-batch-size={min(batch_size, 32)}", f"--epochs={config.epochs}")
    limit = (f"--train-limit={config.train_limit}",) if config.train_limit else ()
    return (f"--batch-size={batch_size}", f"--learning-rate={rate}", *same, *limit)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
