"""Variants beside a base, seed by seed: both saw the same batches, so what the seed did to both is
no part of the difference."""

from collections.abc import Callable

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
