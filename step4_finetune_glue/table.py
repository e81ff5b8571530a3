"""Lay results that are there already out as the table of GLUE: nothing is trained or scored anew.

    python step4_finetune_glue/table.py                                  all that are kept
    python step4_finetune_glue/table.py --results runs/a runs/b/result.json --compare DistilBERT

A result is what finetune.py or evaluate.py wrote of one system on one task: a file, or a folder
that holds result.json. evaluate.py's has the baselines too, which stand below the systems.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from common import cli, runs
from step4_finetune_glue import glue_table
from step4_finetune_glue.scoring import Finetuned

NOTES = Path(__file__).resolve().parent.parent / "notes"
# Whose results are kept, in the order of the rows
KEPT = ("minilm", "mini", "mini-4-epochs", "tiny", "tiny-random")


@dataclass
class Config(cli.RunConfig):
    results: tuple[str, ...] = ()
    """Results, or folders that hold one; empty: all kept ones of minilm and of our own models."""
    compare: tuple[str, ...] = ("reference", "DistilBERT base, uncased", "MiniLM L6", "run_glue")
    """Reported systems to stand below, by a part of their name."""


PRESETS = {"cpu": {}, "smoke": {}, "gpu": {}}


def main(config: Config) -> None:
    started, run = time.monotonic(), runs.Run.open(config, "step4_finetune_glue/table")
    runs.write_json(run.path / "config.json", cli.as_dict(config))  # --resume lays it out anew
    found = [Finetuned.open(path) for path in map(Path, config.results)] or kept()
    table, metrics = glue_table.of([(one, one.values["metrics"]) for one in found], config.compare)
    laid_out = table.write(run.path)
    run.result(
        step="step4_finetune_glue",
        script="table",
        system="; ".join(dict.fromkeys(one.system for one in found)),
        preset=config.preset,
        dataset="GLUE",
        split="dev",
        metrics=metrics,
        **laid_out,
        compare_to=[],
        model={"name": ", ".join(dict.fromkeys(one.values["model"]["name"] for one in found))},
        tokens=None,
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=None,
        seeds=sorted({seed for one in found for seed in one.values["seeds"]}),
        config=cli.as_dict(config),
    )


def kept() -> list[Finetuned]:
    """Those of notes/results, by system, then task."""
    found = []
    for system in KEPT:
        for task in glue_table.GLUE:
            path = NOTES / "results" / f"step4_finetune_glue-{system}-{task.lower()}.json"
            found += [Finetuned.open(path)] if path.exists() else []
    return found


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
