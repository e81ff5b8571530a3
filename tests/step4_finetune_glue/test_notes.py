"""The tables of the notes are what the code gives on the data, and what the kept results say."""

import functools
import json
import os
import re
from pathlib import Path

import pytest

from common.cli import UserError
from common.report import load_reported
from step4_finetune_glue import baselines, benchmark, finetune, grid, remedies, tasks

NOTES = Path(__file__).resolve().parents[2] / "step4_finetune_glue" / "notes.md"
TABLE = NOTES.read_text().split("| task | majority | bag of words | |")[1].split("\n\n")[0]
ROW = re.compile(r"^\| ([\w-]+?)(-m)?(?: \(pool\))?(?:, .*?)? \| (.+?) \| (.+?) \| .*\|$", re.M)
ROWS = {found[1]: (found[3], found[4]) for found in ROW.finditer(TABLE)}


def result(name):
    file = NOTES.parents[1] / "notes" / "results" / f"step4_finetune_glue-{name}.json"
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def read():
    """Rows of a task's split, each file of which is read once."""
    return functools.cache(lambda name, split: tasks.read(tasks.TASKS[name], split, "glue"))


def test_every_task_with_training_rows_has_its_baselines():
    assert set(ROWS) == {name for name, task in tasks.TASKS.items() if task.train_rows}


@pytest.mark.parametrize("name", ROWS)
def test_baselines(name, read):
    task = tasks.TASKS[name]
    try:
        if name != "rt" and not os.environ.get("GYM_DATA"):
            raise UserError("only in the mirror")
        train, dev = (read(name, split) for split in ("train", task.dev_splits[0]))
    except UserError as error:
        pytest.skip(f"needs GYM_DATA: {error}")
    (scores,) = baselines.score(train, dev)
    for told, kind in zip(ROWS[name], baselines.NAMES, strict=True):
        values = [float(value) for value in told.split("/")]
        assert values == [pytest.approx(scores[kind][metric], abs=0.051) for metric in task.metrics]


def test_the_numbers_of_rows_are_those_of_the_files(read):
    """Of the training sets as the tasks know them, and of the mirror's dev sets and pools."""
    text = NOTES.read_text()
    table = text.split("| train / dev / test rows |")[1].split("\n\n")[0]
    counts = re.findall(
        r"^\| ([\w-]+) \| .+? \| ([\d,]+) / ([\d,]+)(?: and ([\d,]+))? / ", table, re.M
    )
    known = {name: f"{task.train_rows:,}" for name, task in tasks.TASKS.items() if task.train_rows}
    assert {name: train for name, train, *_ in counts} == known
    pools = {"MNLI": r"has ([\d,]+) rows of MNLI", "QNLI": r"([\d,]+) rows of QNLI's kind",
             "QQP": r"QQP a pool of ([\d,]+\d)"}  # fmt: skip
    for name, told in pools.items():
        try:
            splits = ("train", "dev") if name == "QQP" else ("train",)
            n = sum(len(read(name, split)) for split in splits)
        except UserError as error:
            pytest.skip(f"needs GYM_DATA: {error}")
        assert f"{n:,}" == re.search(told, text)[1]
    for name, _, *dev in counts:
        if name == "QQP":  # dealt from its pool here
            continue
        splits = tasks.TASKS[name].dev_splits
        there = tasks.found(tasks.TASKS[name], splits)
        rows = {split: f"{len(read(name, split)):,}" for split in there}
        told = dict(zip(splits, dev, strict=False))
        assert rows == {split: told[split] for split in there}, name


ROWS_OF = {  # of each of ours, ids of the reported system of its shape
    "minilm": "minilm-l6xh384-{task}-dev-{metric}",
    "mini": "bert-mini-reference-{task}-dev-{metric}",
    "mini-4-epochs": "bert-mini-reference-{task}-dev-{metric}",
    "tiny": "bert-tiny-reference-{task}-dev-{metric}",
}


@pytest.mark.parametrize("size", ROWS_OF)
def test_how_far_ours_fall_short(size):
    notes, cells = NOTES.parents[1] / "notes", []
    reported = load_reported(notes / "reported_numbers.csv")
    for name in ("CoLA", "SST-2", "MRPC", "STS-B", "QNLI", "RTE", "WNLI"):
        task = name.lower()
        kept = notes / "results" / f"step4_finetune_glue-{size}-{task}.json"
        scores = json.loads(kept.read_text())["metrics"] if kept.exists() else {}
        differences = []
        for i, metric in enumerate(tasks.TASKS[name].metrics if scores else ()):
            metrics = (metric, "score-as-printed") if i == 0 else (metric,)
            ids = (ROWS_OF[size].format(task=task, metric=m) for m in metrics)
            row = next((reported[i] for i in ids if i in reported), None)
            apart = f"{scores[metric]['value'] - float(row['value']):+.1f}" if row else "–"
            differences.append(apart)
        known = set(differences) - {"–"}
        cells.append(" / ".join(differences) if known else "–")
    assert f"| {size} | {' | '.join(cells)} |\n" in NOTES.read_text()


@pytest.mark.parametrize(
    ("row", "name"), [("centred", "tiny-sts-b"), ("not centred", "sts-b-not-centred")]
)
def test_what_a_head_that_begins_with_the_mean_is_worth(row, name):
    kept = result(name)
    mean = kept["metrics"]["pearson"]
    each = ", ".join(f"{score:.1f}" for score in kept["scores_per_seed"]["pearson"])
    told = f"| {row} | {each} | {mean['value']:.1f} ± {mean['sd']:.1f} |"
    assert told in NOTES.read_text()


@pytest.mark.parametrize("task", finetune.TARGETS)
def test_the_cpu_preset_reaches_its_target(task):
    kept = result(f"cpu-preset-{task.lower()}")
    assert kept["preset"] == "cpu" and kept["model"]["name"] == "minilm"
    assert next(iter(kept["metrics"].values()))["value"] >= finetune.TARGETS[task]
    stated = NOTES.read_text().split("Its targets, the mean of MiniLM on dev:")[1].split("\n\n")[0]
    assert re.search(rf"{task}`?(, [^,]*,)? {finetune.TARGETS[task]:g}\b", stated)


def test_the_other_presets_reach_theirs():
    def value(name):
        return kept["metrics"][name]["value"]

    kept = result("benchmark-rt")
    assert value("ours/speed") >= benchmark.GOAL >= 5
    assert value("ours/score") >= value("trainer/score") - benchmark.SLACK
    kept = result("grid-tiny-rte")
    assert value("accuracy, grid max") - value("accuracy, grid mean") >= grid.TARGET
    gained = result("remedies-cpu")["differences"]["three_epochs"]["f1"]["value"]
    assert gained >= remedies.TARGET
