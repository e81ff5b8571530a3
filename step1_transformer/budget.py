"""What a training run will cost, printed before it starts: FLOPs, memory, hours and money."""

from dataclasses import dataclass

import torch

from common import cli
from common.cli import UserError
from step1_transformer.model import Transformer, TransformerConfig


@dataclass(frozen=True)
class Device:
    """Peak dense bf16 rate in TFLOP/s and memory in GB, from the maker's data sheet."""

    tflops: float
    memory: float


DEVICES = {
    "t4": Device(65, 16),
    "rtx4090": Device(165, 24),
    "a100": Device(312, 80),
    "h100": Device(989, 80),
    "h200": Device(989, 141),
    "b200": Device(2250, 180),
}


def device(name: str) -> Device:
    """Raises UserError, listing the known ones, for another name."""
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}; known: {', '.join(DEVICES)}")
    return DEVICES[name]


def transformer_flops(parameters: int, n_layers: int, d_model: int, seq_len: int) -> float:
    """Training FLOPs a token of a Transformer without its output head.

    6 for each parameter in a matrix product (2 forward, 4 backward; embeddings are only looked up)
    and 12 n_layers d_model seq_len for attention (Chowdhery et al. 2022, appendix B).
    """
    return 6 * parameters + 12 * n_layers * d_model * seq_len


def activation_bytes(rows: int, seq_len: int, n_layers: int, d_model: int) -> float:
    """Bytes of 16-bit activations that a micro-batch keeps for its backward pass.

    34 rows seq_len d_model a layer (Korthikanti et al. 2022, Eq. 1), without score matrices, which
    fused attention does not keep.
    """
    return 34 * rows * seq_len * d_model * n_layers


def hours(flops: float, name: str, n_devices: int, utilisation: float) -> float:
    """Wall-clock hours of `flops` at a share `utilisation` of the devices' peak."""
    return flops / (device(name).tflops * 1e12 * utilisation * n_devices) / 3600


@dataclass
class PlanFlags:
    """The flags of a script that can say what it will cost."""

    plan: str = ""
    """Print parameters, FLOPs, memory, hours and cost on this device (h100, a100, ...) and stop."""
    n_devices: int = 8
    """Devices of the plan."""
    utilisation: float = 0.4
    """Share of peak FLOP/s that the plan assumes."""
    price: float = 3.0
    """Price of a device hour in the plan, in your currency."""

    def check_plan(self) -> None:
        """Raises UserError for an unknown device, and for shares and numbers that cannot be."""
        device(self.plan)
        cli.check(self, "n_devices", "above 0", lambda value: value > 0)
        cli.check(self, "utilisation", "above 0, at most 1", lambda value: 0 < value <= 1)
        cli.check(self, "price", "0 or more", lambda value: value >= 0)


def print_cost(
    config: PlanFlags, parameters: int, flops: float, activations: float, steps: int
) -> None:
    """Memory a device (fp32 weights and gradients, two AdamW moments, activations), time, money."""
    memory = (16 * parameters + activations) / 1e9
    time = hours(flops, config.plan, config.n_devices, config.utilisation)
    print(
        f"  memory a device: {memory:.1f} GB of {device(config.plan).memory} GB "
        "(weights, gradients, AdamW moments, activations)"
    )
    print(
        f"  {time:,.2g} hours ({3.6e6 * time / steps:,.2g} ms a step) at "
        f"{config.utilisation:.0%} of peak, "
        f"{time * config.n_devices:,.2g} device hours, "
        f"cost {time * config.n_devices * config.price:,.2f} at {config.price:g} a device hour"
    )


def print_plan(config, shape: TransformerConfig, seq_len: int = 32) -> None:
    """The plan of a translation run, for sentences of `seq_len` tokens on either side."""
    config.check_plan()
    with torch.device("meta"):  # shapes without memory
        model = Transformer(shape)
    parameters = sum(p.numel() for p in model.parameters())
    steps = config.max_steps or 100_000
    tokens = steps * config.max_tokens  # of the source, and as many of the target
    flops = 6 * shape.d_model * shape.vocab_size  # the scores of a target token
    sides = ((model.encoder, shape.n_encoder_layers), (model.decoder, 2 * shape.n_decoder_layers))
    for side, attentions in sides:
        matrices = sum(p.numel() for p in side.parameters())
        flops += transformer_flops(matrices, attentions, shape.d_model, seq_len)
    print(
        f"Transformer-{config.size}: {parameters / 1e6:.1f} M parameters, {steps:,} steps of "
        f"{config.max_tokens:,} tokens a side, on {config.n_devices} x {config.plan}"
    )
    print(f"  {2 * tokens / 1e9:,.1f} G tokens, {tokens * flops:.2e} FLOPs")
    n_layers = shape.n_encoder_layers + shape.n_decoder_layers
    rows = min(config.max_tokens / config.n_devices / seq_len, config.micro_batch_size)
    kept = activation_bytes(rows, seq_len, n_layers, shape.d_model)
    print_cost(config, parameters, tokens * flops, kept, steps)
