"""Variants beside a base, seed by seed: both saw the same batches, so what the seed did to both is
no part of the difference."""

from collections.abc import Callable
from pathlib import Path

from common import report
from common.report import mean_and_sd
from common.runs import metric

BASE = "base"
Kinds = dict[str, tuple[str, str, bool]]  # of each score: title, unit, whether higher is better
Entries = dict[str, dict[str, dict]]  # of each variant, by score: a metric as results state it


def summary(found: dict[str, list[dict[str, float]]], kinds: Kinds) -> tuple[Entries, Entries]:
    """From each variant's scores, a dict a seed: mean and sd over the seeds, of the score and of
    its difference to the base with the same seed. A variant may lack a score that the base has."""
    metrics, differences = {}, {}
    for name, scores in found.items():
        pairs = list(zip(scores, found[BASE], strict=True))
        metrics[name], differences[name] = {}, {}
        for score, (_, unit, better) in kinds.items():
            if score in scores[0]:
                kind = dict(unit=unit, higher_is_better=better)
                metrics[name][score] = metric([one[score] for one in scores], **kind)
                if score in found[BASE][0]:
                    apart = [one[score] - base[score] for one, base in pairs]
                    differences[name][score] = metric(apart, **kind)
    del differences[BASE]
    return metrics, differences


def reported(pairs: dict[str, tuple[str, str]]) -> dict[str, float]:
    """How far variants are from their bases in their papers, in points: `pairs` are ids of
    reported_numbers.csv, of the variant and of its base. Where one is missing, nothing."""
    values = {name: float(row["value"]) for name, row in report.load_reported().items()}
    return {
        name: round(values[here] - values[base], 2)
        for name, (here, base) in pairs.items()
        if here in values and base in values
    }


def rows(
    metrics: Entries,
    differences: Entries,
    kinds: Kinds,
    paper: dict[str, float],
    title_of: Callable[[str], str],
) -> list[list[str]]:
    """The table, heads first: a variant a line, its scores, and its difference to the base in the
    last of them, ours and the paper's."""
    scores = [score for score in kinds if any(score in entries for entries in metrics.values())]
    n = metrics[BASE][scores[0]]["n"]
    lines = [[f"n = {n}", *(kinds[score][0] for score in scores), "difference", "paper, MNLI"]]
    for name, entries in metrics.items():
        cells = [_cell(entries.get(score)) for score in scores]
        apart = _cell(differences.get(name, {}).get(scores[-1]), "+")
        told = f"{paper[name]:+.1f}" if name in paper else ""
        lines.append([title_of(name), *cells, apart, told])
    return lines


def note(metrics: Entries, kinds: Kinds) -> str:
    """What the column "difference" of `rows` is."""
    last = [title for score, (title, _, _) in kinds.items() if score in metrics[BASE]][-1]
    return f"difference: {last} less that of the first line, seed by seed"


def _cell(entry: dict | None, sign: str = "") -> str:
    if entry is None:
        return ""
    return mean_and_sd(entry, f"{sign}.{1 if entry['unit'] == '%' else 3}f")


def plot(
    metrics: Entries,
    kinds: Kinds,
    paper: dict[str, float],
    title_of: Callable[[str], str],
    path: Path,
) -> None:
    """One panel a score: a dot with its sd for each variant; in that of the downstream accuracy,
    where the paper's difference to the base would put it."""
    from matplotlib.figure import Figure

    scores = [score for score in kinds if any(score in entries for entries in metrics.values())]
    size = (2 + 2.6 * len(scores), 1.2 + 0.35 * len(metrics))
    figure = Figure(figsize=size)
    axes = figure.subplots(1, len(scores), sharey=True, squeeze=False)
    places = {name: place for place, name in enumerate(metrics)}
    for axis, score in zip(axes[0], scores, strict=True):
        shown = {name: entries[score] for name, entries in metrics.items() if score in entries}
        axis.errorbar(
            [entry["value"] for entry in shown.values()],
            [places[name] for name in shown],
            xerr=[entry["sd"] or 0 for entry in shown.values()],
            fmt="o", capsize=3, label=f"ours, n = {metrics[BASE][scores[0]]['n']}",
        )  # fmt: skip
        if score == "accuracy":
            start = metrics[BASE][score]["value"]
            told = {name: start + apart for name, apart in paper.items() if name in places}
            style = dict(mfc="none", label="base + paper's difference on MNLI")
            axis.plot(told.values(), [places[name] for name in told], "d", **style)
            axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.25))
        title, unit, _ = kinds[score]
        axis.set(title=title, xlabel=unit)
        axis.grid(alpha=0.3)
    axes[0, 0].set_yticks(list(places.values()), [title_of(name) for name in places])
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
