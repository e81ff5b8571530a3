"""A translator built from PyTorch's own modules, and what is asked of it and of ours.

Letters in shapes: B sentences, S source tokens, T target tokens, d = width, V vocabulary.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from common.engine import Batch
from step1_transformer import objective
from step1_transformer.layers import sinusoids
from step1_transformer.model import Transformer
from step1_transformer.tokenizer import BOS, PAD, UNK

THEIRS, OURS = "nn.Transformer", "ours"


class TorchTransformer(nn.Module):
    """nn.Transformer between nn.Embedding, scaled and with sinusoids, and a tied nn.Linear.

    It says what PyTorch needs to know to be fast: that the target's mask is causal, and nothing
    about padding where there is none, or where the causal mask hides it.
    """

    def __init__(
        self, vocab_size: int, width: int, layers: int, max_seq_len: int, dropout: float = 0.1
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.dropout = nn.Dropout(dropout)
        self.transformer = nn.Transformer(
            width, heads(width), layers, layers, 4 * width, dropout, batch_first=True
        )
        # On padded rows, in evaluation, under autocast on a CPU, nested tensors raise an error.
        self.transformer.encoder.use_nested_tensor = False
        self.output = nn.Linear(width, vocab_size, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("position", sinusoids(max_seq_len, width))
        future = torch.ones(max_seq_len, max_seq_len, dtype=torch.bool).triu(1)
        self.register_buffer("future", future)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=PAD)

    def forward(
        self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Scores (B, T, V); attention_mask (B, S) is True at real source tokens, or None."""
        memory = self.encode(input_ids, attention_mask)
        return self.logits(self.decode(decoder_input_ids, memory, attention_mask))

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The memory (B, S, d)."""
        padding = None if attention_mask is None else ~attention_mask
        return self.transformer.encoder(self._embed(input_ids), src_key_padding_mask=padding)

    def decode(
        self, decoder_input_ids: Tensor, memory: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, T, d)."""
        T = decoder_input_ids.shape[1]
        return self.transformer.decoder(
            self._embed(decoder_input_ids),
            memory,
            tgt_mask=self.future[:T, :T],
            tgt_is_causal=True,
            memory_key_padding_mask=None if attention_mask is None else ~attention_mask,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., V) from hidden states (..., d)."""
        return self.output(hidden)

    def _embed(self, ids: Tensor) -> Tensor:
        d = self.embedding.embedding_dim
        return self.dropout(self.embedding(ids) * math.sqrt(d) + self.position[: ids.shape[1]])


def heads(width: int) -> int:
    """Attention heads, as in the sizes tiny, small, base and big."""
    return max(2, width // 64, min(8, width // 32))


def twins(*shape, device: torch.device, **options) -> dict[str, nn.Module]:
    """TorchTransformer(*shape, **options), and ours with the same weights."""
    theirs = TorchTransformer(*shape, **options).to(device)
    # No text ends while its decoding is timed: the score of the pad token is 0, never the best.
    limits = dict(max_seq_len=len(theirs.position), eos_token_id=PAD)
    parts = (theirs.transformer, theirs.embedding, theirs.output)
    return {THEIRS: theirs, OURS: Transformer.from_torch(*parts, **limits)}


def random_batch(rows: int, length: int, vocab_size: int, *, ragged: bool = False) -> Batch:
    """What `Corpus.batch` returns, of random tokens: `length` a row on both sides, or up to it."""
    source, target = torch.randint(UNK + 1, vocab_size, (2, rows, length))
    ends = torch.full((2, rows), length)
    if ragged:
        ends[:, 1:] = torch.randint(1, length + 1, (2, rows - 1))
    real_source, real = torch.arange(length) < ends[:, :, None]
    shifted = torch.cat([torch.full((rows, 1), BOS), target[:, :-1]], 1)
    return with_label_rows(
        {
            "input_ids": source.where(real_source, PAD),
            "attention_mask": real_source if ragged else None,
            "decoder_input_ids": shifted.where(real, PAD),
            "positions": real.flatten().nonzero().flatten(),
            "labels": target[real],
            "targets": {"token": int(real.sum())},
        }
    )


def with_label_rows(batch: Batch) -> Batch:
    """The batch with its labels also as nn.CrossEntropyLoss wants them, (B * T,) with padding."""
    rows = torch.full((batch["decoder_input_ids"].numel(),), PAD)
    rows[batch["positions"]] = batch["labels"]
    return batch | {"label_rows": rows}


def inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    return batch["input_ids"], batch["decoder_input_ids"], batch["attention_mask"]


def torch_loss(model: TorchTransformer, batch: Batch) -> Tensor:
    """The mean label-smoothed loss of a target token (nats)."""
    return model.criterion(model(*inputs(batch)).flatten(0, 1), batch["label_rows"])


def our_loss(model: Transformer, batch: Batch) -> Tensor:
    """The same."""
    return objective.losses(model, batch)["token_loss"] / batch["targets"]["token"]


def trainer(
    model: nn.Module, autocast: Callable[[], AbstractContextManager]
) -> Callable[[Batch], Tensor]:
    """A whole optimizer step; returns the loss before it."""
    loss_of = our_loss if isinstance(model, Transformer) else torch_loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step(batch: Batch) -> Tensor:
        optimizer.zero_grad()
        with autocast():
            loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


@torch.inference_mode()
def recompute(model: nn.Module, input_ids: Tensor, max_len: int) -> Tensor:
    """Greedy decoding without a cache: (B, max_len) tokens, the whole prefix anew for each."""
    memory = model.encode(input_ids)
    written = input_ids.new_full((len(input_ids), 1), BOS)
    for _ in range(max_len):
        hidden = model.decode(written, memory)
        token = model.logits(hidden[:, -1:]).argmax(-1)
        written = torch.cat([written, token], 1)
    return written[:, 1:]
