"""The unigram language model over pieces (Kudo 2018, arXiv:1804.10959), as in ALBERT and T5.

A segmentation x = x_1 ... x_M of a text has the probability (eq. 1)

    P(x) = p(x_1) p(x_2) ... p(x_M)

All segmentations together are the paths through a lattice: a node before and after each character,
an edge for each piece that the text holds. Every algorithm here is one pass over its nodes:

    Viterbi   best(t)  = max    over edges s->t of  best(s) + log p          the likeliest x
    forward   alpha(t) = logsum over edges s->t of  alpha(s) + log p         log of the sum of all
    sample    from the end back, an edge s->t with probability exp(alpha(s) + log p - alpha(t))
    n-best    A* from the end back; best(t) says exactly what the rest of the way will cost
"""

import math
import re
from array import array
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Self

import numpy as np

from common.cli import UserError
from step3_peripherals.vocabulary import unigram_training
from step3_peripherals.vocabulary.pieces import CACHED_LENGTH, CACHED_WORDS, SentencePieces
from step3_peripherals.vocabulary.sentencepiece_model import SPACE, UNIGRAM, Kind, Model

UNKNOWN_PENALTY = 10.0  # below the lowest score of any piece
USER_DEFINED_SCORE = -0.1  # above nearly all
LONGEST = 1 << 18  # characters of a word; bounds the memory
LEAST_SUM = -1e5  # of log p; a sum below it begins anew, from 0
MARGIN = 1.0  # nats; far more than 32-bit sums of that size go wrong by
WORD = re.compile(f"{SPACE}[^{SPACE}]{{0,{LONGEST - 1}}}|[^{SPACE}]{{1,{LONGEST}}}")
ANY = re.compile(f".{{1,{LONGEST}}}", re.DOTALL)
Edge = tuple[int, float]  # its other end, log p


class Unigram(SentencePieces):
    """Encodes as `sentencepiece` does, learned here (`train`) or there (`from_sentencepiece`).

    A word longer than LONGEST is cut there, so that no piece lies across; `sentencepiece` alone
    would look for one. Where a piece has a ▁ behind another character, this is so of whole texts.
    """

    algorithm = UNIGRAM

    def __init__(self, model: Model):
        super().__init__(model)
        scores = {}
        for piece in model.pieces:
            if piece.kind == Kind.NORMAL:
                scores[piece.text] = piece.score
            elif piece.kind == Kind.USER_DEFINED:
                scores[piece.text] = USER_DEFINED_SCORE
        normal = [piece.score for piece in model.pieces if piece.kind == Kind.NORMAL]
        (self.unknown_score,) = array("f", [min(normal, default=0.0) - UNKNOWN_PENALTY])  # rounded
        # A trie in a dictionary: every prefix of a piece is a key; those that are no piece: None.
        self.trie: dict[str, float | None] = {
            piece[:end]: None for piece in scores for end in range(1, len(piece))
        } | scores
        self._longest = max(map(len, scores), default=1)
        self.divisible = not any(SPACE in piece[1:] for piece in scores)
        self._cache: dict[str, tuple[list[str], list[tuple[int, int, float]]]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, **options) -> Self:
        """Learn from texts; `options` and errors are those of `unigram_training.learn`."""
        return cls(unigram_training.learn(texts, vocab_size, **options))

    def edges(self, text: str, start: int) -> Iterator[Edge]:
        """(end, log p) of every piece in `text` at `start`, from short to long."""
        size, trie, end = len(text), self.trie, start + 1
        score = trie.get(text[start:end])
        yield end, self.unknown_score if score is None else score
        while end < size:
            end += 1
            score = trie.get(text[start:end], math.inf)
            if score == math.inf:
                return
            if score is not None:
                yield end, score

    def segment(
        self, text: str, *, alpha: float | None = None, rng: np.random.Generator | None = None
    ) -> Iterator[str]:
        """The likeliest segmentation of normalised text; with `alpha`, one drawn by `sample`.

        Raises UserError for an alpha below 0 or without `rng`.
        """
        if alpha is None:
            return self.as_sentencepiece(text)
        if not 0 <= alpha < math.inf or rng is None:
            raise UserError(f"alpha {alpha} must be 0 or more, and have an rng")
        return (piece for word in self._words(text) for piece in self.sample(word, alpha, rng))

    def viterbi(self, text: str) -> list[str]:
        """The likeliest segmentation: best(t) = max over s of best(s) + log p(text[s:t])."""
        best = [0.0] + [-math.inf] * len(text)  # log p of the best way to each node
        starts = [0] * len(best)  # where its last edge comes from
        for t in range(len(text)):
            for end, score in self.edges(text, t):
                if best[t] + score > best[end]:
                    best[end], starts[end] = best[t] + score, t
        return _cut(text, starts)

    def as_sentencepiece(self, text: str) -> Iterator[str]:
        """`viterbi`, but with near-ties decided as `sentencepiece` does: by sums of log p over the
        text in 32 bits, which begin anew at a node where the best is below LEAST_SUM. In double
        precision, words leave little to decide."""
        total = array("f", [0.0])  # of the best way so far; an array rounds
        for word in self._words(text):
            only, edges = self._likely_ways(word)
            if only:
                for _, _, score in edges:
                    total[0] = score + (total[0] if total[0] >= LEAST_SUM else 0.0)
                yield from only
                continue
            size = len(word)
            best = total + array("f", [-math.inf]) * size  # at each node
            starts = [0] * (size + 1)  # where its edge on the best way comes from
            for start, end, score in edges:
                if (least := best[start]) < LEAST_SUM:
                    for node in range(start, min(start + self._longest, size) + 1):
                        best[node] -= least
                old = best[end]
                if (new := best[start] + score) > old:
                    best[end] = new
                    if best[end] > old:
                        starts[end] = start
            yield from _cut(word, starts)
            total[0] = best[size]

    def _words(self, text: str) -> Iterator[str]:
        """What can be segmented by itself: before ▁ a piece always ends, if none has it inside."""
        return (match.group() for match in (WORD if self.divisible else ANY).finditer(text))

    def _likely_ways(self, word: str) -> tuple[list[str], list[tuple[int, int, float]]]:
        """The edges (start, end, log p) on ways less than MARGIN worse than the best one; and the
        pieces, where there is no other such way."""
        found = self._cache.get(word)
        if found is None:
            size = len(word)
            edges = [(s, e, score) for s in range(size) for e, score in self.edges(word, s)]
            behind = [0.0] + [-math.inf] * size
            for s, e, score in edges:
                behind[e] = max(behind[e], behind[s] + score)
            ahead = [-math.inf] * size + [0.0]
            for s, e, score in reversed(edges):
                ahead[s] = max(ahead[s], score + ahead[e])
            least = behind[-1] - MARGIN
            edges = [(s, e, p) for s, e, p in edges if behind[s] + p + ahead[e] >= least]
            alone = len({start for start, _, _ in edges}) == len(edges)
            found = [word[s:e] for s, e, _ in edges] if alone else [], edges
            if size <= CACHED_LENGTH and len(self._cache) < CACHED_WORDS:
                self._cache[word] = found
        return found

    def sample(self, text: str, alpha: float, rng: np.random.Generator) -> list[str]:
        """Forward filtering, backward sampling (section 3.2): a segmentation x with probability

            P(x)^alpha / sum over all x' of P(x')^alpha

        alpha 0: all segmentations alike; 1: the model's own; large: nearly always the likeliest.
        """
        size = len(text)
        arrivals: list[list[Edge]] = [[] for _ in range(size + 1)]  # (start, alpha log p)
        total = [0.0] * (size + 1)
        for t in range(size):
            if t:
                total[t] = _logsum(total[s] + score for s, score in arrivals[t])
            for end, score in self.edges(text, t):
                arrivals[end].append((t, alpha * score))

        pieces, t = [], size
        while t:
            weight = np.array([total[s] + score for s, score in arrivals[t]])
            weight = np.exp(weight - weight.max())
            edge = np.searchsorted(weight.cumsum(), rng.random() * weight.sum(), side="right")
            start = arrivals[t][min(int(edge), len(weight) - 1)][0]
            pieces.append(text[start:t])
            t = start
        return pieces[::-1]

    def nbest(self, text: str, n: int) -> list[tuple[list[str], float]]:
        """The n likeliest segmentations of raw `text` (fewer if it has fewer) with their log P.

        Raises UserError for a text longer than LONGEST.
        """
        text = self.normalize(text)
        if len(text) > LONGEST:
            raise UserError(f"n-best of {len(text):,} characters: give at most {LONGEST:,}")
        best = [0.0] + [-math.inf] * len(text)
        arrivals: list[list[Edge]] = [[] for _ in range(len(text) + 1)]
        for t in range(len(text)):
            for end, score in self.edges(text, t):
                arrivals[end].append((t, score))
                best[end] = max(best[end], best[t] + score)

        # Entries: (-(log P of the best way through), node, log P from node to end, pieces after).
        found, heap = [], [(-best[-1], len(text), 0.0, ())]
        while heap and len(found) < n:
            _, t, behind, pieces = heappop(heap)
            if t == 0:
                found.append((list(pieces), behind))
            for start, score in arrivals[t]:
                after = behind + score
                heappush(heap, (-best[start] - after, start, after, (text[start:t], *pieces)))
        return found


def _cut(word: str, starts: list[int]) -> list[str]:
    """The pieces of the way that comes to each node from `starts`, read from the end."""
    pieces, end = [], len(word)
    while end:
        pieces.append(word[starts[end] : end])
        end = starts[end]
    return pieces[::-1]


def _logsum(values: Iterable[float]) -> float:
    values = list(values)
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
