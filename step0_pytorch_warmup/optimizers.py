"""SGD, Adam and AdamW written out, and gradient clipping; each equals torch's step by step.

Letters: p a parameter, g its gradient, lr the learning rate, wd the weight decay, t the step.
An optimizer is a rule for one parameter (`update`) and what that rule remembers (`memory`).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Optimizer:
    """Applies `update` to every parameter that has a gradient."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        self.parameters = list(parameters)
        self.lr = lr  # a schedule sets it before each step
        self.weight_decay = weight_decay
        self.memory: dict[nn.Parameter, dict] = {p: {} for p in self.parameters}

    @torch.no_grad()  # an update is not part of the function that is differentiated
    def step(self) -> None:
        for p in self.parameters:
            if p.grad is not None:
                self.update(p, p.grad, self.memory[p])

    def zero_grad(self) -> None:
        """Forget the gradients: `backward` adds to what is there."""
        for p in self.parameters:
            p.grad = None

    def update(self, p: Tensor, g: Tensor, memory: dict) -> None:
        """Change `p` in place, given its gradient and what was remembered of it."""
        raise NotImplementedError


class SGD(Optimizer):
    """v <- momentum v + g,  p <- p - lr v   (Sutskever et al. 2013, with lr outside of v).

    Weight decay is the gradient of wd/2 |p|^2, so it is added to g.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        super().__init__(parameters, lr, weight_decay)
        self.momentum = momentum

    def update(self, p: Tensor, g: Tensor, memory: dict) -> None:
        g = g + self.weight_decay * p
        v = memory.setdefault("v", torch.zeros_like(p))
        v.mul_(self.momentum).add_(g)
        p -= self.lr * v


class Adam(Optimizer):
    """m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,
    p <- p - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)   (Kingma and Ba 2015, Algorithm 1).

    m and v start at 0 and are too small at first: dividing by 1 - b^t makes up for it. Weight
    decay is added to g, as in SGD; the division by sqrt(v) then undoes much of it.
    """

    decoupled = False

    def __init__(
        self,
        parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def update(self, p: Tensor, g: Tensor, memory: dict) -> None:
        if self.decoupled:
            p -= self.lr * self.weight_decay * p
        else:
            g = g + self.weight_decay * p
        b1, b2 = self.betas
        t = memory["t"] = memory.get("t", 0) + 1
        m = memory.setdefault("m", torch.zeros_like(p))
        v = memory.setdefault("v", torch.zeros_like(p))
        m.mul_(b1).add_((1 - b1) * g)
        v.mul_(b2).add_((1 - b2) * g**2)
        p -= self.lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + self.eps)


class AdamW(Adam):
    """Adam whose decay goes straight to the weights: p <- p - lr wd p, then Adam's step without it.

    Loshchilov and Hutter 2019, Algorithm 2; as in torch, the decay is scaled by lr.
    """

    decoupled = True

    def __init__(self, parameters, lr: float = 1e-3, weight_decay: float = 0.01, **options):
        super().__init__(parameters, lr, weight_decay=weight_decay, **options)


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Shorten the gradient of all parameters together to `max_norm`, keeping its direction.

    Returns its length before (Pascanu et al. 2013, Algorithm 1).
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum((g**2).sum() for g in grads)).item()
    for g in grads:
        g *= min(1.0, max_norm / (norm + 1e-6))
    return norm
