"""evaluate.py as a user runs it, on what finetune.py leaves behind; good input, and bad."""

import json
import signal

import numpy as np
import pytest

from common import cli, report
from common.report import UNNAMED, slug
from step4_finetune_glue import (
    baselines,
    evaluate,
    glue_table,
    metrics,
    scoring,
    submission,
    tasks,
)
from tests import scripts
from tests.step4_finetune_glue.test_submission import read as read_zip

WORDS = ["cat", "dog", "sat", "ran", "mat", "on", "old", "new", "big", "red", "house", "tree"]
COLUMNS = {
    "CoLA": "{0}\t{3}\t\t{1}",
    "SST-2": "{1}\t{3}",
    "MRPC": "{3}\t1\t2\t{1}\t{2}",
    "STS-B": "{0}\t{1}\t{2}\t{3}",
    "QQP": "{0}\t{1}\t{2}\t{3}",
    "MNLI": "{0}\t{1}\t{2}\t{3}",
    "QNLI": "{0}\t{1}\t{2}\t{3}",
    "RTE": "{0}\t{1}\t{2}\t{3}",
    "WNLI": "{0}\t{1}\t{2}\t{3}",
}
HEADERS = {
    "SST-2": "sentence\tlabel\n",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
    "STS-B": "index\tsentence1\tsentence2\tscore\n",
    "QQP": "id\tquestion1\tquestion2\tis_duplicate\n",
    "MNLI": "index\tsentence1\tsentence2\tgold_label\n",
    "QNLI": "index\tquestion\tsentence\tlabel\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n",
    "WNLI": "index\tsentence1\tsentence2\tlabel\n",
}
MODELS = {
    "minilm, pretrained weights": "minilm",
    "minilm, random weights": "minilm",
    "notes/zoo/bert-tiny, pretrained weights": "tiny",
}


def sentence(rng):
    return " ".join(rng.choice(WORDS, 6))


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A small GLUE: 120 training rows, 60 of each dev set, the whole test set of RTE."""
    root, rng = tmp_path_factory.mktemp("glue_data"), np.random.default_rng(0)
    for name, line in COLUMNS.items():
        task = tasks.TASKS[name]
        (root / name).mkdir()
        for split, n in (("train", 120), *((split, 60) for split in task.dev_splits)):
            labels = task.labels or ("0.5", "2.25", "5.0")
            rows = [
                line.format(i, sentence(rng), sentence(rng), labels[i * i % len(labels)])
                for i in range(n)
            ]
            text = HEADERS.get(name, "") + "\n".join(rows) + "\n"
            (root / name / f"{split}.tsv").write_text(text)
    rows = [f"{i}\t{sentence(rng)}\t{sentence(rng)}" for i in range(3000)]
    (root / "RTE" / "test.tsv").write_text("index\tsentence1\tsentence2\n" + "\n".join(rows) + "\n")
    return root


def finetuned(folder, glue, name, system="minilm, pretrained weights", seeds=3, low=False):
    """What finetune.py leaves behind; the last seed of RTE has collapsed."""
    task = tasks.TASKS[name]
    splits = [*task.dev_splits, *(["test"] if name == "RTE" else [])]
    for seed in range(seeds):
        (folder / f"seed-{seed}").mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for split in splits:
            rows = tasks.read(task, split, str(glue))
            logits = rng.normal(size=(len(rows), task.n_classes)).astype(np.float32)
            arrays = {"logits": logits}
            if rows.labels is not None:
                arrays["labels"] = rows.labels
                if task.kind == "regression":
                    logits[:, 0] += rows.labels
                else:
                    logits[np.arange(len(rows)), rows.labels] += 1.5
            if name == "RTE" and seed == seeds - 1:
                logits[:, 0] = 50
            np.savez_compressed(folder / f"seed-{seed}" / f"predictions-{split}.npz", **arrays)
    values = dict(
        step="step4_finetune_glue", script="finetune", system=system, dataset=f"glue/{name}",
        split="dev", metrics={"score": {"value": 1.0, "sd": None}}, low_resource=low,
        seeds=list(range(seeds)), seconds=9.0,
        model={"name": MODELS[system], "parameters": 22_000_000}, command="python finetune.py",
        hardware={"device": "cpu", "cpu": "x", "cores": 2}, config={"data": str(glue)},
    )  # fmt: skip
    (folder / "result.json").write_text(json.dumps(values))
    return folder


def call(*flags):
    """Run the script in this process; its exit code."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return scripts.call(evaluate, *flags)
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def fails(capfd, tmp_path):
    def check(*flags):
        capfd.readouterr()
        assert call("--out", tmp_path / "failed", *flags) == 2
        line = capfd.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1, line
        return line

    return check


@pytest.fixture(scope="module")
def done(tmp_path_factory, glue):
    """Two systems on four tasks, scored; the folder of the evaluation."""
    root = tmp_path_factory.mktemp("done")
    for name in ("RTE", "STS-B", "MNLI"):
        finetuned(root / "runs" / name, glue, name, low=name == "MNLI")
    finetuned(root / "runs" / "other", glue, "RTE", "notes/zoo/bert-tiny, pretrained weights", 1)
    table = root / "reported_numbers.csv"
    columns = (
        "id,step,system,variant,dataset,split,metric,value,unit,higher_is_better,source_title,"
    )
    rows = [columns + "source_locator"]
    for i, (system, task, metric, value) in enumerate([
        ("MiniLM", "RTE", "accuracy", 68.8), ("MiniLM", "STS-B", "Spearman", 88.0),
        ("MiniLM", "STS-B", "Pearson", 89.0), ("DistilBERT", "RTE", "accuracy", 59.9),
        ("DistilBERT", "MNLI", "accuracy", 82.1), ("tiny", "RTE", "accuracy", 58.84),
        ("MiniLM", "MRPC", "score as printed", 88.9), ("DistilBERT", "STS-B", report.UNNAMED, 86.9),
    ]):  # fmt: skip
        rows.append(f"{i},step4_finetune_glue,{system},,{task},dev,{metric},{value},%,1,a,b")
    rows.append("9,step2_bert,Other,,RTE,dev,accuracy,1,%,1,a,b")
    rows.append("10,step4_finetune_glue,Server,,RTE,GLUE test,accuracy,1,%,1,a,b")
    table.write_text("\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "REPORTED", table)
        assert call("--runs", root / "runs", "--out", root / "out", "--compare", "distilbert") == 0
    return root


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_result_has_means_over_seeds_and_what_stands_beside_them(done, glue):
    found = result(done / "out" / "minilm_pretrained_weights-rte")
    rows = tasks.read(tasks.TASKS["RTE"], "dev", str(glue))
    each = []
    for seed in range(3):
        path = done / "runs" / "RTE" / f"seed-{seed}" / "predictions-dev.npz"
        each.append(100 * np.mean(np.load(path)["logits"].argmax(1) == rows.labels))
    entry = found["metrics"]["accuracy"]
    assert (entry["value"], entry["n"]) == (pytest.approx(np.mean(each)), 3)
    assert entry["sd"] == pytest.approx(np.std(each, ddof=1))
    assert found["metrics"]["collapsed_seeds"]["value"] == 1
    train = tasks.read(tasks.TASKS["RTE"], "train", str(glue))
    (base,) = baselines.score(train, rows)
    for name in ("majority", "bag_of_words"):
        assert found["metrics"][f"{name}_accuracy"]["value"] == base[name]["accuracy"]
    assert "ensemble_accuracy" in found["metrics"]
    assert found["command"] == "python finetune.py" and found["seconds"] == 9.0
    assert found["compare_to"] == ["0", "3"]


def test_other_tasks_have_their_own_metrics_and_neighbours(done):
    scores = result(done / "out" / "minilm_pretrained_weights-sts_b")
    assert list(scores["metrics"])[:2] == ["pearson", "spearman"]
    assert scores["compare_to"] == ["1", "2", "7"]
    nli = result(done / "out" / "minilm_pretrained_weights-mnli")
    assert list(nli["metrics"])[:2] == ["accuracy", "mismatched_accuracy"]
    assert nli["low_resource"] and nli["compare_to"] == []  # other data than the reported had
    one = result(done / "out" / "notes_zoo_bert_tiny_pretrained_weights-rte")
    assert one["metrics"]["accuracy"]["sd"] is None and "ensemble_accuracy" not in one["metrics"]
    assert one["compare_to"] == ["3", "5"]


def test_every_result_is_one_that_the_report_takes(done):
    reported = report.load_reported(done / "reported_numbers.csv")
    found = [
        report.load_result(p, reported, fresh=True) for p in (done / "out").rglob("result.json")
    ]
    assert len(found) == 5 and all(one.curves for one in found)
    assert len(report.build_rows(found, reported)) > 20


def test_the_table_has_systems_baselines_and_reported_rows(done):
    lines = (done / "out" / "table.md").read_text().splitlines()
    assert lines[0].startswith("|  | STS-B<br>r/rho | MNLI‡<br>acc/mm | RTE<br>acc | avg")
    names = [line.split(" | ")[0].strip("| ") for line in lines[2:] if line.startswith("|")]
    assert lines[7] == "| DistilBERT | 86.9† | – | 59.9 | 59.9 |"  # none beside a low-resource one
    assert "† the source prints one score, and does not name its metric" in "\n".join(lines)
    assert names == ["minilm", "bert-tiny", "majority", "bag of words", "MiniLM", "DistilBERT",
                     "tiny"]  # fmt: skip
    assert "avg: RTE; WNLI is left out" in "\n".join(lines)
    whole = result(done / "out")
    assert [row[0] for row in whole["table"]["rows"]] == ["", *names]
    assert report.grid(**whole["table"], align="---:").splitlines() == lines
    assert whole["seeds"] == [0, 1, 2] and whole["model"]["name"] == "minilm, tiny"
    assert whole["averaged"] == ["RTE"] and whole["low_resource"] == ["MNLI"]
    rte = result(done / "out" / "minilm_pretrained_weights-rte")["metrics"]["accuracy"]["value"]
    assert whole["metrics"]["average_minilm"]["value"] == rte


def test_without_a_comparable_task_the_scores_stand_for_the_average(tmp_path, glue):
    finetuned(tmp_path / "runs", glue, "MNLI", low=True)
    assert call("--runs", tmp_path / "runs", "--out", tmp_path / "out") == 0
    whole = report.load_result(tmp_path / "out" / "result.json", {}, fresh=True)
    one = result(tmp_path / "out" / "minilm_pretrained_weights-mnli")["metrics"]
    assert whole.values["metrics"] == {
        f"MNLI {name} of minilm": one[name] for name in ("accuracy", "mismatched_accuracy")
    }
    assert len(report.build_rows([whole], {})) == 2  # so that its table can be kept


def test_a_random_encoder_is_a_baseline_beside_its_like(tmp_path, glue, capfd):
    for name, system in (("one", "pretrained"), ("two", "random")):
        finetuned(tmp_path / "runs" / name, glue, "RTE", f"minilm, {system} weights")
    finetuned(tmp_path / "runs" / "other", glue, "RTE", "notes/zoo/bert-tiny, pretrained weights")
    assert call("--runs", tmp_path / "runs", "--out", tmp_path / "out") == 0
    told = capfd.readouterr().out
    names = [row[0] for row in result(tmp_path / "out")["table"]["rows"]]
    assert names[1:6] == ["minilm", "bert-tiny", "minilm, random weights", "majority",
                          "bag of words"]  # fmt: skip
    learned, like, other = (
        result(tmp_path / "out" / f"{folder}-rte")["metrics"]
        for folder in ("minilm_pretrained_weights", "minilm_random_weights",
                       "notes_zoo_bert_tiny_pretrained_weights")
    )  # fmt: skip
    assert learned["random_encoder_accuracy"]["value"] == like["accuracy"]["value"]
    assert "random_encoder_accuracy" not in like and "random_encoder_accuracy" not in other
    assert told.count("random encoder ") == 1
    beside = [result(tmp_path / "out" / f"minilm_{kind}_weights-rte")["compare_to"]
              for kind in ("pretrained", "random")]  # fmt: skip
    assert "minilm-l6xh384-rte-dev-accuracy" in beside[0] and not beside[1]
    assert "average_minilm_random_weights" in result(tmp_path / "out")["metrics"]


def test_errors_are_shown_with_their_texts(done, glue):
    told = (done / "out" / "minilm_pretrained_weights-rte" / "errors.txt").read_text()
    rows = tasks.read(tasks.TASKS["RTE"], "dev", str(glue))
    run = scoring.Finetuned.open(done / "runs" / "RTE")
    scored = scoring.score(run.logits(rows), rows)
    (row, sure), *_ = scored.worst(5)
    assert f"{sure:.1%} sure (row {row})" in told and rows.first[row] in told
    assert rows.second[row] in told
    assert scored.confusion().sum() == 3 * len(rows)
    hits = [(one.argmax(1) == rows.labels).sum() for one in run.logits(rows)]
    assert np.trace(scored.confusion()) == sum(hits)


def test_the_surest_errors_come_first_and_are_errors():
    task = tasks.TASKS["RTE"]
    rows = tasks.Rows(task, "dev", list("abcd"), list("efgh"), np.array([0, 0, 1, 1]), [0, 1, 2, 3],
                      low_resource=False)  # fmt: skip
    logits = np.array([[[0, 1.0], [9, 0], [3.0, 0], [0, 5]]])
    scored = scoring.score(logits, rows)
    assert [row for row, _ in scored.worst(9)] == [2, 0]
    assert scored.worst(1)[0][1] == pytest.approx(1 / (1 + np.exp(-3)))
    assert scored.confusion().tolist() == [[1, 1], [1, 1]]
    assert scored.per_seed == {"accuracy": [50.0]} and scored.collapsed == 0


def test_seeds_together_are_the_mean_of_their_probabilities():
    logits = np.array([[[0.0, 1]], [[0, 1]], [[9, 0]]])  # two a little sure, one very
    assert scoring.together(tasks.TASKS["RTE"], logits).tolist() == [0]
    scores = scoring.together(tasks.TASKS["STS-B"], np.array([[[1.0]], [[9.0]]]))
    assert scores.tolist() == [3]  # 9 is cut to 5


def test_the_average_needs_the_same_tasks_and_metrics_in_every_row():
    def system(kind, low=(), **scores):
        return glue_table.System(kind, kind, {k: dict(v) for k, v in scores.items()}, set(low))

    both = {"f1": (80, 1), "accuracy": (70, 1)}
    a = system("measured", CoLA={"matthews": (20, 1)}, MRPC=both, WNLI={"accuracy": (0, 1)})
    without_cola = system("reported", MRPC=both)
    without_accuracy = system("reported", CoLA={"matthews": (20, None)}, MRPC={"f1": (80, None)})
    unnamed = {slug(UNNAMED): (88, None)}
    not_named = system("reported", CoLA={"matthews": (20, None)}, MRPC=unnamed)
    c = system("baseline", CoLA={"matthews": (10, None)}, MRPC=both)
    every = [a, without_cola, without_accuracy, not_named, c]
    table = glue_table.Table(every, ["CoLA", "MRPC", "WNLI"])
    assert [table.average(one) for one in every] == [47.5, None, None, 54, 42.5]
    assert "avg: CoLA, MRPC" in table.text()
    more = system(
        "reported", CoLA={"matthews": (20, 1)}, MRPC=both | {"mismatched_accuracy": (0, 1)}
    )
    more = glue_table.Table([a, more], ["CoLA", "MRPC"])  # what others have is not asked of ours
    assert [more.average(one) for one in more.systems] == [47.5, 47.5]


def test_a_part_of_a_task_is_marked_and_spoils_no_other_row():
    def system(name, low=()):
        rte, cola = {"accuracy": (60.0, 1.0)}, {"matthews": (20.0, 1.0)}
        return glue_table.System(name, "measured", {"RTE": rte, "CoLA": cola}, set(low))

    whole, part = system("whole"), system("part", low=["RTE"])
    alone = glue_table.Table([part], ["RTE", "CoLA"])
    assert alone.low_resource == {"RTE"} and alone.averaged() == ["CoLA"]
    assert alone.grid()[0][1:3] == ["RTE‡", "CoLA"] and alone.grid()[2][1] == "60.0\n±1.0"
    table = glue_table.Table([whole, part], ["RTE", "CoLA"])
    assert table.low_resource == set() and table.grid()[0][1:3] == ["RTE", "CoLA"]
    assert [line[1] for line in table.grid()[2:]] == ["60.0\n±1.0", "60.0‡\n±1.0"]
    assert any("‡ low-resource" in note for note in table.notes())
    part.low.add("CoLA")  # nothing of it is comparable, so it has no say in the average
    assert table.averaged() == ["RTE", "CoLA"] and table.average(part) is None
    assert table.average(whole) == 40
    del part.scores["CoLA"]  # nor need it have all tasks
    assert table.average(whole) == 40 and table.average(part) is None


@pytest.mark.usefixtures("drawn")
@pytest.mark.filterwarnings("error")
def test_a_table_without_an_average_has_no_such_column(tmp_path):
    one = glue_table.System("a", "measured", {"WNLI": {"accuracy": (50.0, None)}})
    table = glue_table.Table([one], ["WNLI"])
    assert "avg" not in table.text()
    table.draw(tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_the_submission_holds_what_the_seeds_say_together(tmp_path, glue, capfd, monkeypatch):
    monkeypatch.setitem(submission.FILES, "QQP.tsv", ("QQP", "test", 300))  # of 390,965
    run = finetuned(tmp_path / "runs", glue, "RTE")
    zipped = tmp_path / "glue.zip"
    flags = ("--runs", run, "--out", tmp_path / "out", "--submission", zipped, "--fill-missing")
    assert call(*flags) == 0
    told = capfd.readouterr().out
    assert (
        "answered with the majority: CoLA.tsv, SST-2.tsv" in told
        and "RTE" not in told.split("answered with the majority")[1].split("\n")[0]
    )
    found = read_zip(zipped)
    rows = tasks.read(tasks.TASKS["RTE"], "test", str(glue))
    logits = scoring.Finetuned.open(run).logits(rows)
    expected = scoring.probabilities(logits).mean(0).argmax(1)
    assert found["RTE.tsv"] == [tasks.TASKS["RTE"].labels[i] for i in expected]
    assert len(set(found["CoLA.tsv"])) == len(set(found["AX.tsv"])) == 1
    mean = tasks.read(tasks.TASKS["STS-B"], "train", str(glue)).labels.mean()
    assert set(found["STS-B.tsv"]) == {f"{mean:.3f}"}


# --- baselines -----------------------------------------------------------------------------------


def rows(name, first, second, labels):
    task = tasks.TASKS[name]
    labels = np.array(labels, task.label_type)
    return tasks.Rows(task, "train", first, second, labels, list(range(len(first))), False)


def test_words_are_learned_and_so_is_overlap():
    good, bad = ["a good film"] * 10, ["a bad film"] * 10
    train = rows("SST-2", good + bad, None, [1] * 10 + [0] * 10)
    test = rows("SST-2", ["good", "bad"], None, [1, 0])
    assert baselines.bag_of_words(train, test)[0].tolist() == [1, 0]
    rng = np.random.default_rng(0)
    first = [sentence(rng) for _ in range(200)]
    second = [text if i % 2 else sentence(rng) for i, text in enumerate(first)]
    train = rows("MRPC", first, second, np.arange(200) % 2)
    other = rows("MRPC", ["red tree ran", "old cat"], ["red tree ran", "new house"], [1, 0])
    assert baselines.bag_of_words(train, other)[0].tolist() == [1, 0]


def test_the_majority_of_scores_is_their_mean():
    assert baselines.majority(rows("STS-B", ["a", "b"], ["c", "d"], [1.0, 4.0])) == 2.5
    assert baselines.majority(rows("RTE", ["a"] * 3, ["b"] * 3, [1, 0, 1])) == 1


@pytest.mark.parametrize(("texts", "labels"), [(["a", "b"], [0, 1]), (["same"] * 4, [1] * 4)])
def test_where_nothing_can_be_learned_the_words_say_the_majority(texts, labels):
    train = rows("SST-2", texts, None, labels)
    (said,) = baselines.bag_of_words(train, train)
    assert metrics.collapsed(said) and said[0] == baselines.majority(train)


# --- bad input -----------------------------------------------------------------------------------


def test_runs_that_cannot_be_scored(tmp_path, glue, fails):
    assert "absent: no such folder of runs" in fails("--runs", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no result there; give what finetune.py wrote" in fails("--runs", tmp_path / "empty")
    run = finetuned(tmp_path / "run", glue, "RTE")
    assert "--errors -3 must be 0 or more" in fails("--runs", run, "--errors", -3)
    assert "--fill-missing is for a submission" in fails("--runs", run, "--fill-missing")
    predictions = run / "seed-1" / "predictions-dev.npz"
    whole = predictions.read_bytes()
    flipped = whole[:60] + bytes(255 - byte for byte in whole[60:200]) + whole[200:]
    for damaged in (b"PK", b"", whole[: len(whole) // 2], flipped):
        predictions.write_bytes(damaged)
        line = fails("--runs", run)
        assert "predictions-dev.npz: no predictions of finetune.py, or cut off" in line
    predictions.unlink()
    assert "no predictions for dev" in fails("--runs", run)
    values = result(run)
    damaged = ({"config": None}, {"model": {"name": 3}})
    damaged += ({"metrics": {"accuracy": {"value": "x", "sd": None}}},)
    for lost in ({"seeds": []}, {"model": {}}, {"system": None}, *damaged):
        (run / "result.json").write_text(json.dumps(values | lost))
        assert "result.json: not written by finetune.py or evaluate.py" in fails("--runs", run)
    (run / "result.json").write_text("{}")
    assert "result.json: not written by finetune.py or evaluate.py" in fails("--runs", run)


def test_with_resume_all_is_scored_anew(tmp_path, glue, fails):
    for name in ("RTE", "WNLI"):
        finetuned(tmp_path / name, glue, name)
    out = ("--out", tmp_path / "out")
    assert call("--runs", tmp_path / "RTE", *out) == 0
    assert call("--runs", tmp_path / "RTE", *out) == 2
    assert call("--runs", tmp_path / "RTE", tmp_path / "WNLI", *out, "--resume") == 0
    assert result(tmp_path / "out")["table"]["rows"][0][1:3] == ["RTE\nacc", "WNLI\nacc"]
    begun = json.loads((tmp_path / "out" / "config.json").read_text())
    assert begun["runs"] == result(tmp_path / "out")["config"]["runs"]


def test_predictions_for_other_data_are_refused(tmp_path, glue, fails):
    run = finetuned(tmp_path / "run", glue, "RTE")
    other = tmp_path / "other"
    (other / "RTE").mkdir(parents=True)
    text = (glue / "RTE" / "dev.tsv").read_text()
    (other / "RTE" / "dev.tsv").write_text(text + "60\ta\tb\tentailment\n")
    line = fails("--runs", run, "--data", other)
    assert "(60, 2) logits for 61 rows; it was made from other data" in line
    swapped = text.replace("not_entailment", "x").replace("entailment", "not_entailment")
    (other / "RTE" / "dev.tsv").write_text(swapped.replace("x\n", "entailment\n"))
    assert "its labels are not those of the data now" in fails("--runs", run, "--data", other)


def test_a_run_that_diverged_has_no_score(tmp_path, glue, fails):
    run = finetuned(tmp_path / "run", glue, "RTE")
    file = run / "seed-1" / "predictions-dev.npz"
    with np.load(file) as arrays:
        logits, labels = arrays["logits"], arrays["labels"]
    logits[3] = np.nan
    np.savez(file, logits=logits, labels=labels)
    line = fails("--runs", run, "--data", glue)
    assert f"{file}: a logit is not a finite number; that run diverged" in line


def test_two_runs_of_one_system_and_task_are_not_mixed(tmp_path, glue, fails):
    for name in ("one", "two"):
        finetuned(tmp_path / "runs" / name, glue, "WNLI")
    assert "minilm, pretrained weights on WNLI twice" in fails("--runs", tmp_path / "runs")


def test_a_submission_is_of_one_system_and_whole(tmp_path, glue, fails):
    finetuned(tmp_path / "a", glue, "RTE")
    finetuned(tmp_path / "b", glue, "WNLI", "notes/zoo/bert-tiny, pretrained weights", 1)
    zipped = tmp_path / "glue.zip"
    line = fails("--runs", tmp_path / "a", tmp_path / "b", "--submission", zipped)
    assert "takes one system" in line and "bert-tiny" in line
    line = fails("--runs", tmp_path / "a", "--submission", zipped)
    assert "no answers for CoLA.tsv" in line and "RTE.tsv" not in line and not zipped.exists()


def test_what_another_script_trained_or_has_not_ended_is_not_in_the_table(tmp_path, glue, capfd):
    """A grid is a run of many: its cells are no systems, unless it is given by its own name."""
    finetuned(tmp_path / "runs" / "rte", glue, "RTE")
    grid = tmp_path / "runs" / "grid-rte"
    for cell in ("batch-8", "batch-16"):
        finetuned(grid / cell, glue, "RTE")
    (grid / "config.json").write_text("{}")
    broken = finetuned(tmp_path / "runs" / "wnli", glue, "WNLI")
    (broken / "result.json").unlink()
    found = scoring.find((str(tmp_path / "runs"),))
    assert [run.folder.name for run in found] == ["rte"]
    assert f"left out, because it has not ended: {broken}" in capfd.readouterr().out
    with pytest.raises(cli.UserError, match="on RTE twice"):
        scoring.find((str(grid),))
