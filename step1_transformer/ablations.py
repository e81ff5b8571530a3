"""Which parts of the Transformer matter? One change at a time (Table 3 of the paper).

    python step1_transformer/ablations.py --parallel 2                  King James to basic English
    python step1_transformer/ablations.py --data multi30k --source de --target en --size small

The base is the paper's: sinusoidal positions, label smoothing 0.1, 8 heads, post-norm. Each variant
differs from it in one of these and is trained once a seed, by train.py, for the same steps on the
same batches in the same order. A seed's difference to the base is that to the base of this seed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from common import cli, runs, subruns
from common.cli import UserError
from step1_transformer import corpus, decoding, resuming, scores, settings, table3
from step1_transformer import tokenizer as bpe
from step1_transformer.corpus import Corpus, PrepareOptions
from step1_transformer.model import Transformer

SCRIPT = Path(__file__).resolve().parent / "train.py"
TAKEN = {*table3.BASE, "out", "resume", "seed", "preset", "data", "size", "max_steps", "max_tokens",
         "learning_rate", "precision", "slice_minutes"}  # fmt: skip


@dataclass
class Config(cli.RunConfig):
    data: str = "kjv-bbe"
    """Data as train.py takes it: a name, a folder, files, or prepared."""
    source: str = ""
    """Language to translate from; empty: the data's usual one."""
    target: str = ""
    """Language to translate to; empty: the data's usual one."""
    vocab_size: int = 8192
    """Size of the joint byte-level BPE vocabulary."""
    variants: tuple[str, ...] = tuple(table3.VARIANTS)
    """What to train beside the base."""
    size: str = "tiny"
    """Shape of the model; it has the heads of the variant."""
    max_steps: int = 1000
    """Optimizer steps of each training."""
    max_tokens: int = 4096
    """Tokens in an optimizer step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products, the same for all."""
    settings: tuple[str, ...] = ()
    """More flags of train.py for every training, as in: dropout=0.3 n-layers=3."""
    sentences: int | None = None
    """Translate the first so many only; perplexity stays that of the whole split."""
    seeds: int = 3
    """Trainings of each variant."""
    parallel: int = 1
    """Trainings at a time; they share the cores and the GPUs."""
    slice_minutes: float | None = None
    """Stop with checkpoints and exit code 75 after this many minutes; --resume goes on."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "parallel", "max_steps", "sentences", "slice_minutes"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        for name in self.variants:
            if name not in table3.VARIANTS:
                raise UserError(f"no variant {name!r}; there are: {', '.join(table3.VARIANTS)}")
        settings.check(self, "dropout=0.3", TAKEN)


PRESETS = {
    "smoke": dict(variants=("label_smoothing_0",), seeds=2, max_steps=10, max_tokens=512,
                  vocab_size=1000, sentences=8, settings=("n-layers=1", "d-model=32")),
    "cpu": {},
    "gpu": dict(size="small", max_steps=5000, max_tokens=16_384, precision="bf16"),
}  # fmt: skip
FREE = {"variants", "seeds", "parallel", "slice_minutes"}


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step1_transformer/ablations-{config.preset}")
    if run.finished():
        return
    resuming.check(run.path, cli.as_dict(config), FREE)
    options = PrepareOptions(config.data, config.source, config.target, config.vocab_size)
    prepared = corpus.prepared(options, Path("runs/step1_transformer"))

    # Train and translate: what is done is never done again. Seeds outside: all that was begun
    # can be compared when time is up early
    names = ("base", *(name for name in config.variants if name != "base"))
    seeds = range(config.seed, config.seed + config.seeds)
    todo = [(name, run.path / name / f"seed-{seed}", seed) for seed in seeds for name in names]
    budget = subruns.Slice(config.slice_minutes)
    with resuming.tells_how(run.path):
        commands = trainings(config, prepared, todo, budget)
        subruns.call_all(commands, at_once=config.parallel, quiet=config.parallel > 1)
        found = {name: [] for name in names}
        for name, folder, seed in todo:
            new = not (folder / "scores.json").exists()
            found[name].append(score(folder, prepared, config.sentences))
            told = ", ".join(f"{n} {found[name][-1][n]:.2f}" for n in table3.SCORES)
            runs.say(f"{name} seed {seed}: {told}")
            if new and budget.over() and folder != todo[-1][1]:
                raise cli.Interrupted(0, "the slice is over")

    # Compare
    metrics = {name: scores.over_seeds(found[name]) for name in names}
    differences = {name: table3.differences(found[name], found["base"]) for name in names[1:]}
    paper = {name: table3.reported(name) for name in names[1:]}
    for split in ("test", "dev"):
        print(f"\n{table3.table(metrics, differences, paper, split)}")
    table3.plot(metrics, paper, run.path / "curves.png")
    print(f"\nfigure: {run.path}/curves.png")
    trained = [json.loads((folder / "result.json").read_text()) for _, folder, _ in todo]
    seconds, tokens = resuming.seconds_of(trained), sum(one["tokens"] for one in trained)
    run.result(
        step="step1_transformer",
        script="ablations",
        system=f"Transformer-{config.size} and variants",
        preset=config.preset,
        dataset=trained[0]["dataset"],
        source=trained[0]["source"],
        split="test",
        metrics={
            f"{prefix}{score} {name}": metrics[name][f"{prefix}{score}"]
            for prefix in ("", "dev_")
            for score in table3.SCORES
            for name in names
        },
        differences=differences,
        paper=paper,
        compare_to=[],
        model=trained[0]["model"],
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=round(tokens / max(seconds, 1e-9)),
        seeds=list(seeds),
        config=cli.as_dict(config),
    )


def trainings(
    config: Config, prepared: Path, todo: list, budget: subruns.Slice
) -> Iterator[list[str]]:
    """The commands of all trainings that are not finished."""
    for name, folder, seed in todo:
        if (folder / "result.json").exists():
            continue
        flags = settings.flags(config)
        own = table3.BASE | table3.VARIANTS.get(name, {})
        own |= dict(size=config.size, max_steps=config.max_steps, seed=seed)
        own |= dict(max_tokens=config.max_tokens, learning_rate=config.learning_rate)
        own |= dict(precision=config.precision, data=prepared)
        own |= dict(preset="gpu" if config.preset == "gpu" else "cpu")
        if minutes := budget.left():
            own["slice_minutes"] = minutes
        flags = ["--out", folder, "--resume", *flags]
        print(f"$ train.py --out {folder}", flush=True)
        yield subruns.command_of(SCRIPT, *flags, **own)


def score(folder: Path, prepared: Path, sentences: int | None) -> dict[str, float]:
    """Perplexity, and BLEU of greedy search, of the model in a run of train.py, on test and dev."""
    kept = folder / "scores.json"
    if not kept.exists():
        trained = json.loads((folder / "result.json").read_text())["metrics"]
        model, tokenizer = Transformer.load(folder / "model"), bpe.load(folder / "model")
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        found = {}
        for prefix, split in (("", "test"), ("dev_", "dev")):
            text = Corpus.open(prepared, split).text
            sources, references = (text(side)[:sentences] for side in ("source", "target"))
            written = decoding.translate(model, tokenizer, sources, beam_size=1, truncate=True)
            bleu, _ = scores.of_texts(written, references)
            bleu["perplexity"] = trained[f"{prefix}perplexity"]["value"]
            found |= {f"{prefix}{name}": bleu[name] for name in table3.SCORES}
        runs.write_json(kept, found)
    return json.loads(kept.read_text())


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
