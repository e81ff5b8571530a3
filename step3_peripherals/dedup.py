"""Duplicates: exact ones by a hash of the text, near ones by MinHash, from scratch.

The likeness of two documents is the Jaccard index of their sets of shingles A and B (runs of 5
words), s = |A ∩ B| / |A ∪ B|. Under a random order of all shingles, the first of A is the first of
B with probability s (Broder 1997, "On the resemblance and containment of documents"): so the share
of equal minima under K hash functions estimates s. To find alike documents without comparing all
pairs, K = b r minima are cut into b bands of r rows; two documents are candidates if all rows of
some band agree (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4), which
has probability

    1 - (1 - s^r)^b

an S-curve that climbs steepest near s = (1/b)^(1/r): 0.72 for 14 bands of 8 rows, where it is 0.05
at s = 0.5, 0.56 at 0.7, 0.92 at 0.8 and 0.9996 at 0.9. Candidates are chained into groups, and of
a group the document that comes first is kept.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from step3_peripherals.quality import HAN

WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, of 64 mixed bits
_SLICE = 4096  # shingles hashed at a time: their hashes stay in the processor's cache


def exact_hash(text: str) -> int:
    """64 bits of the text as it is, but for white space: equal for exact duplicates."""
    plain = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "little")


def shingles(text: str, n: int = 5) -> np.ndarray:
    """(n_shingles,) uint64 below 2^32, sorted and unique: hashes of the runs of `n` words.

    Case and punctuation do not count, and a Han character is a word. A text of fewer than `n` words
    is one shingle; one without words has none.
    """
    words = WORD.findall(text.lower())
    hashes = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
    numbers = np.array(hashes, np.uint64) + np.uint64(1)
    found = np.zeros(len(words) - min(n, len(words)) + (len(words) > 0), np.uint64)
    for k in range(min(n, len(words))):
        found = (found ^ numbers[k : k + len(found)]) * _BASE  # order counts
        found ^= found >> np.uint64(32)
    return np.unique(found >> np.uint64(32))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two results of `shingles`; 0 if both are empty."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


@dataclass(frozen=True)
class MinHash:
    """b bands of r rows, over shingles of `n_words` words. Equal seeds give equal signatures."""

    bands: int = 14
    rows: int = 8
    n_words: int = 5
    seed: int = 1

    def probability(self, s: np.ndarray | float) -> np.ndarray | float:
        """That two documents of Jaccard index s become candidates: 1 - (1 - s^r)^b."""
        return 1 - (1 - s**self.rows) ** self.bands

    @cached_property
    def _functions(self) -> tuple[np.ndarray, np.ndarray]:
        """a and b of h(x) = (a x + b mod 2^64) >> 32, which is pairwise independent for x < 2^32
        (Dietzfelbinger 1996, "Universal hashing and k-wise independent random variables").

        Pairwise is enough here, as x is a mixed hash already; numbers in a row would show bias."""
        rng = np.random.default_rng(self.seed)
        a, b = rng.integers(0, 1 << 64, (2, self.bands * self.rows, 1), np.uint64)
        return a, b

    def signature(self, shingles: np.ndarray) -> np.ndarray:
        """(n_shingles,) -> (bands, rows) uint64: the least hash under each function.

        Raises ValueError for no shingles, of which there is no least.
        """
        a, b = self._functions
        least = [
            np.min(shingles[i : i + _SLICE] * a + b, axis=1)
            for i in range(0, len(shingles), _SLICE)
        ]
        if not least:
            raise ValueError("a text without words has no signature")
        return (np.min(least, axis=0) >> np.uint64(32)).reshape(self.bands, self.rows)

    def band_hashes(self, text: str) -> np.ndarray | None:
        """(bands,) uint64: equal in a band, its rows are equal. None for a text without words."""
        found = shingles(text, self.n_words)
        return fold(self.signature(found)) if len(found) else None


def fold(signature: np.ndarray) -> np.ndarray:
    """(bands, rows) -> (bands,) uint64: one number for the rows of a band."""
    folded = np.zeros(len(signature), np.uint64)
    for row in signature.T.astype(np.uint64):
        folded = (folded ^ row) * _BASE
        folded ^= folded >> np.uint64(29)
    return folded


def links(hashes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(n,) hashes of a band and keys of their documents -> (n_links, 2) pairs that agree.

    Each document is linked to the next greater key of the same hash: enough to chain them all.
    Takes 40 bytes a document.
    """
    order = np.lexsort((keys, hashes))
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    return np.stack([keys[order[same]], keys[order[same + 1]]], axis=1)


class Groups:
    """Documents that are linked, directly or through others: disjoint sets with path halving.

    Only documents with a link take up memory. The head of a group is its least key.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()):
        self._parent: dict[int, int] = {}
        for a, b in pairs:
            self.join(a, b)

    def join(self, a: int, b: int) -> None:
        """Link two documents, and so their groups; the lesser of the two heads is head of both."""
        a, b = self.head(a), self.head(b)
        self._parent[max(a, b)] = min(a, b)

    def head(self, key: int) -> int:
        """The least key of a document's group, which is `key` itself if nothing is linked to it."""
        parent = self._parent
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """(key, head) of every document but the heads, in order of keys."""
        for key in sorted(self._parent):
            if (head := self.head(key)) != key:
                yield key, head
