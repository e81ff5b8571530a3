"""Masked language modelling: choosing what to predict, and what the model sees instead.

Every random number is a hash of (seed, epoch, sample, position), so a sample's mask is the same in
whatever batch, process or resumed run it turns up; and whole batches are masked without a loop.
"""

import math
from dataclasses import dataclass

import numpy as np

from common.cli import UserError

STATIC_EPOCH = -1  # the epoch of masks drawn once, in preparation


@dataclass(frozen=True)
class MaskingOptions:
    """Devlin et al. 2019, section 3.1: 15 % are predicted; of them 80, 10, 10 % are shown as
    [MASK], as a random token, unchanged."""

    probability: float = 0.15
    """Share of a sample's tokens to predict."""
    max_predictions: int | None = None
    """At most this many predictions in a sample; None: no limit but the share."""
    whole_word: bool = False
    """Mask all pieces of a word together."""
    mask_share: float = 0.8
    """Share of the predictions shown as [MASK]."""
    random_share: float = 0.1
    """Share of the predictions shown as a random token; the rest is shown unchanged."""

    def __post_init__(self):
        shares = self.mask_share + self.random_share
        most = 1 if self.max_predictions is None else self.max_predictions
        if not 0 < self.probability < 1 or most < 1 or not 0 <= shares <= 1 + 1e-9:
            raise UserError("masking: probability in (0, 1), max_predictions >= 1, shares <= 1")


def usual_predictions(max_seq_len: int, probability: float = 0.15) -> int:
    """The paper's `max_predictions`, 20 up to length 128 and 77 at 512; more where a higher
    probability would not fit in."""
    return max(20, math.ceil(probability * max_seq_len))


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of the tokens: the id of [MASK] and, by id, two properties."""

    mask_id: int
    is_special: np.ndarray
    """(vocab_size,) bool: never masked, never a random replacement."""
    is_continuation: np.ndarray
    """(vocab_size,) bool: goes on with the word of the token before it."""

    @classmethod
    def of(cls, tokenizer) -> "Vocabulary":
        """Read from a `tokenizers.Tokenizer`."""
        from step2_bert.tokenizer import special_ids

        tokens = tokenizer.get_vocab()
        size = max(tokens.values()) + 1
        special = special_ids(tokenizer)
        is_special = np.zeros(size, bool)
        is_special[list(special.values())] = True
        is_continuation = np.zeros(size, bool)
        if any(token.startswith("##") for token in tokens):
            inside = [index for token, index in tokens.items() if token.startswith("##")]
        else:  # byte-level BPE and SentencePiece mark the start of a word instead
            inside = [index for token, index in tokens.items() if not token.startswith(("Ġ", "▁"))]
        is_continuation[inside] = True
        return cls(special["[MASK]"], is_special, is_continuation & ~is_special)


def mask_batch(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    samples: np.ndarray,
    vocabulary: Vocabulary,
    options: MaskingOptions,
    *,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask `input_ids` (B, T) in place; rows hold `lengths` (B,) tokens, then padding.

    `samples` (B,) are the samples' numbers in the corpus. Returns the flat positions in B*T that
    are to be predicted, ascending, and their true tokens, both (M,) int64. A row has
    min(max_predictions, round(15 % of its length)) of them, at least one; fewer when whole words
    do not come out even.
    """
    candidates = candidates_of(input_ids, lengths, vocabulary)
    budget = np.rint(lengths * options.probability).clip(1, options.max_predictions)
    budget = np.minimum(budget.astype(np.int64), candidates.sum(1))
    draw = draws(sample_keys(seed, epoch, samples), input_ids.shape[1])
    score = np.where(candidates, draw >> np.uint64(1), NEVER)
    if options.whole_word:
        continues = vocabulary.is_continuation[input_ids]
        chosen = choose_words(candidates, continues, score, budget)
    else:
        chosen = smallest(score, budget)
    shares = options.mask_share, options.random_share
    return show(input_ids, chosen, draw, draw, vocabulary, *shares)


def candidates_of(input_ids: np.ndarray, lengths: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Tokens of (B, T) that may be changed: neither special nor padding."""
    return (np.arange(input_ids.shape[1]) < lengths[:, None]) & ~vocabulary.is_special[input_ids]


def show(
    input_ids: np.ndarray,
    chosen: np.ndarray,
    draw: np.ndarray,
    decides: np.ndarray,
    vocabulary: Vocabulary,
    mask_share: float,
    random_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Show the `chosen` (B, T) of `input_ids` as [MASK], random or unchanged, in place.

    Which of the three, `decides` (B, T) says, and which random token `draw` (B, T), both uniform
    uint64. Returns flat positions and true tokens, as `mask_batch` does.
    """
    flat = input_ids.reshape(-1)
    positions = np.flatnonzero(chosen)
    labels = flat[positions].astype(np.int64)
    share = uniform(mix(decides.reshape(-1)[positions]))
    masked = share < mask_share
    random = ~masked & (share < mask_share + random_share)
    ordinary = np.flatnonzero(~vocabulary.is_special)
    pick = mix(mix(draw.reshape(-1)[positions[random]])) % np.uint64(len(ordinary))
    flat[positions[masked]] = vocabulary.mask_id
    flat[positions[random]] = ordinary[pick]
    return positions, labels


# -- choosing --------------------------------------------------------------------------------

NEVER = np.uint64(2**64 - 1)  # the score of what is not to be chosen


def smallest(score: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Mark the `budget` (B,) smallest of each row of `score` (B, T)."""
    chosen = np.zeros(score.shape, bool)
    first = np.arange(score.shape[1]) < budget[:, None]
    np.put_along_axis(chosen, np.argsort(score, axis=1), first, axis=1)
    return chosen


def choose_words(
    candidates: np.ndarray, continues: np.ndarray, score: np.ndarray, budget: np.ndarray
) -> np.ndarray:
    """Take words in the order of their first piece's score; as in the original, one that would
    overrun the budget is left out and the next is tried. Where no word fits, pieces are taken.
    """
    rows, width = score.shape
    column = np.arange(width)
    after_gap = np.pad(~candidates, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    heads = ~candidates | ~continues | after_gap
    head = np.maximum.accumulate(np.where(heads, column, 0), axis=1)
    sizes = np.bincount((head + np.arange(rows)[:, None] * width).ravel(), minlength=rows * width)

    score = np.take_along_axis(score, head, axis=1)
    order = np.argsort(score, axis=1, kind="stable")  # the pieces of a word stay side by side
    head = np.take_along_axis(head, order, axis=1)
    size = np.take_along_axis(sizes.reshape(rows, width), head, axis=1)
    alive = np.take_along_axis(candidates, order, axis=1)
    while True:
        end = np.cumsum(alive, axis=1) - (order - head) - 1 + size  # pieces taken after this word
        overrun = alive & (end > budget[:, None])
        if not overrun.any():
            break
        first = overrun.argmax(axis=1)[:, None]
        room = budget[:, None] - np.take_along_axis(end - size, first, axis=1)
        alive &= ~(overrun & (size > room))
    chosen = np.zeros_like(alive)
    np.put_along_axis(chosen, order, alive, axis=1)
    none = ~chosen.any(axis=1)
    chosen[none] = smallest(score[none], budget[none])
    return chosen


# -- randomness that belongs to a sample -----------------------------------------------------


def sample_keys(seed: int, epoch: int, samples: np.ndarray, stream: int = 0) -> np.ndarray:
    """(B,) uint64: what all random numbers of a sample come from. What draws several sorts of them
    takes a `stream` for each."""
    key = mix(mix(mix(_counter(seed)) ^ _counter(epoch)) ^ _counter(samples))
    return mix(key ^ _counter(stream)) if stream else key


def draws(keys: np.ndarray, n: int) -> np.ndarray:
    """(B, n) uint64; number i of a sample is the same whatever n is."""
    return mix(keys[:, None] ^ _counter(np.arange(n)))


def uniform(drawn: np.ndarray) -> np.ndarray:
    """uint64 draws as numbers in [0, 1)."""
    return (drawn >> np.uint64(11)) * 2.0**-53


def _counter(value) -> np.ndarray:
    """Any integers as distinct uint64 far apart (an array, for which numpy lets products wrap)."""
    return (np.atleast_1d(value).astype(np.int64).astype(np.uint64) + _ONE) * _GOLDEN


def mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): a good 64-bit hash."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_ONE, _GOLDEN = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)
