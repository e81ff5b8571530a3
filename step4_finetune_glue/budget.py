"""What a fine-tuning will cost, printed before it starts: FLOPs, memory, hours and money."""

import re

import torch

from common.cli import UserError
from step1_transformer.budget import activation_bytes, print_cost, transformer_flops
from step2_bert.checkpoint import config_fields
from step2_bert.model import BertConfig, BertForSequenceClassification
from step4_finetune_glue import classifier, recipe, tasks
from step4_finetune_glue.training import Config

PUBLISHED = re.compile(r"(?:google-bert/)?bert-(base|large)-uncased")  # no need to have them


def shape(model: str) -> BertConfig:
    """Of a checkpoint; of BERT-base and BERT-large without their files. Raises UserError for an
    architecture that is not BERT's."""
    if found := PUBLISHED.fullmatch(model):
        return BertConfig.named(found[1], vocab_size=30522)
    try:
        return BertConfig(**config_fields(classifier.read_config(classifier.find(model))))
    except ValueError as error:
        raise UserError(f"the config of {model}: {error}") from error


def print_plan(config: Config) -> None:
    """Parameters, FLOPs, memory, hours and cost of all seeds on `config.plan` devices, if every row
    has the most tokens that it may have: buckets compute only those that are there."""
    config.check_plan()
    task, bert = tasks.task(config.task), shape(config.model)
    tasks.check_trainable(task)
    with torch.device("meta"):  # shapes without memory
        model = BertForSequenceClassification(bert, task.n_classes)
    parameters = sum(p.numel() for p in model.parameters())
    rows = min(config.train_limit or task.train_rows, task.train_rows)
    epochs = config.epochs or recipe.epochs(rows)
    steps = config.max_steps or epochs * -(-rows // config.batch_size)
    tokens = config.seeds * steps * config.batch_size * config.max_seq_len
    matrices = sum(p.numel() for p in model.bert.layers.parameters())
    flops = transformer_flops(matrices, bert.n_layers, bert.d_model, config.max_seq_len)
    print(
        f"{task.name}, {config.model}: {parameters / 1e6:.1f} M parameters, {config.seeds} seeds "
        f"of {steps:,} steps of {config.batch_size} rows, on {config.n_devices} x {config.plan}"
    )
    print(
        f"  at most {config.max_seq_len} tokens a row: {tokens / 1e6:,.0f} M tokens, "
        f"{tokens * flops:.2e} FLOPs"
    )
    at_once = min(config.micro_batch_size, -(-config.batch_size // config.n_devices))
    kept = activation_bytes(at_once, config.max_seq_len, bert.n_layers, bert.d_model)
    print_cost(config, parameters, tokens * flops, kept, config.seeds * steps)
