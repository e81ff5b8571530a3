"""Reported against measured: `python -m common.report`.

Joins notes/results/*.json with notes/reported_numbers.csv, prints the table, and rewrites the
blocks between `<!-- results:start -->` and `<!-- results:end -->` in README.md (what has a
reported counterpart) and between the markers `<!-- results:step2_bert:start -->` and `:end` in a
step's notes.md (every metric). A result may hold a `table` of its own, {"rows": lines of cells,
the first of them heads, "notes": lines}: that of the result NAME stands between
`<!-- table:NAME:start -->` and `:end` in its step's notes.md.
"""

import csv
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from common import cli, page
from common.cli import UserError
from common.runs import words, write_json, write_text

FIELDS = dict.fromkeys(("step", "system", "dataset", "split", "command"), str)
FIELDS |= {"metrics": dict, "hardware": dict, "seconds": int | float}
COLUMNS = ("result", "metric", "reported", "measured", "n", "hardware", "time", "command")
BLOCK = re.compile(r"(<!-- ((?:results|table)\S*):start -->\n).*?(<!-- \2:end -->)", re.S)
UNNAMED = "score as printed"  # a reported metric, where the source does not say which one it is


@dataclass
class Config:
    check: bool = False
    """Change nothing; exit 2 naming the file whose tables disagree with notes/results."""
    html: str = ""
    """Also write one self-contained HTML page to this path."""
    runs: str = ""
    """Show the results found in this folder of runs, marked as this machine's, below those kept
    results of the same steps that have a reported number."""
    keep: str = ""
    """First copy the result and curves of this run into notes/, to be committed."""
    name: str = ""
    """Name of the kept result; default: the run directory's."""
    compare_to: tuple[str, ...] = ()
    """Ids of the reported numbers that the kept result is held against."""
    root: str = "."
    """Root of the repository."""


@dataclass(frozen=True)
class Result:
    """One result.json, with its curves where there are any."""

    path: Path
    name: str
    values: dict[str, Any]
    curves: Path | None
    fresh: bool = False


@dataclass(frozen=True)
class Row:
    """One metric of one result, as text, beside the reported numbers it is compared to."""

    result: Result
    metric: str
    reported: tuple[tuple[str, str], ...]  # as text, and its source
    measured: str
    n: str
    first: bool

    def cells(self) -> tuple[str, ...]:
        """The row in the order of COLUMNS; what all rows of a result share stands in the first."""
        v = self.result.values
        where = f"{v['system']} on {v['dataset']} {v['split']}".strip()
        run = [hardware(v["hardware"]), duration(v["seconds"]), v["command"]]
        where, *run = [where, *run] if self.first else [""] * 4
        told = "; ".join(text for text, _ in self.reported)
        return where, self.metric, told or "–", self.measured, self.n, *run


# -- reading ---------------------------------------------------------------------------------

REPORTED = Path(__file__).resolve().parents[1] / "notes" / "reported_numbers.csv"


def load_reported(path: Path | None = None) -> dict[str, dict[str, str]]:
    """Rows of reported_numbers.csv by id. Raises UserError for a missing column or a double id."""
    path = path or REPORTED
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    reported = {}
    for line, row in enumerate(rows, start=2):
        for column in ("id", "system", "metric", "value", "source_locator"):
            if not row.get(column):
                raise UserError(f"{path}, line {line}: column {column!r} is empty or missing")
        if row["id"] in reported:
            raise UserError(f"{path}, line {line}: id {row['id']!r} occurs twice")
        reported[row["id"]] = row
    return reported


def load_result(path: Path, reported: dict, *, fresh: bool = False) -> Result:
    """Read a result.json and find its curves."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    check(path, values, reported)
    name, curves = path.parent.name, path.with_name("curves.png")
    if not fresh:
        name = path.stem.removeprefix(f"{values['step']}-")
        curves = path.parent.parent / "figures" / f"{path.stem}.png"
    return Result(path, name, values, curves if curves.exists() else None, fresh)


def check(path: Path, values: Any, reported: dict) -> None:
    """Raise UserError naming the field of the result at `path` that is missing or wrong."""
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    for field, kind in FIELDS.items():
        if not isinstance(values.get(field), kind):
            raise UserError(f"{path}: field {field!r} is missing or of the wrong kind")
    for name, metric in values["metrics"].items():
        value = metric.get("value") if isinstance(metric, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}: field 'metrics.{name}.value' is not a number")
    for row_id in values.get("compare_to") or []:
        if row_id not in reported:
            raise UserError(f"{path}: field 'compare_to': no reported number has id {row_id!r}")
        name, unit = metric_of(reported[row_id], values), reported[row_id]["unit"]
        if name not in values["metrics"]:
            raise UserError(f"{path}: field 'compare_to': {row_id} needs metric {name!r}")
        if (unit == "%") != (values["metrics"][name].get("unit") == "%"):
            raise UserError(f"{path}: field 'metrics.{name}.unit': {row_id} is in {unit!r}")


def load_all(root: Path, runs: Path | None = None) -> tuple[list[Row], list[Row]]:
    """Rows of the committed results, and of those found under `runs`, each in order of path."""
    reported = load_reported(root / "notes" / "reported_numbers.csv")
    if runs and not runs.is_dir():
        raise UserError(f"{runs}: no such folder of runs")
    kept = sorted((root / "notes" / "results").glob("*.json"))
    found = sorted(runs.rglob("result.json")) if runs else []
    kept = build_rows([load_result(path, reported) for path in kept], reported)
    return kept, build_rows([load_result(p, reported, fresh=True) for p in found], reported)


# -- rows ------------------------------------------------------------------------------------


def build_rows(results: Iterable[Result], reported: dict) -> list[Row]:
    """A row for every metric of every result."""
    rows = []
    for result in results:
        compared = [reported[i] for i in result.values.get("compare_to") or []]
        for i, (name, metric) in enumerate(result.values["metrics"].items()):
            others = [other for other in compared if metric_of(other, result.values) == name]
            told = tuple((cited(o), f"{o['source_title']}, {o['source_locator']}") for o in others)
            measured = mean_and_sd(metric), str(metric.get("n") or 1)
            rows.append(Row(result, label(name, metric), told, *measured, first=i == 0))
    return rows


def compared(rows: list[Row]) -> list[Row]:
    """What README.md has room for: of each result what stands beside a reported number."""
    chosen, beside = [], filter(lambda row: row.reported, rows)
    for _, group in groupby(beside, key=lambda row: row.result.path):
        chosen += [replace(row, first=i == 0) for i, row in enumerate(group)]
    return chosen


def metric_of(row: dict[str, str], values: dict[str, Any]) -> str:
    """The metric of a result that a reported row is held against: the first, if it names none."""
    return next(iter(values["metrics"]), "") if row["metric"] == UNNAMED else slug(row["metric"])


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def label(name: str, metric: dict[str, Any]) -> str:
    """`mlm_loss` in nats, lower is better -> `MLM loss (nats) ↓`."""
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    arrow = {True: " ↑", False: " ↓"}.get(metric.get("higher_is_better"), "")
    return words(name) + unit + arrow


def cited(row: dict[str, str]) -> str:
    """A reported number with the system, data and split it belongs to."""
    system = f"{row['system']} {row.get('variant') or ''}".strip()
    where = f"{row.get('dataset') or ''} {row.get('split') or ''}".strip()
    unnamed = "metric not named" * (row["metric"] == UNNAMED)
    return f"{row['value']} ({', '.join(filter(None, (system, where, unnamed)))})"


def mean_and_sd(metric: dict[str, Any], form: str = "") -> str:
    """`83.2 ± 0.4`; the spread only where several runs were measured. `form`: the mean's format."""
    sd, text = metric.get("sd"), number(metric["value"], metric.get("unit", ""))
    text = f"{metric['value']:{form}}" if form else text
    if sd is None or (metric.get("n") or 1) < 2:
        return text
    spread = f"{sd:.1e}" if "e" in text else f"{sd:,.{len(text.partition('.')[2])}f}"
    return f"{text} ± {spread}"


def number(value: float, unit: str = "") -> str:
    """One decimal for per cent, four significant digits or so for the rest."""
    size = abs(value)
    if unit == "%":
        return f"{value:.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    if size < 1e-3:
        return f"{value:.1e}"
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:,.{decimals}f}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def hardware(values: dict[str, Any]) -> str:
    """The GPU, or `2 cores AMD EPYC 9B14`."""
    if values.get("device", "cpu") != "cpu":
        return values["device"]
    cpu = re.sub(r"\((R|TM)\)|\d+-Core|Processor|CPU|@.*", "", values.get("cpu", ""))
    cores = values.get("cores", 1)
    return " ".join(f"{cores} core{'s' if cores != 1 else ''} {cpu}".split())


# -- writing ---------------------------------------------------------------------------------


def markdown(rows: list[Row], folder: Path) -> str:
    """The rows as a table whose first column links to the result, seen from `folder`."""
    if not rows:
        return "*No results yet.*"
    lines = [COLUMNS]
    for row in rows:
        cells = list(row.cells())
        link = Path(os.path.relpath(row.result.path, folder)).as_posix()
        cells[2] = cells[2].replace("; ", "<br>")
        if row.first:
            cells[0], cells[-1] = f"[{row.result.name}]({link}): {cells[0]}", f"`{cells[-1]}`"
        lines.append(cells)
    return grid(lines)


def grid(rows: Iterable[Iterable[str]], notes: Iterable[str] = (), align: str = "---") -> str:
    """Rows of cells, the first of them heads, in Markdown; `align` is that of all but the first
    column; control characters are shown as "·". The notes follow, a line each."""
    head, *body = (list(row) for row in rows)
    lines = [head, ["---", *[align] * (len(head) - 1)], *body]
    shown = ([page.visible(cell).replace("|", "\\|") for cell in line] for line in lines)
    safe = ([cell.replace("\n", "<br>") for cell in line] for line in shown)
    table = "\n".join(f"| {' | '.join(line)} |" for line in safe)
    return "\n".join([table, *(f"\n{note}" for note in notes)])


def columns(rows: list[list[str]]) -> str:
    """A table for the terminal: the first column at the left, the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def documents(root: Path, rows: list[Row]) -> dict[Path, str]:
    """README.md and every step's notes.md, as they should read."""
    texts = {}
    for path in [root / "README.md", *sorted(root.glob("step*/notes.md"))]:
        step, blocks = path.parent.name, {"results": markdown(compared(rows), root)}
        if path.parent != root:
            own = [row for row in rows if row.result.values["step"] == step]
            blocks = {f"results:{step}": markdown(own, path.parent)}
            tables = {row.result.name: row.result.values.get("table") for row in own}
            blocks |= {f"table:{n}": grid(**t, align="---:") for n, t in tables.items() if t}
        text = path.read_text(encoding="utf-8")
        for name in blocks.keys() ^ {found[2] for found in BLOCK.finditer(text)}:
            why = "are missing" if name in blocks else "are there, and no such result"
            raise UserError(f"{path}: the markers <!-- {name}:start --> and end {why}")
        texts[path] = BLOCK.sub(lambda m, b=blocks: f"{m[1]}{b[m[2]]}\n{m[3]}", text)
    return texts


def keep(run: Path, root: Path, name: str = "", compare_to: tuple[str, ...] = ()) -> Path:
    """Copy a run's result to notes/results and its curves to notes/figures."""
    reported = load_reported(root / "notes" / "reported_numbers.csv")
    result = load_result(run / "result.json", reported, fresh=True)
    if compare_to:
        result.values["compare_to"] = list(compare_to)
    title = f"{result.values['step']}-{name or run.resolve().name}"
    kept = root / "notes" / "results" / f"{title}.json"
    check(kept, result.values, reported)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, result.values)
    for drawn in run.glob("curves*.png"):
        figure = root / "notes" / "figures" / (title + drawn.name.removeprefix("curves"))
        figure.parent.mkdir(exist_ok=True)
        shutil.copyfile(drawn, figure)
    return kept


def show(rows: list[Row]) -> None:
    """Print the rows under a line for each result; commands are left to the documents."""
    wide = max((len(row.metric) for row in rows), default=0)
    for row in rows:
        where, *_, device, time, _ = row.cells()
        if row.first:
            here = " · this machine" if row.result.fresh else ""
            print(f"\n{where} · {device} · {time}{here}")
        measured = row.measured + (f" (n={row.n})" if row.n != "1" else "")
        line = f"  {row.metric:<{wide}}  {measured:<20}"
        print("\n".join(f"{line}  reported {text}" for text, _ in row.reported) or line.rstrip())


def main(config: Config) -> None:
    root, runs = Path(config.root), Path(config.runs) if config.runs else None
    if config.keep:
        print(f"kept {keep(Path(config.keep), root, config.name, config.compare_to)}")
    rows, fresh = load_all(root, runs)
    for path, text in documents(root, rows).items():
        if text == path.read_text(encoding="utf-8"):
            continue
        if config.check:
            raise UserError(f"{path}: tables disagree with notes/results; run `make report`")
        write_text(path, text)
        print(f"updated {path}")
    steps = {row.result.values["step"] for row in fresh}
    beside = compared([row for row in rows if row.result.values["step"] in steps])
    show(beside + fresh if runs else rows)  # last, and so in view, what was measured here
    if config.html:
        Path(config.html).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(config.html), page.render(fresh + rows))
        print(f"page: {config.html}")


if __name__ == "__main__":
    cli.run(main, Config, {})
