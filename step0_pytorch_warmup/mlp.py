"""The model of this step: a multi-layer perceptron that reads a digit.

Letters in shapes: B images, C = 10 classes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step0_pytorch_warmup.digits import N_CLASSES, N_PIXELS, Digits


class MLP(nn.Module):
    """logits = W2 relu(W1 x + b1) + b2, with as many layers as `sizes` asks for."""

    def __init__(self, sizes: tuple[int, ...] = (N_PIXELS, 64, N_CLASSES)):
        super().__init__()
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairs)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, 64)."""
        x = images
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def tensors(digits: Digits, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images (N, 64) of `dtype` and labels (N,) as torch holds them."""
    return torch.from_numpy(digits.images).to(dtype), torch.from_numpy(digits.labels)


def batches(n: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Indices of one batch after the other; each epoch is its own shuffle, its last batch short."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).split(batch_size)


@torch.no_grad()
def score(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss (nats) and accuracy (%) over a whole split."""
    logits = model(images)
    hits = (logits.argmax(-1) == labels).double().mean().item()
    return F.cross_entropy(logits, labels).item(), 100 * hits
