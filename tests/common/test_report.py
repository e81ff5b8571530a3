import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common import page, report
from common.cli import UserError
from common.runs import metric

ROOT = Path(__file__).resolve().parents[2]
CSV = """id,system,variant,dataset,split,metric,value,unit,source_title,source_locator
paper-loss,BERT,tiny,Wikipedia,eval,MLM loss,3.266,nats,A paper,Table 1
paper-accuracy,BERT,tiny,SST-2,dev,accuracy,83.2,%,A paper,Table 2
"""
PIXEL = bytes.fromhex("89504e470d0a1a0a")


@pytest.fixture
def root(tmp_path):
    """A repository with one committed result."""
    (tmp_path / "notes" / "results").mkdir(parents=True)
    (tmp_path / "notes" / "figures").mkdir()
    (tmp_path / "step2_bert").mkdir()
    (tmp_path / "notes" / "reported_numbers.csv").write_text(CSV)
    (tmp_path / "README.md").write_text(
        "# Gym\nbefore\n<!-- results:start -->\nold\n<!-- results:end -->\nafter\n"
    )
    (tmp_path / "step2_bert" / "notes.md").write_text(
        "<!-- results:step2_bert:start -->\n<!-- results:step2_bert:end -->\n"
    )
    write(tmp_path / "notes" / "results" / "step2_bert-tiny.json")
    return tmp_path


def write(path, **fields):
    """Write a result that lacks nothing, but for what `fields` say."""
    metrics = {
        "mlm_loss": metric(3.51234, unit="nats", higher_is_better=False),
        "mlm_accuracy": metric(41.25, sd=0.38, n=3, unit="%"),
    }
    values = {
        "step": "step2_bert",
        "system": "our | BERT",
        "dataset": "enwiki",
        "split": "heldout",
        "metrics": metrics,
        "compare_to": ["paper-loss"],
        "hardware": {"device": "cpu", "cpu": "AMD EPYC 9B14 96-Core Processor", "cores": 2},
        "seconds": 7300,
        "command": "python step2_bert/pretrain.py",
        "config": {"note": "<script>alert(1)</script>"},
    } | fields
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return path


def run(root, *flags):
    command = [sys.executable, "-m", "common.report", "--root", str(root), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_tables_are_written_between_the_markers_and_then_agree(root):
    report.main(report.Config(root=str(root)))
    readme = (root / "README.md").read_text()
    assert readme.startswith("# Gym\nbefore\n<!-- results:start -->\n| result |")
    assert readme.endswith("|\n<!-- results:end -->\nafter\n") and "old" not in readme
    assert "[tiny](notes/results/step2_bert-tiny.json): our \\| BERT on enwiki heldout" in readme
    assert "| 3.266 (BERT tiny, Wikipedia eval) | 3.512 | 1 | 2 cores AMD EPYC 9B14 |" in readme
    report.main(report.Config(root=str(root), check=True))
    assert (root / "README.md").read_text() == readme


def test_readme_holds_what_is_compared_and_the_step_notes_everything(root):
    report.main(report.Config(root=str(root)))
    notes = (root / "step2_bert" / "notes.md").read_text()
    assert "MLM accuracy" not in (root / "README.md").read_text()
    assert "| MLM accuracy (%) ↑ | – | 41.2 ± 0.4 | 3 |" in notes
    assert "](../notes/results/step2_bert-tiny.json)" in notes


TABLE = {"rows": [["", "RTE\nacc"], ["tiny | <1", "58.8\n±1.2"]], "notes": ["a note"]}
MARKS = "<!-- table:glue:start -->\n<!-- table:glue:end -->\n"


def test_a_cell_breaks_no_table():
    lines = report.grid([["a", "b"], ["x|y\nz", "\x96\ttab"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| x\\|y<br>z | ··tab |"]
    shown = page.own_table([["a"], ["`<i>\x96`"], ["x\ny"]])
    assert "<td><code>&lt;i&gt;·</code></tr>" in shown and "x<br>y" in shown


def test_a_table_of_a_result_is_in_the_notes_and_on_the_page(root):
    kept = write(root / "notes" / "results" / "step2_bert-glue.json", table=TABLE)
    notes, html = root / "step2_bert" / "notes.md", root / "page.html"
    with pytest.raises(UserError, match="<!-- table:glue:start --> and end are missing"):
        report.main(report.Config(root=str(root)))
    notes.write_text(notes.read_text() + MARKS)
    report.main(report.Config(root=str(root), html=str(html)))
    lines = ["|  | RTE<br>acc |", "| --- | ---: |", "| tiny \\| <1 | 58.8<br>±1.2 |", "", "a note"]
    assert "\n".join(["start -->", *lines, "<!-- table:glue:end -->"]) in notes.read_text()
    assert "<td>RTE<br>acc</tr><tr><td>tiny | &lt;1<td>58.8<br>±1.2</tr>" in html.read_text()
    assert "<div class=soft>a note</div>" in html.read_text()

    newer = TABLE | {"rows": [["", "RTE"], ["tiny", "60.0"]]}
    write(kept, table=newer)
    with pytest.raises(UserError, match="notes.md: tables disagree"):
        report.main(report.Config(root=str(root), check=True))
    report.main(report.Config(root=str(root)))
    report.main(report.Config(root=str(root), check=True))
    kept.unlink()
    with pytest.raises(UserError, match="table:glue:start --> and end are there, and no such res"):
        report.main(report.Config(root=str(root), check=True))


def test_a_reported_number_that_names_no_metric_stands_beside_the_first(root):
    table = root / "notes" / "reported_numbers.csv"
    table.write_text(table.read_text().replace("MLM loss", report.UNNAMED))
    report.main(report.Config(root=str(root)))
    told = "| MLM loss (nats) ↓ | 3.266 (BERT tiny, Wikipedia eval, metric not named) | 3.512 |"
    assert told in (root / "step2_bert" / "notes.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "step2_bert/notes.md"])
def test_check_names_the_document_that_drifted_and_leaves_it(root, name):
    report.main(report.Config(root=str(root)))
    drifted = (root / name).read_text().replace("3.512", "3.1")
    (root / name).write_text(drifted)
    with pytest.raises(UserError, match=f"{name}: tables disagree"):
        report.main(report.Config(root=str(root), check=True))
    assert (root / name).read_text() == drifted


def test_no_results_yet(root):
    (root / "notes" / "results" / "step2_bert-tiny.json").unlink()
    report.main(report.Config(root=str(root), html=str(root / "page.html")))
    assert "*No results yet.*" in (root / "README.md").read_text()
    assert "No results yet" in (root / "page.html").read_text()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"compare_to": ["paper-los"]}, "no reported number has id 'paper-los'"),
        ({"compare_to": ["paper-accuracy"]}, "paper-accuracy needs metric 'accuracy'"),
        ({"seconds": None}, "field 'seconds' is missing"),
        ({"seconds": "long"}, "field 'seconds' is missing or of the wrong kind"),
        ({"metrics": [1]}, "field 'metrics' is missing or of the wrong kind"),
        ({"metrics": {"mlm_loss": {"value": "3.5"}}}, "'metrics.mlm_loss.value' is not a number"),
        ({"metrics": {"mlm_loss": 3.5}}, "'metrics.mlm_loss.value' is not a number"),
        (
            {"metrics": {"accuracy": metric(0.83)}, "compare_to": ["paper-accuracy"]},
            "'metrics.accuracy.unit': paper-accuracy is in '%'",
        ),
    ],
)
def test_a_wrong_result_is_named_with_its_field(root, fields, complaint):
    path = write(root / "notes" / "results" / "step2_bert-wrong.json", **fields)
    with pytest.raises(UserError) as error:
        report.load_all(root)
    assert str(error.value).startswith(f"{path}: ") and complaint in str(error.value)


@pytest.mark.parametrize("text", ["[]", '"text"', "\xff"])
def test_malformed_json_is_named(root, text):
    path = root / "notes" / "results" / "broken.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        report.main(report.Config(root=str(root)))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_malformed_json_is_one_line_and_exit_code_2(root):
    path = root / "notes" / "results" / "broken.json"
    path.write_text('{"step": ')
    done = run(root)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert str(path) in done.stderr


@pytest.mark.parametrize(
    ("csv", "complaint"),
    [
        (CSV + CSV.splitlines()[1], "line 4: id 'paper-loss' occurs twice"),
        (CSV.replace("Table 2", ""), "line 3: column 'source_locator' is empty or missing"),
    ],
)
def test_a_wrong_reported_number_is_named_with_its_line(root, csv, complaint):
    (root / "notes" / "reported_numbers.csv").write_text(csv)
    with pytest.raises(UserError, match=complaint):
        report.load_all(root)


def test_missing_markers_are_named(root):
    (root / "README.md").write_text("# Gym\n")
    with pytest.raises(UserError, match="README.md: the markers <!-- results:start -->"):
        report.main(report.Config(root=str(root)))


class Links(HTMLParser):
    """Everything that a browser would fetch for a page."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_needs_nothing_but_itself(root):
    (root / "notes" / "figures" / "step2_bert-tiny.png").write_bytes(PIXEL)
    text = page.render(report.load_all(root)[0])
    links = Links()
    links.feed(text)
    assert links.found == ["data:image/png;base64,iVBORw0KGgo="]
    assert "script" not in links.tags and "link" not in links.tags
    assert "url(" not in text and "@import" not in text
    assert "3.266 (BERT tiny, Wikipedia eval)" in text and "A paper, Table 1" in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_fresh_runs_are_on_the_page_but_not_in_the_documents(root, capsys):
    runs = root / "runs"
    write(runs / "a" / "result.json", system="fresh BERT")
    (runs / "a" / "curves.png").write_bytes(PIXEL)
    out = root / "runs" / "report.html"
    report.main(report.Config(root=str(root), runs=str(runs), html=str(out)))
    assert "fresh" not in (root / "README.md").read_text()
    assert "fresh BERT" in out.read_text() and "this machine" in out.read_text()
    told = capsys.readouterr().out
    assert "fresh BERT on enwiki heldout · 2 cores AMD EPYC 9B14 · 2.0 h · this machine" in told
    assert told.index("our | BERT") < told.index("fresh BERT")  # the last stays in view
    kept = told[: told.index("fresh BERT")]
    assert "reported 3.266" in kept and kept.count("\n  ") == kept.count("reported")


def test_a_missing_folder_of_runs_is_an_error(root):
    with pytest.raises(UserError, match="no such folder of runs"):
        report.load_all(root, root / "runs")


def test_keep_copies_result_and_curves(root):
    run_dir = write(root / "runs" / "mini" / "result.json", compare_to=[]).parent
    (run_dir / "curves.png").write_bytes(PIXEL)
    (run_dir / "curves-by-step.png").write_bytes(PIXEL + b"2")
    kept = report.keep(run_dir, root, "best", ("paper-loss",))
    assert kept == root / "notes" / "results" / "step2_bert-best.json"
    assert json.loads(kept.read_text())["compare_to"] == ["paper-loss"]
    figures = root / "notes" / "figures"
    assert (figures / "step2_bert-best.png").read_bytes() == PIXEL
    assert (figures / "step2_bert-best-by-step.png").read_bytes() == PIXEL + b"2"
    rows, _ = report.load_all(root)
    assert rows[0].result.curves == root / "notes" / "figures" / "step2_bert-best.png"


def test_keep_refuses_an_unknown_id_and_writes_nothing(root):
    run_dir = write(root / "runs" / "mini" / "result.json").parent
    with pytest.raises(UserError, match="no reported number has id 'nope'"):
        report.keep(run_dir, root, compare_to=("nope",))
    assert not (root / "notes" / "results" / "step2_bert-mini.json").exists()


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (metric(83.24, unit="%"), "83.2"),
        (metric(83.24, sd=0.44, n=3, unit="%"), "83.2 ± 0.4"),
        (metric(83.24, sd=0.44, n=1, unit="%"), "83.2"),
        (metric(83.24, sd=None, n=3, unit="%"), "83.2"),
        (metric(3.26649), "3.266"),
        (metric(26.2113, sd=0.5, n=2), "26.21 ± 0.50"),
        (metric(12345.67, sd=1234.5, n=2), "12,346 ± 1,234"),
        (metric(3.1e-7, sd=1e-8, n=2), "3.1e-07 ± 1.0e-08"),
        (metric(4386178), "4,386,178"),
        (metric(12), "12"),
        (metric(3.0, sd=0.25, n=2), "3.000 ± 0.250"),
        (metric(float("nan")), "nan"),
    ],
)
def test_numbers_have_sensible_digits(entry, text):
    assert report.mean_and_sd(entry) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "61 s"), (420, "7 min"), (7300, "2.0 h")]
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"device": "NVIDIA H200", "cpu": "x", "cores": 16}, "NVIDIA H200"),
        (
            {"device": "cpu", "cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 2},
            "2 cores Intel Xeon",
        ),
        ({"device": "cpu", "cpu": "Apple M2", "cores": 1}, "1 core Apple M2"),
    ],
)
def test_hardware(values, text):
    assert report.hardware(values) == text


def test_report_does_not_import_torch():
    code = "import sys, common.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_committed_documents_agree_with_the_committed_results():
    rows, _ = report.load_all(ROOT)
    for path, text in report.documents(ROOT, rows).items():
        assert path.read_text() == text, f"{path} is out of date: run `make report`"
