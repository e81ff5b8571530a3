"""The table by which GLUE is known: systems as rows, tasks as columns, in text and as a figure."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np

from common.cli import UserError
from common.page import count
from common.report import UNNAMED, grid, load_reported, slug
from common.runs import metric, write_text
from step4_finetune_glue import baselines
from step4_finetune_glue.scoring import RANDOM, Finetuned
from step4_finetune_glue.tasks import GLUE, TASKS

PRINTED, LOW = "†", "‡"
SHORT = {  # in the order in which a task with two metrics has them
    "f1": "F1",
    "accuracy": "acc",
    "mismatched_accuracy": "mm",
    "matthews": "MCC",
    "pearson": "r",
    "spearman": "rho",
    slug(UNNAMED): PRINTED,
}


@dataclass
class System:
    """A row: for each task its metrics, in %, as (mean, standard deviation or None); and the tasks
    that it saw but a part of in training."""

    name: str
    kind: str  # "measured", "baseline" or "reported"
    scores: dict[str, dict[str, tuple[float, float | None]]] = field(default_factory=dict)
    low: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Table:
    """The rows, and the tasks they are shown for."""

    systems: list[System]
    tasks: list[str]

    @property
    def measured(self) -> list[System]:
        return [one for one in self.systems if one.kind == "measured"]

    @property
    def low_resource(self) -> set[str]:
        """The tasks that no measured system saw the whole of in training."""
        whole = {task for one in self.measured for task in one.scores.keys() - one.low}
        return {task for one in self.measured for task in one.low} - whole

    def averaged(self) -> list[str]:
        """The tasks of the average: all measured systems have them, trained on the official data;
        those that have none so do not count.

        WNLI is left out, as BERT's authors do: its dev set contradicts its training set.
        """
        whole = [kept for one in self.measured if (kept := one.scores.keys() - one.low)]
        usable = [task for task in self.tasks if task in GLUE and task != "WNLI"]
        return [task for task in usable if whole and all(task in kept for kept in whole)]

    def average(self, system: System) -> float | None:
        """The mean over `averaged` tasks of the mean of each one's metrics; None if one lacks, be
        it but a metric of two: F1 and accuracy are not alike."""
        tasks = self.averaged()
        if not tasks or not system.scores.keys() - system.low >= set(tasks):
            return None
        means = []
        for task in tasks:
            scores, wanted = system.scores[task], [slug(UNNAMED)]
            if slug(UNNAMED) not in scores:
                wanted = {n for one in self.measured for n in one.scores.get(task, {})}
            if not scores.keys() >= set(wanted):
                return None
            means.append(np.mean([scores[name][0] for name in wanted]))
        return float(np.mean(means))

    def grid(self) -> list[list[str]]:
        """All cells: a line of tasks, one of metrics, then the systems."""
        head = ["", *(task + LOW * (task in self.low_resource) for task in self.tasks), "avg"]
        columns, low = {task: self._metrics(task) for task in self.tasks}, self.low_resource
        metrics = ["/".join(SHORT[name] for name in names) for names in columns.values()]
        lines = [head, ["%", *metrics, count(len(self.averaged()), "task")]]
        for system in self.systems:
            marked = system.low - low
            cells = [
                cell(system.scores.get(task, {}), names, LOW * (task in marked))
                for task, names in columns.items()
            ]
            average = self.average(system)
            lines.append([system.name, *cells, "–" if average is None else f"{average:.1f}"])
        return lines if self.averaged() else [line[:-1] for line in lines]

    def _metrics(self, task: str) -> list[str]:
        """Those that any system has, in their order."""
        found = {name for system in self.systems for name in system.scores.get(task, {})}
        return [name for name in SHORT if name in found - {slug(UNNAMED)}]

    def notes(self) -> list[str]:
        """What a reader must know to compare the rows."""
        told = [f"avg: {', '.join(self.averaged())}; WNLI is left out"] if self.averaged() else []
        if any(system.low for system in self.systems):
            why = "trained on a small pool or part, not comparable with reported numbers"
            told.append(f"{LOW} low-resource: {why}")
        if any(PRINTED in text for line in self.grid() for text in line):
            why = "the source prints one score, and does not name its metric"
            told.append(f"{PRINTED} {why}; the average has it as it is")
        return told

    def text(self) -> str:
        """For the terminal; a rule parts measured, baselines and reported."""
        lines = self.grid()
        parts = [text.split("\n") for line in lines for text in line]
        width = len(lines[0])
        widths = [max(len(text) for part in parts[i::width] for text in part) for i in range(width)]
        rule, shown, before = "─" * (sum(widths) + 2 * (width - 1)), [], ""
        for line, system in zip(lines, [None, None, *self.systems], strict=True):
            kind = system.kind if system else ""
            shown += [rule] if kind != before else []
            before = kind
            for cells in zip_longest(*(text.split("\n") for text in line), fillvalue=""):
                padded = [cells[0].ljust(widths[0])]
                padded += [text.rjust(w) for text, w in zip(cells[1:], widths[1:], strict=True)]
                shown.append("  ".join(padded).rstrip())
        return "\n".join([*shown, rule, *self.notes()])

    def as_json(self) -> dict[str, list]:
        """For a result, in the form that `common.report` puts into the notes and the page."""
        head, metrics, *lines = self.grid()
        joined = [f"{a}\n{b}" if a else "" for a, b in zip(head, metrics, strict=True)]
        return {"rows": [joined, *lines], "notes": self.notes()}

    def markdown(self) -> str:
        return grid(**self.as_json(), align="---:")

    def write(self, folder: Path) -> dict:
        """Print it, write it to table.md and curves.png; return the fields of a result that has
        it."""
        print("\n" + self.text() + "\n")
        write_text(folder / "table.md", self.markdown() + "\n")
        self.draw(folder / "curves.png")
        low = sorted(self.low_resource)
        return {"averaged": self.averaged(), "low_resource": low, "table": self.as_json()}

    def draw(self, path: Path) -> None:
        """As a picture, each column shaded from its lowest score to its highest."""
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        lines, shades = self.grid(), self._shades()
        widths = [
            max(len(part) for line in lines for part in line[i].split("\n")) + 2
            for i in range(len(lines[0]))
        ]
        x = np.concatenate([[0], np.cumsum(widths)])
        heights = [1 + 0.8 * any("\n" in text for text in line) for line in lines]
        y = -np.concatenate([[0], np.cumsum(heights)])
        figure = Figure(figsize=(x[-1] * 0.085, 0.27 * (2 - y[-1])))
        axis = figure.subplots()
        before = ""
        for row, system in enumerate([None, None, *self.systems]):
            kind = system.kind if system else ""
            if kind != before:
                axis.plot([0, x[-1]], [y[row]] * 2, color="black", linewidth=0.8)
            before, weight = kind, "bold" if row == 0 or kind == "measured" else "normal"
            for column, text in enumerate(lines[row]):
                shade = shades[row - 2, column - 1] if system and column else np.nan
                if np.isfinite(shade):
                    box = (x[column], y[row + 1]), widths[column], heights[row]
                    colour = colormaps["YlGn"](0.05 + 0.5 * shade)
                    axis.add_patch(Rectangle(*box, color=colour, linewidth=0))
                place, align = (x[column + 1] - 1, "right") if column else (0.5, "left")
                style = {"color": "gray" if row == 1 else "black", "weight": weight, "fontsize": 8}
                axis.text(place, (y[row] + y[row + 1]) / 2, text, ha=align, va="center", **style)
        axis.text(0.5, y[-1] - 0.3, "\n".join(self.notes()), fontsize=7, va="top", color="gray")
        axis.set(xlim=(0, x[-1]), ylim=(y[-1] - 2, 0))
        axis.axis("off")
        figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")

    def _shades(self) -> np.ndarray:
        """0 to 1, (systems, tasks + average); NaN where there is no score."""
        values = np.full((len(self.systems), len(self.tasks) + 1), np.nan)
        for i, system in enumerate(self.systems):
            for j, task in enumerate(self.tasks):
                if task in system.scores:
                    values[i, j] = np.mean([v for v, _ in system.scores[task].values()])
            average = self.average(system)
            values[i, -1] = np.nan if average is None else average
        low = np.min(np.nan_to_num(values, nan=np.inf), axis=0)
        high = np.max(np.nan_to_num(values, nan=-np.inf), axis=0)
        return (values - low) / np.where(high > low, high - low, 1)


def of(
    found: list[tuple[Finetuned, dict[str, dict]]], words: Iterable[str] = ("",)
) -> tuple[Table, dict[str, dict]]:
    """The table of runs and their metrics as evaluate.py's results have them, with baselines; below
    them reported systems whose name has one of `words`.

    Also the metrics of a result that holds the table: the averages or, where no task is comparable,
    the scores themselves. Raises UserError for two runs of one system on one task.
    """
    systems, entries, titles = {}, {}, titles_of([run for run, _ in found])
    lines = {name: System(name.replace("_", " "), "baseline") for name in baselines.NAMES}
    for run, metrics in found:
        task, title = run.task.name, titles[run.system]
        kind = "baseline" if run.random else "measured"
        system = systems.setdefault(run.system, System(title, kind))
        if task in system.scores:
            raise UserError(f"{run.system} on {task} twice: give only one of them")
        own = {name: metrics[name] for name in SHORT if name in metrics}
        entries |= {f"{task} {name} of {title}": entry for name, entry in own.items()}
        system.scores[task] = {name: (entry["value"], entry["sd"]) for name, entry in own.items()}
        system.low |= {task} if run.low_resource else set()
        for baseline, line in lines.items():
            scores = {name: metrics.get(f"{baseline}_{name}") for name in own}
            if all(scores.values()):
                line.scores[task] = {name: (entry["value"], None) for name, entry in scores.items()}

    shown = [task for task in TASKS if any(task in one.scores for one in systems.values())]
    below = [line for line in lines.values() if line.scores]
    ours = sorted([*systems.values(), *below], key=lambda one: one.kind == "baseline")
    official = set(shown) - Table(ours, shown).low_resource  # no other is comparable
    table = Table([*ours, *reported(official, words)], shown)
    averages = {f"average_{slug(one.name)}": table.average(one) for one in ours}
    averages = {name: metric(v, unit="%") for name, v in averages.items() if v is not None}
    return table, averages or entries


def titles_of(runs: list[Finetuned]) -> dict[str, str]:
    """Each system's checkpoint (and whether it is random) or, where that does not tell it apart,
    more of its name."""
    systems = {
        run.system: (
            run.label.split(", ")[0] + f", {RANDOM}" * run.random,
            re.sub(r", precision \w+", "", run.label),
            run.label,
            run.system,
        )
        for run in runs
    }
    often = [Counter(names) for names in zip(*systems.values(), strict=True)]
    return {
        system: next(name for name, n in zip(names, often, strict=True) if n[name] == 1)
        for system, names in systems.items()
    }


def cell(scores: dict[str, tuple[float, float | None]], metrics: list[str], mark: str = "") -> str:
    """`88.9/84.1` and the mark, under it `±0.4/0.6` where there are several seeds; `–` for what
    there is not."""
    if not scores:
        return "–"
    if slug(UNNAMED) in scores:
        return f"{scores[slug(UNNAMED)][0]:.1f}{PRINTED}"
    means = "/".join(f"{scores[m][0]:.1f}" if m in scores else "–" for m in metrics) + mark
    spread = "/".join(f"{sd:.1f}" for _, sd in scores.values() if sd is not None)
    return f"{means}\n±{spread}" if spread else means


def reported(tasks: Iterable[str] = GLUE, words: Iterable[str] = ("",)) -> list[System]:
    """The systems in reported_numbers.csv whose name has one of `words`, and that have a score on
    the dev set of one of `tasks`, with their scores on these."""
    systems: dict[str, System] = {}
    for row in load_reported().values():
        name, task = f"{row['system']} {row['variant']}".strip(), row["dataset"]
        score = slug(row["metric"])
        wanted = row["step"] == "step4_finetune_glue" and row["split"].startswith("dev")
        wanted &= any(word.lower() in name.lower() for word in words)
        if wanted and task in tasks and score in SHORT:
            system = systems.setdefault(name, System(name, "reported"))
            system.scores.setdefault(task, {})[score] = (float(row["value"]), None)
    order = list(SHORT)
    for system in systems.values():
        for task, scores in system.scores.items():
            system.scores[task] = dict(
                sorted(scores.items(), key=lambda pair: order.index(pair[0]))
            )
    return list(systems.values())


def compared(task: str, metrics: Iterable[str], words: Iterable[str]) -> list[str]:
    """Ids of the reported dev scores of `task` in systems whose name has one of `words`.

    One that names no metric is among them: the report holds it against the first, and says so.
    """
    wanted, known = [], {*metrics, slug(UNNAMED)}
    for row_id, row in load_reported().items():
        name = f"{row['system']} {row['variant']}".lower()
        dataset = row["dataset"] == task and row["split"].startswith("dev")
        if row["step"] == "step4_finetune_glue" and dataset and slug(row["metric"]) in known:
            wanted += [row_id] if any(word.lower() in name for word in words) else []
    return wanted
