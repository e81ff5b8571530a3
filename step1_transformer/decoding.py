"""From probabilities to sentences: greedy and beam search ("Attention is all you need", section
6.1; Wu et al. 2016, arXiv:1609.08144, section 7).

Both write one token a step. The cache of keys and values spares them the tokens written before, and
a sentence that is finished leaves the batch. Letters: B sentences still being written, S source
tokens, T written tokens, k = beam_size, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common import runs
from common.batching import Batches
from common.cli import UserError

EXTRA_LENGTH = 50  # a translation has at most the source's length and this (section 6.1)


class Writing:
    """The decoder in the middle of a batch: all that it needs to write one more token a row."""

    def __init__(self, model, input_ids: Tensor, attention_mask: Tensor | None, copies: int = 1):
        """Encode `input_ids` (B, S) and stand before the first token of B * `copies` rows."""
        self.model = model
        self.cache = model.start_cache(model.encode(input_ids, attention_mask), attention_mask)
        start = input_ids.new_full((copies * len(input_ids),), model.config.bos_token_id)
        self.rows = torch.arange(len(input_ids), device=input_ids.device)
        self.go_on(self.rows.repeat_interleave(copies), start)

    def scores(self) -> Tensor:
        """(rows, V) logits of each row's next token; at least fp32."""
        hidden = self.model.decode(self.newest, None, None, self.cache)  # (rows, 1, d)
        logits = self.model.logits(hidden[:, 0])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def go_on(self, rows: Tensor, tokens: Tensor) -> None:
        """Row i becomes what row `rows[i]` was, with `tokens[i]` written behind it."""
        if not torch.equal(rows, self.rows):
            self.cache.reorder(rows)
            self.rows = torch.arange(len(rows), device=rows.device)
        self.newest = tokens[:, None]


@torch.inference_mode()
def greedy(
    model, input_ids: Tensor, attention_mask: Tensor | None = None, *, max_len: int | None = None
) -> list[list[int]]:
    """Write the likeliest token, again and again, until it is </s>.

    input_ids (B, S) and attention_mask (B, S), True at real tokens, or None without padding.
    `max_len` tokens at most, </s> included; None: the source's length + 50. The model's positions
    bound both. Returns the token ids of each sentence, without <s> and </s>.
    """
    limits = _limits(model, input_ids, attention_mask, max_len)  # (B,)
    longest, eos = int(limits.max()), model.config.eos_token_id
    written = input_ids.new_full((len(input_ids), longest), eos)
    sentence = torch.arange(len(input_ids), device=input_ids.device)  # the one that a row writes
    writing = Writing(model, input_ids, attention_mask)
    for length in range(1, longest + 1):
        tokens = writing.scores().argmax(-1)
        written[sentence, length - 1] = tokens
        rows = ((tokens != eos) & (length < limits[sentence])).nonzero().flatten()
        if len(rows) == 0:
            break
        sentence = sentence[rows]
        writing.go_on(rows, tokens[rows])
    return _until_eos(written, eos)


def length_penalty_of(length: int | Tensor, alpha: float) -> float | Tensor:
    """lp(Y) = ((5 + |Y|) / 6)^alpha (Wu et al. 2016, equation 14)."""
    return ((5 + length) / 6) ** alpha


@torch.inference_mode()
def beam(
    model,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    max_len: int | None = None,
) -> list[list[int]]:
    """Keep the `beam_size` likeliest beginnings; return the finished Y of best log P(Y|X) / lp(Y).

    |Y| counts </s>. A hypothesis that meets its length limit counts as finished there. Arguments
    and result as of `greedy`; ValueError unless `beam_size` >= 1 and `length_penalty` >= 0.
    """
    if beam_size < 1 or length_penalty < 0:
        raise ValueError(f"beam_size {beam_size} must be 1 or more, length_penalty 0 or more")
    B, k, eos = len(input_ids), beam_size, model.config.eos_token_id
    limits = _limits(model, input_ids, attention_mask, max_len)
    longest, device = int(limits.max()), input_ids.device
    writing = Writing(model, input_ids, attention_mask, copies=k)
    answer = input_ids.new_full((B, longest), eos)  # the best finished hypothesis of each sentence
    sentence = torch.arange(B, device=device)
    best = torch.full((B,), -torch.inf, device=device)
    written = input_ids.new_zeros((B, k, 0))  # (B, k, T)
    live = torch.full((B, k), -torch.inf, device=device)  # log P of what is written
    live[:, 0] = 0.0  # the k beginnings are still one and the same

    for length in range(1, longest + 1):
        log_p = writing.scores().log_softmax(-1).unflatten(0, (-1, k))  # (B, k, V)
        V = log_p.shape[-1]
        # Of 2k candidates at most k end here (one for each parent), so k remain to go on with.
        total, place = (live[:, :, None] + log_p).flatten(1).topk(min(2 * k, k * V))
        parent, token = place // V, place % V  # (B, 2k), best first
        past = written.gather(1, parent[:, :, None].expand(-1, -1, length - 1))
        candidates = torch.cat([past, token[:, :, None]], -1)  # (B, 2k, T + 1)

        # The finished ones among the best k against the best that finished before
        ends = token == eos
        finished = (ends | (length == limits)[:, None])[:, :k]
        scores = total[:, :k] / length_penalty_of(length, length_penalty)
        score, which = scores.masked_fill(~finished, -torch.inf).max(1)
        better = (score > best).nonzero().flatten()
        best = torch.maximum(best, score)
        answer[sentence[better], :length] = candidates[better, which[better]]

        # The best k of the others go on, where one of them can still win: log P only falls, so
        # log P(now) / lp(longest) bounds whatever comes of it.
        live, order = total.masked_fill(ends, -torch.inf).topk(k)
        bound = live[:, 0] / length_penalty_of(limits, length_penalty)
        going = ((length < limits) & (bound > best)).nonzero().flatten()
        if len(going) == 0:
            break
        order = order[going]
        rows = going[:, None] * k + parent[going].gather(1, order)
        writing.go_on(rows.flatten(), token[going].gather(1, order).flatten())
        written = candidates[going[:, None], order]
        live, best, limits, sentence = live[going], best[going], limits[going], sentence[going]
    return _until_eos(answer, eos)


def _limits(model, input_ids: Tensor, mask: Tensor | None, max_len: int | None) -> Tensor:
    """(B,) most tokens to write for each sentence: no other sentence of the batch changes it."""
    B, S = input_ids.shape
    real = input_ids.new_full((B,), S) if mask is None else mask.sum(1)
    limits = real + EXTRA_LENGTH if max_len is None else torch.full_like(real, max_len)
    return limits.clamp(1, model.config.max_seq_len)


def _until_eos(rows: Tensor, eos: int) -> list[list[int]]:
    return [row[: row.index(eos)] if eos in row else row for row in rows.tolist()]


def translate(
    model, tokenizer, sentences: Sequence[str], *, truncate: bool = False, **options
) -> list[str]:
    """Translate each sentence; the order is kept, and one without text becomes "".

    `options` are those of `write`. Raises UserError for a sentence longer than the model's
    positions, unless `truncate`.
    """
    ids = encode(tokenizer, sentences, model.config.max_seq_len, truncate)
    full = [i for i, text in enumerate(sentences) if text.strip()]
    translations = [""] * len(sentences)
    written = tokenizer.decode_batch(write(model, [ids[i] for i in full], **options))
    for i, text in zip(full, written, strict=True):
        translations[i] = " ".join(text.split())  # a line is a line
    return translations


def write(
    model,
    sources: Sequence[list[int]],
    *,
    beam_size: int = 4,
    length_penalty: float = 0.6,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> list[list[int]]:
    """The token ids that beam search, or with `beam_size` 1 greedy search, writes for each source.

    A batch has sources of nearly the same length, </s> included: `batch_tokens` at most, padding
    and all copies in the beam included.
    """
    if not sources:
        return []
    device, pad = next(model.parameters()).device, model.config.pad_token_id
    lengths = np.array([len(ids) for ids in sources])
    tokens = max(1, batch_tokens // beam_size)
    batches = Batches(lengths, max_tokens=tokens, shuffle=False, drop_last=False).epoch(0)
    written: list[list[int]] = [[]] * len(sources)
    was_training = model.training
    model.eval()
    with runs.progress(
        len(sources), desc="translating", unit=" sentences", disable=not progress
    ) as bar:
        for rows in batches:
            input_ids = torch.full((len(rows), lengths[rows].max()), pad)
            for row, i in zip(input_ids, rows, strict=True):
                row[: lengths[i]] = torch.tensor(sources[i])
            mask = torch.arange(input_ids.shape[1]) < torch.from_numpy(lengths[rows])[:, None]
            batch = (model, input_ids.to(device), None if mask.all() else mask.to(device))
            if beam_size == 1:
                found = greedy(*batch)
            else:
                found = beam(*batch, beam_size=beam_size, length_penalty=length_penalty)
            for i, ids in zip(rows, found, strict=True):
                written[i] = ids
            bar.update(len(rows))
    model.train(was_training)
    return written


def encode(
    tokenizer, sentences: Sequence[str], limit: int, truncate: bool = False
) -> list[list[int]]:
    """The ids of each sentence, </s> last.

    One of more than `limit` tokens is a UserError, or, with `truncate`, cut before its </s>.
    """
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]
    for number, (row, text) in enumerate(zip(ids, sentences, strict=True), 1):
        if len(row) > limit and not truncate:
            raise UserError(
                f"sentence {number} ({text[:40]!r}...) has {len(row):,} tokens, but the model has "
                f"{limit:,} positions: split it, or cut it with --truncate"
            )
    return [row if len(row) <= limit else row[: limit - 1] + row[-1:] for row in ids]
