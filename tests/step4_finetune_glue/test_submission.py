import zipfile

import numpy as np
import pytest

from common.cli import UserError
from step4_finetune_glue import submission
from step4_finetune_glue.submission import FILES, Answers
from step4_finetune_glue.tasks import TASKS

NAMES = {  # of the labels that the server takes, by file
    **dict.fromkeys(("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "QQP.tsv", "WNLI.tsv"), {"0", "1"}),
    **dict.fromkeys(("QNLI.tsv", "RTE.tsv"), {"entailment", "not_entailment"}),
    **dict.fromkeys(
        ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"), {"entailment", "neutral", "contradiction"}
    ),
}


@pytest.fixture
def short(monkeypatch):
    """QQP with 300 test rows instead of 390,965."""
    monkeypatch.setitem(FILES, "QQP.tsv", ("QQP", "test", 300))


def read(path):
    """What the server reads from a zip: {file: [prediction]}; fails where it would refuse."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            header, *lines = archive.read(name).decode("ascii").removesuffix("\n").split("\n")
            assert header == "index\tprediction"
            cells = [line.split("\t") for line in lines]
            assert [int(index) for index, _ in cells] == list(range(FILES[name][2])), name
            found[name] = [said for _, said in cells]
            if name == "STS-B.tsv":
                assert all(0 <= float(said) <= 5 for said in found[name])
            else:
                assert set(found[name]) <= NAMES[name], name
    return found


def answers(*names):
    rng, found = np.random.default_rng(0), {}
    for name in names or FILES:
        task, _, n = FILES[name]
        said = rng.integers(0, max(2, TASKS[task].n_classes), n)
        found[name] = Answers(list(range(n)), rng.normal(2.5, 3, n) if task == "STS-B" else said)
    return found


def test_a_whole_submission_reads_back(tmp_path):
    given = answers()
    path = submission.write(tmp_path / "new" / "glue.zip", given)
    found = read(path)
    assert set(found) == set(NAMES) | {"STS-B.tsv"} == set(FILES)
    for name, said in found.items():
        labels = TASKS[FILES[name][0]].labels
        if labels:
            assert said == [labels[i] for i in given[name].predictions]
    scores = np.array(found["STS-B.tsv"], float)
    assert np.abs(scores - np.clip(given["STS-B.tsv"].predictions, 0, 5)).max() <= 0.0005
    assert scores.min() == 0 and scores.max() == 5


def test_rows_are_written_in_the_order_of_their_index(short, tmp_path):
    given = answers()
    n = FILES["WNLI.tsv"][2]
    given["WNLI.tsv"] = Answers(list(range(n))[::-1], np.arange(n) % 2)
    path = submission.write(tmp_path / "glue.zip", given)
    found = read(path)
    assert found["WNLI.tsv"] == [str((n - 1 - i) % 2) for i in range(n)]
    again = submission.write(tmp_path / "again.zip", given)
    assert again.read_bytes() == path.read_bytes()


def test_missing_tasks_are_refused_and_nothing_is_written(tmp_path):
    given = answers("RTE.tsv", "CoLA.tsv")
    with pytest.raises(UserError, match=r"no answers for SST-2\.tsv, MRPC\.tsv.*--fill-missing"):
        submission.write(tmp_path / "glue.zip", given)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_zip(short, tmp_path, monkeypatch):
    path = submission.write(tmp_path / "glue.zip", answers())
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(submission.runs, "sync", full)
    with pytest.raises(OSError, match="No space"):
        submission.write(path, answers())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("ids", "said", "told"),
    [
        (range(145), np.zeros(145, int), "needs one answer for each index 0 to 145, not 145"),
        ([*range(145), 0], np.zeros(146, int), "one answer for each index"),
        (range(146), np.zeros(145, int), "not 145 predictions for 146 rows"),
        (range(146), np.full(146, np.nan), "not a finite number"),
    ],
)
def test_other_rows_than_those_of_the_test_set_are_refused(short, tmp_path, ids, said, told):
    given = answers() | {"WNLI.tsv": Answers(list(ids), said)}
    with pytest.raises(UserError, match=rf"WNLI\.tsv.*{told}"):
        submission.write(tmp_path / "glue.zip", given)
