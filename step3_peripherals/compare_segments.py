"""What an input is made of, and what a pair is asked: a small BERT for each of six answers.

python step3_peripherals/compare_segments.py                    two formats, minutes on 2 cores
python step3_peripherals/compare_segments.py --preset full      all six, three seeds each

RoBERTa's four formats (Liu et al. 2019, table 2), ALBERT's question of order in place of BERT's
(Lan et al. 2020, table 5), and BERT's pairs without any question. A step has the same number of
tokens in each, and all start from the same word vectors, counted as step 2 counts them. All are
scored on the same held-out documents: on inputs from one document, as long as fit, on pairs of
single sentences, and by fine-tuning on labelled sentences. With --resume, trainings that were done
are not done again.

Target of the cpu preset: of two models, trained on pairs of single sentences and on whole
documents, each is the better one on its own kind of input, by 0.1 nats or more on both together.
"""

from dataclasses import dataclass

from common import cli, report, runs
from common.cli import UserError
from common.runs import metric
from step1_transformer import resuming
from step3_peripherals import paired
from step3_peripherals.bert_study import StudyConfig, effort, train_all
from step3_peripherals.paired import BASE
from step3_peripherals.segment_study import FORMATS, SegmentStudy


@dataclass
class Config(StudyConfig):
    variants: tuple[str, ...] = tuple(FORMATS)
    """Formats to train with; base, BERT's own, is always among them."""
    rate: float = 0.4
    """Share of the tokens to predict in training; scored are 15 %."""
    seeds: int = 3
    """Trainings of each format, with seeds seed, seed + 1, ..."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "seeds", "above 0", lambda value: value > 0)
        for name in self.variants:
            if name not in FORMATS:
                raise UserError(f"no format {name!r}; there are: {', '.join(FORMATS)}")


SCORES = {  # name: (title, unit, higher is better)
    "long_loss": ("MLM loss, long inputs", "nats", False),
    "short_loss": ("MLM loss, two sentences", "nats", False),
    "pair_accuracy": ("pairs answered", "%", True),
    "accuracy": ("downstream accuracy", "%", True),
}
PAPER = {  # ids of reported_numbers.csv: of the format, and of what its paper holds it against
    "sentence_pairs": ("roberta-sentence-pair-nsp", "roberta-segment-pair-nsp"),
    "full_sentences": ("roberta-full-sentences-no-nsp", "roberta-segment-pair-nsp"),
    "doc_sentences": ("roberta-doc-sentences-no-nsp", "roberta-segment-pair-nsp"),
    "segment_pairs_sop": ("albert-base-sop", "albert-base-nsp"),
    "segment_pairs_mlm": ("albert-base-mlm-only", "albert-base-nsp"),
}
PAPER = {name: tuple(f"{one}-mnli-m-dev-accuracy" for one in pair) for name, pair in PAPER.items()}
TARGET = 0.1

TRAINING = dict(batch_size=16, micro_batch_size=1024, max_seq_len=128, vocab_size=2048,
                optimizer="muon", learning_rate=2e-3, muon_learning_rate=0.01)  # fmt: skip
PRESETS = {
    "smoke": TRAINING | dict(variants=("doc_sentences",), seeds=1, max_steps=5, vocab_size=1024,
                             downstream="", data="sotu", max_seq_len=32),
    "cpu": TRAINING | dict(variants=("sentence_pairs", "doc_sentences"), seeds=1, max_steps=2000),
    "full": TRAINING | dict(max_steps=3000),
    "gpu": TRAINING | dict(size="mini", batch_size=128, micro_batch_size=8192, max_seq_len=256,
                           vocab_size=8192, learning_rate=1e-3, max_steps=5000, precision="bf16"),
}  # fmt: skip
FREE = {"slice_minutes", "save_minutes"}
MORE = {"variants", "seeds"}


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step3_peripherals/segments-{config.preset}")
    if resuming.finished(run, config, free=FREE, more=MORE):
        return
    if config.max_steps is None or config.max_minutes:
        raise UserError("--max-minutes would train some formats longer: give --max-steps")
    study = SegmentStudy(config, config.rate)
    resuming.record(run, study.train.source)

    # Train
    names = list(dict.fromkeys((BASE, *config.variants)))
    found, trained = train_all(run, config, study, {name: FORMATS[name] for name in names})

    # Compare
    metrics, differences = paired.summary(found, SCORES)
    paper = paired.reported(PAPER)
    rows = paired.rows(metrics, differences, SCORES, paper, title_of)
    note = paired.note(metrics, SCORES)
    print(f"\n{report.columns(rows)}\n{note}")
    baseline = {k: metric(v, unit="%") for k, v in study.baseline.items()}
    for name, entry in baseline.items():
        print(f"{runs.words(name)}: {entry['value']:.1f} % downstream")
    paired.plot(metrics, SCORES, paper, title_of, run.path / "curves.png")
    print(f"figure: {run.path}/curves.png\n{target(metrics)}".rstrip())
    run.result(
        trained,
        step="step3_peripherals",
        script="compare_segments",
        system=f"BERT-{config.size} by input format",
        preset=config.preset,
        dataset=study.train.source["name"],
        source=study.train.source,
        split="heldout",
        metrics={
            f"{score} {name}": entries[score]
            for score in SCORES
            for name, entries in metrics.items()
            if score in entries
        }
        | {f"accuracy {name}": entry for name, entry in baseline.items()},
        differences=differences,
        scores_per_seed=found,
        table={"rows": rows, "notes": [note]},
        paper=paper,
        compare_to=[],
        model={"name": f"BERT-{config.size}", "parameters": study.parameters},
        **effort(trained),
        seeds=list(range(config.seed, config.seed + config.seeds)),
        config=cli.as_dict(config),
    )


def title_of(name: str) -> str:
    return FORMATS[name].title


def target(metrics: paired.Entries) -> str:
    """What the cpu preset is to show, and whether it did."""
    short, long = (metrics.get(name, {}) for name in ("sentence_pairs", "doc_sentences"))
    if not short or not long:
        return ""
    on_long = short["long_loss"]["value"] - long["long_loss"]["value"]
    on_short = long["short_loss"]["value"] - short["short_loss"]["value"]
    reached = min(on_long, on_short) > 0 and on_long + on_short >= TARGET
    told = f"whole documents are better on long inputs by {on_long:.2f} nats, sentence pairs on two"
    told += f" sentences by {on_short:.2f}, together {on_long + on_short:.2f} (>= {TARGET})"
    return f"target {'reached' if reached else 'missed'}: {told}"


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
