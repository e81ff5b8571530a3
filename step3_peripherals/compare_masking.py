"""What to mask, how much of it, and what to show instead: a small BERT for every answer.

python step3_peripherals/compare_masking.py                    four masks, minutes on 2 cores
python step3_peripherals/compare_masking.py --preset full      all twelve, three seeds each
python step3_peripherals/compare_masking.py --variants base rate_40 span --seeds 5 --out DIR

Every mask trains a BERT (masked language model alone) for the same steps on the same batches in the
same order. All are scored on held-out documents with 15 % masked, 80/10/10, whatever they were
trained with, and again with [MASK] alone; and by fine-tuning on labelled sentences. With --resume,
trainings that were done are not done again.

Target of the cpu preset: a model that was trained on random tokens alone, never on [MASK], is worse
than the base by 0.1 nats or more where all are scored alike, at 80/10/10.
"""

import dataclasses
from dataclasses import dataclass

from common import cli, data, report, runs, subruns
from common.cli import UserError
from common.runs import metric
from step1_transformer import resuming
from step3_peripherals import masking_table
from step3_peripherals.masking_study import Study, StudyConfig
from step3_peripherals.masking_table import BASE, VARIANTS


@dataclass
class Config(StudyConfig):
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Masks to train with; base is always among them."""
    seeds: int = 3
    """Trainings of each variant, with seeds seed, seed + 1, ..."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "seeds", "above 0", lambda value: value > 0)
        for name in self.variants:
            if name not in VARIANTS:
                raise UserError(f"no variant {name!r}; there are: {', '.join(VARIANTS)}")


# Few pieces, short rows and small batches: the sooner a model looks at more than word frequencies
TRAINING = dict(batch_size=16, micro_batch_size=16, max_seq_len=64, vocab_size=2048,
                optimizer="muon", learning_rate=2e-3, muon_learning_rate=0.01)  # fmt: skip
PRESETS = {
    "smoke": TRAINING | dict(variants=("span",), seeds=1, max_steps=5, vocab_size=1024,
                             downstream="", data="sotu", max_seq_len=32),
    "cpu": TRAINING | dict(variants=(BASE, "rate_40", "mix_0_0_100", "span"), seeds=1,
                           max_steps=2000),
    "full": TRAINING | dict(max_steps=4000),
    "gpu": TRAINING | dict(size="mini", batch_size=128, micro_batch_size=128, max_seq_len=128,
                           vocab_size=8192, learning_rate=1e-3, max_steps=5000, precision="bf16"),
}  # fmt: skip
FREE = {"slice_minutes", "save_minutes"}
MORE = {"variants", "seeds"}


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step3_peripherals/masking-{config.preset}")
    if resuming.finished(run, config, free=FREE, more=MORE):
        return
    if config.max_steps is None or config.max_minutes:
        raise UserError("--max-minutes would train some masks longer than others: give --max-steps")
    study = Study(config)
    data.record(run.path, study.train.source)

    # Train. Seeds outside: all that was begun can be compared when time is up early
    names = list(dict.fromkeys((BASE, *config.variants)))
    seeds = range(config.seed, config.seed + config.seeds)
    found, totals, trained = {name: [] for name in names}, dict(tokens=0, seconds=0.0), []
    budget = subruns.Slice(config.slice_minutes)
    for seed in seeds:
        for name in names:
            folder = run.path / name / f"seed-{seed}"
            settings = dict(seed=seed, seeds=1, variants=(name,), out=str(folder), resume=True)
            one = dataclasses.replace(config, **settings, slice_minutes=budget.left())
            try:
                kept = study.scores(one, VARIANTS[name])
            except cli.Interrupted as stop:  # it tells how to go on with this training alone
                told = f"stopped in {folder}; go on with:\n{cli.resume_command(run.path)}"
                raise cli.Interrupted(stop.signum, told) from None
            found[name].append(kept["scores"])
            trained.append(kept)
            totals = {part: total + kept[part] for part, total in totals.items()}
            told = ", ".join(f"{score} {value:.3f}" for score, value in kept["scores"].items())
            runs.say(f"{name} seed {seed}: {told}")

    # Compare
    metrics, differences = masking_table.summary(found)
    paper = masking_table.reported()
    rows, note = masking_table.rows(metrics, differences, paper), masking_table.note(metrics)
    print(f"\n{report.columns(rows)}\n{note}")
    baseline = {k: metric(v, unit="%") for k, v in study.baseline.items()}
    for name, entry in baseline.items():
        print(f"{runs.words(name)}: {entry['value']:.1f} % downstream")
    masking_table.plot(metrics, differences, paper, run.path / "curves.png")
    print(f"figure: {run.path}/curves.png\n{masking_table.target(differences)}".rstrip())
    run.result(
        trained,
        step="step3_peripherals",
        script="compare_masking",
        system=f"BERT-{config.size} by mask",
        preset=config.preset,
        dataset=study.train.source["name"],
        source=study.train.source,
        split="heldout",
        metrics={
            f"{score} {name}": metrics[name][score] for score in metrics[BASE] for name in names
        }
        | {f"accuracy {name}": entry for name, entry in baseline.items()},
        differences=differences,
        table={"rows": rows, "notes": [note]},
        paper=paper,
        compare_to=[],
        model={"name": f"BERT-{config.size}", "parameters": study.parameters},
        tokens=totals["tokens"],
        seconds=round(totals["seconds"], 1),
        tokens_per_second=round(totals["tokens"] / max(totals["seconds"], 1e-9)),
        seeds=list(seeds),
        config=cli.as_dict(config),
    )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
