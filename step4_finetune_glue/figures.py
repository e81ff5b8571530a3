"""What one task's runs look like: the scores of the seeds, the confusion, the surest errors."""

import textwrap
from pathlib import Path

import numpy as np

from step4_finetune_glue.glue_table import SHORT
from step4_finetune_glue.scoring import Scored

RANDOM = "random_encoder"
LINES = {"majority": ":", "bag_of_words": "--", RANDOM: "-."}


def draw(path: Path, title: str, scored: Scored, baselines: dict[str, dict[str, float]]) -> None:
    """Three panels in one PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8))
    axes = figure.subplots(1, 3, width_ratios=(1.1, 1.2, 2.4))
    _seeds(axes[0], scored, baselines)
    _scatter(axes[1], scored) if scored.rows.task.kind == "regression" else _matrix(axes[1], scored)
    _errors(axes[2], scored)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def errors_text(scored: Scored, n: int) -> str:
    """The `n` surest errors with their texts, a paragraph each."""
    task, told = scored.rows.task, []
    for row, sure in scored.worst(n):
        truth, said = _labels(scored, row)
        how = f"off by {sure:.2f}" if task.kind == "regression" else f"{sure:.1%} sure"
        texts = [scored.rows.first[row], *([scored.rows.second[row]] if task.pair else [])]
        told.append(f"  {said} instead of {truth}, {how} (row {scored.rows.ids[row]})")
        told += [textwrap.shorten(text, 150, placeholder=" ...") for text in texts]
        told[-len(texts) :] = [f"    {text}" for text in told[-len(texts) :]]
    return "\n".join(told)


def confusion_text(scored: Scored) -> str:
    """The confusion matrix as counts of all seeds together; for scores, mean answer by truth."""
    task = scored.rows.task
    if task.kind == "regression":
        told = ["  truth   rows   mean answer"]
        for low in range(5):
            inside = (scored.rows.labels >= low) & (scored.rows.labels < low + 1 + (low == 4))
            if inside.any():
                mean = scored.likely[inside].mean()
                told.append(f"  {low} to {low + 1}  {inside.sum():>5}   {mean:.2f}")
        return "\n".join(told)
    wide = max(10, *(len(label) + 2 for label in task.labels))
    told = [
        "  truth \\ answer".ljust(wide + 6) + "".join(label.rjust(wide) for label in task.labels)
    ]
    for label, counts in zip(task.labels, scored.confusion(), strict=True):
        told.append(f"  {label}".ljust(wide + 6) + "".join(f"{count:>{wide},}" for count in counts))
    return "\n".join(told)


def _labels(scored: Scored, row: int) -> tuple[str, str]:
    """Truth and answer of a row, as the task names them."""
    task, truth = scored.rows.task, scored.rows.labels[row]
    if task.kind == "regression":
        return f"{truth:.2f}", f"{scored.likely[row]:.2f}"
    return task.labels[truth], task.labels[scored.likely[row].argmax()]


def _seeds(axis, scored: Scored, baselines: dict[str, dict[str, float]]) -> None:
    for x, (name, values) in enumerate(scored.per_seed.items()):
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0]
        axis.plot(x + np.array(spread), values, "o", color="C0", alpha=0.8)
        axis.plot([x - 0.25, x + 0.25], [np.mean(values)] * 2, color="C0")
        for i, (baseline, scores) in enumerate(baselines.items()):
            label = baseline.replace("_", " ") if x == 0 else None
            style = {"color": f"C{i + 1}", "linestyle": LINES[baseline], "label": label}
            axis.plot([x - 0.35, x + 0.35], [scores[name]] * 2, **style)
    names = [SHORT.get(name, name) for name in scored.per_seed]
    axis.set_xticks(range(len(names)), names)
    axis.set(xlim=(-0.6, len(names) - 0.4), ylabel="%", title="each seed, and their mean")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))


def _matrix(axis, scored: Scored) -> None:
    counts = scored.confusion()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else "black"
        axis.text(j, i, f"{share:.0%}\n{counts[i, j]:,}", ha="center", va="center", color=colour)
    labels = [label.replace("_", "_\n") for label in scored.rows.task.labels]
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set(xlabel="answer", ylabel="truth", title="confusion, all seeds")


def _scatter(axis, scored: Scored) -> None:
    axis.plot([0, 5], [0, 5], color="gray", linewidth=0.8)
    axis.plot(scored.rows.labels, scored.likely, ".", markersize=3, alpha=0.4)
    axis.set(xlabel="truth", ylabel="answer, mean of seeds", title="scores")


def _errors(axis, scored: Scored, n: int = 5) -> None:
    axis.axis("off")
    axis.set_title("surest errors of the seeds' mean", loc="left")
    y = 1.0
    for row, sure in scored.worst(n):
        truth, said = _labels(scored, row)
        how = f"off by {sure:.1f}" if scored.rows.task.kind == "regression" else f"{sure:.1%} sure"
        style = {"transform": axis.transAxes, "va": "top", "parse_math": False}
        axis.text(0, y, f"{said} instead of {truth}, {how}", fontsize=7.5, weight="bold", **style)
        texts = [scored.rows.first[row], *((scored.rows.second or [])[row : row + 1])]
        for text in texts:
            y -= 0.062
            axis.text(0.02, y, textwrap.shorten(text, 105, placeholder=" ..."), fontsize=7, **style)
        y -= 0.085
