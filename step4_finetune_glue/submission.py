"""The zip of answers to GLUE's secret test sets that https://gluebenchmark.com/submit takes."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import runs
from common.cli import UserError
from step4_finetune_glue import tasks
from step4_finetune_glue.baselines import majority
from step4_finetune_glue.scoring import Finetuned, together

# File in the zip: task, split, and how many rows the official test set has.
FILES = {
    "CoLA.tsv": ("CoLA", "test", 1063),
    "SST-2.tsv": ("SST-2", "test", 1821),
    "MRPC.tsv": ("MRPC", "test", 1725),
    "STS-B.tsv": ("STS-B", "test", 1379),
    "QQP.tsv": ("QQP", "test", 390965),
    "MNLI-m.tsv": ("MNLI", "test_matched", 9796),
    "MNLI-mm.tsv": ("MNLI", "test_mismatched", 9847),
    "QNLI.tsv": ("QNLI", "test", 5463),
    "RTE.tsv": ("RTE", "test", 3000),
    "WNLI.tsv": ("WNLI", "test", 146),
    "AX.tsv": ("AX", "test", 1104),
}
EPOCH = (1980, 1, 1, 0, 0, 0)  # so that the same answers are the same bytes


@dataclass(frozen=True)
class Answers:
    """Predictions (N,), class ids or scores, for the test rows with these `ids`."""

    ids: list[int]
    predictions: np.ndarray


def write(path: Path, answers: dict[str, Answers]) -> Path:
    """Write the zip, whole or not at all. `answers` has an entry for each of FILES.

    Raises UserError for a missing task, and for other rows than those of the test set.
    """
    if missing := [name for name in FILES if name not in answers]:
        told = "predict them (finetune.py --predict-test) or take the majority (--fill-missing)"
        raise UserError(f"no answers for {', '.join(missing)}; {told}")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, table(name, answers[name]))
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_bytes(path, packed.getvalue())
    return path


def table(name: str, answers: Answers) -> str:
    """The text of one file: index, tab, label name; STS-B's scores are cut to 0..5.

    Raises UserError unless each row of the test set has one answer, a finite number.
    """
    task, _, n_rows = FILES[name]
    labels = tasks.TASKS[task].labels
    if sorted(answers.ids) != list(range(n_rows)) or len(answers.predictions) != n_rows:
        given = f"{len(answers.predictions):,} predictions for {len(answers.ids):,} rows"
        raise UserError(f"{name} needs one answer for each index 0 to {n_rows - 1:,}, not {given}")
    if not np.isfinite(answers.predictions).all():
        raise UserError(f"{name}: a prediction is not a finite number; the run diverged")
    if labels:
        written = [labels[i] for i in answers.predictions.tolist()]
    else:
        written = [f"{score:.3f}" for score in np.clip(answers.predictions, 0, 5).tolist()]
    lines = [f"{i}\t{said}" for i, said in sorted(zip(answers.ids, written, strict=True))]
    return "\n".join(["index\tprediction", *lines]) + "\n"


def collect(found: list[Finetuned], data: str = "") -> dict[str, Answers]:
    """What the seeds of each run say together, for every file that there are predictions for."""
    answers = {}
    for run in found:
        for file, (name, split, _) in FILES.items():
            here = "AX" if (name, run.task.name) == ("AX", "MNLI") else split
            if name in (run.task.name, here) and run.has(here):
                rows = tasks.read(tasks.TASKS[name], split, data or run.data)
                answers[file] = Answers(rows.ids, together(run.task, run.logits(rows)))
    return answers


def fill(answers: dict[str, Answers], data: str = "glue") -> list[str]:
    """Add the commonest training answer for every file that is missing; the names of those."""
    missing = [name for name in FILES if name not in answers]
    for name in missing:
        task, _, n_rows = FILES[name]
        train = tasks.read(tasks.TASKS["MNLI" if task == "AX" else task], "train", data)
        answers[name] = Answers(list(range(n_rows)), np.full(n_rows, majority(train)))
    return missing
