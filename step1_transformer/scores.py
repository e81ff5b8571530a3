"""How good translations are: BLEU and chrF by sacreBLEU, over several seeds, as tables."""

from common.report import mean_and_sd
from common.runs import metric

UNITS = {"tokens_per_second": "tokens/s", "nll": "nats", "accuracy": "%"}
LOWER_IS_BETTER = ("perplexity", "nll")
RUNGS = {  # prefix of a metric's name: what it is a score of
    "copy_": "the source itself",
    "last_greedy_": "last weights, greedy",
    "last_": "last weights, beam",
    "average_greedy_": "last snapshots' mean, greedy",
    "average_": "last snapshots' mean, beam",
    "greedy_": "the model, greedy",
    "": "the model, beam",
}
COLUMNS = {"bleu": "BLEU", "bleu_lower": "lower-cased", "chrf": "chrF"}


def of_texts(written: list[str], references: list[str]) -> tuple[dict[str, float], list[str]]:
    """Scores of a whole set, in points of 100, and how sacreBLEU computed each.

    bleu: cased, on detokenised text. bleu_lower: lower-cased, to compare with what is published of
    models that were trained on lower-cased, tokenised text. chrf: chrF2.
    """
    from sacrebleu.metrics import BLEU, CHRF

    kinds = {"bleu": BLEU(), "bleu_lower": BLEU(lowercase=True, tokenize="13a"), "chrf": CHRF()}
    scores = {n: kind.corpus_score(written, [references]).score for n, kind in kinds.items()}
    return scores, [f"{name}: {kind.get_signature()}" for name, kind in kinds.items()]


def over_seeds(found: list[dict[str, float]]) -> dict[str, dict]:
    """Each score as a metric of a result: the mean, and the sd if there are several."""
    metrics = {}
    for name in found[0]:
        metrics[name] = metric(
            [scores[name] for scores in found],
            unit=next((unit for kind, unit in UNITS.items() if name.endswith(kind)), ""),
            higher_is_better=not name.endswith(LOWER_IS_BETTER),
        )
    return metrics


def table(metrics: dict[str, dict], title: str) -> str:
    """A rung of the ladder a line, for people."""
    lines = [f"{title:28}" + "".join(f"{head:>16}" for head in (*COLUMNS.values(), "tokens/s"))]
    for prefix, label in RUNGS.items():
        if f"{prefix}bleu" in metrics:
            line = "".join(f"{mean_and_sd(metrics[prefix + name], '.2f'):>16}" for name in COLUMNS)
            if speed := metrics.get(f"{prefix}tokens_per_second"):
                line += f"{speed['value']:16,.0f}"
            lines.append(f"{label:28}{line}")
    lines.append(f"{'perplexity of a token':28}{mean_and_sd(metrics['perplexity'], '.2f'):>16}")
    return "\n".join(lines)


def samples(sources: list[str], written: list[str], references: list[str]) -> list[str]:
    """A paragraph for each sentence: source, ours and reference."""
    rows = zip(sources, written, references, strict=True)
    return [f"source     {s}\nours       {w}\nreference  {r}\n" for s, w, r in rows]
