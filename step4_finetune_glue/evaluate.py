"""Score what finetune.py predicted over whole dev sets, and lay it out as the table of GLUE.

python step4_finetune_glue/evaluate.py                  every run in runs/step4_finetune_glue
python step4_finetune_glue/evaluate.py --runs runs/minilm-rte runs/minilm-cola --compare DistilBERT
python step4_finetune_glue/evaluate.py --runs runs/glue --submission glue.zip --fill-missing

Mean ± standard deviation over seeds, with how many collapsed to one answer; beside the majority
class, a linear model on words, an encoder with random weights (a run of finetune.py --random, else
as the run it stands beside) and reported systems. One folder a task in --out: result.json,
curves.png, errors.txt; and table.md and curves.png with the table.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common import cli, runs
from common.cli import UserError
from common.report import mean_and_sd, slug
from common.runs import metric
from step4_finetune_glue import baselines, figures, glue_table, scoring, submission, tasks
from step4_finetune_glue.scoring import Finetuned, Scored


@dataclass
class Config(cli.RunConfig):
    runs: tuple[str, ...] = ("runs/step4_finetune_glue",)
    """Directories of finetune.py, or folders that hold such."""
    data: str = ""
    """Where the tasks' files are; empty: where each run had them (see finetune.py)."""
    compare: tuple[str, ...] = ()
    """Reported systems, by a part of their name, that every result is held against and that the
    table shows, besides those called like the checkpoint; empty: the table shows all."""
    errors: int = 5
    """Surest errors to show for each run."""
    submission: str = ""
    """Also write the official zip of test answers of the one system in --runs to this path."""
    fill_missing: bool = False
    """Answer with the commonest training answer where the zip lacks a task."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "errors", "0 or more", lambda value: value >= 0)
        if self.fill_missing and not self.submission:
            raise UserError("--fill-missing is for a submission: give --submission FILE.zip too")


PRESETS = {"cpu": {}, "smoke": dict(errors=1), "gpu": {}}


def main(config: Config) -> None:
    whole = runs.Run.open(config, "step4_finetune_glue/evaluate")
    started = time.monotonic()
    found = scoring.find(config.runs)
    runs.write_json(whole.path / "config.json", cli.as_dict(config))  # --resume scores all anew
    if config.submission:
        submit(config, found)

    # Score each run on all its dev splits, and show where it fails
    (whole.path / "result.json").unlink(missing_ok=True)
    scored, encoders = [], {}
    for run in sorted(found, key=lambda run: not run.random):
        task, data = run.task.name, config.data or run.data
        own = score(run, data)
        base = baseline_scores(task, data, tuple(own)) | encoders.get((run.pretrained, task), {})
        scored.append((run, report(run, own, base, config, whole.path)))
        if run.random:
            means = {name: scored[-1][1][name]["value"] for name in base["majority"]}
            encoders[run.pretrained, task] = {figures.RANDOM: means}

    wanted = (*config.compare, *(run.checkpoint for run in found)) if config.compare else ("",)
    table, metrics = glue_table.of(scored, wanted)
    laid_out = table.write(whole.path)
    whole.result(
        step="step4_finetune_glue",
        script="evaluate",
        system=", ".join(sorted({run.system for run in found})),
        preset=config.preset,
        dataset="GLUE",
        split="dev",
        metrics=metrics,
        **laid_out,
        compare_to=[],
        model={"name": ", ".join(sorted({r.values["model"]["name"] for r in found}))},
        tokens=None,
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=None,
        seeds=sorted({seed for run in found for seed in run.values["seeds"]}),
        config=cli.as_dict(config),
    )


def score(run: Finetuned, data: str) -> dict[str, Scored]:
    """Every dev split that the run predicted."""
    splits = [split for split in run.task.dev_splits if run.has(split)]
    if not splits:
        raise UserError(f"{run.folder}: no predictions for {' or '.join(run.task.dev_splits)}")
    read = {split: tasks.read(run.task, split, data) for split in splits}
    return {split: scoring.score(run.logits(rows), rows) for split, rows in read.items()}


def prefix(split: str) -> str:
    """Of the names of MNLI's second dev set's metrics, as in finetune.py's results."""
    return "mismatched_" if split == "dev_mismatched" else ""


@cache
def baseline_scores(name: str, data: str, splits: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Metrics of each baseline, over all splits."""
    task, found = tasks.TASKS[name], {baseline: {} for baseline in baselines.NAMES}
    devs = [tasks.read(task, split, data) for split in splits]
    for dev, each in zip(
        devs, baselines.score(tasks.read(task, "train", data), *devs), strict=True
    ):
        for baseline, scores in each.items():
            found[baseline] |= {prefix(dev.split) + k: value for k, value in scores.items()}
    return found


def report(run, scored: dict[str, Scored], base: dict, config: Config, whole: Path) -> dict:
    """Print one run's scores, draw them, write its result (finetune.py's, and what is new).

    Returns the metrics of that result.
    """
    first = next(iter(scored.values()))
    measured, together = {}, {}
    for split, one in scored.items():
        measured |= {prefix(split) + name: entry for name, entry in one.entries().items()}
        together |= {prefix(split) + name: value for name, value in one.together.items()}
    n = len(run.seeds)
    more = {f"ensemble_{k}": metric(v, unit="%") for k, v in together.items() if n > 1}
    for name, values in base.items():
        more |= {f"{name}_{k}": metric(v, unit="%") for k, v in values.items()}
    more |= scoring.diagnostics(run, config.data or run.data)
    more["collapsed_seeds"] = metric(first.collapsed, n=1, higher_is_better=False)

    pool = ", trained on a small pool or part (low-resource)" * run.low_resource
    print(f"\n{run.system} on {first.rows.told()}, {n} seed{'s' * (n > 1)}{pool}")
    for name, entry in measured.items():
        others = [f"{k.replace('_', ' ')} {v[name]:.2f}" for k, v in base.items() if name in v]
        others += [f"ensemble {together[name]:.2f}"] if n > 1 else []
        print(f"  {name:20}{mean_and_sd(entry, '6.2f'):14}  ({', '.join(others)})")
    for name in (name for name in more if name.startswith("AX_")):
        print(f"  {name.replace('_', ' '):20}{more[name]['value']:6.2f}")
    print(f"  collapsed seeds     {first.collapsed} of {n}")
    errors = f"{figures.confusion_text(first)}\n\n{figures.errors_text(first, config.errors)}\n"
    print(errors)

    out = whole / f"{slug(run.system)}-{slug(run.task.name)}"
    out.mkdir(exist_ok=True)
    low = " (low-resource)" * run.low_resource
    title = f"{run.label} on {run.task.name} {first.rows.split}{low}"
    figures.draw(out / "curves.png", title, first, base)
    runs.write_text(out / "errors.txt", errors)
    words = (*config.compare, run.checkpoint)
    compared = glue_table.compared(run.task.name, measured, words)
    alike = not (run.low_resource or run.random)
    added = {"compare_to": compared if alike else [], "scored_by": cli.command()}
    runs.write_json(out / "result.json", run.values | {"metrics": measured | more} | added)
    return measured | more


def submit(config: Config, found: list[Finetuned]) -> None:
    """Write the zip of test answers, each task's from its seeds together."""
    if len(names := sorted({run.system for run in found})) > 1:
        raise UserError(f"--submission takes one system, and --runs holds: {', '.join(names)}")
    answers = submission.collect(found, config.data)
    if config.fill_missing:
        filled = submission.fill(answers, config.data or found[0].data)
        print(f"answered with the majority: {', '.join(filled) or 'nothing'}")
    print(f"submission: {submission.write(Path(config.submission), answers)}")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
