"""Half the bits: what fp16 and bf16 can hold, what they lose, and how training works all the same.

    python step0_pytorch_warmup/mixed_precision.py

1 range and grain of each format · 2 small gradients vanish in fp16: loss scaling · 3 small updates
vanish in half weights: fp32 master weights · 4 what autocast runs in half precision and what not ·
5 the digits MLP trained in every way · 6 the matrix product's speed. The figure shows 2 and 3.
"""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import cli
from common.runs import metric
from step0_pytorch_warmup import digits, mlp
from step0_pytorch_warmup.lesson import finish, panels, start

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = {  # name -> dtype of the weights, dtype of autocast, initial loss scale
    "fp32": (torch.float32, None, 1),
    "bf16 autocast": (torch.float32, torch.bfloat16, 1),
    "fp16 autocast, scaled": (torch.float32, torch.float16, 2**16),
    "bf16 weights": (torch.bfloat16, None, 1),
}


@dataclass
class Config(cli.RunConfig):
    epochs: int = 15
    """Times that every training digit is seen."""
    width: int = 512
    """Rows and columns of the matrices whose product is timed."""
    rounds: int = 5
    """Times that each format's product is timed; the median counts."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("epochs", "width", "rounds"):
            cli.check(self, name, "1 or more", lambda value: value >= 1)


PRESETS = {"smoke": dict(epochs=2, width=64, rounds=1), "cpu": {}}


def main(config: Config) -> None:
    run = start(config, "mixed_precision")
    if run.finished():
        return
    started = time.monotonic()
    show_formats()
    train, heldout = ([x.to(DEVICE) for x in mlp.tensors(part)] for part in digits.load())
    gradients = show_gradients(train, config)
    climbs = show_updates()
    show_autocast()

    print(f"\n5 digits MLP, {config.epochs} epochs: held-out loss (nats), accuracy (%)")
    metrics = {}
    for way in WAYS:
        loss, accuracy = mlp.score(fit(train, config, *WAYS[way]).float(), *heldout)
        print(f"  {way:24} {loss:.3f}  {accuracy:.1f}")
        metrics[f"accuracy {way}"] = metric(accuracy, unit="%")
    for name, ratio in speed(config).items():
        metrics[f"matmul speed of {name} over fp32"] = metric(ratio, n=config.rounds, unit="x")
    with panels(run.path / "curves.png", "gradients of one step", "adding 0.001 to 1") as axes:
        draw(*axes, gradients, climbs)
    finish(
        run, config, started, script="mixed_precision", system="MLP", dataset="digits",
        split="heldout", metrics=metrics, parameters=sum(p.numel() for p in mlp.MLP().parameters()),
    )  # fmt: skip


def show_formats() -> None:
    print("1 format    largest  smallest    next after 1   256 + 1   70000     1e-8")
    for name, dtype in FORMATS.items():
        info = torch.finfo(dtype)
        sums = (torch.tensor(256, dtype=dtype) + 1, torch.tensor(7e4).to(dtype))
        tiny = torch.tensor(1e-8).to(dtype).item()
        print(
            f"  {name:6} {info.max:10.2e} {info.smallest_normal:9.1e}     1 + {info.eps:.1e} "
            f"{sums[0].item():9g} {sums[1].item():7g} {tiny:8.0e}"
        )
    print("  bf16 has the range of fp32 and 8 bits of grain; fp16 has 11 bits and a short range.")


def show_gradients(train: list[Tensor], config: Config) -> Tensor:
    """Gradients (n,) of a trained MLP: many are too small for fp16 until the loss is scaled."""
    model = fit(train, config, torch.float32, None, 1)
    F.cross_entropy(model(train[0]), train[1]).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()]).cpu()
    gradients = gradients[gradients != 0]
    print("\n2 a trained MLP's gradients in fp16 when the loss is multiplied by a scale:")
    for scale in (1, 2**8, 2**16):
        half = (gradients * scale).half().abs()
        shares = [100 * x.double().mean().item() for x in (half == 0, half < 2**-14, half.isinf())]
        told = "{:5.2f} % 0, {:5.1f} % below 2^-14 (fewer bits), {:.1f} % inf".format(*shares)
        print(f"  scale {scale:6}: {told}")
    return gradients


def show_updates(step: float = 1e-3, n: int = 400) -> dict[str, list[float]]:
    """A weight of 1 that grows by `step` n times, in each format."""
    climbs = {}
    for name, dtype in FORMATS.items():
        weight, climbs[name] = torch.ones((), dtype=dtype), []
        for _ in range(n):
            weight = weight + step
            climbs[name].append(weight.item())
    ends = ", ".join(f"{name} {climb[-1]:.3f}" for name, climb in climbs.items())
    print(f"\n3 1 + {n} times {step}: {ends}. Why the weights that are updated stay fp32.")
    return climbs


def show_autocast() -> None:
    """The result's dtype of a few operations on fp32 tensors under autocast."""
    x = torch.randn(4, 4, device=DEVICE)
    layer = nn.Linear(4, 4, device=DEVICE)
    target = torch.zeros(4, dtype=torch.long, device=DEVICE)
    print(f"\n4 autocast on {DEVICE}, fp32 in, out comes:")
    with torch.autocast(DEVICE, torch.bfloat16):
        low = layer(x)
        found = {
            "x @ x": x @ x, "Linear(x)": low, "relu(Linear(x))": low.relu(), "x + x": x + x,
            "Linear(x) + x": low + x, "softmax(Linear(x))": low.softmax(-1),
            "layer_norm(Linear(x))": F.layer_norm(low, (4,)),
            "cross_entropy(Linear(x))": F.cross_entropy(low, target),
        }  # fmt: skip
    for name, result in found.items():
        print(f"  {name:26} {str(result.dtype).removeprefix('torch.')}")
    print(
        "  Products are narrow, the loss is wide, the rest keeps its input. GPUs widen softmax too."
    )


def fit(train: list[Tensor], config: Config, weights, narrow, scale: int) -> mlp.MLP:
    """An MLP trained with weights of one dtype, under autocast to `narrow`.

    The loss is scaled by hand: a step whose gradients overflow is left out, and the scale halved.
    """
    torch.manual_seed(config.seed)
    model = mlp.MLP().to(DEVICE, weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = train
    for batch in mlp.batches(len(labels), 32, config.epochs, config.seed):
        with torch.autocast(DEVICE, narrow, enabled=narrow is not None):
            logits = model(images[batch].to(weights))
        loss = F.cross_entropy(logits.float(), labels[batch])
        optimizer.zero_grad()
        (loss * scale).backward()
        for parameter in model.parameters():
            parameter.grad /= scale
        if all(p.grad.isfinite().all() for p in model.parameters()):
            optimizer.step()
        else:
            scale = max(1, scale // 2)
    return model


def speed(config: Config) -> dict[str, float]:
    """How many times faster than fp32 a square product is; the formats take turns."""
    pairs = {
        name: torch.randn(2, config.width, config.width, device=DEVICE).to(dtype)
        for name, dtype in FORMATS.items()
    }
    seconds = {name: [] for name in FORMATS}
    for number in range(config.rounds + 1):
        for name, (a, b) in pairs.items():
            began = time.perf_counter()
            (a @ b).sum().item()  # .item() waits for a GPU
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    middle = {name: median(times) for name, times in seconds.items()}
    print(f"\n6 product of two {config.width} x {config.width} matrices, {DEVICE}:")
    for name, found in middle.items():
        ratio = middle["fp32"] / found
        print(f"  {name}  {1e3 * found:8.2f} ms  {ratio:5.2f}x")
    print(
        "  A format is fast only where the processor has units for it: measure before you choose."
    )
    return {name: middle["fp32"] / middle[name] for name in ("bf16", "fp16")}


def draw(left, right, gradients: Tensor, climbs: dict[str, list[float]]) -> None:
    left.hist(gradients.abs().log2().numpy(), bins=60, color="tab:blue")
    left.axvline(-25, color="tab:red", label="left of it: 0 in fp16")  # half of the smallest, 2^-24
    left.axvline(-14, color="tab:orange", label="left of it: fewer bits in fp16")
    left.set(xlabel="log2 |gradient|", ylabel="weights")
    for name, climb in climbs.items():
        right.plot(climb, label=name)
    right.set(xlabel="additions", ylabel="sum")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
