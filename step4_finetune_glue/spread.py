"""A grid of scores as what it is, a distribution: table, quartiles, heat map."""

from pathlib import Path

import numpy as np

Scores = dict[tuple[int, float], float]  # (batch size, learning rate): score


def of(values: list[float]) -> dict[str, float]:
    """Mean, median, least, greatest and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    found = {"mean": np.mean(values), "median": middle, "min": min(values), "max": max(values)}
    return {
        k: float(v) for k, v in (found | {"lower quartile": low, "upper quartile": high}).items()
    }


def table(scores: Scores, batch_sizes: tuple[int, ...], rates: tuple[float, ...]) -> str:
    """A line a batch size, a column a learning rate."""
    lines = [f"{'batch':>6} " + " ".join(f"{f'{rate:g}':>7}" for rate in rates)]
    for size in batch_sizes:
        lines.append(f"{size:6} " + " ".join(f"{scores[size, rate]:7.2f}" for rate in rates))
    return "\n".join(lines)


def plot(
    scores: Scores,
    batch_sizes: tuple[int, ...],
    rates: tuple[float, ...],
    fresh: list[float],
    title: str,
    folder: Path,
) -> None:
    """curves.png: the heat map, and beside it all cells with the best one's `fresh` scores."""
    from matplotlib.figure import Figure

    cells = np.array([[scores[size, rate] for rate in rates] for size in batch_sizes])
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    middle = (cells.min() + cells.max()) / 2
    left.imshow(cells, aspect="auto", cmap="viridis")
    for (row, column), value in np.ndenumerate(cells):
        color = "black" if value > middle else "white"
        left.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
    left.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    left.set_yticks(range(len(batch_sizes)), batch_sizes)
    left.set(xlabel="learning rate", ylabel="batch size", title="one seed a cell")

    flat = cells.ravel()
    right.boxplot([flat, fresh], tick_labels=[f"all {len(flat)} cells", "best cell,\nfresh seeds"])
    for x, values in enumerate((flat, fresh), start=1):
        right.plot(np.full(len(values), x + 0.25), values, "o", alpha=0.5, markersize=4)
    right.axhline(flat.max(), color="tab:red", linestyle="--", label="the grid's maximum")
    right.legend(fontsize=8)
    right.grid(alpha=0.3, axis="y")
    right.set_title("a maximum is no mean")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=110)
