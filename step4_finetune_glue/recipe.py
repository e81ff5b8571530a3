"""What is said to stabilise fine-tuning on small sets, each an option to be measured.

- warm-up and many epochs: Mosbach et al. 2021, arXiv:2006.04884
- Adam with its bias correction, which BERT's own code lacks; fresh weights in the top layers:
  Zhang et al. 2021, arXiv:2006.05987, sections 4 and 5
- a regression's head that begins with the mean score: ours
- layer-wise learning-rate decay: Howard and Ruder 2018 (ULMFiT), arXiv:1801.06146, section 3.2;
  Clark et al. 2020 (ELECTRA), arXiv:2003.10555, appendix B
"""

import re
from collections import defaultdict

import torch
from torch import nn

from common import optim
from common.cli import UserError
from step2_bert.model import init_weights

BLOCK = re.compile(r"\.layers?\.(\d+)\.")  # bert.layers.0. here, encoder.layer.0. in transformers


def learning_rate(d_model: int) -> float:
    """The peak for a model of this width: small models want, and bear, higher ones."""
    return 3e-4 if d_model < 384 else 1e-4 if d_model < 768 else 3e-5


def epochs(rows: int) -> int:
    """Passes over a training set of this size."""
    return 8 if rows < 5_000 else 5 if rows < 20_000 else 3


def depth(name: str, n_layers: int) -> int:
    """Where a parameter is: 0 embeddings, 1 to n_layers the blocks, n_layers + 1 what is above."""
    if block := BLOCK.search(name):
        return 1 + int(block[1])
    return 0 if "embeddings" in name else n_layers + 1


def count_layers(model: nn.Module) -> int:
    """Blocks of the encoder, whatever the architecture calls them.

    Raises UserError where there are none to be told apart (ALBERT shares one among all).
    """
    found = [BLOCK.search(name) for name, _ in model.named_parameters()]
    if not any(found):
        raise UserError(f"{type(model).__name__} has no blocks of its own: leave --layer-decay 1")
    return 1 + max(int(block[1]) for block in found if block)


def build_optimizers(
    model: nn.Module,
    learning_rate: float,
    *,
    layer_decay: float = 1.0,
    bias_correction: bool = True,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
) -> list[torch.optim.Optimizer]:
    """One AdamW; a parameter of depth k learns at learning_rate * layer_decay^(n_layers + 1 - k).

    So the head learns at the full rate, the embeddings at the lowest.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    by_depth = defaultdict(list)
    n_layers = count_layers(model) if layer_decay != 1 else 0
    for name, parameter in parameters.items():
        by_depth[depth(name, n_layers) if layer_decay != 1 else 1].append(parameter)
    groups = [
        group | {"lr": learning_rate * layer_decay ** (n_layers + 1 - k)}
        for k, members in sorted(by_depth.items())
        for group in optim.decay_groups(members, weight_decay)
        if group["params"]
    ]
    kind = torch.optim.AdamW if bias_correction else BertAdam
    return [kind(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)]


class BertAdam(torch.optim.AdamW):
    """Adam as BERT's released code has it: w <- w - lr * (m / (sqrt(v) + eps) + decay * w).

    The moments m and v start at zero and nothing corrects for that, so the first steps are
    AdamW's times (1 - beta1^t) / sqrt(1 - beta2^t): 3.2 times as large at t = 1, 6.6 times at
    t = 12, 3.2 times at t = 100, and still a tenth too large at t = 1,700.
    """

    def step(self, closure=None):
        kept = [{name: group[name] for name in ("lr", "eps", "weight_decay")} for group in
                self.param_groups]  # fmt: skip
        for group in self.param_groups:
            (beta1, beta2), t = group["betas"], 1 + self._steps(group)
            root = (1 - beta2**t) ** 0.5
            share = (1 - beta1**t) / root
            group["lr"] *= share
            group["eps"] /= root
            group["weight_decay"] /= share  # which AdamW multiplies by the learning rate
        try:
            return super().step(closure)
        finally:
            for group, values in zip(self.param_groups, kept, strict=True):
                group |= values

    def _steps(self, group: dict) -> int:
        taken = (self.state[p]["step"] for p in group["params"] if "step" in self.state[p])
        return int(next(taken, 0))


def centre(model: nn.Module, mean: float) -> None:
    """Let the head of a regression answer `mean`, the training scores', before it has learned.

    From zero, the first steps push every feature that the encoder has towards that one number.
    Raises UserError where the head has no bias.
    """
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if not heads or heads[-1].bias is None:
        raise UserError("the head of this architecture has no bias: take --no-centred-head")
    nn.init.constant_(heads[-1].bias, mean)


def reinitialise(model: nn.Module, n: int, std: float) -> None:
    """Give the top `n` blocks and the pooler fresh weights (Zhang et al., section 5).

    Matrices Normal(0, std), biases 0, LayerNorm gains 1. `n` = 0 changes nothing. Raises UserError
    when the model has fewer blocks.
    """
    if not n:
        return
    n_layers = count_layers(model)
    if not 0 < n <= n_layers:
        raise UserError(f"--reinit-layers {n}: the model has {n_layers} layers")
    for name, part in model.named_modules():
        block = BLOCK.search(f"{name}.")
        if "pooler" in name or (block and int(block[1]) >= n_layers - n):
            if isinstance(part, nn.LayerNorm):
                part.reset_parameters()
            elif isinstance(part, nn.Linear):
                init_weights(part, std)
