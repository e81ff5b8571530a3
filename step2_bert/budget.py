"""What a pretraining run will cost, printed before it starts: FLOPs, memory, hours and money."""

from dataclasses import replace
from pathlib import Path

import torch

from step1_transformer.budget import activation_bytes, print_cost, transformer_flops
from step2_bert.checkpoint import pretrained
from step2_bert.masking import usual_predictions
from step2_bert.model import BertConfig, BertForPreTraining
from step2_bert.samples import Samples


def flops_per_token(model: BertForPreTraining, seq_len: int, masked: float) -> float:
    """Training FLOPs a token: the layers, and the head at the share `masked` of the positions."""
    bert, matrices = model.config, sum(p.numel() for p in model.bert.layers.parameters())
    head = bert.d_model * (bert.vocab_size + bert.d_model)
    return transformer_flops(matrices, bert.n_layers, bert.d_model, seq_len) + 6 * head * masked


def print_plan(config) -> None:
    """Parameters, FLOPs, memory, hours and cost of the run on `config.plan` devices."""
    config.check_plan()
    if (Path(config.data) / "manifest.json").exists():
        samples = Samples.open(config.data)
        text = samples.manifest["options"]["data"]
        sizes = dict(vocab_size=samples.vocab_size, max_seq_len=samples.max_seq_len)
        config = replace(config, data=text, **sizes)
    bert = BertConfig.named(config.size, vocab_size=config.vocab_size)
    with torch.device("meta"):  # shapes without memory
        model = BertForPreTraining(bert)
    parameters = sum(p.numel() for p in model.parameters())
    steps = round((config.max_steps or 100_000) / (1 - config.long_share))
    print(
        f"BERT-{config.size}: {parameters / 1e6:.1f} M parameters, {steps:,} steps of "
        f"{config.batch_size} samples, on {config.n_devices} x {config.plan}"
    )
    total = 0.0
    for share, seq_len in ((1 - config.long_share, config.max_seq_len), (config.long_share, 512)):
        tokens = share * steps * config.batch_size * seq_len
        flops = tokens * flops_per_token(model, seq_len, config.mask_probability or 0.15)
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
    print_cost(config, parameters, total, kept, steps)
    if config.long_share:
        print(second_phase(config, round(config.long_share * steps)))


def second_phase(config, steps: int) -> str:
    """The commands for the last `steps` of the plan, at length 512, after the run of `config`."""
    folder = f"runs/step2_bert/{Path(config.data).name}-512"
    first = f"{config.out}/model" if config.out else pretrained(config.preset)
    many = f"accelerate launch --num_processes {config.n_devices}"
    launch = many if config.n_devices > 1 else "python"
    rate = config.learning_rate * config.min_lr_ratio
    return f"""
  then the long samples:
  python step2_bert/prepare.py --preset {config.preset} --data {config.data} --vocab {first} \\
    --max-seq-len 512 --max-predictions {usual_predictions(512)} --out {folder}
  {launch} step2_bert/pretrain.py --preset {config.preset} --data {folder} --init-from {first} \\
    --max-steps {steps} --learning-rate {rate:g} --min-lr-ratio 0 --warmup-ratio 0 \\
    --out {Path(first).parent}-512"""
