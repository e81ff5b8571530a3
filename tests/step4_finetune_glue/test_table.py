"""table.py: results that are there, laid out as the table of GLUE."""

import json
from pathlib import Path

import pytest

from step4_finetune_glue import table
from tests import scripts

NOTES = Path(__file__).resolve().parents[2] / "notes"


def call(*flags):
    return scripts.call(table, *flags)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def write(folder, task, metrics, system="minilm, pretrained weights, mean pooling", low=False):
    folder.mkdir()
    entries = {name: {"value": v, "sd": 1.0, "n": 5, "unit": "%"} for name, v in metrics.items()}
    values = dict(
        script="finetune", dataset=f"glue/{task}", metrics=entries, system=system, low_resource=low,
        model={"name": system.split(",")[0]}, seeds=[0, 1], seconds=3.0,
    )  # fmt: skip
    (folder / "result.json").write_text(json.dumps(values))
    return folder


@pytest.mark.usefixtures("drawn")
def test_all_kept_results_stand_in_it_as_they_are(tmp_path, capsys):
    assert call("--out", tmp_path / "all") == 0
    laid_out = result(tmp_path / "all")["table"]
    glue = json.loads((NOTES / "results" / "step4_finetune_glue-glue.json").read_text())
    assert glue["table"] == laid_out, "keep the table anew: a result has changed since"
    head, *lines = laid_out["rows"]
    rows = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert list(rows)[:7] == [
        "minilm", "bert-mini", "bert-mini, learning-rate 0.0001, epochs 4", "bert-tiny",
        "bert-tiny, random weights", "majority", "bag of words",
    ]  # fmt: skip
    kept = json.loads((NOTES / "results" / "step4_finetune_glue-tiny-sts-b.json").read_text())
    told = [
        [f"{kept['metrics'][m][k]:.1f}" for m in ("pearson", "spearman")] for k in ("value", "sd")
    ]
    assert rows["bert-tiny"]["STS-B\nr/rho"] == "\n±".join("/".join(part) for part in told)
    assert rows["bert-tiny reference"]["RTE\nacc"] == "58.8"
    low = next(name for name in head if name.startswith("QQP"))
    assert low.startswith("QQP‡") and rows["DistilBERT base, uncased"][low] == "–"
    assert "BERT-large stable recipe, best of 25 seeds" not in rows
    assert "low-resource" in capsys.readouterr().out
    assert (tmp_path / "all" / "curves.png").stat().st_size > 10_000


def test_systems_are_told_apart_and_baselines_stand_below(tmp_path):
    base = {"majority_accuracy": 52.7, "bag_of_words_accuracy": 57.4}
    one = write(tmp_path / "one", "RTE", {"accuracy": 60.0} | base)
    random = "minilm, random weights, mean pooling"
    two = write(tmp_path / "two", "RTE", {"accuracy": 50.0} | base, random)
    out = ("--out", tmp_path / "out")
    assert (
        call("--results", one, two / "result.json", "--compare", "DistilBERT base, cased", *out)
        == 0
    )
    found = result(tmp_path / "out")
    assert [row[0] for row in found["table"]["rows"][1:]] == [
        "minilm", "minilm, random weights", "majority", "bag of words", "DistilBERT base, cased",
    ]  # fmt: skip
    assert found["metrics"]["average_minilm"]["value"] == 60
    assert found["seeds"] == [0, 1] and found["seconds"] < 6  # its own, not of the trainings

    recipe = "minilm, pretrained weights, mean pooling, learning-rate 0.001, precision {}, epochs 4"
    other = write(tmp_path / "recipe", "RTE", {"accuracy": 61.0} | base, recipe.format("fp32"))
    assert call("--results", one, other, "--compare", "none", *out, "--resume") == 0
    assert [row[0] for row in result(tmp_path / "out")["table"]["rows"][1:3]] == [
        "minilm, mean pooling", "minilm, mean pooling, learning-rate 0.001, epochs 4",
    ]  # fmt: skip
    more = write(tmp_path / "bf16", "RTE", {"accuracy": 61.0} | base, recipe.format("bf16"))
    assert call("--results", other, more, "--compare", "none", *out, "--resume") == 0
    told = [row[0] for row in result(tmp_path / "out")["table"]["rows"][1:3]]
    assert told[0].endswith("precision fp32, epochs 4") and "precision bf16" in told[1]

    low = write(tmp_path / "low", "QNLI", {"accuracy": 58.0}, low=True)
    assert call("--results", low, *out, "--resume") == 0
    found = result(tmp_path / "out")
    assert found["metrics"] == {
        "QNLI accuracy of minilm": {"value": 58.0, "sd": 1.0, "n": 5, "unit": "%"}
    }
    assert found["low_resource"] == ["QNLI"]


def test_what_is_no_result_is_told_in_a_line(tmp_path, capsys):
    one = write(tmp_path / "one", "RTE", {"accuracy": 60.0})
    poor = json.loads(
        (write(tmp_path / "poor", "RTE", {"accuracy": 60.0}) / "result.json").read_text()
    )
    del poor["seconds"]
    (tmp_path / "poor" / "result.json").write_text(json.dumps(poor))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "result.json").write_text('{"script": "finetune"')
    other = NOTES / "results" / "step4_finetune_glue-benchmark-rt.json"
    for given, told in (
        ([one, one], "minilm, pretrained weights, mean pooling on RTE twice"),
        ([tmp_path / "nowhere"], "nowhere: no result there"),
        ([tmp_path / "poor"], "not written by finetune.py or evaluate.py"),
        ([tmp_path / "cut"], "not written by finetune.py or evaluate.py"),
        ([other], "not written by finetune.py or evaluate.py"),
    ):
        assert call("--results", *given, "--out", tmp_path / "out", "--resume") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and told in error


def test_two_checkpoints_of_one_name_are_two_rows(tmp_path):
    each = [write(tmp_path / name, "RTE", {"accuracy": score}, f"{name}/bert, pretrained weights")
            for name, score in (("a", 60.0), ("b", 50.0))]  # fmt: skip
    assert call("--results", *each, "--compare", "reference", "--out", tmp_path / "out") == 0
    found = result(tmp_path / "out")
    names = [row[0] for row in found["table"]["rows"][1:3]]
    assert names == ["a/bert, pretrained weights", "b/bert, pretrained weights"]
    averages = [entry["value"] for entry in found["metrics"].values()]
    assert averages == [60, 50]  # and no row of baselines, which these results have none of
