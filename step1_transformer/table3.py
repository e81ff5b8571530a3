"""Table 3 of the paper, as far as a small machine can follow it: variants, and the comparison."""

from pathlib import Path

from common import report
from common.report import mean_and_sd
from common.runs import metric, words

BASE = dict(positions="sinusoidal", label_smoothing=0.1, n_heads=8, norm="post")
VARIANTS = {  # what differs from the base
    "learned_positions": dict(positions="learned"),
    "label_smoothing_0": dict(label_smoothing=0.0),
    "label_smoothing_0.2": dict(label_smoothing=0.2),
    "heads_1": dict(n_heads=1),
    "heads_4": dict(n_heads=4),
    "pre_norm": dict(norm="pre"),
}
PAPER = {  # how the ids in reported_numbers.csv begin; the paper has no pre-norm
    "base": "transformer-base",
    "learned_positions": "transformer-learned-positions",
    "label_smoothing_0": "transformer-label-smoothing-0-0",
    "label_smoothing_0.2": "transformer-label-smoothing-0-2",
    "heads_1": "transformer-heads-1-dk-dv-512",
    "heads_4": "transformer-heads-4-dk-dv-128",
}
SCORES = ("bleu_lower", "bleu", "perplexity")


def reported(name: str) -> dict[str, float]:
    """How far a variant is from the base in the paper: BLEU and perplexity on newstest2013, {} if
    the paper does not have it."""
    if name not in PAPER:
        return {}
    rows = report.load_reported()
    differences = {}
    for score, suffix in (("bleu", "bleu"), ("perplexity", "ppl")):
        here, base = (
            float(rows[f"{PAPER[variant]}-wmt14-en-de-dev-{suffix}"]["value"])
            for variant in (name, "base")
        )
        differences[score] = round(here - base, 2)
    return differences


def differences(found: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, dict]:
    """Each score less that of the base with the same seed: the mean and the sd over seeds."""
    entries = {}
    for name in found[0]:
        values = [here[name] - there[name] for here, there in zip(found, base, strict=True)]
        entries[name] = metric(values, higher_is_better=not name.endswith("perplexity"))
    return entries


def table(metrics: dict, differences: dict, paper: dict, split: str) -> str:
    """A variant a line: each score on the split, and its difference to the base, ours and the
    paper's."""
    prefix = "" if split == "test" else "dev_"
    n = metrics["base"][f"{prefix}bleu"]["n"]
    heads = "".join(f"{words(name):>16}{'difference':>16}{'paper':>8}" for name in SCORES)
    lines = [f"{f'{split}, n = {n}':20}{heads}"]
    for name, entries in metrics.items():
        line = f"{words(name):20}"
        for score in SCORES:
            line += f"{mean_and_sd(entries[prefix + score], '.2f'):>16}"
            ours = differences[name][prefix + score] if name in differences else None
            line += f"{mean_and_sd(ours, '+.2f') if ours else '':>16}"
            theirs = paper.get(name, {}).get(score)
            line += f"{'' if theirs is None else f'{theirs:+.2f}':>8}"
        lines.append(line)
    return "\n".join(lines)


def plot(metrics: dict, paper: dict, path: Path) -> None:
    """One panel a score on test: a dot with its sd for each variant, and where the paper's
    difference to the base would put it."""
    from matplotlib.figure import Figure

    names = list(metrics)
    figure = Figure(figsize=(4 * len(SCORES), 3.4))
    axes = figure.subplots(1, len(SCORES), sharey=True)
    for axis, score in zip(axes, SCORES, strict=True):
        entries = [metrics[name][score] for name in names]
        values, sds = [e["value"] for e in entries], [e["sd"] or 0 for e in entries]
        places = range(len(names))
        axis.errorbar(values, places, xerr=sds, fmt="o", capsize=3, label="ours, mean and sd")
        axis.axvline(values[0], color="grey", linewidth=0.8, linestyle="--")
        told = [
            (values[0] + paper[n][score], i)
            for i, n in enumerate(names)
            if score in paper.get(n, {})
        ]
        if told:
            axis.plot(*zip(*told, strict=True), "d", mfc="none", label="base + paper's difference")
        axis.set(title=words(score), yticks=places, yticklabels=[words(name) for name in names])
        axis.margins(y=0.15)
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    figure.legend(*axes[-1].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=2)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
