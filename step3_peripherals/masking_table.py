"""The masks that compare_masking.py compares, what papers report of them, table and figure."""

from pathlib import Path

from step3_peripherals.masking import Masking
from step3_peripherals.paired import BASE, Entries

VARIANTS = {
    BASE: Masking(),  # single tokens, 15 %, 80/10/10
    "rate_30": Masking(rate=0.30),
    "rate_40": Masking(rate=0.40),
    "rate_60": Masking(rate=0.60),
    # [MASK] / same / random, in the order of BERT's table 8
    "mix_100_0_0": Masking(mask_share=1.0, random_share=0.0),
    "mix_80_0_20": Masking(mask_share=0.8, random_share=0.2),
    "mix_80_20_0": Masking(mask_share=0.8, random_share=0.0),
    "mix_0_20_80": Masking(mask_share=0.0, random_share=0.8),
    "mix_0_0_100": Masking(mask_share=0.0, random_share=1.0),
    "whole_word": Masking("whole_word"),
    "ngram": Masking("ngram"),
    "span": Masking("span"),
}
MIXES = [BASE, *(name for name in VARIANTS if name.startswith("mix"))]
RATES = [BASE, *(name for name in VARIANTS if name.startswith("rate"))]
SCHEMES = [BASE, "whole_word", "ngram", "span"]
# Rows of reported_numbers.csv, all MNLI: (variant, what it is held against in the same paper)
PAPER = {f"rate_{rate}": (f"mask-rate-{rate}-mnli", "mask-rate-15-mnli") for rate in (30, 60)}
PAPER["rate_40"] = ("mask-rate-40-80-10-10-mnli", "mask-rate-15-80-10-10-mnli")
PAPER |= {
    name: (f"bert-mask-{name[4:].replace('_', '-')}-mnli", "bert-mask-80-10-10-mnli")
    for name in MIXES[1:]
}
PAPER["whole_word"] = ("bert-large-whole-word-mnli", "bert-large-original-mnli")

SCORES = {  # name: (title, unit, higher is better)
    "blank_loss": ("MLM loss, [MASK] shown", "nats", False),
    "wrong_loss": ("another token shown", "nats", False),
    "same_loss": ("the token itself shown", "nats", False),
    "mlm_loss": ("80/10/10", "nats", False),
    "blank_accuracy": ("MLM accuracy, [MASK] shown", "%", True),
    "accuracy": ("downstream accuracy", "%", True),
}
TARGET = 0.5  # nats less, at least, where 40 % and not 15 % are masked


def title_of(name: str) -> str:
    """`mix_80_0_20` -> `80/0/20`, `rate_40` -> `40 %`, `base` -> `15 %, 80/10/10, tokens`."""
    kind, _, rest = name.partition("_")
    plain = {BASE: "15 %, 80/10/10, tokens", "ngram": "n-grams", "span": "spans"}
    plain["whole_word"] = "whole words"
    return plain.get(name) or (f"{rest} %" if kind == "rate" else rest.replace("_", "/"))


def notes(steps: dict[str, int], word_frequencies: float) -> list[str]:
    """How many steps of each mask cost the same; what knows word frequencies alone; and of what
    the papers' differences are."""
    others = [f"{n:,} ({title_of(name)})" for name, n in steps.items() if n != steps[BASE]]
    more = f", but {', '.join(others)}" * bool(others)
    return [
        f"equal compute: {steps[BASE]:,} steps of each{more}",
        f"who knows word frequencies and nothing else has a loss of {word_frequencies:.3f}",
        "the paper's 30 % and 60 % are all [MASK], the rest is as named",
    ]


def target(differences: Entries) -> str:
    """What the cpu preset is to show, and whether it did."""
    if "rate_40" not in differences:
        return ""
    better = -differences["rate_40"]["blank_loss"]["value"]
    told = f"trained with 40 % masked, a model is better at [MASK], by {better:.2f} nats"
    return f"target {'reached' if better >= TARGET else 'missed'}: {told} (>= {TARGET})"


def plot(metrics: Entries, differences: Entries, paper: dict[str, float], path: Path) -> None:
    """MLM loss above and downstream accuracy below, against the rate; and how far mixes and schemes
    are from the base."""
    from matplotlib.figure import Figure

    shown = [score for score in ("blank_loss", "accuracy") if score in metrics[BASE]]
    bars = {"[MASK]/same/random": MIXES[1:], "what is masked together": SCHEMES[1:]}
    bars = {of: [n for n in names if n in metrics] for of, names in bars.items()}
    bars = {of: names for of, names in bars.items() if names}
    size = (5 * (1 + len(bars)), 3.3 * len(shown))
    figure = Figure(figsize=size)
    axes = figure.subplots(len(shown), 1 + len(bars), squeeze=False)
    n = metrics[BASE]["blank_loss"]["n"]
    for row, score in zip(axes, shown, strict=True):
        title, unit, _ = SCORES[score]
        rates = [name for name in RATES if name in metrics]
        _line(row[0], metrics, rates, score, f"ours, n = {n}")
        if score == "blank_loss":
            _line(row[0], metrics, rates, "mlm_loss", "ours, 80/10/10 shown")
        else:
            start = metrics[BASE][score]["value"]
            points = {100 * VARIANTS[r].rate: start + paper[r] for r in rates if r in paper}
            if points:
                told = "15 % + paper's difference on MNLI"
                row[0].plot(points.keys(), points.values(), "d", mfc="none", label=told)
        row[0].set(title=f"{title} ({unit})", xlabel="masking rate in training (%)")
        row[0].margins(y=0.25)
        row[0].legend(fontsize=8)
        for axis, (of, names) in zip(row[1:], bars.items(), strict=True):
            entries = [differences[name][score] for name in names]
            axis.bar(
                [title_of(name) for name in names],
                [entry["value"] for entry in entries],
                yerr=[entry["sd"] or 0 for entry in entries],
                capsize=3, color="tab:blue", alpha=0.6,
            )  # fmt: skip
            told = [name for name in names if name in paper and score == "accuracy"]
            if told:
                places = [title_of(name) for name in told]
                style = dict(mfc="none", color="tab:orange", label="paper, MNLI")
                axis.plot(places, [paper[name] for name in told], "d", **style)
                axis.legend(fontsize=8)
            axis.axhline(0, color="grey", linewidth=0.8)
            axis.set(title=f"{title},\nless that of {title_of(BASE)} ({unit})", xlabel=of)
        for axis in row:
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _line(axis, metrics: Entries, names: list[str], score: str, label: str) -> None:
    entries = [metrics[name][score] for name in names]
    axis.errorbar(
        [100 * VARIANTS[name].rate for name in names],
        [entry["value"] for entry in entries],
        yerr=[entry["sd"] or 0 for entry in entries],
        marker="o", capsize=3, label=label,
    )  # fmt: skip
