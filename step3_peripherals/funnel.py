"""What the pipeline did to the documents: counts, examples, planted faults found, the figure."""

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from step3_peripherals import planting
from step3_peripherals.blocks import rows
from step3_peripherals.dedup import WORD, MinHash, jaccard, shingles

FILTERS = ("repair", "language", "c4", "statistics", "repetition", "exact", "near")
CHECKED = 2000  # pairs of duplicates that are compared word by word
EXAMPLES = 3  # of each reason
COMMONEST = 4  # reasons of a filter that the table shows
WIDTH = 72  # characters of an example in the table
RULES = ("c4", "statistics", "repetition")  # the filters that a page of menus or filler is for
ALIKE = 0.5  # least Jaccard index at which a near-duplicate is no false alarm


def counts(out: Path) -> dict[str, Counter]:
    """By block, the sum over all tasks of what datatrove counted, and its `seconds`.

    `peak_memory` is the greatest of all tasks, in KiB.
    """
    found: dict[str, Counter] = {}
    for path in sorted((out / "stages").glob("*/stats/*.json")):
        for block in json.loads(path.read_text(encoding="utf-8")):
            name = f"{path.parent.parent.name}/{block['name'].split(': ')[-1]}"
            sums = found.setdefault(name, Counter())
            sums["seconds"] += _total(block.get("time_stats", {}))
            for key, value in block["stats"].items():
                if key == "peak_memory":
                    sums[key] = max(sums[key], _total(value))
                else:
                    sums[key] += _total(value)
    return found


def _total(value: dict | float) -> float:
    return value.get("total", 0) if isinstance(value, dict) else value


def funnel(found: dict[str, Counter]) -> list[dict]:
    """A row for each filter: documents in, dropped and why, repaired, and the seconds it took."""
    table = []
    for name in FILTERS:
        stage = "5-write" if name in ("exact", "near") else "2-clean"
        block = found[f"{stage}/{name}"]
        reasons, repaired = (
            {k.removeprefix(start): n for k, n in block.items() if k.startswith(start)}
            for start in ("dropped_", "repaired_")
        )
        table.append(
            {"filter": name, "documents": block["total"], "dropped": block["dropped"]}
            | {"reasons": dict(Counter(reasons).most_common()), "repaired": repaired}
            | {"seconds": round(block["seconds"], 2)}
        )
    return table


def examples(out: Path) -> dict[str, list[dict]]:
    """Of each filter and reason the first few documents that fell out, and of each repair."""
    shown = defaultdict(list)
    for row in rows(out / "dropped"):
        chosen = shown[f"{row['filter']}: {row['reason']}"]
        if len(chosen) < EXAMPLES:
            chosen.append({"id": row["id"], "text": row["text"]})
    for row in rows(out / "repaired"):
        chosen = shown[f"repaired: {row['kind']}"]
        if len(chosen) < EXAMPLES:
            chosen.append({name: row[name] for name in ("id", "before", "after")})
    return dict(sorted(shown.items()))


# --- how well ------------------------------------------------------------------------------------


def verify(out: Path) -> dict[str, float]:
    """Compare the first CHECKED duplicates of either kind with what they are duplicates of.

    Returns how many of each kind were compared and how many were alike indeed: equal but for white
    space, or of Jaccard index >= ALIKE.
    """
    pairs = {}
    for kind in ("exact", "near"):
        found = islice(rows(out / "dropped", f"{kind}-*"), CHECKED)
        pairs |= {row["key"]: (row["of"], kind) for row in found}
    wanted = {*pairs, *(of for of, _ in pairs.values())}
    texts = {r["key"]: r["text"] for r in rows(out / "work" / "clean") if r["key"] in wanted}
    checked = Counter()
    for key, (of, kind) in pairs.items():
        a, b = texts[key], texts[of]
        same = a.split() == b.split() or kind == "near" and likeness(a, b) >= ALIKE
        checked.update({kind: 1, f"{kind}_true": int(same)})
    return dict(checked)


def likeness(a: str, b: str) -> float:
    """The Jaccard index of the shingles of two texts, from 0 to 1; 0 if neither has a word."""
    return jaccard(shingles(a), shingles(b))


def planted(out: Path) -> dict[str, dict[str, int]]:
    """By kind of fault: planted, reached (not lost before, to another filter) and found.

    near90 are the near-duplicates of Jaccard index 0.9 or more, near the others. `clean` documents
    show no damage and nothing was done to them; found are those that were repaired all the same.
    """
    truths = {row["id"]: row for row in rows(out / "planted")}
    known = truths.keys() | {truth.get("of") for truth in truths.values()}
    drops = {row["id"]: row["filter"] for row in rows(out / "dropped") if row["id"] in known}
    wanted = {id for id, truth in truths.items() if truth["kind"] == "lines"}
    texts = {r["id"]: r["text"] for r in rows(out / "shards") if r["id"] in wanted}
    repaired, clean = {}, Counter(found=0)
    for row in rows(out / "repaired"):
        if row["id"] in truths:
            repaired[row["id"]] = row["hash"]
        unhurt = row["kind"] == "mojibake" and not planting.DAMAGE.search(row["before"])
        clean["found"] += unhurt and row["id"] not in truths
    duplicate = ("exact", "near")
    table = defaultdict(Counter)
    for id, truth in truths.items():
        kind, drop = truth["kind"], drops.get(id)
        if kind in duplicate:
            original = drops.get(truth["of"])
            reached = all(fate in (None, *duplicate) for fate in (drop, original))
            found = drop in duplicate
        elif kind == "mojibake":
            reached, found = True, repaired.get(id) == truth["hash"]
        elif kind == "page":
            reached, found = drop != "language", drop in RULES
        else:
            reached = id in texts
            found = reached and not any(line in texts[id] for line in truth["lines"])
        if kind == "near" and truth["jaccard"] >= 0.9:
            kind = "near90"
        table[kind].update(planted=1, reached=int(reached), found=int(reached and found))
    return {kind: dict(table[kind]) for kind in sorted(table)} | {"clean": dict(clean)}


def s_curve(texts: Iterable[str], minhash: MinHash, seed: int = 0, words: int = 250):
    """Edit texts more and more; returns (n,) Jaccard indices and whether each became a candidate.

    Every pair has hash functions of its own, so that the luck of one is not that of all.
    """
    alike, found = [], []
    for number, text in enumerate(texts):
        rng = random.Random(f"{seed}/{number}")
        copy = text = " ".join(WORD.findall(text)[:words])
        for _ in range(40):
            copy = planting.edit(copy, 1, rng)
            functions = replace(minhash, seed=len(alike))
            ours, theirs = functions.band_hashes(text), functions.band_hashes(copy)
            alike.append(likeness(text, copy))
            found.append(bool((ours == theirs).any()))
    return np.array(alike), np.array(found)


# --- shown ---------------------------------------------------------------------------------------


def fallen(table: list[dict], shown: dict[str, list[dict]]) -> list[list[str]]:
    """Heads, and a line for each filter's commonest reasons and each kind of repair: how many, what
    share of those that came as far, and the first of them."""
    lines = [["filter", "why", "documents", "%", "for example"]]
    for row in table:
        why = dict(list(row["reasons"].items())[:COMMONEST])
        found = [(reason, n, f"{row['filter']}: {reason}") for reason, n in why.items()]
        found += [
            (f"repaired, {kind}", n, f"repaired: {kind}") for kind, n in row["repaired"].items()
        ]
        for reason, n, name in found:
            first = shown[name][0]
            text = first["text"] if "text" in first else change(first["before"], first["after"])
            text = " ".join(text.split())[:WIDTH] or "–"
            share = f"{100 * n / max(1, row['documents']):.2f}"
            lines.append([row["filter"], reason, f"{n:,}", share, text])
    return lines


def change(before: str, after: str) -> str:
    """Both texts around the place where they begin to differ."""
    at = len(os.path.commonprefix([before, after]))
    around = slice(max(0, at - 14), at + 18)
    return f"{before[around]} → {after[around]}"


def show(
    table: list[dict], kinds: dict[str, dict[str, int]], shown: dict[str, list], checked: dict
) -> None:
    """Print the funnel, why documents fell, with examples, what was planted and found, and how many
    of the duplicates that `verify` compared are alike."""
    print(f"{'filter':12}{'documents':>11}{'dropped':>9}{'%':>7}{'seconds':>9}")
    for row in table:
        percent = 100 * row["dropped"] / max(1, row["documents"])
        print(
            f"{row['filter']:12}{row['documents']:11,}{row['dropped']:9,}"
            f"{percent:7.2f}{row['seconds']:9.1f}"
        )
    print("\nwhy, the commonest reasons (more examples in examples.json)")
    for name, reason, n, share, text in fallen(table, shown):
        print(f"{name:12}{reason:22.22}{n:>10}{share:>7}  {text}")
    if len(kinds) > 1:
        print(f"\n{'planted':12}{'planted':>9}{'reached':>9}{'found':>9}{'recall %':>10}")
    for kind, n in kinds.items():
        if kind != "clean":
            recall = f"{100 * n['found'] / n['reached']:.2f}" if n["reached"] else "-"
            print(f"{kind:12}{n['planted']:9,}{n['reached']:9,}{n['found']:9,}{recall:>10}")
    for kind in ("exact", "near"):
        if n := checked.get(kind):
            alike = checked[f"{kind}_true"]
            print(f"{alike:,} of {n:,} {kind} duplicates, compared word by word, are alike")
    print()


def kept(lines: list[list[str]]) -> list[list[str]]:
    """The lines of `fallen` for a page in Markdown: examples as code, as they may hold anything."""
    return [lines[0], *([*line[:-1], f"`{line[-1].replace('`', '´')}`"] for line in lines[1:])]


def target(kinds: dict[str, dict[str, int]]) -> str:
    """What the cpu preset is to find of what was planted, and whether it did."""
    least = {"exact": 100, "near90": 95, "mojibake": 100}
    planted = {k: kinds[k] for k in least if k in kinds and kinds[k]["reached"]}
    recall = {k: 100 * n["found"] / n["reached"] for k, n in planted.items()}
    reached = recall.keys() == least.keys() and not kinds["clean"]["found"]
    reached = reached and all(recall[kind] >= least[kind] for kind in least)
    told = "".join(f"{kind} {value:.1f} % (>= {least[kind]}), " for kind, value in recall.items())
    hurt = f"{kinds['clean']['found']} documents without damage repaired (0)"
    return f"target {'reached' if reached else 'missed'}: {told}{hurt}"


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float, float]:
    """A share and its confidence interval, which stays between 0 and 1 (Wilson 1927)."""
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, min(p, middle - spread), max(p, middle + spread)


def draw(table: list[dict], alike: np.ndarray, found: np.ndarray, minhash: MinHash, path: Path):
    """Left the documents before each filter and what it drops, right the S-curve of MinHash."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [row["filter"] for row in table] + ["kept"]
    kept = [row["documents"] - row["dropped"] for row in table]
    dropped = [row["dropped"] for row in table]
    left.barh(names, [*kept, kept[-1]], color=["tab:blue"] * len(table) + ["tab:green"])
    left.barh(names[:-1], dropped, left=kept, color="tab:red", label="dropped")
    for i, n in enumerate(dropped):
        left.text(kept[i] + n, i, f" −{n:,}", va="center", fontsize=8)
    left.text(kept[-1], len(table), f" {kept[-1]:,}", va="center", fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="documents", title="what each filter drops", xlim=(0, 1.12 * max(kept)))
    left.xaxis.set_major_formatter(EngFormatter(sep=" "))
    left.legend(loc="lower right", fontsize=8)

    s = np.linspace(0, 1, 201)
    law = f"1 − (1 − s^{minhash.rows})^{minhash.bands}"
    right.plot(s, minhash.probability(s), color="tab:gray", label=law)
    place = np.digitize(alike, np.arange(0.05, 1, 0.05))
    for i in np.unique(place):
        here = found[place == i]
        if len(here) < 20:
            continue
        p, low, high = wilson(here.sum(), len(here))
        right.errorbar(
            alike[place == i].mean(), p, [[p - low], [high - p]], fmt="o", color="tab:blue",
            markersize=4, label="measured, 95 %" if i == place.max() else None,
        )  # fmt: skip
    right.set(xlabel="Jaccard index s", ylabel="found", title="MinHash candidates")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
