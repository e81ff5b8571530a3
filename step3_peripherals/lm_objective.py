"""What a language model is trained on, and its scores on a whole held-out text."""

import math

import torch
from torch import nn

from common import batching, engine
from step3_peripherals.stream import Rows


def losses(model: nn.Module, batch: engine.Batch) -> dict[str, torch.Tensor]:
    """Sums over the target tokens of a batch of `Rows`, input_ids and labels (B, T): -log p in
    nats, and the hits."""
    sums = model(batch["input_ids"], batch["labels"])
    return {"token_loss": sums.loss, "token_accuracy": sums.correct}


def heldout_scores(
    model: nn.Module, rows: Rows, accelerator=None, batch_tokens: int = 8192
) -> dict[str, float]:
    """Loss (nats) and accuracy of a token over all rows, each of which is read by itself.

    The first tokens of a row have little context, the more so the shorter the rows are: scores at
    two lengths are of the same tokens, but not with the same contexts.
    """
    rank = accelerator.process_index if accelerator else 0
    world = accelerator.num_processes if accelerator else 1
    size = max(1, batch_tokens // rows.max_seq_len)
    order = dict(batch_size=size, shuffle=False, bucket=False, drop_last=False)
    batches = batching.Batches(rows.lengths, **order).epoch(0)
    return engine.evaluate(model, map(rows.batch, batches[rank::world]), losses, accelerator)


def bits_per_byte(token_loss: float, n_tokens: int, n_bytes: int) -> float:
    """The mean loss of n_tokens (nats) as bits for each UTF-8 byte of the text that they spell:
    the one score that models of different vocabularies can be compared by. The separators between
    documents are among the tokens, as many whatever the vocabulary."""
    return token_loss * n_tokens / (n_bytes * math.log(2))
