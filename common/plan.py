"""What a training run will cost, before anything starts: FLOPs, memory, hours and money."""

from dataclasses import dataclass

from common.cli import UserError


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
