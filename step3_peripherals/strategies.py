"""The ways of choosing a token that compare_sampling.py compares, each with its usual values."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from step3_peripherals import sampling
from step3_peripherals.language_model import LanguageModel

WARPS = {
    "sampling": (),
    "temperature 0.7": (partial(sampling.temperature, tau=0.7),),
    "top-k 40": (partial(sampling.top_k, k=40),),
    "top-p 0.95": (partial(sampling.top_p, p=0.95),),
    "min-p 0.1": (partial(sampling.min_p, share=0.1),),
    "typical 0.95": (partial(sampling.typical, mass=0.95),),
}
STRATEGIES = ("greedy", "penalty 1.2", "beam 4", "contrastive", *WARPS)


def strategy(
    name: str, model: LanguageModel, new_tokens: int, generator: torch.Generator
) -> Callable[[sampling.Prompts], list[list[int]]]:
    """Prompts -> the `new_tokens` that `name` writes behind each; those in WARPS are random."""

    def with_hidden(ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = model.hidden(ids)
        return F.linear(hidden, model.token.weight), hidden

    ways = {
        "greedy": partial(sampling.generate, model),
        "penalty 1.2": partial(sampling.generate, model, penalty=1.2),
        "beam 4": partial(sampling.beam, model, beam_size=4),
        "contrastive": partial(sampling.contrastive, with_hidden, k=4, alpha=0.6),
    }
    for drawn, warps in WARPS.items():
        ways[drawn] = partial(sampling.generate, model, warps=warps, generator=generator)
    return partial(ways[name], max_new_tokens=new_tokens)
