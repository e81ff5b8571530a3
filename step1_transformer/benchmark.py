"""Our Transformer against the one of PyTorch's own modules, side by side in one run.

    python step1_transformer/benchmark.py
    python step1_transformer/benchmark.py --data multi30k --widths 256 --lengths 16
    python step1_transformer/benchmark.py --widths 512 --lengths 128 --precision fp32 --rounds 9

Both have the same weights, and are first held against each other: scores, and the losses of three
training steps. Then four races: the forward pass; a training step (forward, label-smoothed loss,
backward, clip, AdamW) on rows of one length; the same on real sentences, shuffled and padded or in
length buckets; and greedy decoding, where nn.Transformer has to compute the whole prefix for each
token. Systems take turns; a ratio is the median over the rounds, with the least and the largest.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from common import batching, cli, data, engine, runs
from common.cli import UserError
from common.runs import metric
from step1_transformer import corpus, decoding, rivals
from step1_transformer.corpus import Corpus, PrepareOptions
from step1_transformer.race import Race, draw, table, take_turns

LARGEST_DIFFERENCE = {"fp32": 1e-4, "bf16": 0.2}  # scores have a standard deviation of 1
GOALS = {"training step": 1.0, "real lengths": 1.3, "decoding": 10.0}  # times as fast, at least


@dataclass
class Config(cli.RunConfig):
    data: str = "kjv-bbe"
    """Where real sentences come from: all that train.py takes, or a prepared directory."""
    widths: tuple[int, ...] = (128, 256, 512)
    """d_model of the models in the first two races."""
    lengths: tuple[int, ...] = (16, 64, 128)
    """Tokens of each side's rows in the first two races."""
    width: int = 256
    """d_model on real lengths and in decoding."""
    layers: int = 2
    """Layers of the encoder, and of the decoder."""
    vocab_size: int = 8192
    """Size of the joint vocabulary."""
    dropout: float = 0.1
    """Dropout of all systems."""
    batch_tokens: int = 1024
    """Tokens of each side in a batch; on real lengths their mean, without padding."""
    batches: int = 16
    """Batches of real sentences."""
    sentences: int = 16
    """Rows that are decoded together."""
    new_tokens: int = 128
    """Tokens that decoding writes."""
    precision: Literal["fp32", "bf16", "both"] = "both"
    """Precision of all systems; bf16 is autocast."""
    rounds: int = 5
    """Times that the systems take turns."""
    seconds: float = 0.2
    """Length of a turn (s); a call is never cut short."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "layers", "batch_tokens", "batches", "sentences", "new_tokens",
                     "rounds", "seconds"):  # fmt: skip
            cli.check(self, name, "above 0", lambda value: value > 0)
        for name, least in (("widths", 2), ("lengths", 1)):
            cli.check(self, name, f"{least} or more", lambda v, n=least: v and min(v) >= n)
        for width in (*self.widths, self.width):
            if width % rivals.heads(width):
                raise UserError(f"width {width} is not a multiple of {rivals.heads(width)} heads")


PRESETS = {
    "smoke": dict(data="copy", vocab_size=300, widths=(32, 64), lengths=(4, 16), width=32, layers=1,
                  batch_tokens=64, batches=4, sentences=2, new_tokens=8, rounds=2, seconds=0.01),
    "cpu": {},
    "gpu": dict(widths=(256, 512, 1024), width=512, layers=6, batch_tokens=16_384, sentences=64),
}  # fmt: skip


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step1_transformer/benchmark-{config.preset}")
    if run.finished():
        return
    started, device = time.monotonic(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = PrepareOptions(config.data, "", "", config.vocab_size)
    train = Corpus.open(corpus.prepared(options, Path("runs/step1_transformer")))
    data.record(run.path, train.source | {"languages": train.languages}, "data_source")
    precisions = ("fp32", "bf16") if config.precision == "both" else (config.precision,)
    course = Course(config, device, train)
    largest, races = {}, []
    for precision in precisions:
        for width in sorted({*config.widths, config.width}):
            largest[f"{precision}, width {width}"] = course.difference(width, precision)
    for precision in precisions:
        for width in config.widths:
            for length in config.lengths:
                races += [r(width, length, precision) for r in (course.forward, course.training)]
    for precision in precisions:
        races += [course.real_lengths(precision), course.decoding(precision)]

    print("\nlargest difference of scores and losses")
    for name, value in largest.items():
        print(f"  {name:20} {value:.1e}")
    print(f"\n{table(races)}\n")
    metrics = {}
    for what, goal in GOALS.items():
        slowest = min((race for race in races if race.what == what), key=Race.ratio)
        told = "reached" if slowest.ratio() >= goal else "not reached"
        where = f"{slowest.ratio():.2f}x at {slowest.place}"
        print(f"{what + ', slowest:':25} {where}, goal {goal:g}x: {told}")
        ratio = metric(slowest.ratio(), n=config.rounds, unit="x")
        metrics[f"slowest_{what.replace(' ', '_')}"] = ratio
    for race in races:
        for name in list(race.seconds)[1:]:
            key = f"{race.what}, {race.place}, {name}".replace(", ", "/").replace(" ", "_")
            metrics[key] = metric(race.ratio(name), sd=race.sd(name), n=config.rounds, unit="x")
    draw(races, GOALS, run.path / "curves.png")
    runs.write_json(run.path / "rounds.json", [vars(race) for race in races])
    print(f"\nrounds: {run.path}/rounds.json\nfigure: {run.path}/curves.png")
    run.result(
        step="step1_transformer",
        script="benchmark",
        system="our Transformer against nn.Transformer",
        preset=config.preset,
        dataset=f"random tokens; {train.source['name']} {train.languages}",
        source=train.source,
        split="train",
        metrics=metrics,
        largest_difference=largest,
        compare_to=[],
        model={"name": f"{config.layers} + {config.layers} layers", "parameters": None},
        tokens=None,
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=None,
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


@dataclass
class Course:
    """The four races, and the proof that they are fair."""
