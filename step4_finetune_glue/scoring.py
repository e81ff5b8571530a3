"""What finetune.py left behind, read back and scored over whole splits: one task, several seeds."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from common.cli import UserError
from common.runs import metric
from step1_transformer.resuming import json_object
from step4_finetune_glue import metrics, tasks
from step4_finetune_glue.tasks import Rows, Task

RANDOM, PRETRAINED = "random weights", "pretrained weights"  # as finetune.py calls them


@dataclass(frozen=True)
class Finetuned:
    """A result of finetune.py, as it wrote it or scored by evaluate.py.

    Only the first lies in a folder with predictions for each seed.
    """

    folder: Path
    values: dict[str, Any]
    task: Task
    seeds: tuple[Path, ...]

    @classmethod
    def open(cls, path: Path) -> "Finetuned":
        """The result at `path`, or in the folder `path`.

        Raises UserError for a run that has not ended, and for a result of another script.
        """
        file = path / "result.json" if path.is_dir() else path
        try:
            values = json_object(file)
            task, seeds = tasks.task(values["dataset"]), values["seeds"]
            texts = values["system"], values["model"]["name"]
            scores = [(float(one["value"]), one["sd"]) for one in values["metrics"].values()]
            whole = all(isinstance(text, str) and text for text in texts) and scores and seeds
            whole = whole and values["seconds"] >= 0 and isinstance(values.get("config", {}), dict)
            if not whole or values["script"] != "finetune":
                raise ValueError("a field is empty")
        except FileNotFoundError:
            told = "give what finetune.py wrote, and end broken-off runs with --resume"
            raise UserError(f"{path}: no result there; {told}") from None
        except (ValueError, KeyError, TypeError, AttributeError, UserError):
            raise UserError(f"{file}: not written by finetune.py or evaluate.py") from None
        seeds = tuple(file.parent / f"seed-{seed}" for seed in seeds)
        return cls(file.parent, values, task, seeds)

    @property
    def system(self) -> str:
        return self.values["system"]

    @property
    def label(self) -> str:
        """The system in short: without the folders of its model, and without what is usual."""
        usual = (PRETRAINED, "cls pooling")
        model, *rest = self.system.split(", ")
        return ", ".join(
            [
                model.removesuffix("/model").split("/")[-1],
                *(r for r in rest if r not in usual),
            ]
        )

    @property
    def checkpoint(self) -> str:
        """What its model is called, without folders: `bert-tiny`."""
        return Path(self.values["model"]["name"].rstrip("/").removesuffix("/model")).name

    @property
    def random(self) -> bool:
        """True where nothing but the labels taught it: it began with random weights."""
        return RANDOM in self.system.split(", ")

    @property
    def pretrained(self) -> str:
        """The system's name, or of one with random weights that of its like with learned ones."""
        return self.system.replace(f", {RANDOM}", f", {PRETRAINED}")

    @property
    def data(self) -> str:
        """The --data that it was trained on."""
        return self.values.get("config", {}).get("data", "glue")

    @property
    def low_resource(self) -> bool:
        """True where the training set is but a part of the official one."""
        return bool(self.values.get("low_resource"))

    def has(self, split: str) -> bool:
        """True if every seed predicted `split`, such as dev, or AX-dev in a run on MNLI."""
        return all((seed / f"predictions-{split}.npz").is_file() for seed in self.seeds)

    def logits(self, rows: Rows) -> np.ndarray:
        """Float32 (S, N, C), of S seeds for the rows of a split. Raises UserError for others."""
        found = []
        name = rows.split if rows.task == self.task else tasks.AX_NAMES[rows.split]
        for seed in self.seeds:
            path = seed / f"predictions-{name}.npz"
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    found.append(arrays["logits"])
                    labels = arrays["labels"] if rows.labels is not None else None
            except FileNotFoundError:
                raise UserError(f"{path}: no such file; that run did not predict it") from None
            except (ValueError, KeyError, OSError, EOFError, BadZipFile, zlib.error):
                raise UserError(f"{path}: no predictions of finetune.py, or cut off") from None
            if found[-1].shape != (len(rows), self.task.n_classes):
                shape = f"{found[-1].shape} logits for {len(rows):,} rows"
                raise UserError(f"{path}: {shape}; it was made from other data (--data)")
            if not np.isfinite(found[-1]).all():
                raise UserError(f"{path}: a logit is not a finite number; that run diverged")
            if labels is not None and not np.array_equal(labels.astype(float), rows.labels):
                raise UserError(f"{path}: its labels are not those of the data now (--data)")
        return np.stack(found)


@dataclass(frozen=True)
class Scored:
    """The scores of S seeds on one split: S fractions x100 a metric, and those of their mean."""

    rows: Rows
    per_seed: dict[str, list[float]]
    together: dict[str, float]
    collapsed: int
    predictions: np.ndarray = field(repr=False)  # (S, N)
    likely: np.ndarray = field(repr=False)  # (N, C), or (N,) for a regression: the mean over seeds

    def entries(self) -> dict[str, dict]:
        """Mean, standard deviation and number of seeds as a result.json has them."""
        return {name: metric(values, unit="%") for name, values in self.per_seed.items()}

    def confusion(self) -> np.ndarray:
        """Counts (C, C), rows the truth, columns the answers, of all seeds together."""
        n = self.rows.task.n_classes
        truth = np.broadcast_to(self.rows.labels, self.predictions.shape)
        return np.bincount((truth * n + self.predictions).ravel(), minlength=n * n).reshape(n, n)

    def worst(self, n: int) -> list[tuple[int, float]]:
        """The `n` errors that the seeds' mean is surest of: row, and its probability (or miss)."""
        if self.rows.task.kind == "regression":
            wrong = np.abs(self.likely - self.rows.labels)
        else:
            wrong = np.where(self.likely.argmax(1) == self.rows.labels, 0, self.likely.max(1))
        order = np.argsort(-wrong, kind="stable")[:n]
        return [(int(row), float(wrong[row])) for row in order if wrong[row] > 0]


def score(logits: np.ndarray, rows: Rows) -> Scored:
    """Score logits (S, N, C) of S seeds on labelled rows."""
    task = rows.task
    said = np.stack([metrics.predictions(task, one) for one in logits])
    per_seed = [metrics.score(task, one, rows.labels) for one in said]
    likely = said.mean(0) if task.kind == "regression" else probabilities(logits).mean(0)
    return Scored(
        rows,
        {name: [scores[name] for scores in per_seed] for name in task.metrics},
        metrics.score(task, together(task, logits), rows.labels),
        sum(metrics.collapsed(one) for one in said),
        said,
        likely,
    )


def diagnostics(run: Finetuned, data: str) -> dict[str, dict]:
    """Metrics on AX, where a run on MNLI predicted it and its labels are there; {} elsewhere."""
    if run.task.name != "MNLI" or not run.has(tasks.AX_NAMES["dev"]):
        return {}
    rows = tasks.read(tasks.TASKS["AX"], "dev", data)
    return {f"AX_{name}": e for name, e in score(run.logits(rows), rows).entries().items()}


def together(task: Task, logits: np.ndarray) -> np.ndarray:
    """What the seeds answer together, (N,): their mean score, or the class likeliest on average."""
    if task.kind == "regression":
        return np.stack([metrics.predictions(task, one) for one in logits]).mean(0)
    return probabilities(logits).mean(0).argmax(1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis: logits (..., C) -> (..., C) float64."""
    wide = logits.astype(np.float64)
    grown = np.exp(wide - wide.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def find(paths: tuple[str, ...]) -> list[Finetuned]:
    """The runs in `paths`, each a directory of finetune.py or a folder that holds such.

    By system, then task; beside runs that have ended, those that have not are left out. Raises
    UserError for no paths, one that is no folder, and two runs of the same system and task, and as
    `Finetuned.open` does.
    """
    found = {}
    if not paths:
        raise UserError("--runs: give directories that finetune.py wrote")
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path}: no such folder of runs")
        below = list(_runs(path, path))
        ended = [folder for folder in below if (folder / "result.json").exists()]
        for folder in sorted(set(below) - {path, *ended}):
            print(f"left out, because it has not ended: {folder}")
        for folder in ended or [path]:
            found[folder.resolve()] = Finetuned.open(folder)
    twice = {}
    for run in found.values():
        if other := twice.get((run.system, run.task.name)):
            told = f"{run.system} on {run.task.name} twice: {other.folder} and {run.folder}"
            raise UserError(f"{told}; give --runs only one of them")
        twice[run.system, run.task.name] = run
    order = list(tasks.TASKS)
    return sorted(found.values(), key=lambda run: (run.system, order.index(run.task.name)))


def _runs(folder: Path, top: Path) -> Iterator[Path]:
    """Runs of finetune.py in a folder, but not those that a run of another script is made of."""
    if any(folder.glob("seed-*/predictions-*.npz")):
        yield folder
    elif folder == top or not (folder / "config.json").is_file():
        for below in sorted(part for part in folder.iterdir() if part.is_dir()):
            yield from _runs(below, top)
