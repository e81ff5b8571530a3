"""Lay results that are there already out as the table of GLUE: nothing is trained or scored anew.

    python step4_finetune_glue/table.py                                  all that are kept
    python step4_finetune_glue/table.py --results runs/a runs/b/result.json --compare DistilBERT

A result is what finetune.py or evaluate.py wrote of one system on one task: a file, or a folder
that holds result.json. evaluate.py's has the baselines too, which stand below the systems.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import cli, runs
from common.cli import UserError
from common.report import slug
from common.runs import metric
from step4_finetune_glue import baselines, glue_table, tasks
from step4_finetune_glue.glue_table import System, Table
from step4_finetune_glue.scoring import Finetuned

NOTES = Path(__file__).resolve().parent.parent / "notes"
KEPT = ("minilm", "mini", "tiny")  # whose results are kept, in the order of the rows


@dataclass
class Config(cli.RunConfig):
    results: tuple[str, ...] = ()
    """Results, or folders that hold one; empty: all kept ones of minilm and of our own models."""
    compare: tuple[str, ...] = ("reference", "DistilBERT base, uncased", "MiniLM L6", "run_glue")
    """Reported systems to stand below, by a part of their name."""


PRESETS = {"cpu": {}, "smoke": {}, "gpu": {}}


def main(config: Config) -> None:
    run = runs.Run.open(config, "step4_finetune_glue/table")
    runs.write_json(run.path / "config.json", cli.as_dict(config))  # --resume lays it out anew
    found = [read(path) for path in map(Path, config.results)] or kept()
    systems, entries = {}, []
    short = Counter({one.system: one.label.split(", ")[0] for one in found}.values())
    lines = {name: System(name.replace("_", " "), "baseline") for name in baselines.NAMES}
    for one in found:
        name, metrics = one.task.name, one.values["metrics"]
        kind = "baseline" if one.random else "measured"
        title = one.label.split(", ")[0]
        title = title if short[title] == 1 else one.label
        system = systems.setdefault(one.system, System(title, kind))
        if name in system.scores:
            raise UserError(f"{one.system} on {name} twice: give --results only one of them")
        wanted = [known for known in glue_table.SHORT if known in metrics]
        system.scores[name] = {k: (metrics[k]["value"], metrics[k]["sd"]) for k in wanted}
        system.low |= {name} if one.low_resource else set()
        entries += [(f"{name} {k}", title, metrics[k]) for k in wanted]
        for baseline, line in lines.items():
            scores = {k: metrics.get(f"{baseline}_{k}") for k in wanted}
            if all(scores.values()):
                line.scores[name] = {k: (entry["value"], None) for k, entry in scores.items()}

    shown = [name for name in tasks.TASKS if any(name in s.scores for s in systems.values())]
    ours = sorted([*systems.values(), *lines.values()], key=lambda one: one.kind == "baseline")
    official = set(shown) - Table(ours, shown).low_resource
    others = glue_table.reported(NOTES / "reported_numbers.csv", official, config.compare)
    table = Table([*ours, *others], shown)
    print("\n" + table.text() + "\n")
    runs.write_text(run.path / "table.md", table.markdown() + "\n")
    table.draw(run.path / "curves.png")
    averages = {f"average_{slug(one.name)}": table.average(one) for one in ours}
    metrics = {k: metric(v, unit="%") for k, v in averages.items() if v is not None}
    run.result(
        [one.values for one in found],
        step="step4_finetune_glue",
        script="table",
        system="; ".join(systems),
        preset=config.preset,
        dataset="GLUE",
        split="dev",
        metrics=metrics or {f"{t} of {n}": e for t, n, e in entries},
        averaged=table.averaged(),
        low_resource=sorted(table.low_resource),
        table=table.as_json(),
        compare_to=[],
        model={"name": ", ".join(dict.fromkeys(one.values["model"]["name"] for one in found))},
        tokens=None,
        seconds=round(sum(one.values["seconds"] for one in found), 1),
        tokens_per_second=None,
        seeds=sorted({seed for one in found for seed in one.values["seeds"]}),
        config=cli.as_dict(config),
    )


def read(path: Path) -> Finetuned:
    """One result; UserError if it is none of finetune.py's."""
    path = path / "result.json" if path.is_dir() else path
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = Finetuned(path.parent, values, tasks.task(values["dataset"]), ())
        if values["script"] != "finetune" or not values["metrics"]:
            raise ValueError("of another script")
        return found
    except FileNotFoundError:
        raise UserError(f"{path}: no such result") from None
    except (ValueError, KeyError, TypeError, UserError):
        raise UserError(f"{path}: no result of finetune.py or evaluate.py") from None


def kept() -> list[Finetuned]:
    """Those of notes/results, by system, then task."""
    found = []
    for system in KEPT:
        for task in glue_table.GLUE:
            path = NOTES / "results" / f"step4_finetune_glue-{system}-{task.lower()}.json"
            found += [read(path)] if path.exists() else []
    return found


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
