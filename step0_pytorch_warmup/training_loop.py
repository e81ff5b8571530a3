"""The training loop, grown in four stages on real digits.

    python step0_pytorch_warmup/training_loop.py
    python step0_pytorch_warmup/training_loop.py --epochs 5 --max-norm 0.5

1 overfit one batch, and see which bugs that finds · 2 four optimizers, ours beside torch's ·
3 a learning rate that is too high, with and without clipping · 4 schedules. Everything in fp64, so
that a difference from torch is a difference of the rule and not of rounding.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common import cli
from common.optim import schedule
from common.runs import metric
from step0_pytorch_warmup import digits, mlp
from step0_pytorch_warmup.lesson import finish, panels, start
from step0_pytorch_warmup.loop import History, fit
from step0_pytorch_warmup.optimizers import SGD, Adam, AdamW

OPTIMIZERS: dict[str, tuple[Any, Any, dict]] = {  # ours, torch's, and a good setting for both
    "SGD": (SGD, torch.optim.SGD, dict(lr=0.3)),
    "SGD, momentum": (SGD, torch.optim.SGD, dict(lr=0.05, momentum=0.9)),
    "Adam": (Adam, torch.optim.Adam, dict(lr=3e-3)),
    "AdamW": (AdamW, torch.optim.AdamW, dict(lr=3e-3, weight_decay=0.1)),
}
Split = tuple[Tensor, Tensor]  # images (N, 64), labels (N,)


@dataclass
class Config(cli.RunConfig):
    epochs: int = 15
    """Times that every training digit is seen."""
    batch_size: int = 32
    """Digits in a step."""
    max_norm: float = 1.0
    """Length above which stage 3 clips the gradient."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("epochs", "batch_size"):
            cli.check(self, name, "1 or more", lambda value: value >= 1)
        cli.check(self, "max_norm", "above 0", lambda value: value > 0)


PRESETS = {"smoke": dict(epochs=2), "cpu": {}}


def main(config: Config) -> None:
    run = start(config, "training_loop")
    if run.finished():
        return
    started = time.monotonic()
    torch.set_num_threads(1)  # matrices this small are not worth a second core
    train, heldout = (mlp.tensors(part, torch.float64) for part in digits.load())
    memorised = overfit_one_batch(*(part[:32] for part in train), config)
    optimizers, metrics = compare_optimizers(train, heldout, config)
    clipped = compare_clipping(train, config)
    scheduled = compare_schedules(train, config)
    draw(run.path / "curves.png", memorised, optimizers, clipped, scheduled)
    finish(
        run, config, started, script="training_loop", system="MLP", dataset="digits",
        split="heldout", metrics=metrics, parameters=sum(p.numel() for p in mlp.MLP().parameters()),
    )  # fmt: skip


def new_model(config: Config) -> mlp.MLP:
    """The same weights for every training of this script."""
    torch.manual_seed(config.seed)
    return mlp.MLP().double()


def train_on(train: Split, model: mlp.MLP, optimizer: Any, config: Config, **options) -> History:
    """`fit` on the same batches for every training of this script."""
    batches = mlp.batches(len(train[1]), config.batch_size, config.epochs, config.seed)
    return fit(model, *train, optimizer, batches, **options)


def overfit_one_batch(images: Tensor, labels: Tensor, config: Config) -> dict[str, list[float]]:
    """Stage 1: can the network learn a few digits by heart? Losses by variant of the loop."""
    print(f"== 1 Overfit one batch of {len(labels)} digits")
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    curves = {}
    for name in ("as it should be", "softmax twice", "zero_grad forgotten", "labels shuffled"):
        model, losses = new_model(config), []
        optimizer = SGD(model.parameters(), lr=0.5)
        for _ in range(150):
            logits = model(images)
            if name == "softmax twice":
                logits = logits.softmax(-1)  # cross_entropy wants logits: it has a softmax inside
            loss = F.cross_entropy(logits, shuffled if name == "labels shuffled" else labels)
            if name != "zero_grad forgotten":
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves[name] = losses
        print(f"{name:20} loss {losses[0]:.3f} -> {losses[-1]:.4f}")
    print(f"A guess costs log 10 = {math.log(10):.3f} nats: the first loss must be near it.")
    print(f"Softmax twice stays above log(e + 9) - 1 = {math.log(math.e + 9) - 1:.3f}: seen here.")
    print("Without zero_grad all gradients so far add up, a momentum of 1: it swings (figure), and")
    print("what one batch forgives, many do not: try it in loop.py.")
    print("Shuffled labels are learnt by heart too: only looking at the data finds those.")
    return curves


def compare_optimizers(train: Split, heldout: Split, config: Config) -> tuple[dict, dict]:
    """Stage 2: histories of ours and of torch's, by name; the result's metrics."""
    print(f"\n== 2 Optimizers, {config.epochs} epochs in batches of {config.batch_size}")
    print(f"{'':14} {'held-out loss':>14} {'accuracy':>9}   largest difference of any weight")
    histories, metrics = {}, {}
    for name, (ours, torchs, setting) in OPTIMIZERS.items():
        models = new_model(config), new_model(config)
        histories[name] = [
            train_on(train, model, kind(model.parameters(), **setting), config)
            for model, kind in zip(models, (ours, torchs), strict=True)
        ]
        pairs = zip(*(model.parameters() for model in models), strict=True)
        difference = torch.stack([(p - q).abs().max() for p, q in pairs]).max().item()
        loss, accuracy = mlp.score(models[0], *heldout)
        print(f"{name:14} {loss:14.4f} {accuracy:7.1f} %   {difference:.1e} from torch.optim's")
        key = name.replace(", ", "_").lower()
        metrics[f"{key}/accuracy"] = metric(accuracy, unit="%")
        metrics[f"{key}/difference_from_torch"] = metric(difference, higher_is_better=False)
    print("So few digits and one seed tell accuracies apart to about a point: no winner here.")
    return histories, metrics


def compare_clipping(train: Split, config: Config) -> dict[str, History]:
    """Stage 3: a rate that is too high, as it comes and with the gradient clipped."""
    print("\n== 3 A learning rate that is too high: SGD, momentum 0.9, rate 0.7")
    histories = {}
    for limit in (math.inf, config.max_norm):
        model = new_model(config)
        optimizer = SGD(model.parameters(), lr=0.7, momentum=0.9)
        name = "not clipped" if limit == math.inf else f"clipped at {limit:g}"
        histories[name] = train_on(train, model, optimizer, config, max_norm=limit)
        dead = (model.layers[0](train[0]) <= 0).all(0)  # 0 for every digit, so it gets no gradient
        print(f"{name:14} mean loss of the last epoch {last_epoch(histories[name], config):.4f}, "
              f"{dead.sum()} of {len(dead)} hidden units dead")  # fmt: skip
    return histories


def compare_schedules(train: Split, config: Config) -> dict[str, History]:
    """Stage 4: Adam at a high peak, its learning rate held or let down."""
    print("\n== 4 Schedules: Adam, peak 0.05, a tenth of the steps to warm up")
    steps = config.epochs * math.ceil(len(train[1]) / config.batch_size)
    histories = {}
    for name in ("constant", "linear", "cosine", "inverse_sqrt"):
        model = new_model(config)
        optimizer, share = Adam(model.parameters(), lr=0.05), schedule(name, steps // 10, steps)
        histories[name] = train_on(train, model, optimizer, config, share=share)
        print(f"{name:14} mean loss of the last epoch {last_epoch(histories[name], config):.4f}")
    return histories


def last_epoch(history: History, config: Config) -> float:
    losses = history["loss"][-(len(history["loss"]) // config.epochs) :]
    return sum(losses) / len(losses)


def draw(path: Path, memorised: dict, optimizers: dict, clipped: dict, scheduled: dict) -> None:
    titles = ("1 one batch", "2 optimizers; torch's dotted", "3 clipping",
              "3 gradient before it is clipped", "4 rate", "4 loss")  # fmt: skip
    with panels(path, *titles, rows=2) as (one, two, three, norm, rate, four):
        for name, losses in memorised.items():
            one.plot(losses, label=name)
        for name, (ours, torchs) in optimizers.items():
            two.plot(smooth(ours["loss"]), label=name, linewidth=2.5, alpha=0.5)
            two.plot(smooth(torchs["loss"]), ":", color="black", linewidth=1)
        for name, history in clipped.items():
            three.plot(smooth(history["loss"]), label=name)
            norm.plot(smooth(history["norm"]), label=name)
        for name, history in scheduled.items():
            rate.plot(history["lr"], label=name)
            four.plot(smooth(history["loss"]), label=name)
        for axis in (one, two, three, four):
            axis.set(yscale="log", ylabel="loss (nats)", xlabel="step")
        one.set(ylim=(1e-15, 10))
        norm.set(yscale="log", xlabel="step", ylabel="length")
        rate.set(xlabel="step", ylabel="learning rate")


def smooth(values: list[float], window: int = 15) -> list[float]:
    """Each value's mean with those just before it."""
    parts = (values[max(0, i - window + 1) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
