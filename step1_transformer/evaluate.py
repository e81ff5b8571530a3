"""Score trained translators on the whole dev or test split of their data.

python step1_transformer/evaluate.py --model runs/step1_transformer/train-cpu/model
python step1_transformer/evaluate.py --model seed0/model seed1/model seed2/model     mean and sd
python step1_transformer/evaluate.py --model DIR --ladder                what averaging is worth
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from common import cli, data, runs
from common.cli import UserError
from step1_transformer import averaging, checkpoint, decoding, objective, scores
from step1_transformer import tokenizer as bpe
from step1_transformer.corpus import Corpus
from step1_transformer.model import Transformer


@dataclass
class Config(cli.RunConfig):
    model: tuple[str, ...] = (checkpoint.default_model(),)
    """Models to score, with their tokenizers: several seeds of one training give mean and sd."""
    data: str = ""
    """Prepared data; empty: what train.py trained the model on."""
    split: Literal["dev", "test"] = "test"
    """Split to score."""
    beam_size: int = 4
    """Hypotheses of the beam search, which is scored beside greedy search."""
    length_penalty: float = 0.6
    """How much length is made up for in the beam; 0: not at all."""
    ladder: bool = False
    """Score the last weights of the training too, and the average of its last snapshots; the
    model is one of them, or the best single snapshot, whichever had the lowest loss on dev."""
    sentences: int | None = None
    """Translate the first so many only; perplexity stays that of the whole split."""
    examples: int = 5
    """Sentences to show: source, ours and reference."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "beam_size", "2 or more", lambda value: value >= 2)
        cli.check(self, "length_penalty", "0 or more", lambda value: value >= 0)
        cli.check(self, "sentences", "above 0", lambda value: value > 0)
        if not self.model:
            raise UserError("--model: name a directory at least")


PRESETS = {"smoke": dict(sentences=32, examples=2), "cpu": {}, "gpu": {}}


def main(config: Config) -> None:
    name = f"{Path(config.model[0]).parent.name}-{config.split}{'-ladder' * config.ladder}"
    run = runs.Run.open(config, f"step1_transformer/evaluate-{name}")
    if run.finished():
        return
    corpus = Corpus.open(config.data or training_data(config.model), config.split)
    data.record(run.path, corpus.source)
    sources, references = (corpus.text(side)[: config.sentences] for side in ("source", "target"))

    # Every model: perplexity of the whole split, then greedy and beam search
    started = time.monotonic()
    found, parameters, ours = [], 0, []
    for path in config.model:
        model, tokenizer = open_model(path, corpus)
        parameters = sum(p.numel() for p in model.parameters())
        held = objective.metrics(objective.heldout_scores(model, corpus))
        here, ours = search(config, model, tokenizer, sources, references)
        here |= {name: entry["value"] for name, entry in held.items()}
        if config.ladder:
            for rung, weights in ladder(path).items():
                model.load_state_dict(weights)
                scored, _ = search(config, model, tokenizer, sources, references)
                here |= {f"{rung}_{name}": value for name, value in scored.items()}
        found.append(here)
        kept = beside(path, "result.json").get("chosen", "weights of unknown origin")
        line = f"BLEU {here['bleu']:.2f}, perplexity {here['perplexity']:.2f}"
        runs.say(f"{path} ({kept}): {line}")
    copied, signatures = scores.of_texts(sources, references)
    metrics = scores.over_seeds(found)
    metrics |= scores.over_seeds([{f"copy_{name}": value for name, value in copied.items()}])

    # Show, of the last model
    print(scores.table(metrics, f"{len(sources):,} sentences of {config.split}"))
    print("\n".join(signatures))
    samples = scores.samples(sources, ours, references)
    runs.write_text(run.path / "samples.txt", "\n".join(samples))
    print("\n" + "\n".join(samples[: config.examples]))
    run.result(
        step="step1_transformer",
        script="evaluate",
        system=f"Transformer of {config.model[0].removesuffix('/model')}",
        preset=config.preset,
        dataset=f"{corpus.source['name']} {corpus.languages}",
        source=corpus.source,
        split=config.split if config.sentences is None else f"{config.split}, {len(sources)} first",
        metrics=metrics,
        signatures=signatures,
        compare_to=[],
        model={"name": config.model[0], "parameters": parameters},
        tokens=int((corpus.source_lengths + corpus.target_lengths).sum()),
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=round(metrics["tokens_per_second"]["value"]),
        seeds=[beside(model, "config.json").get("seed") for model in config.model],
        chosen=[beside(model, "result.json").get("chosen") for model in config.model],
        config=cli.as_dict(config),
    )


def training_data(models: tuple[str, ...]) -> str:
    """The prepared directory that train.py noted beside each model; UserError unless it is one."""
    noted = {beside(model, "result.json").get("prepared") for model in models}
    if len(noted) > 1:
        raise UserError("the models were not trained on the same data: give --data")
    for model in models:
        checkpoint.check_there(model)
    if None in noted:
        raise UserError(
            f"no note of what {models[0]} was trained on: give --data, a prepared directory"
        )
    return noted.pop()


def beside(model: str, name: str) -> dict:
    """What a file of the run that made the model says; nothing if there is none."""
    try:
        return json.loads((Path(model).parent / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def open_model(path: str, corpus: Corpus) -> tuple[Transformer, bpe.Tokenizer]:
    """A model and its tokenizer; UserError unless that is the tokenizer of the data."""
    model, tokenizer = Transformer.load(path), bpe.load(path)
    objective.check_fit(model, corpus, path)
    if tokenizer.get_vocab() != bpe.load(corpus.tokenizer_dir).get_vocab():
        raise UserError(
            f"{path} and {corpus.folder} have different vocabularies: give --data the directory "
            "that the model was trained on"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def ladder(path: str) -> dict[str, dict[str, torch.Tensor]]:
    """The newest snapshot of the training that made the model, and the average of those that
    train.py would average; UserError if there is none.
    """
    keep = beside(path, "config.json").get("average", 1)
    files = averaging.Snapshots(Path(path).parent / "snapshots", keep).last()
    if not files:
        raise UserError(f"--ladder: {Path(path).parent}/snapshots has no weights to compare with")
    return {"last": averaging.average(files[-1:]), "average": averaging.average(files)}


def search(
    config: Config, model, tokenizer, sources: list[str], references: list[str]
) -> tuple[dict[str, float], list[str]]:
    """Scores and speed of beam search and, as greedy_..., of greedy; the beam's translations."""
    found, translations = {}, []
    for prefix, beam_size in (("", config.beam_size), ("greedy_", 1)):
        started = time.perf_counter()
        written = decoding.translate(
            model, tokenizer, sources, beam_size=beam_size, truncate=True, progress=True,
            length_penalty=config.length_penalty,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        here, _ = scores.of_texts(written, references)
        tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(written))
        here["tokens_per_second"] = tokens / seconds
        found |= {f"{prefix}{name}": value for name, value in here.items()}
        translations = translations or written
    return found, translations


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
