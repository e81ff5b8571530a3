"""Masking: which tokens a masked language model predicts, and what it sees in their place.

    scheme      masked together                           paper
    token       nothing but the token                     BERT, 1810.04805, section 3.1
    whole_word  all pieces of a word                      BERT's released code of 2019
    ngram       1 to 3 words, p(n) ~ 1/n                  ALBERT, 1909.11942, section 3.1
    span        1 to 10 words, p(n) ~ 0.8^n, shown alike  SpanBERT, 1907.10529, section 3.1

A row keeps its length; for what makes it shorter or longer see corruption.py. As in step 2, every
random number is a hash of (seed, epoch, sample, position): a sample's mask is the same in whatever
batch it turns up. Whole batches are masked at once; `span` and `ngram` loop over spans, not rows.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from common.cli import UserError
from step2_bert.masking import (
    NEVER,
    STATIC_EPOCH,
    Vocabulary,
    candidates_of,
    choose_words,
    draws,
    mix,
    sample_keys,
    show,
    smallest,
    uniform,
)

Scheme = Literal["token", "whole_word", "ngram", "span"]


def _normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


SPAN_LENGTHS = {  # probability of 1, 2, ... words
    "ngram": _normalised(1 / np.arange(1, 4)),
    # The paper's "clipped at 10", with its mean of 3.8, is this, not min(length, 10): mean 4.5
    "span": _normalised(0.2 * 0.8 ** np.arange(10)),
}


@dataclass(frozen=True)
class Masking:
    """What to mask. The defaults are BERT's; its ablation (table 8) writes them 80/10/10."""

    scheme: Scheme = "token"
    rate: float = 0.15
    """Share of a sample's tokens to predict."""
    mask_share: float = 0.8
    """Share of the predictions shown as [MASK]."""
    random_share: float = 0.1
    """Share of the predictions shown as a random token; the rest is shown unchanged."""
    static: bool = False
    """The same mask in every epoch; else (dynamic, RoBERTa, 1907.11692) a new one in each."""

    def __post_init__(self):
        if self.scheme not in get_args(Scheme):
            raise UserError(f"masking {self.scheme!r}: one of {', '.join(get_args(Scheme))}")
        shares = (self.mask_share, self.random_share, self.mask_share + self.random_share)
        if not 0 < self.rate < 1 or not all(0 <= share <= 1 + 1e-9 for share in shares):
            raise UserError("masking: a rate in (0, 1), and shares from 0 to 1 in all")


def mask(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    samples: np.ndarray,
    vocabulary: Vocabulary,
    masking: Masking,
    *,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask `input_ids` (B, T) in place; rows hold `lengths` (B,) tokens, then padding.

    `samples` (B,) are the samples' numbers in the corpus. Returns the flat positions in B*T that
    are to be predicted, ascending, and their true tokens, both (M,) int64. A row has
    round(rate * length) of them, at least one; fewer where whole words do not come out even.
    Special tokens are neither masked nor shown in place of others, and no span crosses them.
    """
    candidates = candidates_of(input_ids, lengths, vocabulary)
    budget = np.rint(lengths * masking.rate).clip(1).astype(np.int64)
    budget = np.minimum(budget, candidates.sum(1))
    key = sample_keys(seed, STATIC_EPOCH if masking.static else epoch, samples)
    draw = draws(key, input_ids.shape[1])
    score = np.where(candidates, draw >> np.uint64(1), NEVER)

    decides = draw  # whose draw decides how a token is shown: its own, but for `span`
    if masking.scheme == "token":
        chosen = smallest(score, budget)
    elif masking.scheme == "whole_word":
        chosen = choose_words(candidates, vocabulary.is_continuation[input_ids], score, budget)
    else:
        continues = vocabulary.is_continuation[input_ids]
        probabilities = SPAN_LENGTHS[masking.scheme]
        chosen, leader = choose_spans(candidates, continues, score, budget, probabilities)
        if masking.scheme == "span":
            decides = np.take_along_axis(draw, leader, axis=1)

    shares = masking.mask_share, masking.random_share
    return show(input_ids, chosen, draw, decides, vocabulary, *shares)


def choose_spans(
    candidates: np.ndarray,
    continues: np.ndarray,
    score: np.ndarray,
    budget: np.ndarray,
    probabilities: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Spans of whole words until each row's `budget` (B,) of tokens is spent.

    A row's words are gone through in the order of their first piece's `score` (B, T), which is
    uniformly random. One that is not masked yet begins a span of n words, n with `probabilities`
    (L,). The span ends early before a token that is no candidate, or before a word that overruns
    the budget; words in it that are masked already cost nothing. Where no word fits, single pieces
    are taken. Returns which tokens are chosen, (B, T) bool, and for each of them the column where
    its span begins, (B, T).
    """
    (rows, width), longest = score.shape, len(probabilities)
    if not score.size:
        return candidates, np.zeros(score.shape, np.int64)
    row, steps = np.arange(rows)[:, None], np.arange(longest)
    after_gap = np.pad(~candidates, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    heads = ~candidates | ~continues | after_gap  # what is no candidate is a word of size 0
    word = np.cumsum(heads, axis=1) - 1
    shape = (rows, word.max() + 1 + longest)  # room for a window at the last word
    size = np.bincount((word + row * shape[1])[candidates], minlength=shape[0] * shape[1])
    size = size.reshape(shape)
    at, column = np.nonzero(heads)
    begins, word_score = np.zeros(shape, np.int64), np.full(shape, NEVER)
    begins[at, word[heads]], word_score[at, word[heads]] = column, score[heads]

    n_words = words_of_span(word_score, probabilities)
    order = np.argsort(word_score, axis=1)
    leader = np.full(shape, -1)  # by word: the word that its span begins with
    room, active = budget.copy(), np.flatnonzero(budget > 0)
    for turn in range(shape[1]):
        start = order[active, turn]
        left = size[active, start] > 0  # words of size 0 come last
        active, start = active[left], start[left]
        if not len(active):
            break
        here, window = active[:, None], start[:, None] + steps
        sizes, free = size[here, window], leader[here, window] < 0
        inside = np.logical_and.accumulate(sizes > 0, axis=1) & free[:, :1]
        inside &= steps < n_words[active, start][:, None]
        cost = np.cumsum(sizes * (inside & free), axis=1)
        inside &= free & (cost <= room[active, None])
        r, c = np.nonzero(inside)
        leader[active[r], window[r, c]] = start[r]
        room[active] -= (sizes * inside).sum(1)
        active = active[room[active] > 0]

    leader = np.take_along_axis(leader, word, axis=1)
    chosen = candidates & (leader >= 0)
    begin = np.take_along_axis(begins, leader.clip(0), axis=1)
    none = ~chosen.any(axis=1)
    chosen[none] = smallest(score[none], budget[none])
    begin[none] = np.arange(width)
    return chosen, begin


def words_of_span(score: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """How many words a span has that begins at a word of this `score`, with `probabilities` (L,).

    uint64 scores of any shape -> int64 of the same shape, from 1 to L.
    """
    drawn = uniform(mix(score ^ _SPAN_LENGTH))
    return 1 + np.searchsorted(np.cumsum(probabilities)[:-1], drawn, side="right")


_SPAN_LENGTH = np.uint64(0x5350414E)  # tells the draw of a span's length from those of its tokens
