"""What a pretraining run will cost, printed before it starts."""

import torch

from common import plan
from step2_bert.model import BertConfig, BertForPreTraining


def print_plan(config) -> None:
    """Parameters, FLOPs, memory, hours and cost of the run on `config.plan` devices."""
    device = plan.device(config.plan)
    bert = BertConfig.named(config.size, vocab_size=config.vocab_size)
    with torch.device("meta"):  # shapes without memory
        model = BertForPreTraining(bert)
    parameters = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.bert.layers.parameters())
    head = bert.d_model * (bert.vocab_size + bert.d_model)
    steps = config.max_steps or 100_000
    print(
        f"BERT-{config.size}: {parameters / 1e6:.1f} M parameters, {steps:,} steps of "
        f"{config.batch_size} samples, on {config.n_devices} x {config.plan}"
    )
    total = 0.0
    for share, seq_len in ((1 - config.long_share, config.max_seq_len), (config.long_share, 512)):
        tokens = share * steps * config.batch_size * seq_len
        body = plan.transformer_flops(matrices, bert.n_layers, bert.d_model, seq_len)
        masked = min(20, 0.15 * seq_len) / seq_len if seq_len <= 128 else 0.15
        flops = tokens * (body + 6 * head * masked)
        total += flops
        if share:
            print(
                f"  {share * steps:>12,.0f} steps at length {seq_len}: "
                f"{tokens / 1e9:,.1f} G tokens, {flops:.2e} FLOPs"
            )
    kept = plan.activation_bytes(
        config.micro_batch_size,
        512 if config.long_share else config.max_seq_len,
        bert.n_layers,
        bert.d_model,
    )
    memory = (16 * parameters + kept) / 1e9
    hours = plan.hours(total, config.plan, config.n_devices, config.utilisation)
    print(
        f"  memory a device: {memory:.1f} GB of {device.memory} GB "
        "(weights, gradients, AdamW moments, activations)"
    )
    print(
        f"  {hours:,.2g} hours at {config.utilisation:.0%} of peak, "
        f"{hours * config.n_devices:,.2g} device hours, "
        f"cost {hours * config.n_devices * config.price:,.2f} at {config.price:g} a device hour"
    )
    if config.long_share:
        print(
            "  then the long part: prepare with --max-seq-len 512 and go on with --init-from, "
            f"--learning-rate {config.learning_rate * config.long_share:g} --warmup 0"
        )
