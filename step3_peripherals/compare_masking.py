"""What to mask, how much of it, and what to show instead: a small BERT for every answer.

python step3_peripherals/compare_masking.py                    four masks, minutes on 2 cores
python step3_peripherals/compare_masking.py --preset full      all twelve, three seeds each
python step3_peripherals/compare_masking.py --variants base rate_40 span --seeds 5 --out DIR

Every mask trains a BERT (masked language model alone) with the same compute on the same batches in
the same order: where more is masked a step costs more, and there are fewer of them. All are scored
on held-out documents with 15 % masked, whatever they were trained with: once for each thing that
can stand in the place of a token, and as BERT mixes them; and by fine-tuning on labelled sentences.
With --resume, trainings that were done are not done again.

Target of the cpu preset: at the exam of 15 % with [MASK] shown, a model trained with 40 % masked is
better by 0.5 nats or more than one trained with 15 %.
"""

from dataclasses import dataclass

from common import cli, report, runs
from common.cli import UserError
from common.runs import metric
from step1_transformer import resuming
from step2_bert import objective
from step3_peripherals import masking_table, paired
from step3_peripherals.bert_study import StudyConfig, effort, train_all
from step3_peripherals.masking_study import MaskingStudy
from step3_peripherals.masking_table import SCORES, VARIANTS
from step3_peripherals.paired import BASE


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
    study = MaskingStudy(config)
    resuming.record(run, study.train.source)

    # Train
    names = list(dict.fromkeys((BASE, *config.variants)))
    found, trained = train_all(run, config, study, {name: VARIANTS[name] for name in names})

    # Compare
    metrics, differences = paired.summary(found, SCORES)
    paper = paired.reported(masking_table.PAPER)
    rows = paired.rows(metrics, differences, SCORES, paper, masking_table.title_of)
    steps = {name: study.steps(VARIANTS[name], config) for name in names}
    frequencies = objective.baseline_metrics(study.train, study.heldout)["mlm_loss"]
    notes = [paired.note(metrics, SCORES), *masking_table.notes(steps, frequencies["value"])]
    told = "\n".join(notes)
    print(f"\n{report.columns(rows)}\n{told}")
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
        | {f"accuracy {name}": entry for name, entry in baseline.items()}
        | {"mlm_loss word_frequencies": frequencies},
        differences=differences,
        scores_per_seed=found,
        table={"rows": rows, "notes": notes},
        paper=paper,
        compare_to=[],
        model={"name": f"BERT-{config.size}", "parameters": study.parameters},
        **effort(trained),
        seeds=list(range(config.seed, config.seed + config.seeds)),
        config=cli.as_dict(config),
    )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
