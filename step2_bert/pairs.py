"""Which stretches of text make a sample: BERT's sentence pairs, or one stretch for MLM alone.

Text is a flat array of tokens; a sample is at most two ranges [start, end) in it. So the rules
touch sentences, never tokens, and cutting a segment is moving the ends of its range.
"""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Token ranges of segments A and B (empty when there is none), and A's document."""

    a_start: int
    a_end: int
    b_start: int
    b_end: int
    is_random_next: int
    document: int


def sentence_pairs(
    documents: Sequence[int],
    sentences: Sequence[int],
    limit: int,
    rng: random.Random,
    short_probability: float = 0.1,
    random_next_probability: float = 0.5,
) -> list[Pair]:
    """BERT's pairs (Devlin et al. 2019, appendix A.2), not yet cut to `limit` tokens.

    Document d is the sentences documents[d]:documents[d+1], sentence s the tokens
    sentences[s]:sentences[s+1]; none is empty. Sentences are taken until they reach the target
    length, then cut at a random sentence boundary into A and the rest. The rest is B, or else B
    comes from a random place in another document and the rest is put back for the next sample.

    With `short_probability` the target is not `limit` but any length from 2. It is drawn for each
    sample; the original draws it for each document, and a long one then gives a heap of tiny ones.
    A single sentence has no rest, so its B is always random; without another document it is left
    out.
    """
    pairs, n_documents = [], len(documents) - 1
    for document in range(n_documents):
        first, stop = documents[document], documents[document + 1]
        while first < stop:
            target = rng.randint(2, limit) if rng.random() < short_probability else limit
            last = bisect_left(sentences, sentences[first] + target, first + 1, stop)
            single = last == first + 1
            middle = last if single else rng.randint(first + 1, last - 1)
            a_start, a_end = sentences[first], sentences[middle]
            if n_documents > 1 and (single or rng.random() < random_next_probability):
                other = rng.randrange(n_documents - 1)
                other += other >= document
                start = rng.randrange(documents[other], documents[other + 1])
                room = max(target - (a_end - a_start), 1)
                end = bisect_left(
                    sentences, sentences[start] + room, start + 1, documents[other + 1]
                )
                b_start, b_end = sentences[start], sentences[end]
                pairs.append(Pair(a_start, a_end, b_start, b_end, 1, document))
                first = middle
            else:
                if not single:
                    pairs.append(Pair(a_start, a_end, a_end, sentences[last], 0, document))
                first = last
    return pairs


def stretches(
    documents: Sequence[int],
    sentences: Sequence[int],
    limit: int,
    rng: random.Random,
    short_probability: float = 0.1,
) -> list[Pair]:
    """One segment a sample: whole sentences up to `limit` tokens, within a document.

    DOC-SENTENCES of RoBERTa (Liu et al. 2019, section 4.2). A sentence that does not fit alone is
    cut and goes on in the next sample, so every token is in exactly one sample.
    """
    pairs = []
    for document in range(len(documents) - 1):
        start, stop = sentences[documents[document]], sentences[documents[document + 1]]
        while start < stop:
            target = rng.randint(2, limit) if rng.random() < short_probability else limit
            boundary = bisect_right(sentences, start + target) - 1
            end = min(stop, sentences[boundary])
            if end <= start:
                end = min(stop, start + target)
            pairs.append(Pair(start, end, end, end, 0, document))
            start = end
    return pairs


def truncate(pairs: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Cut pairs (n, 6) so that A and B have at most `limit` tokens together.

    The original takes tokens from the longer segment, one at a time, at its front or its back by a
    coin. How many each loses is then fixed, and the number lost in front is binomial.
    """
    pairs = pairs.copy()
    a, b = pairs[:, 1] - pairs[:, 0], pairs[:, 3] - pairs[:, 2]
    keep_a = np.minimum(a, np.maximum(limit - b, limit - limit // 2))
    keep_b = np.minimum(b, limit - keep_a)
    for column, lost in ((0, a - keep_a), (2, b - keep_b)):
        front = rng.binomial(lost, 0.5)
        pairs[:, column] += front
        pairs[:, column + 1] -= lost - front
    return pairs
