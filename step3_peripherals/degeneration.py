"""How far written text is from human text, without a reader: three counts and a likelihood.

The counts take texts (N, T) of token ids. They compare only texts of the same number of tokens: the
more there is of a text, the more of it was there before.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import runs
from common.report import mean_and_sd
from common.runs import metric

HUMAN = "human"
MEASURES = {  # unit, title
    "token_loss": ("nats", "-log p of a token (nats)"),
    "repetition": ("%", "repeated 4-grams (%)"),
    "distinct": ("%", "distinct 2-grams (%)"),
    "zipf": ("", "Zipf coefficient"),
}


def repetition(texts: np.ndarray, n: int = 4) -> float:
    """rep-n = 100 (1 - distinct n-grams / n-grams) of a text by itself, mean over the texts, in %
    (Su et al. 2022, arXiv:2202.06417, section 4.1). A loop of c tokens is near 100 (1 - c/T)."""
    grams = np.sort(_grams(texts, n), axis=1)
    distinct = 1 + (np.diff(grams) != 0).sum(1)
    return float(100 * (1 - distinct / grams.shape[1]).mean())


def distinct(texts: np.ndarray, n: int = 2) -> float:
    """distinct-n = 100 distinct n-grams / n-grams of all texts together, in % (Li et al. 2016,
    arXiv:1510.03055, section 5.2): it is low as well where all texts are the same."""
    grams = _grams(texts, n)
    return 100 * len(np.unique(grams)) / grams.size


def zipf(texts: np.ndarray) -> float:
    """s of the fit log frequency = c - s log rank, by least squares over all tokens (Holtzman et
    al. 2020, arXiv:1904.09751, section 5.2). The larger, the more is said with the fewest tokens.
    NaN where all tokens are the same."""
    counts = np.sort(np.bincount(texts.ravel()))[::-1]
    counts = counts[counts > 0]
    if len(counts) < 2:
        return math.nan
    return float(-np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0])


@torch.inference_mode()
def surprise(model: Callable[[Tensor], Tensor], texts: Tensor, n_prompt: int) -> Tensor:
    """-log p (nats) of each token behind the first `n_prompt`: texts (N, T) -> (N, T - n_prompt).

    `model` gives the logits (N, T, V) of input_ids (N, T). ValueError without a prompt.
    """
    if not 0 < n_prompt < texts.shape[1]:
        raise ValueError(f"n_prompt {n_prompt} must be above 0 and below {texts.shape[1]}")
    log_p = model(texts[:, :-1])[:, n_prompt - 1 :].float().log_softmax(-1)
    return -log_p.gather(-1, texts[:, n_prompt:, None])[..., 0]


def _grams(texts: np.ndarray, n: int) -> np.ndarray:
    """(N, T) -> (N, T - n + 1): a number for each n-gram, the same for the same n-gram."""
    windows = np.lib.stride_tricks.sliding_window_view(texts, n, axis=1)
    flat = windows.reshape(-1, n)
    return np.unique(flat, axis=0, return_inverse=True)[1].reshape(windows.shape[:2])


# -- all of them, side by side ---------------------------------------------------------------


def measure(texts: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """The MEASURES of texts (N, T) whose tokens have -log p `losses` (N, T)."""
    counts = {"repetition": repetition(texts), "distinct": distinct(texts), "zipf": zipf(texts)}
    return {"token_loss": float(losses.mean()), **counts}


def metrics(scores: list[dict[str, float]]) -> dict[str, dict]:
    """As metrics of a result, those that are defined for every seed. Better is what is nearer to
    human text, neither high nor low. What people wrote is the same for all seeds: counted once."""
    each = {name: [one[name] for one in scores] for name in MEASURES}
    return {
        name: metric(
            values if len(set(values)) > 1 else values[0],
            unit=MEASURES[name][0],
            higher_is_better=None,
        )
        for name, values in each.items()
        if not any(map(math.isnan, values))
    }


def means(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each way of writing, over the seeds; NaN where one is."""
    return {
        name: {measure: float(np.mean([one[measure] for one in scores])) for measure in MEASURES}
        for name, scores in found.items()
    }


def rows(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """A row for each way of writing: mean ± sd over the seeds."""
    lines = [["", *(title for _, title in MEASURES.values())]]
    for name, scores in found.items():
        defined = metrics(scores)
        shown = [mean_and_sd(defined[m], ".2f") if m in defined else "–" for m in MEASURES]
        lines.append([name, *shown])
    return lines


def targets(found: dict[str, dict[str, float]]) -> list[str]:
    """What the means of the cpu preset are to reach, and whether they did, a line each."""
    human, lines = found[HUMAN], []

    def line(reached: bool, told: str) -> None:
        lines.append(f"target {'reached' if reached else 'missed'}: {told}")

    for name in [name for name in ("greedy", "beam 4") if name in found]:
        ours, theirs = found[name]["repetition"], human["repetition"]
        told = f"{name} repeats {ours:.1f} % of its 4-grams, people {theirs:.1f} %"
        line(ours > 0 and ours >= 20 * theirs, f"{told} (20 times as much, or more)")
    if "top-p 0.95" in found:
        for score, most in (("token_loss", 0.3), ("zipf", 0.1)):
            apart = abs(found["top-p 0.95"][score] - human[score])
            told = f"top-p 0.95 is {apart:.2f} from people in {MEASURES[score][1]}"
            line(apart <= most, f"{told} (<= {most})")
    return lines


def show(texts: dict[str, np.ndarray], tokenizer, n_prompt: int, path: Path, n: int = 5) -> None:
    """What all strategies wrote behind n prompts, or fewer if there are no more."""
    lines, most = [], len(texts[HUMAN])
    for i in np.linspace(0, most - 1, min(n, most)).astype(int):
        for name, each in texts.items():
            before, after = (tokenizer.decode(part) for part in np.split(each[i], [n_prompt]))
            lines += [] if name != HUMAN else ["=" * 80, before.strip(), ""]
            lines += [f"[{name}] {after.strip()}", ""]
    runs.write_text(path, "\n".join(lines))


def plot(losses: dict[str, np.ndarray], found: dict[str, dict[str, float]], path: Path) -> None:
    """-log p from token to token, as in Holtzman et al.'s figure 2, and each against human text."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5))
    along, *others = figure.subplots(1, 3)
    colours = dict(zip(found, ["black", *colormaps["tab10"].colors], strict=False))
    for name, each in losses.items():
        smooth = np.convolve(each.mean(0), np.ones(4) / 4, mode="valid")
        style = dict(color=colours[name], linewidth=2.5 if name == HUMAN else 1.2, label=name)
        along.plot(np.arange(len(smooth)) + 2.5, smooth, **style)
    along.set(title="mean of all texts, over 4 tokens", xlabel="tokens behind the prompt")
    along.set(ylabel=MEASURES["token_loss"][1], ylim=(0, None))
    pairs = ("token_loss", "repetition"), ("distinct", "zipf")
    for axis, (x, y) in zip(others, pairs, strict=True):
        for name, scores in found.items():
            axis.scatter(scores[x], scores[y], s=160 if name == HUMAN else 60, c=[colours[name]])
        axis.axvline(found[HUMAN][x], color="black", linewidth=0.5)
        axis.axhline(found[HUMAN][y], color="black", linewidth=0.5)
        axis.set(xlabel=MEASURES[x][1], ylabel=MEASURES[y][1])
    for axis in (along, *others):
        axis.grid(alpha=0.3)
    figure.legend(loc="lower center", ncols=len(found), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)
