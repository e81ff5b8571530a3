"""What each remedy for an unsteady fine-tuning is worth: one setting changed at a time.

    python step4_finetune_glue/remedies.py                              MRPC, our tiny BERT
    python step4_finetune_glue/remedies.py --preset gpu                 RTE, MiniLM
    python step4_finetune_glue/remedies.py --task MRPC --variants no_correction no_warmup

The base is finetune.py as it comes; each variant takes a remedy away, or adds one, and is trained
by finetune.py with the same seeds. A difference is the mean of those to the base's same seed.

Target of the cpu preset: 3 epochs are better than the 8 of the base, by 1 point of F1 or more.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import cli, report, runs, subruns
from common.cli import UserError
from step1_transformer import resuming, settings
from step4_finetune_glue import remedy_table, tasks, trainings
from step4_finetune_glue.remedy_table import VARIANTS


@dataclass
class Config(cli.RunConfig):
    task: str = "RTE"
    """Task, as finetune.py takes it."""
    data: str = "glue"
    """Where its files are, as finetune.py takes it."""
    model: str = "minilm"
    """Checkpoint, as finetune.py takes it."""
    variants: tuple[str, ...] = tuple(name for name in VARIANTS if name != "mean")
    """What to train beside the base."""
    seeds: int = 5
    """Trainings of each variant."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products, the same for all."""
    settings: tuple[str, ...] = ()
    """More flags of finetune.py for every training, as in: train-limit=1000 impl=hf."""
    parallel: int = 1
    """Trainings at a time; they share the cores and the GPUs."""
    slice_minutes: float | None = None
    """Stop with checkpoints and exit code 75 after this many minutes; --resume goes on."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "parallel", "slice_minutes"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        for name in self.variants:
            if name not in VARIANTS:
                raise UserError(f"no variant {name!r}; there are: {', '.join(VARIANTS)}")
        settings.check(self, "train-limit=1000 new-head", trainings.TAKEN)


PRESETS = {
    "smoke": dict(variants=("no_warmup",), seeds=2, settings=("train-limit=32", "max-steps=2")),
    "cpu": dict(
        task="MRPC", model="notes/zoo/bert-tiny", seeds=2, parallel=2,
        variants=("no_correction", "three_epochs", "layer_decay"),
    ),
    "gpu": dict(precision="bf16"),
}  # fmt: skip
TARGET = 1.0  # points that 3 epochs gain, at least
FREE = {"preset", "slice_minutes", "parallel"}
MORE = {"variants", "seeds"}


def main(config: Config) -> None:
    task = tasks.task(config.task)
    name = f"{task.name.lower()}-{Path(config.model).name}-{config.preset}"
    run = runs.Run.open(config, f"step4_finetune_glue/remedies-{name}")
    if resuming.finished(run, config, free=FREE, more=MORE):
        return
    trainings.begin(run, task, config)

    # Seeds outside: all that was begun can be compared when time is up early
    names = tuple(dict.fromkeys(("base", *config.variants)))
    seeds = range(config.seed, config.seed + config.seeds)
    flags = {name: VARIANTS[name].flags if name in VARIANTS else () for name in names}
    todo = [(n, run.path / n / f"seed-{seed}", seed) for seed in seeds for n in names]
    budget = subruns.Slice(config.slice_minutes)
    with resuming.tells_how(run.path):
        each = [(folder, seed, flags[name]) for name, folder, seed in todo]
        commands = trainings.commands(config, each, budget)
        subruns.call_all(commands, at_once=config.parallel, quiet=config.parallel > 1)

    # Compare
    every = [trainings.read(folder) for _, folder, _ in todo]
    found = {name: [] for name in names}
    for (name, *_), one in zip(todo, every, strict=True):
        found[name].append(one)
    metrics, differences = remedy_table.summary(found, task.metrics)
    rows = remedy_table.rows(found, metrics, differences)
    print(f"\n{task.name}, {config.model}, dev")
    print(report.columns(rows))
    title = f"{task.name}, {config.model}: {task.metrics[0]} on dev, %"
    remedy_table.plot(found, task.metrics[0], title, run.path / "curves.png")
    print(f"\nfigure: {run.path}/curves.png")
    usual = (task.name, config.model) == (PRESETS["cpu"]["task"], PRESETS["cpu"]["model"])
    if config.preset == "cpu" and usual and "three_epochs" in differences:
        gained = differences["three_epochs"][task.metrics[0]]["value"]
        told = f"3 epochs gain {gained:.1f} points (>= {TARGET:g})"
        print(f"target {'reached' if gained >= TARGET else 'missed'}: {told}")
    seconds, tokens = resuming.seconds_of(every), sum(one["tokens"] for one in every)
    run.result(
        every,
        step="step4_finetune_glue",
        script="remedies",
        system=f"remedies, {config.model}",
        preset=config.preset,
        dataset=every[0]["dataset"],
        source=every[0]["source"],
        split=every[0]["split"].split(" and ")[0],
        metrics={f"{s} {name}": metrics[name][s] for s in task.metrics for name in names},
        differences=differences,
        table={"rows": rows, "notes": [remedy_table.NOTE]},
        scores_per_seed={
            name: [one["metrics"][task.metrics[0]]["value"] for one in results]
            for name, results in found.items()
        },
        collapsed=sum(one["collapsed"] for one in every),
        low_resource=every[0]["low_resource"],
        compare_to=[],
        model=every[0]["model"],
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=round(tokens / max(seconds, 1e-9)),
        seeds=list(seeds),
        config=cli.as_dict(config),
    )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
