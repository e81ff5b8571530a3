"""The variants that remedies.py compares, their summary, table and figure."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.report import mean_and_sd
from step3_peripherals import paired


@dataclass(frozen=True)
class Variant:
    title: str
    flags: tuple[str, ...]
    """Of finetune.py."""


VARIANTS = {
    "no_warmup": Variant("no warm-up", ("--warmup-ratio=0",)),
    "no_correction": Variant("no bias correction", ("--no-bias-correction",)),
    "neither": Variant("neither of the two", ("--warmup-ratio=0", "--no-bias-correction")),
    "three_epochs": Variant("3 epochs", ("--epochs=3",)),
    "layer_decay": Variant("layer-wise decay 0.9", ("--layer-decay=0.9",)),
    "fresh_layer": Variant("fresh top layer", ("--reinit-layers=1",)),
    "cls": Variant("head reads [CLS]", ("--pooling=cls",)),
    "mean": Variant("head reads the mean", ("--pooling=mean",)),
    "random": Variant("random weights", ("--random",)),
}
NOTE = (
    "Difference: the mean over the seeds of the score less that of the base with the same seed, ± "
    "the standard error of this mean. Collapsed: seeds that give one answer for every row."
)
Found = dict[str, list[dict[str, Any]]]  # variant: a result of finetune.py for each seed


def title_of(name: str) -> str:
    return "base" if name == "base" else VARIANTS[name].title


def summary(found: Found, scores: tuple[str, ...]) -> tuple[dict, dict]:
    """Mean and sd over the seeds of every score, and of its difference to the base's same seed."""
    kinds = {score: (score, "%", True) for score in scores}
    values = {
        name: [{score: one["metrics"][score]["value"] for score in scores} for one in results]
        for name, results in found.items()
    }
    return paired.summary(values, kinds)


def _values(results: list[dict], score: str) -> list[float]:
    return [one["metrics"][score]["value"] for one in results]


def rows(found: Found, metrics: dict, differences: dict) -> list[list[str]]:
    """The table, heads first: a line a variant, with the seeds' range of the first metric."""
    first, *_ = scores = tuple(metrics["base"])
    heads = [head for score in scores for head in (f"{score}, %", "difference")]
    lines = [["", *heads, f"least to greatest {first}", "collapsed"]]
    for name, results in found.items():
        values = _values(results, first)
        collapsed = sum(one["collapsed"] for one in results)
        apart = differences.get(name, {})
        cells = [
            text
            for s in scores
            for text in (mean_and_sd(metrics[name][s], ".1f"), _apart(apart.get(s)))
        ]
        spread = f"{min(values):.1f} to {max(values):.1f}"
        lines.append([title_of(name), *cells, spread, f"{collapsed} of {len(results)}"])
    return lines


def _apart(entry: dict | None) -> str:
    if entry is None:
        return ""
    error = "" if entry["sd"] is None else f" ± {entry['sd'] / entry['n'] ** 0.5:.1f}"
    return f"{entry['value']:+.1f}{error}"


def plot(found: Found, score: str, title: str, path: Path) -> None:
    """A column a variant: its seeds, each a point, and their mean beside the base's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.05 * len(found), 4))
    axis = figure.subplots()
    for x, results in enumerate(found.values()):
        values = _values(results, score)
        for shift, (one, value) in enumerate(zip(results, values, strict=True)):
            place = x + 0.5 * ((shift + 0.5) / len(values) - 0.5)
            style = dict(color="tab:red", marker="x") if one["collapsed"] else {}
            axis.plot(place, value, **(dict(color="tab:blue", marker="o", alpha=0.6) | style))
        mean = statistics.mean(values)
        axis.plot([x - 0.35, x + 0.35], [mean, mean], color="black", linewidth=2)
    base = statistics.mean(_values(found["base"], score))
    axis.axhline(base, color="grey", linestyle="--", linewidth=0.9)
    axis.set_xticks(range(len(found)), [title_of(n).replace(" ", "\n") for n in found], fontsize=8)
    axis.set(title=f"{title}; a seed a point, bar: mean, cross: collapsed")
    axis.grid(alpha=0.3, axis="y")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
