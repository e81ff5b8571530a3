"""What compare_tokenizers.py prints, draws and keeps.

`facts` are those of tokenizer_study.build by (algorithm, size); `trained` and `sampled`, the scores
of tokenizer_lm.train, a list of seeds by (algorithm, size) and by (algorithm, sampling).
"""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from common.report import mean_and_sd
from common.runs import metric
from step3_peripherals.tokenizer_study import Facts

Scores = dict[tuple[str, Any], list[dict[str, Any]]]
COLUMNS = {  # heading: of facts
    "bytes/token": ("bytes_per_token", "{:.2f}"),
    "fertility": ("fertility", "{:.2f}"),
    "unknown tokens": ("unknown_tokens", "{:.3%}"),
    "unknown chars": ("unknown_characters", "{:.4%}"),
    "in use": ("in_use", "{:.1%}"),
    "training s": ("training_seconds", "{:.1f}"),
    "ours MB/s": ("ours", "{:.2f}"),
    "library MB/s": ("library", "{:.2f}"),
    "equal ids": ("equal", "{:.2%}"),
}


def measured(facts: Facts) -> Facts:
    """Without those that were skipped."""
    return {key: found for key, found in facts.items() if "skipped" not in found}


def metrics(facts: Facts, trained: Scores, sampled: Scores) -> dict[str, dict]:
    """The entries of result.json that a reader compares; all others stay in its `vocabularies`."""
    entries = {
        f"bits per byte of {name} at {size}": _bits(s) for (name, size), s in trained.items()
    }
    for (name, sampling), scores in sampled.items():
        entries[f"bits per byte of {name}, {sampling}"] = _bits(scores)
    for (name, size), found in measured(facts).items():
        entries[f"bytes per token of {name} at {size}"] = metric(
            found["bytes_per_token"], unit="bytes"
        )
    return entries


def _bits(scores: list[dict[str, Any]]) -> dict[str, Any]:
    values = [one["bits_per_byte"] for one in scores]
    return metric(values, unit="bits", higher_is_better=False)


def rows(facts: Facts, unit: str) -> list[list[str]]:
    """The table of vocabularies, heads first."""
    heads = [f"tokens/{unit}" if head == "fertility" else head for head in COLUMNS]
    lines = [["", "size", *heads]]
    for (name, size), found in measured(facts).items():
        cells = (form.format(found[fact]) for fact, form in COLUMNS.values())
        lines.append([name, f"{size:,}", *cells])
    return lines


def skipped(facts: Facts) -> list[str]:
    """Why there is no line for some, a sentence for each algorithm and reason; and which are
    smaller than asked for."""
    sizes = defaultdict(list)
    for (name, size), found in facts.items():
        if "skipped" in found:
            sizes[name, found["skipped"].partition(": ")[2]].append(f"{size:,}")
    told = [f"no {name} of {', '.join(n)}: {reason}" for (name, reason), n in sizes.items()]
    for (name, size), found in measured(facts).items():
        if found["vocab_size"] < size:
            told.append(f"{name} of {size:,} has {found['vocab_size']:,} tokens")
    return told


def lm_table(scores: Scores) -> str:
    """A language model a line: bits a byte, and what it has read; means over its seeds."""
    heads = ("bits/byte", "of them lost", "tokens read", "MB read", "epochs", "TFLOP", "parameters")
    lines = [f"{'':25}" + "".join(f"{head:>18}" for head in heads)]
    for (name, what), several in scores.items():
        entry = _bits(several)
        mean = {n: statistics.mean(one[n] for one in several) for n in several[0]}
        cells = (
            mean_and_sd(entry, ".4f"),
            f"{mean['lost_bits_per_byte']:.4f}",
            f"{mean['tokens']:,.0f}",
            f"{mean['bytes'] / 1e6:.2f}",
            f"{mean['epochs']:.2f}",
            f"{mean['teraflops']:.3f}",
            f"{mean['parameters']:,.0f}",
        )
        what = f"{what:,}" if isinstance(what, int) else what
        lines.append(f"{name:11}{what:>14}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def target(facts: Facts, gain: float) -> tuple[str, bool]:
    """Each vocabulary encodes as the library, and tokens grow with it; whether it is so."""
    facts = measured(facts)
    equal = min(found["equal"] for found in facts.values())
    grown = []
    for name in {name for name, _ in facts}:
        lengths = [found["bytes_per_token"] for (other, _), found in facts.items() if other == name]
        grown += [lengths[-1] / lengths[0]] if len(lengths) > 1 else []
    told = f"{equal:.2%} of passages encoded as by the library (100 %)"
    if grown:
        told += f"; the largest have tokens {min(grown):.2f} times as long (>= {gain})"
    return told, equal == 1 and min(grown, default=gain) >= gain


def plot(facts: Facts, trained: Scores, sampled: Scores, title: str, path: Path) -> None:
    """Bytes a token and bits a byte against the size of the vocabulary, speeds as bars, and what
    sampling does."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    facts = measured(facts)
    figure = Figure(figsize=(17, 4.2))
    length, bits, speed, draws = figure.subplots(1, 4)
    names = list(dict.fromkeys(name for name, _ in facts))
    for i, name in enumerate(names):
        style = dict(label=name, color=f"C{i}", marker="o", markersize=4)
        found = [one for (other, _), one in facts.items() if other == name]
        sizes, lengths = ([one[n] for one in found] for n in ("vocab_size", "bytes_per_token"))
        length.plot(sizes, lengths, **style)
        sizes = [facts[key]["vocab_size"] for key in trained if key[0] == name]
        entries = [_bits(several) for (other, _), several in trained.items() if other == name]
        values, sds = [e["value"] for e in entries], [e["sd"] or 0 for e in entries]
        bits.errorbar(sizes, values, yerr=sds, capsize=3, **style)
        largest = facts[name, max(size for other, size in facts if other == name)]
        for j, whose in enumerate(("ours", "library")):
            bar = dict(color=f"C{i}", alpha=1 - 0.55 * j, hatch="//" if j else None)
            bars = speed.bar(i + 0.4 * j, largest[whose], 0.38, **bar)
            speed.bar_label(bars, fmt="%.1f", fontsize=7)
    all_sizes = sorted({size for _, size in facts})
    binary = FuncFormatter(lambda n, _: f"{n / 1024:.0f} k" if n >= 1024 else f"{n:.0f}")
    for axis in (length, bits):
        axis.set(xscale="log", xlabel="size of the vocabulary")
        axis.xaxis.set_major_locator(FixedLocator(all_sizes))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(binary)
        axis.legend(fontsize=8)
    length.set(title="bytes a token")
    bits.set(title="bits a byte at equal FLOPs (lower is better)")
    speed.set(title="MB/s at own largest size (library's hatched)", yscale="log")
    speed.set_xticks([i + 0.2 for i in range(len(names))], names)
    for y, ((name, _), scores) in enumerate(sampled.items()):
        entry = _bits(scores)
        color = f"C{names.index(name)}"
        draws.errorbar(entry["value"], -y, xerr=entry["sd"] or 0, fmt="o", capsize=3, color=color)
    ticks = [f"{name}\n{sampling}" for name, sampling in sampled]
    draws.set_yticks([-y for y in range(len(sampled))], ticks, fontsize=8)
    draws.margins(y=0.2)
    draws.xaxis.set_major_locator(MaxNLocator(4))
    draws.set(title="segmentations drawn anew: bits a byte")
    for axis in (length, bits, speed, draws):
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
