"""What a pretraining run will cost, printed before it starts: FLOPs, memory, hours and money."""

from dataclasses import dataclass

import torch

from common.cli import UserError
from step2_bert.masking import usual_predictions
from step2_bert.model import BertConfig, BertForPreTraining


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


def print_plan(config) -> None:
    """Parameters, FLOPs, memory, hours and cost of the run on `config.plan` devices."""
    gpu = device(config.plan)
    bert = BertConfig.named(config.size, vocab_size=config.vocab_size)
    with torch.device("meta"):  # shapes without memory
        model = BertForPreTraining(bert)
    parameters = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.bert.layers.parameters())
    head = bert.d_model * (bert.vocab_size + bert.d_model)
    steps = round((config.max_steps or 100_000) / (1 - config.long_share))
    print(
        f"BERT-{config.size}: {parameters / 1e6:.1f} M parameters, {steps:,} steps of "
        f"{config.batch_size} samples, on {config.n_devices} x {config.plan}"
    )
    total = 0.0
    for share, seq_len in ((1 - config.long_share, config.max_seq_len), (config.long_share, 512)):
        tokens = share * steps * config.batch_size * seq_len
        body = transformer_flops(matrices, bert.n_layers, bert.d_model, seq_len)
        masked = min(usual_predictions(seq_len) / seq_len, 0.15)
        flops = tokens * (body + 6 * head * masked)
        total += flops
        if share:
            print(
                f"  {share * steps:>12,.0f} steps at length {seq_len}: "
                f"{tokens / 1e9:,.1f} G tokens, {flops:.2e} FLOPs"
            )
    kept = activation_bytes(
        config.micro_batch_size,
        512 if config.long_share else config.max_seq_len,
        bert.n_layers,
        bert.d_model,
    )
    memory = (16 * parameters + kept) / 1e9
    time = hours(total, config.plan, config.n_devices, config.utilisation)
    print(
        f"  memory a device: {memory:.1f} GB of {gpu.memory} GB "
        "(weights, gradients, AdamW moments, activations)"
    )
    print(
        f"  {time:,.2g} hours at {config.utilisation:.0%} of peak, "
        f"{time * config.n_devices:,.2g} device hours, "
        f"cost {time * config.n_devices * config.price:,.2f} at {config.price:g} a device hour"
    )
    if config.long_share:
        print(second_phase(config, round(config.long_share * steps)))


def second_phase(config, steps: int) -> str:
    """The commands for the last `steps` of the plan, at length 512, after the run of `config`."""
    folder = f"runs/step2_bert/{config.data}-512"
    first = f"runs/step2_bert/pretrain-{config.preset}/model"
    rate = config.learning_rate * config.min_lr_ratio
    return f"""
  then the long samples:
  python step2_bert/prepare.py --preset {config.preset} --data {config.data} --vocab {first} \\
    --max-seq-len 512 --max-predictions {usual_predictions(512)} --out {folder}
  python step2_bert/pretrain.py --preset {config.preset} --data {folder} --init-from {first} \\
    --max-steps {steps} --learning-rate {rate:g} --min-lr-ratio 0 --warmup-ratio 0 \\
    --out {folder.replace(config.data, f"pretrain-{config.preset}")}"""
