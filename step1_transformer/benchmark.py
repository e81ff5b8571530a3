"""Our Transformer against one built from PyTorch's own modules, side by side in one run.

    python step1_transformer/benchmark.py
    python step1_transformer/benchmark.py --data multi30k --source de --target en
    python step1_transformer/benchmark.py --widths 512 --lengths 128 --precision fp32 --rounds 9

Both start from the same weights, and are first held against each other: scores, and the losses of
three training steps. Then come the races: the forward pass; a training step (forward, loss,
backward, clip, AdamW) on rows of one length; the same on real sentences, shuffled and padded or in
length buckets; and greedy decoding, where nn.Transformer must compute the whole prefix for each
token. Systems take turns; a ratio is the median over the rounds, and its range stands beside.
"""

import itertools
import time
from pathlib import Path

import torch

from common import cli, data, runs
from common.runs import metric
from step1_transformer import corpus
from step1_transformer.corpus import Corpus, PrepareOptions
from step1_transformer.race import Race, draw, table
from step1_transformer.races import Config, Races

GOALS = {"training step": 1.0, "real lengths": 1.3, "decoding": 10.0}  # times as fast, at least

PRESETS = {
    "smoke": dict(data="copy", vocab_size=300, widths=(32, 64), lengths=(4, 16), width=32, layers=1,
                  batch_tokens=64, batches=4, sentences=2, new_tokens=8, rounds=2, seconds=0.01),
    "cpu": {},
    "gpu": dict(widths=(256, 512, 1024), width=512, layers=6, batch_tokens=16_384, sentences=64,
                precision="bf16"),
}  # fmt: skip


def main(config: Config) -> None:
    run = runs.Run.open(config, f"step1_transformer/benchmark-{config.preset}")
    if run.finished():
        return
    started, device = time.monotonic(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = PrepareOptions(config.data, config.source, config.target, config.vocab_size)
    train = Corpus.open(corpus.prepared(options, Path("runs/step1_transformer")))
    data.record(run.path, train.source | {"languages": train.languages}, "data_source")
    precisions = ("fp32", "bf16") if config.precision == "both" else (config.precision,)
    both = Races(config, train, device)

    # Are they the same model?
    differences = {}
    print("largest difference of scores and losses")
    for precision in dict.fromkeys(("fp32", *precisions)):  # in bf16 alone, much looks alike
        for width in sorted({*config.widths, config.width}):
            place = f"width {width}, {precision}"
            differences[place] = both.difference(width, precision)
            print(f"  {place:18}{differences[place]:.1e}", flush=True)

    # Race
    plan = [
        (race, width, length, precision)
        for race in (both.forward, both.training)
        for precision in precisions
        for width in config.widths
        for length in config.lengths
    ]
    plan += [(both.real_lengths, precision) for precision in precisions]
    decoded = [width for width in config.widths if width <= config.width]
    plan += itertools.product([both.decoding], decoded or [config.width], precisions)
    races: list[Race] = []
    with runs.progress(len(plan), desc="racing", unit=" races") as bar:
        for race, *where in plan:
            races.append(race(*where))
            bar.update()

    # Say who won
    print(f"\n{table(races)}\n")
    metrics = {}
    for what, precision in itertools.product(GOALS, precisions):
        group = (race for race in races if (race.what, race.precision) == (what, precision))
        worst, goal = min(group, key=Race.ratio), GOALS[what]
        told = "reached" if worst.ratio() >= goal else "not reached"
        print(f"{what + ', least:':22}{worst.ratio():6.2f}x at {worst.place}; goal {goal}x {told}")
        metrics[f"{what.replace(' ', '_')}/{precision}/least_ratio"] = metric(
            worst.ratio(), sd=worst.spread(), n=config.rounds, unit="x"
        )
    for race in races:
        for system in race.others:
            name = f"{race.what}/{race.place}/{system}".replace(", ", "_").replace(" ", "_")
            ratio = dict(sd=race.spread(system), n=config.rounds, unit="x")
            metrics[name] = metric(race.ratio(system), **ratio)
    runs.write_json(run.path / "rounds.json", [vars(race) for race in races])
    draw(races, GOALS, run.path / "curves.png")
    run.result(
        step="step1_transformer",
        script="benchmark",
        system="our Transformer against nn.Transformer",
        preset=config.preset,
        dataset=f"{train.source['name']} {train.languages}, random tokens",
        source=train.source,
        split="train",
        metrics=metrics,
        largest_difference=differences,
        compare_to=[],
        model={"name": f"{config.layers} + {config.layers} layers", "parameters": None},
        tokens=None,
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=None,
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
