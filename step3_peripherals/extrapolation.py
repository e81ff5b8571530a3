"""Trained short, scored long: what compare_positions.py prints and draws, and the ALiBi paper's."""

import statistics
from pathlib import Path

from common import report
from common.report import mean_and_sd
from common.runs import metric
from step3_peripherals.positions import SCHEMES

# Press et al. 2022, arXiv:2108.12409: (scheme, length in training, lengths of scoring)
PAPER = (
    ("sinusoidal", 512, (512, 1012, 1512, 2512, 3512)),
    ("rope", 512, (512, 1012, 1512, 2512, 3512)),
    ("t5", 512, (512, 1012, 1512, 2512, 3512)),
    ("alibi", 512, (512, 1012, 1512, 2512, 3512)),
    ("alibi", 128, (128, 256, 512, 1024)),
)

Scores = dict[int, dict]  # length: a metric


def reported() -> dict[tuple[str, int], dict[int, float]]:
    """The paper's perplexities on WikiText-103 by scheme and training length: {length: value}."""
    rows = report.load_reported()
    found = {}
    for scheme, trained, lengths in PAPER:
        ids = {n: f"alibi-paper-{scheme}-train-{trained}-eval-{n}-wt103-ppl" for n in lengths}
        values = {n: float(rows[row]["value"]) for n, row in ids.items() if row in rows}
        if trained in values:
            found[scheme, trained] = values
    return found


def over_seeds(results: list[dict], name: str, lengths: tuple[int, ...]) -> Scores:
    """The metric `<name> at <length>` of one scheme's runs: mean and sd over seeds. Lengths that
    the scheme cannot read are left out."""
    scores = {}
    for length in lengths:
        entries = [found["metrics"].get(f"{name} at {length}") for found in results]
        if all(entries):
            values = [entry["value"] for entry in entries]
            scores[length] = metric(values, unit=entries[0]["unit"], higher_is_better=False)
    return scores


def training_loss(events: list[list[dict]]) -> dict:
    """Nats a token over the last tenth of what was logged of the training: mean and sd over a
    scheme's runs, whose events these are."""
    logged = [[e["train/token_loss"] for e in run if e["event"] == "train"] for run in events]
    means = [statistics.mean(losses[-max(len(losses) // 10, 1) :]) for losses in logged]
    return metric(means, unit="nats", higher_is_better=False)


def growth(scores: Scores, trained: int) -> float:
    """Perplexity at the longest rows as a multiple of that at the training length."""
    return scores[max(scores)]["value"] / scores[trained]["value"]


def table(
    perplexity: dict[str, Scores],
    losses: dict[str, dict],
    speed: dict[str, float],
    trained: int,
    paper: dict[tuple[str, int], dict[int, float]],
) -> list[list[str]]:
    """A scheme a line: perplexity, a length a column; training loss; tokens/s. Below them what the
    paper has of models trained at the same length."""
    lengths = sorted({length for scores in perplexity.values() for length in scores})
    heads = [*(f"at {length}" for length in lengths), "longest/trained"]
    lines = [["perplexity", *heads, "training loss", "tokens/s"]]
    for name, scores in perplexity.items():
        cells = [_cell(scores.get(length)) for length in lengths]
        times = f"{growth(scores, trained):.2f}" if len(scores) > 1 else "–"
        lines.append([name, *cells, times, mean_and_sd(losses[name], ".3f"), f"{speed[name]:,.0f}"])
    for (name, length), values in paper.items():
        if length == trained:
            cells = [f"{values[n]:.2f}" if n in values else "–" for n in lengths]
            longest = max(n for n in values if n in lengths)
            times = f"{values[longest] / values[trained]:.2f}" if longest > trained else "–"
            lines.append([f"{name}, in the paper", *cells, times, "–", "–"])
    return lines


def paper_table(paper: dict[tuple[str, int], dict[int, float]]) -> str:
    """The paper's, in its own lengths."""
    lines = ["Press et al. 2022, WikiText-103 validation, 247 M parameters: perplexity"]
    for (scheme, trained), values in paper.items():
        told = "  ".join(f"{length}: {value:.2f}" for length, value in values.items())
        lines.append(f"  {f'{scheme}, trained at {trained}':28}{told}")
    return "\n".join(lines)


def _cell(entry: dict | None) -> str:
    if entry is None:
        return "no such position"
    return mean_and_sd(entry, ".2f")


def plot(
    perplexity: dict[str, Scores],
    paper: dict[tuple[str, int], dict[int, float]],
    curves: dict[str, list[list[dict]]],
    trained: int,
    path: Path,
) -> None:
    """Perplexity against length, ours; the same as multiples, ours and the paper's; and the loss
    of training, a line the mean of a scheme's runs (`curves`: the events of each)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import (
        EngFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        ScalarFormatter,
    )

    figure = Figure(figsize=(14, 4.2))
    ours, multiples, training = figure.subplots(1, 3)
    colors = {name: f"C{i}" for i, name in enumerate(SCHEMES)}  # the paper's are among them
    for name, scores in perplexity.items():
        lengths, entries = list(scores), list(scores.values())
        values, sds = [e["value"] for e in entries], [e["sd"] or 0 for e in entries]
        label = name if len(scores) > 1 else f"{name} (ends at {trained})"
        style = dict(marker="o", markersize=4, color=colors[name])
        ours.errorbar(lengths, values, yerr=sds, capsize=3, label=label, **style)
        first = scores[trained]["value"]
        if len(scores) > 1:
            relative = [n / trained for n in lengths], [v / first for v in values]
            multiples.plot(*relative, label=name, **style)
    for (scheme, length), values in paper.items():
        relative = [n / length for n in values], [v / values[length] for v in values.values()]
        dashes = dict(linestyle="--" if length == 512 else ":", marker="d", mfc="none")
        color, label = colors[scheme], f"paper: {scheme}, {length}"
        multiples.plot(*relative, color=color, markersize=4, label=label, **dashes)
    for name, runs in curves.items():
        losses = [[e["train/token_loss"] for e in run if e["event"] == "train"] for run in runs]
        tokens = [e["tokens"] for e in runs[0] if e["event"] == "train"]
        means = [statistics.mean(step) for step in zip(*losses, strict=True)]
        training.plot(tokens[: len(means)], means, label=name, color=colors[name], linewidth=1)
    for axis in (ours, multiples):
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
        axis.set(xscale="log", yscale="log")
        axis.xaxis.set_major_locator(LogLocator(2, numticks=20))
        axis.yaxis.set_major_locator(
            LogLocator(10, subs=(1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8), numticks=20)
        )
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(ScalarFormatter())
            side.set_minor_formatter(NullFormatter())
    ours.yaxis.set_major_locator(MaxNLocator(6))
    ours.axvline(trained, color="grey", linewidth=0.8, linestyle="--")
    ours.set(title="held-out perplexity", xlabel=f"tokens in a row (trained at {trained})")
    multiples.set(
        title="perplexity, times that at the trained length",
        xlabel="multiples of trained length",
    )
    training.legend(fontsize=7)
    training.set(title="training loss (nats a token)", xlabel="tokens")
    training.xaxis.set_major_locator(MaxNLocator(5))
    training.xaxis.set_major_formatter(EngFormatter(sep=" "))
    for axis in (ours, multiples, training):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
