"""Train short, test long: every position scheme on the same text (Press et al. 2022).

    python step3_peripherals/compare_positions.py --preset full         longer, three seeds: an hour
    python step3_peripherals/compare_positions.py --schemes alibi rope --seeds 3
    python step3_peripherals/compare_positions.py --data enwiki --max-documents 2000

The same small language model is trained once a scheme and seed, by train_lm.py, for the same steps
on the same batches in the same order, in rows of 128 tokens. All are scored on the same held-out
text, in rows of 128 to 1,024.

Target of the cpu preset: ALiBi's perplexity at 1,024 is at most 1.1 times that at 128.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import cli, report, runs, subruns
from common.cli import UserError
from step1_transformer import resuming, settings
from step3_peripherals import extrapolation, stream
from step3_peripherals.positions import SCHEMES

SCRIPT = Path(__file__).resolve().parent / "train_lm.py"
SAME = ("data", "max_documents", "heldout_every", "vocab_size", "max_seq_len", "max_steps",
        "batch_size", "learning_rate", "precision", "cache")  # fmt: skip
TAKEN = {*SAME, "out", "resume", "seed", "positions", "score_lengths", "optimizer", "preset",
         "micro_batch_size", "eval_every", "slice_minutes", "max_minutes"}  # fmt: skip
TARGET = 1.1  # ALiBi's perplexity at the longest rows, at most, as a multiple of that as trained


@dataclass
class Config(cli.RunConfig):
    data: str = "sotu"
    """Text to train on: a name, a file or a folder."""
    max_documents: int | None = None
    """Read the first so many documents only."""
    heldout_every: int = 40
    """Each so-many-th document is held out."""
    vocab_size: int = 2048
    """Size of the byte-level BPE vocabulary, which is trained on the same text."""
    schemes: tuple[str, ...] = tuple(SCHEMES)
    """What to compare."""
    max_seq_len: int = 128
    """Tokens in a row of training."""
    score_lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Tokens in a row of scoring, max_seq_len among them."""
    max_steps: int = 400
    """Optimizer steps of each training."""
    batch_size: int = 16
    """Rows in an optimizer step."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, which has the embeddings; Muon has the matrices."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products, the same for all."""
    settings: tuple[str, ...] = ()
    """More flags of train_lm.py for every training, as in: d-model=256 n-layers=4."""
    seeds: int = 1
    """Trainings of each scheme."""
    parallel: int = 1
    """Trainings at a time; they share the cores and the GPUs."""
    cache: str = "runs/step3_peripherals"
    """Where vocabularies and token streams are kept for the next run."""
    slice_minutes: float | None = None
    """Stop with checkpoints and exit code 75 after this many minutes; --resume goes on."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "parallel", "max_steps", "slice_minutes"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        cli.check(self, "score_lengths", "above 0", lambda lengths: all(n > 0 for n in lengths))
        cli.check(self, "schemes", "one name or more", lambda names: len(names) > 0)
        for name in self.schemes:
            if name not in SCHEMES:
                raise UserError(f"no scheme {name!r}; there are: {', '.join(SCHEMES)}")
        if self.max_seq_len not in self.score_lengths:
            raise UserError(f"--score-lengths must have that of training, {self.max_seq_len}")
        settings.check(self, "d-model=256", TAKEN)


PRESETS = {
    "smoke": dict(
        schemes=("learned", "alibi"), seeds=2, max_steps=5, batch_size=4, vocab_size=300,
        max_documents=50, max_seq_len=32, score_lengths=(32, 64),
        settings=("n-layers=1", "d-model=32"),
    ),
    "cpu": dict(max_steps=250, parallel=2),
    "full": dict(seeds=3, parallel=2),
    "gpu": dict(
        seeds=3, max_steps=5000, batch_size=128, learning_rate=1e-3, vocab_size=16_384,
        data="wikitext-103", precision="bf16",
        settings=("n-layers=6", "n-heads=8", "d-model=512", "d-ff=2048"),
    ),
}  # fmt: skip
FREE = {"parallel", "cache", "slice_minutes"}
MORE = {"schemes", "seeds"}


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step3_peripherals/compare-positions-{config.preset}")
    if resuming.finished(run, config, free=FREE, more=MORE):
        return

    # Data: once, before several trainings want it at a time
    options = stream.StreamOptions(config.max_documents, config.heldout_every)
    tokenizer = stream.byte_level_bpe(config.data, config.vocab_size, config.cache, options)
    separator = tokenizer.token_to_id(stream.SEPARATOR)
    text = stream.prepare(config.data, tokenizer, separator, Path(config.cache), options)
    resuming.record(run, text.manifest["source"])

    # Train: what is done is never done again; seeds outside, so that all can be compared early
    seeds = range(config.seed, config.seed + config.seeds)
    todo = [(n, run.path / n / f"seed-{seed}", seed) for seed in seeds for n in config.schemes]
    with resuming.tells_how(run.path):
        commands = trainings(config, todo, subruns.Slice(config.slice_minutes))
        subruns.call_all(commands, at_once=config.parallel, quiet=config.parallel > 1)

    # Compare
    found, curves = {name: [] for name in config.schemes}, {name: [] for name in config.schemes}
    for name, folder, _ in todo:
        found[name].append(resuming.read(folder / "result.json"))
        curves[name].append(runs.Run(folder).metrics())
    lengths = tuple(sorted(config.score_lengths))
    perplexity, bits = (
        {name: extrapolation.over_seeds(found[name], kind, lengths) for name in found}
        for kind in ("perplexity", "bits per byte")
    )
    speed = {n: statistics.median(one["tokens_per_second"] for one in found[n]) for n in found}
    paper = extrapolation.reported()
    losses = {name: extrapolation.training_loss(each) for name, each in curves.items()}
    table = extrapolation.table(perplexity, losses, speed, config.max_seq_len, paper)
    print(f"\n{report.columns(table)}")
    if paper:
        print(f"\n{extrapolation.paper_table(paper)}")
    extrapolation.plot(perplexity, paper, curves, config.max_seq_len, run.path / "curves.png")
    print(f"\nfigure: {run.path}/curves.png")
    if "alibi" in found:
        reached = extrapolation.growth(perplexity["alibi"], config.max_seq_len)
        told = "reached" if reached <= TARGET else "missed"
        print(
            f"target {told}: ALiBi at the longest rows, {reached:.3f} of as trained (<= {TARGET})"
        )
    trained = [one for several in found.values() for one in several]
    run.result(
        trained,
        step="step3_peripherals",
        script="compare_positions",
        system="language model, by position scheme",
        preset=config.preset,
        dataset=config.data,
        source=text.manifest["source"],
        split="heldout",
        metrics={
            f"{kind} of {name} at {length}": entry
            for kind, scores in (("perplexity", perplexity), ("bits per byte", bits))
            for name in found
            for length, entry in scores[name].items()
        }
        | {f"training loss of {name}": entry for name, entry in losses.items()},
        table={"rows": table},
        paper={f"{n} trained at {length}": values for (n, length), values in paper.items()},
        compare_to=[],
        model=trained[0]["model"],
        heldout_tokens=trained[0]["heldout_tokens"],
        tokens=sum(one["tokens"] for one in trained),
        seconds=resuming.seconds_of(trained),
        tokens_per_second=round(statistics.median(speed.values())),
        precision=config.precision,
        seeds=list(seeds),
        config=cli.as_dict(config),
    )


def trainings(config: Config, todo: list, budget: subruns.Slice) -> Iterator[list[str]]:
    """The commands of all trainings that are not finished."""
    same = {n: value for n in SAME if (value := getattr(config, n)) is not None}
    same |= dict(optimizer="muon", micro_batch_size=config.batch_size, preset="cpu")
    same |= dict(eval_every=config.max_steps)  # it is scored at all lengths afterwards
    for number, (name, folder, seed) in enumerate(todo, 1):
        if (folder / "result.json").exists():
            continue
        if minutes := budget.left():
            same["slice_minutes"] = minutes
        flags = ["--out", folder, "--resume", *settings.flags(config)]
        flags += ["--score-lengths", *config.score_lengths]
        told = f"$ train_lm.py --positions {name} --seed {seed}"
        print(f"{number} of {len(todo)}: {told}", flush=True)
        yield subruns.command_of(SCRIPT, *flags, **same, positions=name, seed=seed)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
