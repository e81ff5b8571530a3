"""Corruption for sequence-to-sequence models, which write down what they were not shown.

    scheme       the encoder reads                                  the decoder writes
    t5           a sentinel for each hidden span                    each sentinel and what it hid
    infilling    one [MASK] for each span, however long, even 0     the original
    deletion     nothing in place of hidden tokens                  the original
    permutation  the sentences in random order                      the original
    rotation     the text from a random token on, then its start    the original

T5: Raffel et al. 2020, arXiv:1910.10683, section 3.1.4; the others BART: Lewis et al. 2020,
arXiv:1910.13461, section 2.2. Its fifth noise, token masking, is in masking.py. Like the masks
there, a sample's corruption is a function of (seed, epoch, sample), and has no loop over rows.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from common.cli import UserError
from step2_bert.masking import (
    NEVER,
    Vocabulary,
    candidates_of,
    draws,
    sample_keys,
    smallest,
    uniform,
)

Scheme = Literal["t5", "infilling", "deletion", "permutation", "rotation"]


@dataclass(frozen=True)
class Corruption:
    scheme: Scheme
    rate: float = 0.15
    """Share of the tokens to hide; T5 has 0.15, BART 0.3."""
    mean_length: float = 3.0
    """Mean length of a hidden span; for infilling that of a Poisson distribution."""
    first_sentinel: int | None = None
    """t5: id of the first sentinel; the next ones count down, as in T5's vocabulary (32099)."""
    n_sentinels: int = 100
    """t5: how many sentinels the vocabulary has."""
    sentence_ends: tuple[int, ...] = ()
    """permutation: ids of the tokens that end a sentence, as of "."."""

    def __post_init__(self):
        if self.scheme not in get_args(Scheme):
            raise UserError(f"corruption {self.scheme!r}: one of {', '.join(get_args(Scheme))}")
        if not 0 < self.rate < 1 or not 0 < self.mean_length < math.inf:
            raise UserError("corruption: a rate in (0, 1) and a mean length above 0")
        if self.scheme == "t5" and self.first_sentinel is None:
            raise UserError("corruption t5: needs first_sentinel, the id of the first sentinel")
        if self.scheme == "t5" and not 0 < self.n_sentinels <= self.first_sentinel + 1:
            told = f"{self.n_sentinels} sentinels do not count down from {self.first_sentinel}"
            raise UserError(f"corruption t5: {told}; give n_sentinels as the vocabulary has them")
        if self.scheme == "permutation" and not self.sentence_ends:
            raise UserError("corruption permutation: needs sentence_ends, the ids that end one")


class Corrupted(NamedTuple):
    input_ids: np.ndarray  # (B, T') int64, padded
    input_lengths: np.ndarray  # (B,)
    target_ids: np.ndarray  # (B, T'') int64, padded
    target_lengths: np.ndarray  # (B,)


def corrupt(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    samples: np.ndarray,
    vocabulary: Vocabulary,
    corruption: Corruption,
    *,
    seed: int,
    epoch: int,
    pad_id: int = 0,
) -> Corrupted:
    """Corrupt rows `input_ids` (B, T) of `lengths` (B,) tokens; arguments as of `masking.mask`.

    Special tokens are never hidden. Those at the ends of a row stay there; one inside splits a T5
    span in two, and moves with the sentence before it. Raises UserError when T5 runs out of
    sentinels.
    """
    if not input_ids.size:
        return Corrupted(*(part.astype(np.int64) for part in (input_ids, lengths) * 2))
    text = _Text(input_ids, lengths, candidates_of(input_ids, lengths, vocabulary), pad_id)

    def keys(stream: int) -> np.ndarray:
        return sample_keys(seed, epoch, samples, stream)

    if corruption.scheme == "t5":
        noise = noise_mask(text.n, corruption.rate, corruption.mean_length, keys(1), keys(2))
        return _with_sentinels(text, text.to_columns(noise), corruption)
    if corruption.scheme == "infilling":
        made = _infill(text, corruption, vocabulary.mask_id, *map(keys, (1, 2, 3)))
    elif corruption.scheme == "deletion":
        score = np.where(text.candidates, draws(keys(1), text.width) >> np.uint64(1), NEVER)
        hidden = smallest(score, _budget(text.n, corruption.rate))
        made = _lay(text.ids, text.places, text.present & ~hidden, pad_id)
    elif corruption.scheme == "permutation":
        made = _permute(text, corruption.sentence_ends, keys(1))
    else:
        made = _rotate(text, keys(1))
    target = np.where(text.present, text.ids, pad_id)
    return Corrupted(*made, target, text.lengths.copy())


class _Text:
    """Rows, and the ordinary tokens in them, which are numbered 0, 1, ..., n - 1."""

    def __init__(self, ids, lengths, candidates, pad_id):
        self.ids, self.lengths, self.candidates = ids.astype(np.int64), lengths, candidates
        self.pad_id, self.width = pad_id, ids.shape[1]
        self.column = np.arange(self.width)
        self.places = np.broadcast_to(self.column, ids.shape)
        self.present = self.column < lengths[:, None]
        self.n = candidates.sum(1)
        self.columns = np.argsort(~candidates, axis=1, kind="stable")  # of the n; then the rest

    def to_columns(self, flags: np.ndarray) -> np.ndarray:
        """Flags (B, N) of ordinary tokens as flags (B, T) of columns."""
        inside = np.zeros(self.ids.shape, bool)
        inside[:, : flags.shape[1]] = flags[:, : self.width]
        inside &= self.column < self.n[:, None]
        found = np.zeros_like(inside)
        np.put_along_axis(found, self.columns, inside, axis=1)
        return found


def _budget(n: np.ndarray, rate: float) -> np.ndarray:
    """round(rate * n), at least 1 and at most n, for n (B,) tokens."""
    return np.minimum(np.rint(n * rate).clip(1), n).astype(np.int64)


def _lay(items: np.ndarray, keys: np.ndarray, keep: np.ndarray, pad_id: int) -> tuple:
    """The `items` (B, N) to `keep`, in the order of their `keys`: (B, longest) ids and (B,)."""
    lengths = keep.sum(1)
    keys = np.where(keep, keys, np.iinfo(np.int64).max)
    order = np.argsort(keys, axis=1, kind="stable")[:, : max(1, lengths.max(initial=1))]
    laid = np.take_along_axis(items, order, axis=1)
    return np.where(np.arange(laid.shape[1]) < lengths[:, None], laid, pad_id), lengths


# -- T5 --------------------------------------------------------------------------------------


def noise_mask(
    n: np.ndarray, rate: float, mean_length: float, noise_keys: np.ndarray, text_keys: np.ndarray
) -> np.ndarray:
    """Which of n (B,) tokens are noise, (B, N): T5's `random_spans_noise_mask`.

    round(rate * n) tokens are noise, in round(noise / mean_length) spans, at least one of each.
    Noise and text are cut into so many pieces, every way of doing so being equally likely, and put
    together in turn, text first.
    """
    size = np.maximum(n, 2)
    n_noise = np.rint(size * rate).astype(np.int64).clip(1, size - 1)
    n_text = size - n_noise
    n_spans = np.rint(n_noise / mean_length).astype(np.int64).clip(1)
    n_spans = np.minimum(n_spans, np.minimum(n_noise, n_text))
    noise = _segments(n_noise, n_spans, noise_keys)
    text = _segments(n_text, n_spans, text_keys)
    rows, width = len(n), int(size.max(initial=2))
    starts = np.cumsum(np.stack([text, noise], axis=2).reshape(rows, -1), axis=1)[:, :-1]
    starts = starts.clip(max=width) + (np.arange(rows) * (width + 1))[:, None]
    begins = np.bincount(starts.ravel(), minlength=rows * (width + 1)).reshape(rows, width + 1)
    odd = np.cumsum(begins, axis=1)[:, :width] % 2 == 1
    return odd & (np.arange(width) < n[:, None])


def _segments(n_items: np.ndarray, n_segments: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Lengths (B, most segments) of random segments, none empty, that add up to `n_items` (B,)."""
    rows, width = len(n_items), int(n_items.max(initial=1))
    place, most = np.arange(width), int(n_segments.max(initial=1))
    inner = (place >= 1) & (place < n_items[:, None])
    score = np.where(inner, draws(keys, width) >> np.uint64(1), NEVER)
    segment = np.cumsum(smallest(score, n_segments - 1), axis=1) + np.arange(rows)[:, None] * most
    counts = np.bincount(segment[place < n_items[:, None]], minlength=rows * most)
    return counts.reshape(rows, most)


def _with_sentinels(text: _Text, hidden: np.ndarray, corruption: Corruption) -> Corrupted:
    """Figure 2 of the paper; its released code ends the target with </s>, not a sentinel."""
    begins = hidden & ~np.pad(hidden, ((0, 0), (1, 0)))[:, :-1]
    n_spans = begins.sum(1)
    if (most := n_spans.max(initial=0) + 1) > corruption.n_sentinels:
        told = f"{most} sentinels are needed and {corruption.n_sentinels} there"
        raise UserError(f"corruption t5: {told}; shorten the samples or lengthen the spans")
    sentinel = corruption.first_sentinel + 1 - np.cumsum(begins, axis=1)
    shown = np.where(begins, sentinel, text.ids)
    column = text.places
    made = _lay(shown, column, text.present & (~hidden | begins), text.pad_id)
    last = corruption.first_sentinel - n_spans[:, None]
    items = np.concatenate([sentinel, text.ids, last], axis=1)
    keys = np.concatenate([2 * column, 2 * column + 1, 2 * text.width + 0 * last], axis=1)
    keep = np.concatenate([begins, hidden, np.ones(last.shape, bool)], axis=1)
    return Corrupted(*made, *_lay(items, keys, keep, text.pad_id))


# -- BART ------------------------------------------------------------------------------------


def _infill(text: _Text, corruption: Corruption, mask_id: int, *keys) -> tuple:
    """Spans with Poisson lengths, the last one cut, that hide round(rate * n) tokens in all.

    The spans, empty ones too, and the tokens that stay are put in a uniformly random order, the
    tokens among themselves in theirs; so two spans may meet, and are two [MASK].
    """
    lengths_key, shuffle_key, order_key = keys
    budget = _budget(text.n, corruption.rate)
    ends = np.minimum(poisson_ends(budget, corruption.mean_length, lengths_key), budget[:, None])
    n_spans = (ends[:, :-1] < budget[:, None]).sum(1)
    ends = _shuffled(ends, n_spans, shuffle_key)  # or the span that is cut were always the last
    n_items = n_spans + text.n - budget
    slot = np.arange(max(1, n_items.max(initial=1)))
    drawn = draws(order_key, len(slot)) >> np.uint64(1)
    is_span = smallest(np.where(slot < n_items[:, None], drawn, NEVER), n_spans)
    before = np.cumsum(is_span, axis=1) - is_span  # spans before this slot
    token = slot - before + np.take_along_axis(ends, before, axis=1)  # the next one, hidden or not

    stays = (slot < n_items[:, None]) & ~is_span
    row, _ = np.nonzero(stays)
    kept = np.zeros(text.ids.shape, bool)
    kept[row, token[stays]] = True
    hidden = text.to_columns(~kept)
    ahead = np.take_along_axis(text.columns, token.clip(max=text.width - 1), axis=1)
    last = np.take_along_axis(text.columns, (text.n - 1).clip(0)[:, None], axis=1)
    place = np.where(token < text.n[:, None], ahead, last + 1)
    items = np.concatenate([np.full(is_span.shape, mask_id), text.ids], axis=1)
    keys = np.concatenate([2 * place, 2 * text.places + 1], axis=1)
    keep = np.concatenate([is_span, text.present & ~hidden], axis=1)
    return _lay(items, keys, keep, text.pad_id)


def poisson_ends(budget: np.ndarray, mean: float, keys: np.ndarray) -> np.ndarray:
    """Running sums (B, S) of Poisson lengths, 0 first, S so large that all reach `budget` (B,)."""
    most = int(mean + 12 * math.sqrt(mean) + 20)
    logs = [k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(most)]
    cumulative = np.cumsum(np.exp(logs))
    n = 8 + int(2 * budget.max(initial=1) / mean)
    while True:
        drawn = np.searchsorted(cumulative, uniform(draws(keys, n)), side="right")
        ends = np.pad(np.cumsum(drawn, axis=1), ((0, 0), (1, 0)))
        if (ends[:, -1] >= budget).all():
            return ends
        n *= 2


def _shuffled(ends: np.ndarray, n_spans: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Running sums (B, S + 1) of the same lengths, the first `n_spans` (B,) in random order."""
    place = np.arange(ends.shape[1] - 1)
    score = np.where(place < n_spans[:, None], draws(keys, len(place)) >> np.uint64(1), NEVER)
    lengths = np.take_along_axis(np.diff(ends, axis=1), np.argsort(score, axis=1), axis=1)
    return np.pad(np.cumsum(lengths, axis=1), ((0, 0), (1, 0)))


def _permute(text: _Text, sentence_ends: tuple[int, ...], keys: np.ndarray) -> tuple:
    """Sentences, of which the last may lack its end, in random order."""
    ends = text.candidates & np.isin(text.ids, sentence_ends)
    sentence = np.where(text.candidates, np.cumsum(ends, axis=1) - ends, 0)
    sentence = np.maximum.accumulate(sentence, axis=1)  # specials go with what is before them
    score = draws(keys, text.width)
    rank = np.argsort(np.argsort(score, axis=1), axis=1)
    order = np.take_along_axis(rank, sentence, axis=1)
    return _reordered(text, order * text.width + text.column)


def _rotate(text: _Text, keys: np.ndarray) -> tuple:
    """The ordinary token to begin with is uniformly random."""
    first = (uniform(draws(keys, 1)) * text.n[:, None]).astype(np.int64)
    start = np.take_along_axis(text.columns, first, axis=1)
    return _reordered(text, (text.column - start) % text.width)


def _reordered(text: _Text, keys: np.ndarray) -> tuple:
    """Rows in the order of `keys` (B, T), but for the special tokens at their ends."""
    seen = np.cumsum(text.candidates, axis=1)
    leading, trailing = seen == 0, (seen == text.n[:, None]) & ~text.candidates
    keys = np.where(leading, text.column - text.width, keys)
    keys = np.where(trailing & ~leading, text.column + text.width**2, keys)
    return _lay(text.ids, keys, text.present, text.pad_id)
