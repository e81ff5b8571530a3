"""The plain training loop: forward, backward, clip, step."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from step0_pytorch_warmup.optimizers import Optimizer, clip_grad_norm

History = dict[str, list[float]]  # one number a step under loss, norm and lr


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: Optimizer,
    batches: Iterable[Tensor],
    *,
    share: Callable[[int], float] | None = None,
    max_norm: float = math.inf,
) -> History:
    """Train on `images` (N, 64) and `labels` (N,), a step for each of `batches` of indices.

    share     a schedule: at each step, the share of our optimizer's learning rate to use
    max_norm  longest gradient; longer ones are clipped
    """
    history = defaultdict(list)
    peak = optimizer.lr if share else None
    for step, chosen in enumerate(batches):
        if share:
            optimizer.lr = peak * share(step)
            history["lr"].append(optimizer.lr)
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()  # backward adds to what is there
        loss.backward()
        norm = clip_grad_norm(model.parameters(), max_norm)
        optimizer.step()
        history["loss"].append(loss.item())
        history["norm"].append(norm)
    return history
