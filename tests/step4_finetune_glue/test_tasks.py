import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from common.cli import UserError
from step4_finetune_glue import tasks
from step4_finetune_glue.tasks import TASKS, read, task

MIRROR = os.environ.get("GYM_DATA")
OFFICIAL = {  # rows of train and dev, as published
    "CoLA": (8551, 1043),
    "SST-2": (67349, 872),
    "MRPC": (3668, 408),
    "STS-B": (5749, 1500),
    "RTE": (2490, 277),
    "WNLI": (635, 71),
}
# The first lines of files as they are downloaded.
FILES = {
    "CoLA/train.tsv": 'gj04\t1\t\tThey "sang.\nbc01\t0\t*\tSang they.\n',
    "CoLA/test.tsv": "index\tsentence\n0\tBill left.\n",
    "SST-2/dev.tsv": "sentence\tlabel\ngood . \t1\nbad\t0\n",
    "STS-B/dev.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n7\tx\ta\tb\t3.800\n",
    "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    '3\t1\t2\t"Why?\t""What\'s ""new?\t1\n'
    "4\t1\t2\tThis question has a line\n"
    "break?\tWhich?\t0\n"
    "5\t8\t9\tWhat?\t\t0\n"
    "6\t8\t9\tHow?\tHow so?\t0\n",
    "QQP/test.tsv": "id\tquestion1\tquestion2\n0\tWhat?\t\n1\tHow?\tWhy?\n",
    "MNLI/dev_matched.tsv": "index\tpairID\tsentence1\tsentence2\tlabel1\tgold_label\n"
    '0\t63e\t"He said so\tHe "said" so"\tneutral\tentailment\n',
    "MNLI/dev_mismatched.tsv": "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tcontradiction\n",
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tnot_entailment\n",
    "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\r\n0\ta\tb\tentailment\r\n",
    "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n",
    "diagnostic/diagnostic.tsv": "index\tsentence1\tsentence2\n0\ta\tb\n",
    "AX/diagnostic-full.tsv": "Logic\tDomain\tPremise\tHypothesis\tLabel\n"
    "\tNews\tc\td\tcontradiction\nNegation\tNews\ta\tb\tentailment\n",
    "MRPC/msr_paraphrase_train.txt": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t10\t11\tHe said "yes.\tYes.\n0\t20\t21\ta\tb\n',
    "MRPC/dev_ids.tsv": "20\t21\n",
    "MRPC/msr_paraphrase_test.txt": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    "1\t30\t31\tc\td\n",
}


@pytest.fixture
def glue_data(tmp_path):
    """The official download folder, cut short."""
    for name, text in FILES.items():
        path = tmp_path / "glue_data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "glue_data"


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode())
    return str(folder)


# --- the official download -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "first", "second", "labels", "ids"),
    [
        ("CoLA", "train", ['They "sang.', "Sang they."], None, [1, 0], [0, 1]),
        ("CoLA", "test", ["Bill left."], None, None, [0]),
        ("SST-2", "dev", ["good . ", "bad"], None, [1, 0], [0, 1]),
        ("STS-B", "dev", ["a"], ["b"], [3.8], [7]),
        ("MNLI", "dev", ['"He said so'], ['He "said" so"'], [0], [0]),
        ("MNLI", "dev_mismatched", ["a"], ["b"], [2], [0]),
        ("QNLI", "dev", ["Who?"], ["He."], [1], [0]),
        ("RTE", "train", ["a"], ["b"], [0], [0]),
        ("WNLI", "dev", ["a"], ["b"], [0], [0]),
        ("AX", "test", ["a"], ["b"], None, [0]),
        ("AX", "dev", ["c", "a"], ["d", "b"], [2, 0], [0, 1]),
        ("MRPC", "train", ['He said "yes.'], ["Yes."], [1], [0]),
        ("MRPC", "dev", ["a"], ["b"], [0], [0]),
        ("MRPC", "test", ["c"], ["d"], None, [0]),
        ("QQP", "train", ['"Why?', "How?"], ['""What\'s ""new?', "How so?"], [1, 0], [3, 6]),
        ("QQP", "test", ["What?", "How?"], ["", "Why?"], None, [0, 1]),
    ],
)
def test_the_official_files_are_read_as_they_are(
    glue_data, name, split, first, second, labels, ids
):
    rows = read(task(name), split, str(glue_data))
    assert (rows.first, rows.second, rows.ids) == (first, second, ids)
    assert (rows.labels if labels is None else rows.labels.tolist()) == labels
    assert not rows.low_resource and rows.source["kind"] == "path"


def test_the_broken_rows_of_qqp_are_counted_and_told(glue_data):
    rows = read(task("QQP"), "train", str(glue_data))
    assert rows.skipped == 3  # two halves of a question, and one without a second
    assert rows.told() == "QQP train: 2 rows, of the 363,846 official ones; 3 broken rows left out"


def test_dtypes_are_what_the_losses_want(glue_data):
    assert read(task("CoLA"), "train", str(glue_data)).labels.dtype == np.int64
    assert read(task("STS-B"), "dev", str(glue_data)).labels.dtype == np.float64


def test_files_made_by_the_download_script_come_before_the_raw_ones(glue_data):
    text = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tx\ty\n"
    write(glue_data, "MRPC/train.tsv", text)
    assert read(task("MRPC"), "train", str(glue_data)).first == ["x"]


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("CoLA", "CoLA"),
        ("cola", "CoLA"),
        ("glue/sst2", "SST-2"),
        ("STS_B", "STS-B"),
        ("mnli-m", "MNLI"),
        ("MNLI-mm", "MNLI"),
        ("mnli_matched", "MNLI"),
        ("diagnostic", "AX"),
        ("ax", "AX"),
        ("RT", "rt"),
    ],
)
def test_a_task_is_known_by_its_usual_spellings(spelling, name):
    assert task(spelling) is TASKS[name]


def test_an_unknown_task_or_split_lists_the_known():
    with pytest.raises(UserError, match="unknown task 'snli'; tasks are: CoLA, SST-2"):
        task("snli")
    with pytest.raises(UserError, match="RTE has no split 'dev_matched'; it has train, dev, test"):
        read(task("RTE"), "dev_matched")
    with pytest.raises(UserError, match="AX has no split 'train'; it has dev, test"):
        read(task("AX"), "train")


def test_the_table_of_tasks_is_that_of_glue():
    assert len(tasks.GLUE) == 9
    assert {t.name for t in TASKS.values() if not t.pair} == {"CoLA", "SST-2", "rt"}
    assert [TASKS[n].n_classes for n in ("CoLA", "STS-B", "MNLI", "AX")] == [2, 1, 3, 3]
    assert TASKS["MNLI"].labels == ("entailment", "neutral", "contradiction")


# --- bad input -----------------------------------------------------------------------------------

RTE = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("name", "file", "text", "told"),
    [
        ("RTE", "RTE/dev.tsv", RTE + "0\ta\tentailment\n", r"dev\.tsv:2: 3 columns instead of 4"),
        ("RTE", "RTE/dev.tsv", RTE + "0\ta\t \tentailment\n", r":2: 'sentence2' is empty; give it"),
        ("RTE", "RTE/dev.tsv", RTE + "0\ta\tb\tneutral\n", r":2: label 'neutral' is none of RTE's"),
        ("RTE", "RTE/dev.tsv", RTE + "0\ta\tb\t0\n", r":2: label '0' is none of RTE's: entailment"),
        ("RTE", "RTE/dev.tsv", RTE + 'x\ta\tb\tentailment\n', r":2: index 'x' is no number; n"),
        ("RTE", "RTE/dev.tsv", RTE, r"RTE/dev\.tsv: no rows in it"),
        ("RTE", "RTE/dev.tsv", "", r"RTE/dev\.tsv: no rows in it"),
        ("RTE", "RTE/dev.tsv", "index\tsentence1\tlabel\n0\ta\tentailment\n",
         r"dev\.tsv:1: no column 'sentence2' for RTE dev; it has 'index'"),
        ("RTE", "RTE/dev.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n", ":1: no column 'label'"),
        # A quote that is not closed does not swallow the next row, and one that is hides no tab
        ("MNLI", "MNLI/dev_matched.tsv",
         'index\tsentence1\tsentence2\tgold_label\n0\t"a\tb\tneutral\n1\t"c\td"\te\tneutral\n',
         r"dev_matched\.tsv:3: 5 columns instead of 4; in GLUE's files quotes mean nothing"),
        ("STS-B", "STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\t5.1\n", "score '5.1' is no"),
        ("STS-B", "STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\tnan\n", "score 'nan' is no"),
        ("STS-B", "STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\t\n", "score '' is no"),
        ("CoLA", "CoLA/dev.tsv", "gj04\t2\t\tThey sang.\n", r"dev\.tsv:1: label '2' is none of"),
        ("CoLA", "CoLA/dev.tsv", "gj04\t1\tThey sang.\n", r"dev\.tsv:1: no column 'sentence'"),
        ("QQP", "QQP/dev.tsv", "id\tquestion1\tquestion2\tis_duplicate\n1\ta\n2\tb\n",
         r"QQP/dev\.tsv: all 2 rows are broken or cut off; get it anew"),
        ("QQP", "QQP/dev.tsv", "id\tquestion1\tquestion2\tis_duplicate\n"
         + "1\ta\tb\t0\n" * 40 + "2\ta\n" * 5 + "3\ta\tb\tc\t0\n" * 6,
         r"QQP/dev\.tsv: 11 of 51 rows are broken; get it anew"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_by_file_and_line(tmp_path, name, file, text, told):
    folder = write(tmp_path, file, text)
    with pytest.raises(UserError, match=told) as error:
        read(task(name), "dev", folder)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_bytes(b"sentence\tlabel\nfine\t1\nb\xff\t0\n")
    with pytest.raises(UserError, match=r"dev\.tsv:3: not UTF-8"):
        read(task("SST-2"), "dev", str(tmp_path))


def test_a_task_without_its_files_says_how_to_get_them(glue_data, tmp_path):
    with pytest.raises(UserError, match=r"SST-2 has no train\.tsv there; get glue_data from"):
        read(task("SST-2"), "train", str(glue_data))
    with pytest.raises(UserError, match="absent: no such folder; get glue_data"):
        read(task("RTE"), "dev", str(tmp_path / "absent"))


def test_dev_sets_that_are_there(glue_data):
    both = ("dev_matched", "dev_mismatched")
    assert tasks.found(task("MNLI"), both, str(glue_data)) == both
    (glue_data / "MNLI" / "dev_mismatched.tsv").unlink()
    assert tasks.found(task("MNLI"), both, str(glue_data)) == ("dev_matched",)
    with pytest.raises(UserError, match=r"no test_matched\.tsv"):
        tasks.found(task("MNLI"), task("MNLI").test_splits, str(glue_data))


# --- the mirror and its pools --------------------------------------------------------------------


def test_a_mirror_is_found_by_its_name(glue_data, monkeypatch):
    monkeypatch.setenv("GYM_DATA", str(glue_data.parent))
    rows = read(task("RTE"), "train", "glue_data")
    assert rows.source["kind"] in ("mirror", "path") and rows.first == ["a"]
    glue_data.rename(glue_data.parent / "glue")
    assert read(task("RTE"), "train").source["kind"] == "mirror"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("QNLI/derived_nqg_train.tsv", FILES["QNLI/dev.tsv"]),
        ("MNLI/train_pool_subset.tsv", "sentence1\tsentence2\tgold_label\na\tb\tneutral\n"),
    ],
)
def test_a_pool_stands_for_a_training_set_and_says_so(tmp_path, name, text):
    folder = write(tmp_path, name, text)
    one = task(name.split("/")[0])
    rows = read(one, "train", folder)
    assert rows.low_resource and len(rows) == 1
    assert f"instead of the {one.train_rows:,} official ones (low-resource)" in rows.told()
    write(tmp_path, f"{one.name}/train.tsv", text)
    assert not read(one, "train", folder).low_resource


def test_a_pool_is_dealt_without_a_question_in_both_parts(tmp_path):
    rng = np.random.default_rng(0)
    questions = [f"Question {i}?" for i in range(600)]
    lines = ["question1\tquestion2\tis_duplicate"]
    for _ in range(500):
        a, b = rng.choice(questions, 2, replace=False)
        lines.append(f"{a}\t{b.upper()}\t{rng.integers(2)}")
    lines += [f"Only {i}?\tOnce {i}?\t1" for i in range(2000)]
    folder = write(tmp_path, "QQP/pool_subset.tsv", "\n".join(lines) + "\n")
    train, dev = (read(task("QQP"), split, folder) for split in ("train", "dev"))
    assert len(train) + len(dev) == 2500 and 150 < len(dev) < 400
    assert set(train.ids).isdisjoint(dev.ids)
    seen = {text.lower() for text in train.first + train.second}
    assert not seen & {text.lower() for text in dev.first + dev.second}
    assert dev.low_resource and "no official split" in dev.told()
    assert read(task("QQP"), "dev", folder).ids == dev.ids


@pytest.mark.skipif(not MIRROR, reason="needs GYM_DATA")
@pytest.mark.parametrize("name", OFFICIAL)
def test_the_mirror_has_the_official_number_of_rows(name):
    one = task(name)
    train, dev = (read(one, split) for split in ("train", "dev"))
    assert (len(train), len(dev)) == OFFICIAL[name]
    assert len(train) == one.train_rows and not train.low_resource


@pytest.mark.skipif(not MIRROR, reason="needs GYM_DATA")
@pytest.mark.parametrize("name", ["QNLI", "MNLI"])
def test_no_row_of_a_pool_is_in_the_dev_set(name):
    train, dev = (read(task(name), split) for split in ("train", "dev"))

    def rows(r):
        return {("".join(a.lower().split()), "".join(b.lower().split()))
                for a, b in zip(r.first, r.second, strict=True)}  # fmt: skip

    assert train.low_resource and not rows(train) & rows(dev)


# --- the hub and the embedded set ----------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder laid out as nyu-mll/glue: a folder of parquet files for each configuration."""
    pytest.importorskip("datasets")
    rows = {
        "rte/train": [{"sentence1": "a", "sentence2": "b", "label": 1, "idx": 5}],
        "mrpc/validation": [{"sentence1": "a", "sentence2": "b", "label": 0, "idx": 9}],
        "mnli/validation_mismatched": [{"premise": "a", "hypothesis": "b", "label": 2, "idx": 0}],
        "ax/test": [{"premise": "a", "hypothesis": "b", "label": -1, "idx": 0}],
        "stsb/train": [{"sentence1": "a", "sentence2": "b", "label": 3.5, "idx": 0}],
        "cola/train": [{"sentence": "a", "label": 2, "idx": 0}],
    }
    one = "- config_name: {0}\n  data_files:\n  - split: {1}\n    path: {0}/{1}-*\n"
    configs = "".join(one.format(*name.split("/")) for name in rows)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name, table in rows.items():
        path = repository / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    monkeypatch.delenv("GYM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tasks, "HUB", str(repository))


@pytest.mark.parametrize(
    ("name", "split", "labels", "ids"),
    [
        ("RTE", "train", [1], [5]),
        ("MRPC", "dev", [0], [9]),
        ("MNLI", "dev_mismatched", [2], [0]),
        ("STS-B", "train", [3.5], [0]),
        ("AX", "test", None, [0]),
    ],
)
def test_the_hub_layout_is_read_by_configuration_and_split(hub, name, split, labels, ids):
    rows = read(task(name), split)
    assert (rows.first, rows.second, rows.ids) == (["a"], ["b"], ids)
    assert (rows.labels if labels is None else rows.labels.tolist()) == labels
    assert rows.source["kind"] == "hub" and rows.source["name"] == f"glue/{name}"


def test_a_label_of_the_hub_that_the_task_lacks_is_named_by_its_row(hub):
    with pytest.raises(UserError, match="glue/CoLA: row 1: label 2 is none of CoLA's: 0, 1"):
        read(task("CoLA"), "train")


def test_a_hub_out_of_reach_says_how_to_get_the_files(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.delenv("GYM_DATA", raising=False)
    with pytest.raises(UserError, match=r"the Hub\); get glue_data from .* --data glue_data"):
        read(task("RTE"), "train")


def test_offline_the_script_says_in_one_line_how_to_get_the_files(tmp_path):
    pytest.importorskip("datasets")
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}  # nobody listens
    environment = {name: value for name, value in os.environ.items() if name != "GYM_DATA"}
    script = [sys.executable, Path(tasks.__file__).with_name("finetune.py"), "--task", "RTE"]
    ended = subprocess.run(
        [*script, "--preset", "smoke", "--out", tmp_path / "run"],
        env=environment | offline, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "glue/RTE" in ended.stderr and ended.stderr.endswith(f"; {tasks.HOW_TO_GET}\n")


def test_film_reviews_are_a_task_without_any_download(monkeypatch):
    monkeypatch.delenv("GYM_DATA", raising=False)
    splits = {split: read(task("rt"), split) for split in ("train", "dev", "test")}
    assert [len(rows) for rows in splits.values()] == [6884, 813, 833]
    assert splits["dev"].second is None and set(splits["test"].labels.tolist()) == {0, 1}
    assert splits["train"].source["kind"] == "embedded"


def test_mrpc_as_downloaded_needs_the_ids_that_part_its_splits(tmp_path):
    folder = tmp_path / "MRPC"
    folder.mkdir()
    text = "Quality\t#1 String\t#2 String\n1\ta b\tc d\n"
    (folder / "msr_paraphrase_train.txt").write_text(text)
    (folder / "dev_ids.tsv").write_text("1\t2\n")
    with pytest.raises(UserError, match="no columns '#1 ID' and '#2 ID'"):
        read(task("MRPC"), "train", str(tmp_path))
