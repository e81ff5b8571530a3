"""What a seed came to, and what all seeds of a run did."""

import math
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common import engine, runs
from common.cli import UserError
from common.report import mean_and_sd
from common.runs import metric
from step1_transformer import resuming
from step4_finetune_glue import metrics, prediction
from step4_finetune_glue.tasks import Task

FILE = "scores.json"  # a seed that has it is done


def of_seed(
    task: Task, logits: dict, labels: dict, state: engine.State, events: Iterable[dict] = ()
) -> dict[str, Any]:
    """Scores on every dev set, the first one's under the metric's bare name; what it took.

    Of the `events` of the training those of its last steps: whether it knows its rows by heart.
    Raises UserError for logits of a run that diverged.
    """
    for split, found in logits.items():
        if not np.isfinite(found).all():  # argmax would make classes of them
            raise UserError(f"{task.name}, {split}: a logit is not a finite number; it diverged")
    scores = {}
    for split in task.dev_splits:
        if split in logits:
            prefix = "" if split == task.dev_splits[0] else split.removeprefix("dev_") + "_"
            found = prediction.scores(task, logits[split], labels[split])
            scores |= {f"{prefix}{name}": found[name] for name in task.metrics}
    trained = [event for event in events if event["event"] == "train"][-1:]
    first = metrics.predictions(task, logits[task.dev_splits[0]])
    return {
        "scores": scores,
        "collapsed": metrics.collapsed(first),
        "seconds": round(state.seconds, 3),  # the benchmark divides by it
        "tokens": state.tokens,
        "steps": state.total_steps,
        "training": {
            name.removeprefix("train/label_"): value if math.isfinite(value) else None
            for event in trained
            for name, value in event.items()
            if name.startswith("train/")
        },
        "precision": state.precision,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "hardware": runs.hardware(),
    }


def read(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What `of_seed` said, in each of the folders. Raises UserError for what says less."""
    found = []
    for folder in folders:
        found.append(resuming.read(folder / FILE))
        if not {"scores", "steps", "training", "peak_mb", "hardware"} <= found[-1].keys():
            told = "delete it and go on with --resume, or choose another --out"
            raise UserError(f"{folder / FILE} is of an older version, which kept less: {told}")
    return found


def chosen(folder: Path) -> dict[str, Any]:
    """What the seed in this folder chose for itself, for others to do the same."""
    (found,) = read([folder])
    return {"precision": found["precision"], "max_steps": found["steps"]}


def over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of result.json that all seeds make: means, standard deviations, collapses."""
    each = {name: [one["scores"][name] for one in found] for name in found[0]["scores"]}
    tokens, seconds = (sum(one[name] for one in found) for name in ("tokens", "seconds"))
    return {
        "metrics": {name: metric(values, unit="%") for name, values in each.items()},
        "scores_per_seed": each,
        "collapsed": sum(one["collapsed"] for one in found),
        "diverged": sum(one.get("diverged", False) for one in found),
        "seconds_per_seed": [one["seconds"] for one in found],
        "precision": found[0]["precision"],
        "last_steps": {  # loss and, as a fraction, accuracy on the rows of training
            name: [one["training"][name] for one in found] for name in found[0]["training"]
        },
        "peak_mb": max(one["peak_mb"] for one in found),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / max(seconds, 1e-9)),
    }


def told(found: dict[str, Any]) -> str:
    """Mean ± sd of every metric, a line each, then the seeds that learned nothing."""
    lines = []
    for name, value in found["metrics"].items():
        each = " ".join(f"{v:.1f}" for v in found["scores_per_seed"][name])
        lines.append(f"  {name:20} {mean_and_sd(value, '6.2f'):14}  seeds: {each}")
    n = len(found["seconds_per_seed"])
    if found["collapsed"]:
        also = f" ({found['diverged']} diverged)" if found["diverged"] else ""
        lines.append(
            f"  {found['collapsed']} of {n} seeds collapsed{also}: one answer for every row"
        )
    return "\n".join(lines)


def target(found: dict[str, Any], goal: float) -> str:
    """Whether the mean of the first metric is `goal` or more."""
    name, value = next(iter(found["metrics"].items()))
    reached = "reached" if value["value"] >= goal else "missed"
    return f"target {reached}: {name} {value['value']:.1f} (>= {goal:g})"
