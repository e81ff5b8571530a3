"""Hold every block of ours against PyTorch's own, and the whole model against Hugging Face's.

    python step1_transformer/parity.py                 seven blocks, 20 odd random shapes each

For each block it copies the weights and prints the largest difference of any output (absolute) and
of any gradient, of weights and of inputs (relative to its largest entry), in fp32:
our explicit and our fused path; padding, causal and other masks; post- and pre-norm; batch first
and second; in train mode without dropout, in eval, and in eval under no_grad, where PyTorch takes
another path. Compared are real positions: that other path overwrites padded ones. It fails above
1e-5.
"""

import random
import time
import warnings
from dataclasses import dataclass

import torch

from common import cli, runs
from common.cli import UserError
from common.runs import metric
from step1_transformer.parity_cases import BLOCKS, Shape, compare

LARGEST_DIFFERENCE = 1e-5


@dataclass
class Config(cli.RunConfig):
    shapes: int = 20
    """Random odd shapes for each block and path."""


PRESETS = {"smoke": dict(shapes=3), "cpu": {}, "gpu": {}}


def main(config: Config) -> None:
    run = runs.Run.open(config, "step1_transformer/parity")
    if run.finished():
        return
    warnings.filterwarnings("ignore", "enable_nested_tensor")  # where PyTorch's fast path is not
    started, worst = time.monotonic(), {"output": 0.0, "gradient": 0.0}
    print(f"{'block':28}{'our path':10}{'shapes':>6}  largest difference: outputs, gradients")
    for name, block in BLOCKS.items():
        for path in ("explicit", "fused"):
            rng, largest = random.Random(config.seed), {"output": 0.0, "gradient": 0.0}
            torch.manual_seed(config.seed)
            for _ in range(config.shapes):
                found = compare(block(Shape.draw(rng), path))
                largest = {kind: max(largest[kind], found[kind]) for kind in largest}
            worst = {kind: max(worst[kind], largest[kind]) for kind in worst}
            told = f"{largest['output']:28.1e}{largest['gradient']:11.1e}"
            print(f"{name:28}{path:10}{config.shapes:6}{told}")
    for kind, value in worst.items():
        if not value <= LARGEST_DIFFERENCE:
            raise UserError(f"largest {kind} difference {value:.1e} is above {LARGEST_DIFFERENCE}")
    difference = dict(n=2 * config.shapes * len(BLOCKS), unit="", higher_is_better=False)
    run.result(
        step="step1_transformer",
        script="parity",
        system="our blocks against torch.nn and transformers.MarianMTModel",
        preset=config.preset,
        dataset="random vectors and tokens",
        split="-",
        metrics={
            "largest_output_difference": metric(worst["output"], **difference),
            "largest_relative_gradient_difference": metric(worst["gradient"], **difference),
        },
        compare_to=[],
        model={"name": f"odd shapes: {', '.join(BLOCKS)}", "parameters": None},
        tokens=None,
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=None,
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
