"""A gradient by our own engine, on paper and by nudging; then a network that the engine trains.

    python step0_pytorch_warmup/autograd.py
    python step0_pytorch_warmup/autograd.py --epochs 5 --hidden 16

The engine is `autodiff.py`, two hundred lines of NumPy; torch draws the first weights, and trains
the same network to be compared with.
Draws the loss curve and the held-out digits that the network misreads.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from common import cli
from common.runs import metric
from step0_pytorch_warmup import digits, mlp
from step0_pytorch_warmup.autodiff import Value, softmax_cross_entropy, topological_order
from step0_pytorch_warmup.lesson import finish, panels, start


@dataclass
class Config(cli.RunConfig):
    epochs: int = 20
    """Times that every training digit is seen."""
    hidden: int = 64
    """Width of the hidden layer."""
    batch_size: int = 32
    """Digits in a step."""
    learning_rate: float = 0.3
    """Step size of plain SGD."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("epochs", "hidden", "batch_size"):
            cli.check(self, name, "1 or more", lambda value: value >= 1)


PRESETS = {"smoke": dict(epochs=2), "cpu": {}}


def main(config: Config) -> None:
    run = start(config, "autograd")
    if run.finished():
        return
    started = time.monotonic()
    by_hand()
    shared_value()

    print("\n== An MLP on handwritten digits, trained by our engine")
    train, heldout = digits.load()
    torch.manual_seed(config.seed)
    torchs = mlp.MLP((digits.N_PIXELS, config.hidden, digits.N_CLASSES)).double()
    # Our matrices are (in, out), so that x @ W reads as in the equation; torch's are (out, in).
    weights = [Value(p.detach().numpy().T.copy()) for p in torchs.parameters()]
    losses, torchs_losses = fit(weights, train, config), fit_by_torch(torchs, train, config)
    difference = float(np.abs(np.subtract(losses, torchs_losses)).max())
    logits = forward(weights, heldout.images).data
    accuracy = 100 * float((logits.argmax(-1) == heldout.labels).mean())
    print(f"{len(train.labels)} digits to learn from, {len(heldout.labels)} held out")
    print(f"loss: {losses[0]:.3f} before the first step, {losses[-1]:.3f} at the last")
    print(f"largest difference from torch's loss in {len(losses)} steps: {difference:.1e}")
    print(f"held-out accuracy: {accuracy:.1f} %")
    draw(run.path / "curves.png", losses, torchs_losses)
    draw_misread(run.path / "misread.png", heldout, logits.argmax(-1))

    finish(
        run, config, started, script="autograd", system="our engine, MLP", dataset="digits",
        split="heldout", parameters=sum(w.data.size for w in weights),
        metrics={
            "accuracy": metric(accuracy, n=1, unit="%"),
            "largest_difference_from_torchs_loss": metric(difference, higher_is_better=False),
        },
    )  # fmt: skip


def by_hand() -> None:
    """One small expression, its gradient on paper, by nudging, and by walking back."""
    print("== The gradient of L = sum(tanh(x W)^2), three ways")
    x, W = Value([[1.0, -2.0]]), Value([[0.5, 0.1, -0.3], [0.2, 0.4, 0.6]])
    L = ((x @ W).tanh() ** 2).sum()
    L.backward()
    y = np.tanh(x.data @ W.data)
    paper = x.data.T @ (2 * y * (1 - y**2))  # dL/dy = 2 y, dy/d(xW) = 1 - y^2
    nudged, h = np.zeros_like(W.data), 1e-6
    for place in np.ndindex(W.shape):
        step = np.zeros_like(W.data)
        step[place] = h
        up, down = (np.sum(np.tanh(x.data @ (W.data + s)) ** 2) for s in (step, -step))
        nudged[place] = (up - down) / (2 * h)
    print(f"the engine's dL/dW:\n{W.grad}")
    print(f"largest difference from paper:   {np.abs(W.grad - paper).max():.1e}")
    print(f"largest difference from nudging: {np.abs(W.grad - nudged).max():.1e}")
    print(f"nudging ran L {2 * W.data.size} times, twice for each of the {W.data.size} weights;")
    print("backward costs about two forward passes, however many weights there are")


def shared_value() -> None:
    """Why the order of the walk matters: a value is visited once all its users are."""
    print("\n== A value with several users: z = x y + y, y = x^2, at x = 3")
    x = Value(3.0)
    y = x * x
    z = x * y + y
    z.backward()
    print(f"dz/dx = 3 x^2 + 2 x = 33; the engine: {x.grad}")
    walk = [float(node.data) for node in reversed(topological_order(z))]
    print(f"visited in this order (by value): {walk}")
    print("y = 9 waits until both x y = 27 and the sum z = 36 have sent it their part")


def forward(weights: list[Value], images: np.ndarray) -> Value:
    """Logits (B, 10) of images (B, 64): relu(x W1 + b1) W2 + b2."""
    W1, b1, W2, b2 = weights
    return (images @ W1 + b1).relu() @ W2 + b2


def fit(weights: list[Value], train: digits.Digits, config: Config) -> list[float]:
    """Plain SGD with our gradients; the loss of every step."""
    losses = []
    for chosen in mlp.batches(len(train.labels), config.batch_size, config.epochs, config.seed):
        chosen = chosen.numpy()
        loss = softmax_cross_entropy(forward(weights, train.images[chosen]), train.labels[chosen])
        for w in weights:
            w.grad = None
        loss.backward()
        for w in weights:
            w.data = w.data - config.learning_rate * w.grad
        losses.append(float(loss.data))
    return losses


def fit_by_torch(model: mlp.MLP, train: digits.Digits, config: Config) -> list[float]:
    """The same weights, batches and steps by torch."""
    losses = []
    images, labels = mlp.tensors(train, torch.float64)
    for chosen in mlp.batches(len(labels), config.batch_size, config.epochs, config.seed):
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= config.learning_rate * p.grad
        losses.append(loss.item())
    return losses


def draw(path: Path, losses: list[float], torchs_losses: list[float]) -> None:
    with panels(path, "loss of each step (nats)", "our loss minus torch's") as (curve, rest):
        curve.plot(torchs_losses, label="torch", linewidth=3, alpha=0.4)
        curve.plot(losses, label="our engine", linewidth=0.8)
        curve.set(yscale="log", xlabel="step")
        rest.plot(np.subtract(losses, torchs_losses), linewidth=0.8)
        rest.set(xlabel="step")


def draw_misread(path: Path, heldout: digits.Digits, read: np.ndarray) -> None:
    """Up to ten held-out digits that were read wrongly, with what was read."""
    wrong = np.flatnonzero(read != heldout.labels)[:10]
    titles = [f"{heldout.labels[i]} read as {read[i]}" for i in wrong]
    if titles:
        with panels(path, *titles, width=1.3, height=1.6) as axes:
            for axis, i in zip(axes, wrong, strict=True):
                axis.imshow(heldout.images[i].reshape(digits.SIDE, digits.SIDE), cmap="gray_r")
                axis.set_axis_off()


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
