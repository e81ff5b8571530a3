"""What an input is made of: the four formats that RoBERTa compares (Liu et al. 2019,
arXiv:1907.11692, section 4.2), and two tasks on pairs.

segment_pairs    [CLS] A [SEP] B [SEP]: A and B are runs of sentences; BERT's own format
sentence_pairs   the same, but A and B are one sentence each: inputs are short
full_sentences   [CLS] whole sentences up to the limit, past the ends of documents, with a
                 [SEP] where a document ends
doc_sentences    the same, but no input goes past the end of its document

What is left over in the second and the last makes inputs shorter than the limit: batch them by
tokens (`common.batching.Batches(max_tokens=...)`), as RoBERTa does for equal work.

A pair comes with a question. `nsp` (Devlin et al. 2019): does B follow A, or is it from another
document? `sop` (ALBERT, Lan et al. 2020, arXiv:1909.11942, section 3.1): B follows A; which of them
stands first? The topic answers the one, only coherence the other. As in step 2, text is one array
and rules move ranges in it.
"""

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from common.cli import UserError
from step2_bert import pairs

Negatives = Literal["nsp", "sop"]


@dataclass(frozen=True)
class Text:
    """Documents as lists of sentences, laid end to end; no sentence and no document is empty.

    Document d is the sentences documents[d]:documents[d+1], sentence s the tokens
    tokens[sentences[s]:sentences[s+1]].
    """

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray

    @classmethod
    def of(cls, documents: Iterable[Iterable[Sequence[int]]]) -> "Text":
        """Raises UserError when there is no token in any document."""
        kept = [[s for s in sentences if len(s)] for sentences in documents]
        kept = [sentences for sentences in kept if sentences]
        if not kept:
            raise UserError("no document has any token in it")
        flat = list(chain.from_iterable(kept))
        tokens = np.fromiter(chain.from_iterable(flat), np.int32)
        return cls(tokens, _starts(map(len, flat)), _starts(map(len, kept)))

    @property
    def document_of(self) -> np.ndarray:
        """The document of each sentence."""
        return np.repeat(np.arange(len(self.documents) - 1), np.diff(self.documents))


@dataclass(frozen=True)
class Samples:
    """Inputs with [CLS] and [SEP] in place, end to end: sample i is the tokens
    offsets[i]:offsets[i+1]."""

    tokens: np.ndarray
    """(N,) int32"""
    segment_ids: np.ndarray
    """(N,) int8: 1 for B and its [SEP], else 0"""
    offsets: np.ndarray
    """(n + 1,) int64"""
    labels: np.ndarray | None
    """(n,) int8: 1 if B is random (nsp) or what came first (sop); None without pairs"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and segment ids of a sample, (T,) each."""
        mine = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[mine], self.segment_ids[mine]


@dataclass(frozen=True)
class Formats:
    """The four formats; `max_seq_len` counts the special tokens."""

    max_seq_len: int
    cls_token_id: int
    sep_token_id: int
    seed: int = 0

    def segment_pairs(
        self, text: Text, negatives: Negatives = "nsp", short_probability: float = 0.1
    ) -> Samples:
        """SEGMENT-PAIR: `step2_bert.pairs.sentence_pairs`, which says what is drawn.

        With `sop` a document's last sentence, if nothing is left to go with it, is left out.
        """
        _check_negatives(text, negatives)
        room, share = self._room(3, least=2), 0.5 if negatives == "nsp" else 0.0
        bounds = text.documents.tolist(), text.sentences.tolist()
        found = pairs.sentence_pairs(
            *bounds, room, random.Random(self.seed), short_probability, share
        )
        return self._pairs(text, np.array(found, np.int64).reshape(-1, 6), negatives)

    def sentence_pairs(self, text: Text, negatives: Negatives = "nsp") -> Samples:
        """SENTENCE-PAIR: a sentence and, by a fair coin, the next one or one from anywhere in
        another document; the next one then makes a pair of its own. The last sentence of a
        document has no next one, and is no A."""
        _check_negatives(text, negatives)
        rng, document = np.random.default_rng(self.seed), text.document_of
        is_random = (rng.random(len(document)) < 0.5) & (negatives == "nsp")
        has_next = np.append(document[1:] == document[:-1], False)
        firsts, taken = [], False  # a true B is no A
        for s, (more, other) in enumerate(zip(has_next.tolist(), is_random.tolist(), strict=True)):
            is_first = more and not taken
            taken = is_first and not other
            if is_first:
                firsts.append(s)
        a = np.array(firsts, np.int64)
        b, is_random, document = a + 1, is_random[a], document[a]
        b[is_random] = _elsewhere(text, document[is_random], rng)
        edges = text.sentences
        found = np.stack([edges[a], edges[a + 1], edges[b], edges[b + 1], is_random, document], 1)
        return self._pairs(text, found, negatives)

    def full_sentences(self, text: Text) -> Samples:
        """FULL-SENTENCES: every token is in one sample. A sentence that is longer than a whole
        input is cut, and no other."""
        return self._fill(text, across=True)

    def doc_sentences(self, text: Text) -> Samples:
        """DOC-SENTENCES: as FULL-SENTENCES, but a document begins a new sample."""
        return self._fill(text, across=False)

    def _room(self, specials: int, least: int = 1) -> int:
        if self.max_seq_len < specials + least:
            raise UserError(
                f"max_seq_len {self.max_seq_len} is too short: {specials} special tokens and some "
                f"text make {specials + least}"
            )
        return self.max_seq_len - specials

    def _pairs(self, text: Text, found: np.ndarray, negatives: Negatives) -> Samples:
        """Samples of the ranges `found` (n, 6), which are those of `step2_bert.pairs.Pair`."""
        rng = np.random.default_rng((self.seed, 1))
        if negatives == "sop":
            found = found[found[:, 4] == 0]
        found = pairs.truncate(found, self._room(3, least=2), rng)
        if negatives == "sop":
            swapped = rng.random(len(found)) < 0.5
            found[swapped, :4] = found[swapped][:, [2, 3, 0, 1]]
            found[:, 4] = swapped
        n, ranges = len(found), found[:, :4].reshape(-1, 2)
        sample, segment = np.arange(2 * n) // 2, np.arange(2 * n) % 2
        return self._lay_out(text, sample, *ranges.T, segment, labels=found[:, 4].astype(np.int8))

    def _fill(self, text: Text, *, across: bool) -> Samples:
        """Whole sentences, as many as fit; a document that ends inside a sample costs a [SEP]."""
        room, sentences, document = self._room(2), text.sentences.tolist(), text.document_of
        # What stands before the end of each sentence, if every document but the first has a [SEP]
        cost = (text.sentences[1:] + document).tolist()
        last = (text.documents[document + 1]).tolist()  # where each sentence's document ends
        first_of, n = document.tolist(), len(document)
        starts, start, sentence = [], 0, 0
        while sentence < n:
            starts.append(start)
            stop = n if across else last[sentence]
            fits = bisect_right(cost, start + first_of[sentence] + room, sentence, stop)
            if fits > sentence:
                sentence, start = fits, sentences[fits]
            else:
                start += room
        cuts = np.union1d(starts, text.sentences[text.documents[:-1]])
        ends = np.append(cuts[1:], len(text.tokens))
        sample = np.searchsorted(starts, cuts, side="right") - 1
        return self._lay_out(text, sample, cuts, ends, np.zeros_like(sample), labels=None)

    def _lay_out(
        self,
        text: Text,
        sample: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        segment: np.ndarray,
        labels: np.ndarray | None,
    ) -> Samples:
        """Write [CLS] before each sample and [SEP] behind each of its pieces.

        Piece i, the tokens starts[i]:ends[i] of segment[i], belongs to sample[i]; pieces are
        sorted by sample, and each sample has one.
        """
        opens = np.diff(sample, prepend=-1) > 0  # pieces with a [CLS] in front
        sizes = opens + (ends - starts) + 1
        places = _starts(sizes)
        # A running number in the text for each place of a piece; the specials are then put over it
        origin = np.repeat(starts - opens - places[:-1], sizes) + np.arange(places[-1])
        tokens = text.tokens[np.clip(origin, 0, len(text.tokens) - 1)]
        tokens[places[:-1][opens]] = self.cls_token_id
        tokens[places[1:] - 1] = self.sep_token_id
        offsets = np.append(places[:-1][opens], places[-1])
        return Samples(tokens, np.repeat(segment, sizes).astype(np.int8), offsets, labels)


def _check_negatives(text: Text, negatives: Negatives) -> None:
    if negatives == "nsp" and len(text.documents) < 3:
        raise UserError("a random next sentence comes from another document: give two or more")


def _elsewhere(text: Text, document: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each of `document` (n,) a sentence of another, drawn as BERT does: first the document."""
    other = rng.integers(max(1, len(text.documents) - 2), size=len(document))
    other += other >= document
    return rng.integers(text.documents[other], text.documents[other + 1])


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))]).astype(np.int64)
