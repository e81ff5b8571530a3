"""Our fine-tuning against `transformers.Trainer` set up as in run_glue, side by side in one run.

    python step4_finetune_glue/benchmark.py                         film reviews, 1,200 rows
    python step4_finetune_glue/benchmark.py --task MRPC --train-limit 1200 --epochs 4 --seeds 3

`trainer` pads every row to 128 and computes in fp32, as run_glue does; `trainer-tuned` is told to
put rows of a length together, and to use bf16 where the machine is faster with it, as ours does;
`ours` is finetune.py with our BERT. Each training is a process of its own; systems take turns.
Speed is worth nothing at a lower score: both are shown.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from typing import Any

from common import cli, runs, subruns
from common.cli import UserError
from common.report import mean_and_sd
from common.runs import metric
from step1_transformer import resuming
from step4_finetune_glue import classifier, race, tasks, trainings

PRESETS = {
    "smoke": dict(train_limit=32, epochs=1, seeds=1),
    "cpu": dict(train_limit=1200, seeds=2, learning_rate=1e-4),
    "gpu": dict(),
}
BASELINE = "trainer"
GOAL, SLACK = 5.0, 2.0  # of cpu: times as fast as BASELINE, and points that it may score less
COMPARED = (("ours", "speed"), ("ours", "score"), (BASELINE, "score"))
FREE = {"preset"}


def main(config: race.Config) -> None:
    if config.system:
        print(json.dumps(race.measure(config, config.system)))
        return
    task = tasks.task(config.task)
    run = runs.Run.open(
        config, f"step4_finetune_glue/benchmark-{task.name.lower()}-{config.preset}"
    )
    if resuming.finished(run, config, free=FREE):
        return
    trainings.begin(run, task, config)
    # Whether ours can have it, before the others train for nothing
    checkpoint = classifier.find(config.model)
    classifier.load(checkpoint, task.n_classes, labels=task.labels)

    # Systems take turns, so that a slow minute of the machine falls on all of them
    turns, seeds = run.path / "turns.json", list(range(config.seed, config.seed + config.seeds))
    found: dict[str, list[dict]] = {name: [] for name in race.SYSTEMS}
    found |= resuming.read(turns) if turns.exists() else {}
    if config.precision == "auto":  # once, so that no noise divides the systems or the seeds
        begun = [turn["precision"] for turn in found["trainer-tuned"]]
        chosen = begun[0] if begun else race.faster_precision()
        config = dataclasses.replace(config, precision=chosen)
    for i, seed in enumerate(seeds):
        with resuming.tells_how(run.path, f"stopped at seed {seed}"):
            for name in race.SYSTEMS:
                if len(found[name]) == i:
                    found[name].append(_in_own_process(config, name, seed))
                    runs.write_json(turns, found)

    first = task.metrics[0]
    rows = {name: _summary(turns, found[BASELINE], first) for name, turns in found.items()}
    print(f"\n{task.name}, {config.model}, {found['ours'][0]['rows']:,} rows, "
          f"{config.epochs} epochs, batch {config.batch_size}")  # fmt: skip
    precision = {name: turns[0]["precision"] for name, turns in found.items()}
    print(f"{'system':14} {'':4} {'s/epoch':>8} {'speed':>7} {'memory':>9}  dev {first}, %")
    for name, row in rows.items():
        score = mean_and_sd(row["score"], ".2f")
        seconds, speed, memory = (row[kind]["value"] for kind in ("seconds", "speed", "memory"))
        measured = f"{seconds:8.1f} {speed:6.2f}x {memory:6,.0f} MB"
        print(f"{name:14} {precision[name]:4} {measured}  {score}")
    print(f"speed: seconds an epoch of {BASELINE} over those of the system, in the same turn")
    if config.preset == "cpu":
        speed, *scores = (rows[name][kind]["value"] for name, kind in COMPARED)
        reached = speed >= GOAL and scores[0] >= scores[1] - SLACK
        told = f"{speed:.2f}x (>= {GOAL:g}x), {first} {scores[0] - scores[1]:+.1f} (>= -{SLACK:g})"
        print(f"target {'reached' if reached else 'missed'}: {told}")
    print()
    _plot(rows, first, f"{task.name}, {config.model}", run)
    total = sum(t["seconds_per_epoch"] * config.epochs for turns in found.values() for t in turns)
    run.result(
        step="step4_finetune_glue",
        script="benchmark",
        system=f"our fine-tuning against transformers.Trainer, {config.model}",
        preset=config.preset,
        dataset=task.name if task.name == "rt" else f"glue/{task.name}",
        split="dev",
        metrics={
            f"{name}/{kind}": row[kind]
            for name, row in reversed(rows.items())  # ours first: it is what a summary shows
            for kind in row
        },
        compare_to=[],
        model={"name": config.model, "layers": classifier.read_config(checkpoint).get(
            "num_hidden_layers"), "parameters": None},
        train_rows=found["ours"][0]["rows"],
        precision=precision,
        tokens=None,
        seconds=round(total, 1),
        tokens_per_second=None,
        seeds=seeds,
        config=cli.as_dict(config),
    )  # fmt: skip


def _in_own_process(config: race.Config, name: str, seed: int) -> dict[str, Any]:
    """What `race.measure` returns, from a process in which nothing else has run."""
    flags = [f"--system={name}", f"--seed={seed}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        left_out = ("system", "seed", "resume", "out", "tracker")
        if field.name not in left_out and value is not None:
            flags.append(f"--{field.name.replace('_', '-')}={value}")
    environment = dict(os.environ)
    if gpus := subruns.gpus():  # of several the Trainer would take all, and larger batches
        environment["CUDA_VISIBLE_DEVICES"] = gpus[0]
    command = [sys.executable, __file__, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        told = re.sub("^error: ", "", (done.stderr.strip() or "killed").splitlines()[-1])
        raise UserError(f"{name}: {told}")
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    runs.say(f"seed {seed}, {name}: {measured['seconds_per_epoch']:.1f} s an epoch")
    return measured


def _summary(turns: list[dict], baseline: list[dict], first: str) -> dict[str, dict]:
    """Means over turns; the speed is that within each turn."""
    seconds = [turn["seconds_per_epoch"] for turn in turns]
    speed = [b["seconds_per_epoch"] / s for b, s in zip(baseline, seconds, strict=True)]
    scores = [turn["scores"][first] for turn in turns]

    memory = [turn["peak_mb"] for turn in turns]
    return {
        "speed": metric(speed, unit="x"),
        "seconds": metric(seconds, unit="s", higher_is_better=False),
        "score": metric(scores, unit="%"),
        "memory": metric(memory, unit="MB", higher_is_better=False),
    }


def _plot(rows: dict[str, dict], first: str, title: str, run: runs.Run) -> None:
    """curves.png: seconds an epoch and the score, a bar a system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4))
    axes = figure.subplots(1, 2)
    for axis, kind, label in zip(
        axes, ("seconds", "score"), ("seconds an epoch", f"dev {first}, %"), strict=True
    ):
        values = [row[kind]["value"] for row in rows.values()]
        errors = [row[kind]["sd"] or 0 for row in rows.values()]
        bars = axis.bar(list(rows), values, yerr=errors, color=["gray", "silver", "tab:blue"])
        axis.bar_label(bars, fmt="%.1f", padding=3)
        axis.set(title=label, ylim=(0, 1.2 * max(values)))
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(run.path / "curves.png", dpi=110)


if __name__ == "__main__":
    cli.run(main, race.Config, PRESETS)
