"""Why a mean of means is no mean, and what that does to training in micro-batches.

    python step0_pytorch_warmup/gradient_accumulation.py
    python step0_pytorch_warmup/gradient_accumulation.py --window 8

One epoch on digits, in windows of several micro-batches, by each rule of `accumulation.py`; the
weights are held against those of training with the window as one big batch. Everything in fp32.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from common import cli
from common.runs import metric
from step0_pytorch_warmup import accumulation, digits, mlp
from step0_pytorch_warmup.accumulation import NO_TARGET, MicroBatch
from step0_pytorch_warmup.lesson import finish, panels, start
from step0_pytorch_warmup.optimizers import SGD

RULES: dict[str, Callable] = {
    "sums and counts": accumulation.sums_and_counts,
    "mean of means": accumulation.mean_of_means,
    "short last window": accumulation.short_last_window,
    "step on the first": accumulation.step_on_the_first,
}
COUNTS = {"equal": (16, 16, 16, 16), "ragged": (16, 9, 4, 1)}  # targets of a micro-batch, in turn


@dataclass
class Config(cli.RunConfig):
    window: int = 4
    """Micro-batches in an optimizer step."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "window", "1 or more", lambda value: value >= 1)


PRESETS = {"smoke": {}, "cpu": {}}


def main(config: Config) -> None:
    run = start(config, "gradient_accumulation")
    if run.finished():
        return
    started = time.monotonic()
    torch.set_num_threads(1)  # matrices this small are not worth a second core
    on_paper()
    without_targets()
    train = mlp.tensors(digits.load()[0])
    errors = {kind: compare(train, kind, config) for kind in COUNTS}
    print("\nEqual counts hide the mean of means, and epochs of whole windows the short last one:")
    print("a test must have ragged counts and a rest.")
    draw(run.path / "curves.png", errors)
    finish(
        run, config, started, script="gradient_accumulation", system="MLP", dataset="digits",
        split="train", parameters=sum(p.numel() for p in mlp.MLP().parameters()),
        metrics={
            f"{rule.replace(' ', '_')}/{kind}_difference": metric(error, higher_is_better=False)
            for kind, found in reversed(errors.items())
            for rule, error in found.items()
        },
    )  # fmt: skip


def on_paper() -> None:
    """Four targets in two micro-batches."""
    print("== On paper: losses 4 | 1 1 1, four targets in two micro-batches")
    parts = [torch.tensor([4.0]), torch.tensor([1.0, 1.0, 1.0])]
    means = [part.mean() for part in parts]
    print(f"mean of all four:          (4 + 1 + 1 + 1) / 4 = {torch.cat(parts).mean():.2f}")
    print(f"mean of the two means:     (4/1 + 3/3) / 2     = {sum(means) / 2:.2f}")
    sums, counts = sum(part.sum() for part in parts), sum(len(part) for part in parts)
    print(f"sum of sums over count:    (4 + 3) / (1 + 3)   = {sums / counts:.2f}")
    print("the lone target had the weight 1/2 in place of 1/4, the others 1/6")


def without_targets() -> None:
    """A micro-batch can have nothing to predict: all padding, or no masked token."""
    print("\n== A micro-batch without a target")
    labels = torch.full((2,), NO_TARGET)
    for reduction in ("mean", "sum"):
        logits = torch.zeros(2, 10, requires_grad=True)
        loss = F.cross_entropy(logits, labels, reduction=reduction)
        loss.backward()
        gradient = logits.grad.abs().max().item()
        print(f"{reduction:4} of its losses: {loss.item()}, largest gradient: {gradient}")
    print("the nan goes into the curve, into every mean over steps, and stops a careful trainer")


def deal(train: tuple[Tensor, Tensor], counts: tuple[int, ...], seed: int) -> list[MicroBatch]:
    """An epoch in micro-batches of 16 digits, of which `counts`, in turn, keep their label."""
    images, labels = train
    dealt = []
    for i, chosen in enumerate(mlp.batches(len(labels), 16, 1, seed)):
        kept = labels[chosen].clone()
        kept[counts[i % len(counts)] :] = NO_TARGET
        dealt.append((images[chosen], kept))
    if len(dealt[-1][1]) < 16:
        del dealt[-1]  # all of one size, so that only the targets are ragged
    return dealt


def train_by(rule: Callable, micro_batches: list[MicroBatch], config: Config) -> Tensor:
    """All weights as one vector after an epoch by this rule, always from the same start."""
    torch.manual_seed(config.seed)
    model = mlp.MLP()
    rule(model, SGD(model.parameters(), lr=0.3), micro_batches, config.window)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def compare(train: tuple[Tensor, Tensor], kind: str, config: Config) -> dict[str, float]:
    """Largest difference of any weight from the big batch's, by rule."""
    micro_batches = deal(train, COUNTS[kind], config.seed)
    left = len(micro_batches) % config.window or config.window
    print(f"\n== {len(micro_batches)} micro-batches of 16 digits, {kind} targets {COUNTS[kind]}")
    print(
        f"in windows of {config.window}, the last of {left}; difference of any weight at the end:"
    )
    wanted = train_by(accumulation.big_batch, micro_batches, config)
    errors = {}
    for name, rule in RULES.items():
        errors[name] = (train_by(rule, micro_batches, config) - wanted).abs().max().item()
        verdict = "as the big batch" if errors[name] <= 1e-6 else "another training"
        print(f"{name:18} {errors[name]:.1e}  {verdict}")
    return errors


def draw(path: Path, errors: dict[str, dict[str, float]]) -> None:
    titles = "weight of one target in the gradient", "largest weight difference after an epoch"
    with panels(path, *titles, width=5.2) as (weights, differences):
        counts = COUNTS["ragged"]
        places = range(len(counts))
        own = [1 / (len(counts) * n) for n in counts]
        weights.bar([x - 0.2 for x in places], own, 0.4, label="mean of means", color="C3")
        right = [1 / sum(counts)] * len(counts)
        weights.bar([x + 0.2 for x in places], right, 0.4, label="sums and counts", color="C2")
        weights.set_xticks(places, counts)
        weights.set(xlabel="targets in its micro-batch", ylabel="weight")
        for shift, (kind, found) in zip((-0.2, 0.2), errors.items(), strict=True):
            places = [y + shift for y in range(len(found))]
            values = [max(value, 1e-9) for value in found.values()]
            differences.barh(places, values, 0.4, label=f"{kind} counts")
        differences.set_yticks(range(len(RULES)), RULES)
        differences.invert_yaxis()  # the first on top, as printed
        differences.axvline(1e-6, color="black", linestyle=":", label="rounding ends here")
        differences.set(xscale="log", xlim=(1e-9, 1), xlabel="difference from the big batch")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
