"""Optimizers and learning-rate schedules.

A schedule is a plain function of the step, so that nothing about it needs saving: after a resume
the step alone gives back the learning rate.
"""

import math
import re
from collections.abc import Callable, Iterable

import torch
from torch import nn

from common.cli import UserError

SCHEDULES = ("linear", "cosine", "inverse_sqrt", "wsd", "constant")


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    """Two parameter groups: matrices decay, vectors (biases, norm gains) do not.

    Devlin et al. (2019) exclude biases and LayerNorm from weight decay; both are 1-d.
    """
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def build(
    name: str,
    model: nn.Module,
    learning_rate: float,
    muon_learning_rate: float = 0.02,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: one for `adamw`, two for `muon`.

    Muon takes the weight matrices inside the layers; embeddings, output heads and vectors stay with
    AdamW. Raises UserError if the model has no such matrix.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    hidden = {}
    if name == "muon":
        inside = re.compile(r"(^|\.)layers?\.")  # `layers.0` here, `layer.0` in transformers
        hidden = {n: p for n, p in parameters.items() if p.ndim == 2 and inside.search(n)}
        if not hidden:
            raise UserError("--optimizer muon found no weight matrix in layers; use adamw")
    elif name != "adamw":
        raise ValueError(f"unknown optimizer {name!r}; known: adamw, muon")
    others = (p for n, p in parameters.items() if n not in hidden)
    groups = decay_groups(others, weight_decay)
    adam = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)
    if not hidden:
        return [adam]
    return [adam, Muon(hidden.values(), lr=muon_learning_rate, weight_decay=weight_decay)]


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024), for matrices: `torch.optim.Muon` as it comes,
    to the bit, but on processors that torch has no fast products in bf16 for (x86 below AVX-512),
    where that takes some 20 times as long as fp32."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(parameters, dict(lr=lr, weight_decay=weight_decay, momentum=0.95))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = orthogonal(p.grad.lerp(buffer, momentum))
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(update, alpha=-rate * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def multiplies_bf16(device: torch.device) -> bool:
    """False on a CPU that only imitates bf16, and then takes some 20 times as long as for fp32."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly U Vᵀ of a matrix U S Vᵀ: all but tiny singular values are drawn to between 0.7 and
    1.2, by five steps of X ← a X + (b X Xᵀ + c (X Xᵀ)²) X (Newton and Schulz) from norm 1."""
    x = matrix.to(torch.bfloat16 if multiplies_bf16(matrix.device) else torch.float32)
    x = x.T if (tall := x.shape[0] > x.shape[1]) else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


def schedule(
    name: str, warmup_steps: int, total_steps: int, *, min_lr_ratio: float = 0.0, decay: float = 0.2
) -> Callable[[int], float]:
    """The share of the peak learning rate at step t = 0, 1, ..., total_steps - 1.

    Every schedule warms up linearly over `warmup_steps`. Then
    linear: straight to `min_lr_ratio` · cosine: half a cosine to `min_lr_ratio` ·
    inverse_sqrt: √(warmup_steps/(t + 1)) (Vaswani et al. 2017, Eq. 3) · wsd: constant, then linear
    to `min_lr_ratio` over the last `decay` share (Hu et al. 2024) · constant: constant.
    Raises ValueError for another name.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if name == "linear":
            return 1 + (min_lr_ratio - 1) * progress
        if name == "cosine":
            return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
        if name == "inverse_sqrt":
            return math.sqrt(max(1, warmup_steps) / (step + 1))
        if name == "wsd":
            return 1 + (min_lr_ratio - 1) * max(0.0, 1 - (1 - progress) / decay)
        return 1.0

    return share
