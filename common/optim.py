"""Optimizers and learning-rate schedules.

A schedule is a plain function of the step, so that nothing about it needs saving: after a resume
the step alone gives back the learning rate.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from common.cli import UserError

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "inverse_sqrt", "wsd", "constant")


def groups(
    parameters: dict[str, nn.Parameter], learning_rate: float, weight_decay: float, share: Callable
) -> list[dict]:
    """A parameter learns at `share(name)` times the rate. Matrices decay, vectors do not.

    Devlin et al. (2019) exclude biases and LayerNorm from weight decay; both are 1-d.
    """
    found = defaultdict(list)
    for name, p in parameters.items():
        found[share(name) * learning_rate, weight_decay * (p.ndim > 1)].append(p)
    return [{"params": part, "lr": lr, "weight_decay": wd} for (lr, wd), part in found.items()]


def build(
    name: str,
    model: nn.Module,
    learning_rate: float,
    muon_learning_rate: float = 0.02,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    share: Callable[[str], float] = lambda name: 1.0,
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: one for `adamw`, two for `muon`; `share` as in `groups`, for AdamW.

    Muon (orthogonalised momentum, `torch.optim.Muon`) takes the weight matrices inside the
    layers; embeddings, output heads and vectors stay with AdamW. Raises UserError if the model
    has no such matrix.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    hidden = {}
    if name == "muon":
        inside = re.compile(r"(^|\.)layers?\.")  # `layers.0` here, `layer.0` in transformers
        hidden = {n: p for n, p in parameters.items() if p.ndim == 2 and inside.search(n)}
        if not hidden:
            raise UserError("--optimizer muon found no weight matrix in layers; use adamw")
    elif name != "adamw":
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    others = {n: p for n, p in parameters.items() if n not in hidden}
    split = groups(others, learning_rate, weight_decay, share)
    adam = torch.optim.AdamW(split, lr=learning_rate, betas=betas, eps=eps, fused=True)
    if hidden:
        muon = torch.optim.Muon(hidden.values(), lr=muon_learning_rate, weight_decay=weight_decay)
    return [adam, muon] if hidden else [adam]


def schedule(
    name: str, warmup_steps: int, total_steps: int, *, min_lr_ratio: float = 0.0, decay: float = 0.2
) -> Callable[[int], float]:
    """The share of the peak learning rate at step t = 0, 1, ..., total_steps - 1.

    Every schedule warms up linearly over `warmup_steps`. Then
    linear: straight to `min_lr_ratio` · cosine: half a cosine to `min_lr_ratio` ·
    inverse_sqrt: √(warmup_steps/t) (Vaswani et al. 2017, Eq. 3) · wsd: constant, then linear to
    `min_lr_ratio` over the last `decay` share (Hu et al. 2024) · constant: constant.
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
