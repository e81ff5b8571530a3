"""The nine tasks of GLUE (Wang et al. 2018, arXiv:1804.07461), its diagnostic set AX, and rt.

`read(task(name), split)` gives the rows of a split, from the first of: a folder laid out as the
official download (`glue_data/CoLA/train.tsv`, ...), `$GYM_DATA/glue/`, an offline mirror, and
`nyu-mll/glue` on the Hugging Face hub. `rt`, 8,530 sentences of film reviews, is embedded.

The mirror has no official training set of QNLI, MNLI and QQP, only small labelled pools: what is
trained or scored on them is `low_resource`, and never comparable with published numbers.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common import data as sources
from common import formats
from common.cli import UserError

HUB = "nyu-mll/glue"
HOW_TO_GET = (
    "get glue_data from https://gluebenchmark.com/tasks and give --data glue_data, or pip install "
    "datasets and unset GYM_DATA to take nyu-mll/glue from the Hugging Face hub"
)
COLA_COLUMNS = ("source", "label", "star", "sentence")  # its train and dev files have no header
AX_FILES = {"dev": "diagnostic-full.tsv", "test": "diagnostic.tsv"}  # with its labels, and without
AX_NAMES = {"dev": "AX-dev", "test": "AX"}  # of its predictions, in a run on MNLI
AX_COLUMNS = {"premise": "sentence1", "hypothesis": "sentence2"}


@dataclass(frozen=True)
class Task:
    """One task: what its rows hold, how it is scored, and what its files and columns are called.

    `labels` are the names that a submission uses, in the order of the hub's ids; the first of
    `metrics` ranks systems. `train_rows` is the size of the official training set; a `pool` is the
    small labelled file that stands for it in the mirror.
    """

    name: str
    train_rows: int
    metrics: tuple[str, ...] = ("accuracy",)
    labels: tuple[str, ...] = ("0", "1")
    texts: tuple[str, ...] = ("sentence1", "sentence2")
    label: str = "label"
    kind: Literal["classification", "regression"] = "classification"
    dev_splits: tuple[str, ...] = ("dev",)
    test_splits: tuple[str, ...] = ("test",)
    pool: str = ""

    @property
    def pair(self) -> bool:
        """True if a row has two texts."""
        return len(self.texts) == 2

    @property
    def n_classes(self) -> int:
        """Outputs of a model's head: one a class, 1 for a regression."""
        return len(self.labels) if self.kind == "classification" else 1

    @property
    def label_type(self) -> type:
        """Of the labels: int64 for classes, float64 for the scores of a regression."""
        return np.int64 if self.kind == "classification" else np.float64

    @property
    def hub_config(self) -> str:
        """What nyu-mll/glue calls the task: cola, sst2, stsb, ..."""
        return self.name.lower().replace("-", "")


NLI = ("entailment", "neutral", "contradiction")
QA = ("entailment", "not_entailment")
MNLI_SPLITS = {
    "dev_splits": ("dev_matched", "dev_mismatched"),
    "test_splits": ("test_matched", "test_mismatched"),
}
QUESTIONS = ("question1", "question2")
ALL = (
    Task("CoLA", 8551, ("matthews",), texts=("sentence",)),
    Task("SST-2", 67349, texts=("sentence",)),
    Task("MRPC", 3668, ("f1", "accuracy"), texts=("#1 string", "#2 string"), label="quality"),
    Task("STS-B", 5749, ("pearson", "spearman"), (), label="score", kind="regression"),
    Task("QQP", 363846, ("f1", "accuracy"), texts=QUESTIONS, label="is_duplicate",
         pool="pool_subset.tsv"),
    Task("MNLI", 392702, labels=NLI, label="gold_label", pool="train_pool_subset.tsv",
         **MNLI_SPLITS),
    Task("QNLI", 104743, labels=QA, texts=("question", "sentence"), pool="derived_nqg_train.tsv"),
    Task("RTE", 2490, labels=QA),
    Task("WNLI", 635),
    Task("AX", 0, ("matthews",), NLI),  # scored by what was trained on MNLI
    Task("rt", 6884, texts=("text",)),
)  # fmt: skip
TASKS = {task.name: task for task in ALL}
GLUE = tuple(name for name in TASKS if name not in ("AX", "rt"))  # what the average is over


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    `labels` is (N,) int64, float64 for a regression, None where they are secret. `source` is what
    a run states about its data; `skipped` counts the rows that QQP's own files have broken.
    """

    task: Task
    split: str
    first: list[str]
    second: list[str] | None
    labels: np.ndarray | None
    ids: list[int]
    low_resource: bool
    source: dict[str, str] = field(default_factory=dict)
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.first)

    def told(self) -> str:
        """One line on what was read, and on what is not as in the official task."""
        line = f"{self.task.name} {self.split}: {len(self):,} rows"
        if self.low_resource and self.split == "train":
            official = f"{self.task.train_rows:,} official ones"
            line += f" of a small labelled pool instead of the {official} (low-resource)"
        elif self.low_resource:
            line += " dealt from a small labelled pool, no official split (low-resource)"
        elif self.split == "train" and len(self) + self.skipped < self.task.train_rows:
            line += f", of the {self.task.train_rows:,} official ones"
        if self.skipped:
            line += f"; {self.skipped} broken rows left out"
        return line


def task(name: str) -> Task:
    """The task of a name in any common spelling: CoLA, sst2, glue/stsb, mnli-mm, diagnostic.

    Raises UserError for any other name.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("glue/"))
    plain = re.sub("^mnli(mm?|matched|mismatched)$", "mnli", plain).replace("diagnostic", "ax")
    for one in TASKS.values():
        if plain == one.name.lower().replace("-", ""):
            return one
    raise UserError(f"unknown task {name!r}; tasks are: {', '.join(TASKS)}")


def check_trainable(task: Task) -> None:
    """Raises UserError for AX."""
    if not task.train_rows:
        told = "finetune.py --task MNLI --predict-test answers it"
        raise UserError(f"{task.name} has nothing to train on: {told}")


def read(task: Task, split: str, data: str = "glue") -> Rows:
    """Read one split: train, dev or test; MNLI has dev_matched, dev_mismatched, and such tests; AX
    has its rows as test, and with its authors' labels as dev.

    Raises UserError, with file and line, for missing files, columns or texts, for rows of another
    width than their header, and for labels that the task does not have.
    """
    split = _split(task, split)
    source = locate(task, split, data)
    reader = _hub_rows if source.hub else _rt_rows if source.kind == "embedded" else _file_rows
    first, second, labels, ids, skipped = [], [], [], [], 0
    labelled = split in ("train", *task.dev_splits) or task.name == "rt"
    for number, (where, row) in enumerate(reader(task, source)):
        broken = [name for name in task.texts if not (row.get(name) or "").strip()]
        if broken and task.name == "QQP":  # questions with line breaks, cut in the official files
            if labelled:
                skipped += 1
                continue
        elif broken:
            raise UserError(f"{where}: {broken[0]!r} is empty; give it a text or remove the row")
        first.append(row.get(task.texts[0]) or "")
        second.append(row.get(task.texts[-1]) or "")
        ids.append(_id(where, row, number))
        if labelled:
            labels.append(_label(where, task, row.get(task.label)))
    if not first:
        told = f"all {skipped} rows are broken or" if skipped else "no rows in it; it is empty or"
        raise UserError(f"{_place(source)}: {told} cut off; get it anew")
    if skipped > max(10, len(first) // 100):  # the official files lose two dozen of 364,000
        told = f"{skipped:,} of {skipped + len(first):,} rows are broken"
        raise UserError(f"{_place(source)}: {told}; get it anew")
    low_resource = any(path.name == task.pool for path in source.files)
    rows = Rows(
        task=task,
        split=split,
        first=first,
        second=second if task.pair else None,
        labels=np.array(labels, task.label_type) if labelled else None,
        ids=ids,
        low_resource=low_resource,
        source=source.facts(),
        skipped=skipped,
    )
    return _deal(rows) if low_resource and task.name == "QQP" else rows


def found(task: Task, splits: tuple[str, ...], data: str = "glue") -> tuple[str, ...]:
    """Those of `splits` that `data` has files for; a mirror may lack MNLI's dev_mismatched.

    Raises UserError, on how to get the first, when there is none of them.
    """
    has, missing = [], None
    for split in splits:
        try:
            locate(task, split, data)
            has.append(split)
        except UserError as error:
            missing = missing or error
    if missing and not has:
        raise missing
    return tuple(has)


# --- where ---------------------------------------------------------------------------------------


def locate(task: Task, split: str, data: str = "glue") -> sources.Source:
    """Where the rows of a split are: `data` as a folder, then the mirror, then the hub.

    Raises UserError for a folder without the split's file, for a `data` other than glue that is no
    folder, for AX's labels on the hub, and for rt as `common.data.resolve` does.
    """
    name = f"{data}/{task.name}"
    if task.name == "rt":
        return sources.resolve("rt", split)
    folder = Path(os.path.expanduser(data))
    mirror = Path(os.environ.get("GYM_DATA") or "/nowhere") / data
    for kind, root in (("path", folder), ("mirror", mirror)):
        if root.is_dir():
            return sources.Source(name, kind, _files(task, split, root), split)
    if data != "glue":
        raise UserError(f"{data}: no such folder; {HOW_TO_GET}")
    if (task.name, split) == ("AX", "dev"):
        raise UserError(f"the hub has no labels of AX: give a folder with AX/{AX_FILES['dev']}")
    hub_split = split.replace("dev", "validation")
    return sources.Source(name, "hub", (), split, (HUB, task.hub_config, hub_split))


def facts(task: Task, split: str, data: str = "glue") -> dict[str, str]:
    """What a run states about a split: `common.data`'s name, kind and fingerprint."""
    source = locate(task, split, data)
    with _how_to_get() if source.hub else nullcontext():
        return source.facts()


def _split(task: Task, split: str) -> str:
    known = ("train", *task.dev_splits, *task.test_splits)
    known = known[1:] if task.name == "AX" else known
    short = {"dev": task.dev_splits[:1], "test": task.test_splits[:1]}.get(split) or (split,)
    if short[0] not in known:
        raise UserError(f"{task.name} has no split {split!r}; it has {', '.join(known)}")
    return short[0]


def _files(task: Task, split: str, root: Path) -> tuple[Path, ...]:
    """The file of a split, and for MRPC as it is downloaded the ids that part train from dev."""
    folders = [root / task.name, *([root / "diagnostic"] if task.name == "AX" else [])]
    names = [AX_FILES[split] if task.name == "AX" else f"{split}.tsv"]
    if task.pool and split == "train" or task.name == "QQP" and split == "dev":
        names.append(task.pool)
    for folder in folders:
        for path in (folder / name for name in names):
            if path.is_file():
                return (path,)
    whole, dev_ids = folders[0] / "msr_paraphrase_train.txt", folders[0] / "dev_ids.tsv"
    if task.name == "MRPC" and split in ("train", "dev") and whole.is_file() and dev_ids.is_file():
        return whole, dev_ids
    test = folders[0] / "msr_paraphrase_test.txt"
    if task.name == "MRPC" and split == "test" and test.is_file():
        return (test,)
    wanted = " or ".join(names)
    raise UserError(f"{folders[0]}: {task.name} has no {wanted} there; {HOW_TO_GET}")


def _place(source: sources.Source) -> str:
    return str(source.files[0]) if source.files else source.name


# --- what ----------------------------------------------------------------------------------------


def _file_rows(task: Task, source: sources.Source) -> Iterator[formats.Row]:
    """Rows of a .tsv: a tab ends a column and a line break a row, whatever the quotes say."""
    path, *dev_ids = source.files
    held = {tuple(row.split()[:2]) for ids in dev_ids for row in formats.lines(ids)}
    columns: list[str] | None = None
    for number, line in enumerate(formats.lines(path), 1):
        cells, where = line.rstrip("\r\n").split("\t"), f"{path}:{number}"
        if columns is None:
            columns = [cell.strip().lower() for cell in cells]
            if task.name == "AX":
                columns = [AX_COLUMNS.get(name, name) for name in columns]
            headless = task.name == "CoLA" and "sentence" not in columns and len(cells) == 4
            _check_header(where, task, source.split, COLA_COLUMNS if headless else columns)
            if dev_ids and not {"#1 id", "#2 id"} <= set(columns):
                raise UserError(f"{where}: no columns '#1 ID' and '#2 ID' to part train and dev")
            if not headless:
                continue
            columns = list(COLA_COLUMNS)
        if not line.strip():
            continue
        if len(cells) != len(columns) and task.name != "QQP":
            raise UserError(
                f"{where}: {len(cells)} columns instead of {len(columns)}; in GLUE's files quotes "
                "mean nothing, so that no text may hold a tab or a line break"
            )
        row = dict(zip(columns, cells, strict=True)) if len(cells) == len(columns) else {}
        if not dev_ids or ((row["#1 id"], row["#2 id"]) in held) == (source.split == "dev"):
            yield where, row


def _check_header(where: str, task: Task, split: str, columns) -> None:
    labelled = split in ("train", *task.dev_splits)
    wanted = (*task.texts, task.label) if labelled else task.texts
    if missing := [name for name in wanted if name not in columns]:
        told = f"no column {missing[0]!r} for {task.name} {split}"
        raise UserError(f"{where}: {told}; it has {', '.join(map(repr, columns))}")


def _hub_rows(task: Task, source: sources.Source) -> Iterator[formats.Row]:
    """The hub's columns under the names that the files have."""
    names = {"MRPC": ("sentence1", "sentence2"), "MNLI": ("premise", "hypothesis")}
    names["AX"] = names["MNLI"]
    texts = names.get(task.name, task.texts)
    with _how_to_get():
        for where, row in sources.hub_rows(source):
            renamed = {ours: row.get(one) for ours, one in zip(task.texts, texts, strict=True)}
            yield where, renamed | {task.label: row.get("label"), "index": row.get("idx")}


@contextmanager
def _how_to_get():
    """What the hub's complaints end with, for a task of GLUE."""
    try:
        yield
    except UserError as error:
        why = str(error).removesuffix(f". {sources.OFFLINE}")
        raise UserError(f"{why}; {HOW_TO_GET}") from error


def _rt_rows(task: Task, source: sources.Source) -> Iterator[formats.Row]:
    for number, (text, label) in enumerate(sources.labelled("rt", source.split), 1):
        yield f"rt: row {number}", {"text": text, "label": label}


def _id(where: str, row: dict[str, Any], number: int) -> int:
    index = row.get("index", row.get("id", number))
    try:
        return int(index)
    except (TypeError, ValueError):
        raise UserError(f"{where}: index {index!r} is no number; number the rows from 0") from None


def _label(where: str, task: Task, label: Any) -> int | float:
    """The id of a label that is a name or already an id; the score of a regression, 0 to 5."""
    if task.kind == "regression":
        try:
            value = float(label)
        except (TypeError, ValueError):
            value = np.nan
        if not 0 <= value <= 5:
            raise UserError(f"{where}: score {label!r} is no number from 0 to 5")
        return value
    if isinstance(label, int) and 0 <= label < task.n_classes:
        return label
    if isinstance(label, str) and label.strip() in task.labels:
        return task.labels.index(label.strip())
    raise UserError(f"{where}: label {label!r} is none of {task.name}'s: {', '.join(task.labels)}")


def _deal(rows: Rows) -> Rows:
    """The train or dev part of a pool that has no splits: one tenth is dev.

    Questions recur: of two rows that share one, or are linked through others, neither is in
    another part, or half of dev's questions would be known from training.
    """
    parents: dict[str, str] = {}

    def root(text: str) -> str:
        while parents.setdefault(text, text) != text:
            parents[text] = parents[parents[text]]
            text = parents[text]
        return text

    keys = [[re.sub(r"\W+", "", text.lower()) for text in (rows.first[i], rows.second[i])]
            for i in range(len(rows))]  # fmt: skip
    for one, other in keys:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    is_dev = [hashlib.sha256(root(one).encode()).digest()[0] % 10 == 9 for one, _ in keys]
    kept = [i for i, held in enumerate(is_dev) if held == (rows.split == "dev")]
    if not kept:
        raise UserError(f"{rows.task.name}: the pool of {len(rows)} rows is too small to be split")
    return replace(
        rows,
        first=[rows.first[i] for i in kept],
        second=[rows.second[i] for i in kept],
        labels=rows.labels[kept],
        ids=[rows.ids[i] for i in kept],
    )
