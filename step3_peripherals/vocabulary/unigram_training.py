"""Learning a unigram model (Kudo 2018, section 3.2): begin with too many pieces, drop the worst.

1. Seed: all frequent substrings of words, and all characters.
2. EM, twice. E: c(x), how often each piece is used, in expectation over all segmentations of the
   text. M: log p(x) = digamma(c(x)) - digamma(sum of c). The digamma in place of the logarithm is
   the Bayesian form with a sparse prior: it takes from pieces that are rarely used.
3. Drop the quarter of the pieces whose loss would cost the likelihood least, never a character.
   Back to 2, until the vocabulary is small enough.

What is summed over, the lattices of all words, is held in one array, so that NumPy takes a step in
all words at once. The texts count only through their distinct words.
"""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from common.cli import UserError
from step3_peripherals.vocabulary.base import NO_TEXT, several, valid_unicode
from step3_peripherals.vocabulary.bpe import BPE
from step3_peripherals.vocabulary.sentencepiece_model import SPACE, Kind, Model, Piece

CONTROLS = ("<s>", "</s>")
SPECIAL = [Piece("<unk>", 0.0, Kind.UNKNOWN), *(Piece(t, 0.0, Kind.CONTROL) for t in CONTROLS)]
LONGEST_WORD = 1_000  # characters; a longer one is cut there
LONGEST_LEARNED = 100_000  # of a longer one's rest, only the characters are learned
MIN_EXPECTED = 0.5  # a piece used less often, in expectation, is dropped
SURPLUS = 1.1  # drop by loss down to this many times the size; the rest goes by probability


def learn(
    texts: Iterable[str],
    vocab_size: int,
    *,
    max_piece_length: int = 16,
    seed_size: int = 1_000_000,
    keep_share: float = 0.75,
    em_steps: int = 2,
) -> Model:
    """A model of exactly `vocab_size` pieces, <unk>, <s>, </s> and every character among them.

    Texts are taken as they are, no NFKC; runs of spaces are one. Raises UserError for no text,
    one text in place of several, text with too few substrings for `vocab_size`, and `vocab_size`
    less than the characters.
    """
    words = count_words(texts)
    target = vocab_size - len(SPECIAL)
    characters = _characters(words)
    if not characters:
        raise UserError(NO_TEXT)
    if target < len(characters):
        least = f"{len(SPECIAL) + len(characters):,}"
        raise UserError(
            f"a vocabulary of {vocab_size:,} is too small: the special pieces and the characters "
            f"of the text are {least}; give {least} or more"
        )
    seed = seed_pieces(words, max_piece_length)
    most_covered = sorted(seed, key=lambda piece: (-seed[piece] * len(piece), piece))[:seed_size]
    pieces = [*characters, *most_covered]  # the first ones are never dropped
    counts = np.array([*characters.values(), *(seed[piece] for piece in most_covered)], float)

    scores = np.log(counts) - np.log(counts.sum())
    lattice = Lattice(words, pieces, max_piece_length)
    frequency = np.array([words[word] for word in lattice.words], float)
    enough = max(target, int(target * SURPLUS))
    while True:
        for _ in range(em_steps):
            expected, _ = lattice.expected_counts(scores, frequency)
            keep = expected >= MIN_EXPECTED
            keep[: len(characters)] = True
            pieces = lattice.select(keep)
            expected = np.maximum(expected[keep], MIN_EXPECTED)
            scores = _digamma(expected) - _digamma(expected.sum())
        if len(pieces) <= enough:
            break
        size = max(enough, int(len(pieces) * keep_share))
        loss = losses(lattice, scores, frequency, max_piece_length)
        loss[: len(characters)] = np.inf
        keep = np.zeros(len(pieces), bool)
        keep[np.argsort(-loss, kind="stable")[:size]] = True
        pieces, scores = lattice.select(keep), scores[keep]

    if len(pieces) < target:
        raise UserError(
            f"a vocabulary of {vocab_size:,} is too large: this text has use for "
            f"{len(SPECIAL) + len(pieces):,} pieces; give no more, or more text"
        )
    rank = scores.copy()
    rank[: len(characters)] = np.inf
    kept = np.argsort(-rank, kind="stable")[:target]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return Model([*SPECIAL, *(Piece(pieces[i], float(np.float32(scores[i]))) for i in kept)])


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in the texts, written with the ▁ that stands for its space.

    Letters, digits and other signs are words apart, as BPE has them, so that no piece crosses from
    the ones to the others; in encoding that needs no rule.
    """
    words: Counter[str] = Counter()
    for text in several(texts):
        found = re.finditer("[^ ]+", valid_unicode(text).replace(SPACE, " "))
        words.update(match.group() for match in found)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        learned, rest = (SPACE + word)[:LONGEST_LEARNED], word[LONGEST_LEARNED - 1 :]
        for part in BPE.SPLIT.findall(learned):
            for start in range(0, len(part), LONGEST_WORD):
                counts[part[start : start + LONGEST_WORD]] += count
        for character, often in Counter(rest).items():
            counts[character] += often * count
    return counts


def _characters(words: Counter[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for word, frequency in words.items():
        for character in word:
            counts[character] += frequency
    return {character: counts[character] for character in sorted(counts)}


def seed_pieces(words: Counter[str], max_length: int) -> dict[str, int]:
    """Substrings of two characters and more that occur twice and more, with their counts.

    Length by length: a substring can be frequent only if it is so without its last character. One
    that always goes on with the same character is left out for the longer one. (These are the inner
    nodes of the suffix tree, which `sentencepiece` finds with a suffix array.)
    """
    found: dict[str, int] = {}
    before = _characters(words)
    for length in range(2, max_length + 1):
        counts: Counter[str] = Counter()
        for word, frequency in words.items():
            for start in range(len(word) - length + 1):
                if word[start : start + length - 1] in before:
                    counts[word[start : start + length]] += frequency
        counts = Counter({piece: n for piece, n in counts.items() if n > 1})
        for piece, n in counts.items():
            if found.get(piece[:-1]) == n:
                del found[piece[:-1]]
        found |= counts
        before = counts
    return found


class Lattice:
    """The lattices of many words, to be passed through together.

    The words stand one below the other, the longest first. `ids[l - 1]` has, for every word and
    every t, the piece of length l that ends after the word's character t, or -1; it is stored
    column after column, that is t after t, and a column has only the words that are that long:

        t =       1 2 3 4 5
        word 0    ▁ h o m e
        word 1    ▁ t h e           columns of 3, 3, 3, 3 and 1 words
        word 2    ▁ c a t
    """

    def __init__(self, words: Iterable[str], pieces: list[str], max_length: int):
        self.pieces = list(pieces)
        self.words = sorted(words, key=lambda word: (-len(word), word))
        lengths = np.array([len(word) for word in self.words])
        longest = int(lengths.max(initial=0))
        self.sizes = [int((lengths >= t).sum()) for t in range(1, longest + 1)]
        index = {piece: i for i, piece in enumerate(pieces)}
        # Column t, of word w: its characters l back from t.
        self.columns: list[np.ndarray] = []  # of t: (min(t, max_length), sizes[t]) int32
        for t, size in enumerate(self.sizes, 1):
            column = np.empty((min(t, max_length), size), np.int32)
            for length in range(1, len(column) + 1):
                column[length - 1] = [index.get(w[t - length : t], -1) for w in self.words[:size]]
            self.columns.append(column)
        self.ends = lengths

    def select(self, keep: np.ndarray) -> list[str]:
        """Drop the pieces where `keep` (n_pieces,) is False; returns those that stay."""
        new = np.append(np.where(keep, keep.cumsum() - 1, -1), -1).astype(np.int32)
        self.columns = [new[column] for column in self.columns]
        self.pieces = [piece for piece, kept in zip(self.pieces, keep, strict=True) if kept]
        return self.pieces

    def forward(self, scores: np.ndarray, combine=np.logaddexp.reduce) -> list[np.ndarray]:
        """alpha(t) = combine over l of alpha(t - l) + log p(piece of length l that ends at t).

        `scores` (n_pieces,) are log p. Returns alpha(0), alpha(1), ..., each of `sizes[t]` words;
        with np.maximum.reduce for `combine`, the scores of Viterbi.
        """
        scores = np.append(scores, -np.inf)
        alpha = [np.zeros(len(self.words))]
        for column in self.columns:
            count, size = column.shape
            before = np.stack([a[:size] for a in alpha[: -count - 1 : -1]])
            alpha.append(combine(before + scores[column], axis=0))
        return alpha

    def _at_end(self, alpha: list[np.ndarray]) -> np.ndarray:
        """alpha at each word's last character."""
        last = np.zeros(len(self.words))
        for t, size in enumerate(self.sizes, 1):
            last[:size] = alpha[t]
        return last

    def expected_counts(
        self, scores: np.ndarray, frequency: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """How often each piece is used (n_pieces,), and the log-likelihood of all words.

        With beta(s), the log of the sum over all ways from s to the end, an edge s->t is used with
        probability exp(alpha(s) + log p + beta(t) - alpha(end)). `frequency` (n_words,) is how
        often each word occurs.
        """
        alpha = self.forward(scores)
        total = self._at_end(alpha)
        scores = np.append(scores, -np.inf)
        beta = [np.full(len(a), -np.inf) for a in alpha]
        expected = np.zeros(len(scores))
        for t in range(len(self.columns), 0, -1):
            column = self.columns[t - 1]
            size = column.shape[1]
            beta[t][self.ends[:size] == t] = 0.0
            for length, ids in enumerate(column, 1):
                onward = scores[ids] + beta[t]
                used = np.exp(alpha[t - length][:size] + onward - total[:size])
                expected += np.bincount(ids + 1, used * frequency[:size], len(scores))
                earlier = beta[t - length][:size]
                np.logaddexp(earlier, onward, out=earlier)
        return expected[1:], float(total @ frequency)

    def viterbi_counts(self, scores: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        """How often each piece is used (n_pieces,) in the likeliest segmentations."""
        used = np.zeros(len(scores))
        for ids, rows in self.viterbi(scores):
            used += np.bincount(ids, frequency[rows], len(scores))
        return used

    def viterbi(self, scores: np.ndarray):
        """Yield (ids, words) of the pieces of the likeliest segmentations, last pieces first."""
        alpha = self.forward(scores, np.maximum.reduce)
        padded = np.append(scores, -np.inf)
        at = self.ends.copy()
        for t in range(len(self.columns), 0, -1):
            rows = np.flatnonzero(at == t)
            column = self.columns[t - 1][:, rows]
            before = np.stack([alpha[t - length][rows] for length in range(1, len(column) + 1)])
            length = (before + padded[column]).argmax(0)
            yield column[length, np.arange(len(rows))], rows
            at[rows] -= length + 1


def losses(
    lattice: Lattice, scores: np.ndarray, frequency: np.ndarray, max_length: int
) -> np.ndarray:
    """How much log-likelihood (n_pieces,) goes if a piece is dropped; -inf if none.

    Its uses, f(x) of all F, are then taken by the pieces y_1 ... y_k of its own likeliest
    segmentation, each of which is used f(x) times more:

        loss = f(x) (log [f(x) / F] - sum over j of log [(f(y_j) + f(x)) / (F + (k - 1) f(x))])
    """
    f = lattice.viterbi_counts(scores, frequency)
    total = f.sum()
    others = Lattice(lattice.pieces, lattice.pieces, max_length)
    own = {piece: i for i, piece in enumerate(lattice.pieces)}
    self_ids = np.array([own[piece] for piece in others.words])
    for t, column in enumerate(others.columns, 1):  # no piece may stand for itself
        column[t - 1 : t] = np.where(others.ends[: column.shape[1]] == t, -1, column[t - 1 : t])

    log_alternative, k = np.zeros(len(f)), np.zeros(len(f))
    for ids, rows in others.viterbi(scores):
        x = self_ids[rows]
        with np.errstate(divide="ignore"):
            log_alternative[x] += np.log(f[ids] + f[x])
        k[x] += 1
    with np.errstate(divide="ignore", invalid="ignore"):
        log_alternative -= k * np.log(total + (k - 1) * f)
        loss = f * (np.log(f / total) - log_alternative)
    return np.where(f > 0, loss, -np.inf)


def _digamma(x: np.ndarray) -> np.ndarray:
    """The derivative of log Gamma, for x > 0: digamma(x) = digamma(x + 1) - 1/x up to x > 6, from
    where the series log x - 1/2x - 1/12x^2 + 1/120x^4 - ... has 9 digits."""
    x = np.array(x, float)
    below = np.zeros_like(x)
    for _ in range(7):
        small = x < 7
        below -= np.where(small, 1 / x, 0)
        x = np.where(small, x + 1, x)
    square = 1 / x**2
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    return below + np.log(x) - 0.5 / x - series
