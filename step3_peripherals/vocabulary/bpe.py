"""Byte-pair encoding: a vocabulary of frequent pieces of words, learned by merging pairs.

Sennrich et al. 2016 (arXiv:1508.07909), section 3.2. Write every word as its characters. Count all
pairs of neighbours; merge the most frequent pair, wherever it stands, into one new symbol; repeat
until the vocabulary is full. To encode a word, merge its pairs in the order they were learned in.

Counting anew before every merge would cost O(merges x corpus). But a merge changes only the pairs
beside it. So `_Pairs` remembers the words that hold each pair, visits only those, and corrects the
counts of the neighbours; a heap finds the most frequent pair in O(log pairs). The work of a merge
is the length of the words it touches: few and short ones, once the first hundred are done.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import regex

from common import runs
from common.cli import UserError
from step3_peripherals.vocabulary.base import (
    NO_TEXT,
    known,
    read_json,
    read_text,
    several,
    valid_unicode,
)

SPACE = "▁"
LONGEST_LEARNED = 1_000  # symbols; what is longer is no word, but data or a text without spaces
LONGEST_ENCODED = 1 << 20  # symbols; bounds the memory
CACHED_WORDS, CACHED_LENGTH = 1 << 17, 64


def learn(
    words: dict[str, int],
    vocab_size: int,
    *,
    special_tokens: Iterable[str] = (),
    alphabet: Iterable[str] = (),
    limit_alphabet: int | None = None,
    min_frequency: int = 0,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The tokens with their ids, and the merges in their order, of `words` with their counts.

    Tokens are numbered: first `special_tokens`; then the characters of `words` and `alphabet` by
    code point (with `limit_alphabet`, the most frequent so many of them; others are left out of the
    words); then the merges. Of pairs equally frequent, the one with the lower ids comes first.
    Learning ends early when no pair is left, or none as frequent as `min_frequency`. Words longer
    than LONGEST_LEARNED add their characters, but no pairs. But for these, all is as by the
    `tokenizers` library's BpeTrainer.

    Raises UserError when there are no words, or none short enough, and when `vocab_size` is less
    than the special tokens and the characters.
    """
    if not words:
        raise UserError(NO_TEXT)
    vocab = {token: index for index, token in enumerate(dict.fromkeys(special_tokens))}
    for character in _characters(words, alphabet, limit_alphabet):
        vocab.setdefault(character, len(vocab))
    if len(vocab) > vocab_size:
        raise UserError(
            f"a vocabulary of {vocab_size:,} is too small: the characters of the text and the "
            f"special tokens are {len(vocab):,}; give {len(vocab):,} or more"
        )
    short = [word for word in words if len(word) <= LONGEST_LEARNED]
    if not short:
        raise no_short_word()
    pairs = _Pairs(
        [[vocab[c] for c in word if c in vocab] for word in short], [words[word] for word in short]
    )
    tokens, merges = list(vocab), []
    while len(vocab) < vocab_size:
        pair, count = pairs.most_frequent()
        if count < max(1, min_frequency):
            break
        left, right = (tokens[index] for index in pair)
        merges.append((left, right))
        new = vocab.setdefault(left + right, len(vocab))  # a special token may be called so too
        if new == len(tokens):
            tokens.append(left + right)
        pairs.merge_most_frequent(new)
    return vocab, merges


def no_short_word() -> UserError:
    return UserError(f"no word in the text has at most {LONGEST_LEARNED:,} symbols; add spaces")


def _characters(words: dict[str, int], alphabet: Iterable[str], limit: int | None) -> list[str]:
    """By code point; given a limit, `alphabet` goes before what is frequent."""
    if limit is None:
        return sorted(set(alphabet).union(*words))
    seen: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            seen[character] += count
    seen.update(dict.fromkeys(alphabet, seen.total()))
    return sorted(sorted(seen, key=lambda c: (-seen[c], c))[:limit])


class _Pairs:
    """Words as lists of ids, each with its frequency, and their pairs of neighbours.

    The heap has (-count, pair, numbers of the words that hold it). Entries may be out of date: a
    count is put right when it comes to the top, and a word that has lost its pair is visited for
    nothing. A merge takes its pair off the heap and adds the pairs that it makes.
    """

    def __init__(self, words: list[list[int]], frequency: list[int]):
        self.words, self.frequency = words, frequency
        self.counts: dict[tuple[int, int], int] = defaultdict(int)
        holders: dict[tuple[int, int], set[int]] = defaultdict(set)
        for number, word in enumerate(words):
            for pair in pairwise(word):
                self.counts[pair] += frequency[number]
                holders[pair].add(number)
        self.heap = [(-self.counts[pair], pair, held) for pair, held in holders.items()]
        heapify(self.heap)

    def most_frequent(self) -> tuple[tuple[int, int], int]:
        """The pair, and its count: 0 when there are no pairs."""
        while self.heap:
            count, pair, held = self.heap[0]
            if -count == self.counts[pair]:
                return pair, -count
            heapreplace(self.heap, (-self.counts[pair], pair, held))
        return (0, 0), 0

    def merge_most_frequent(self, new: int) -> None:
        """Write `new` for the pair on top of the heap, in every word from left to right."""
        _, pair, holders = heappop(self.heap)
        left, right = pair
        counts, made = self.counts, defaultdict(set)
        for number in holders:
            word, frequency = self.words[number], self.frequency[number]
            i = 0
            while i < len(word) - 1:
                if word[i] == left and word[i + 1] == right:
                    word[i : i + 2] = [new]
                    if i > 0:
                        before = word[i - 1]
                        counts[before, left] -= frequency
                        counts[before, new] += frequency
                        made[before, new].add(number)
                    if i + 1 < len(word):
                        after = word[i + 1]
                        counts[right, after] -= frequency
                        counts[new, after] += frequency
                        made[new, after].add(number)
                i += 1
        for pair, holders in made.items():
            if counts[pair] > 0:
                heappush(self.heap, (-counts[pair], pair, holders))


class BPE:
    """A vocabulary of characters and what they merge to. Spaces are written ▁, as part of the word
    that they stand before; runs of letters, of digits and of other signs are words apart.

    Lossless for the characters of the training text (but for ▁ itself, which becomes a space); any
    other is <unk>. Surrogates are mended first, see `valid_unicode`. What stands in a text is text:
    special tokens are never read from it.
    """

    SPECIAL_TOKENS = ("<unk>",)
    UNKNOWN: str | None = "<unk>"
    ALPHABET: tuple[str, ...] = ()
    SPLIT = regex.compile(r"▁?[\p{L}\p{M}]+|▁?\p{N}+|▁?[^\s▁\p{L}\p{M}\p{N}]+|[\s▁]")
    PIPELINE = {  # the same, as the `tokenizers` library writes it
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": SPLIT.pattern},
            "behavior": "Isolated",
            "invert": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "Fuse"},
            ],
        },
    }

    def __init__(self, vocab: dict[str, int], merges: Iterable[tuple[str, str]]):
        """Raises UserError unless the ids are 0, 1, 2, ... and the merges made of tokens."""
        self.vocab, self.merges = dict(vocab), list(merges)
        if sorted(self.vocab.values()) != list(range(len(self.vocab))):
            raise UserError(f"the ids of the {len(self.vocab):,} tokens are not 0, 1, 2, ...")
        self._tokens = sorted(self.vocab, key=self.vocab.get)
        self._rules: dict[tuple[int, int], tuple[int, int]] = {}  # pair -> rank, what it becomes
        for rank, (left, right) in enumerate(self.merges):
            parts = (left, right, left + right)
            if missing := [token for token in parts if token not in self.vocab]:
                raise UserError(f"merge {rank + 1}, {left!r} {right!r}: no token {missing[0]!r}")
            first, second, new = (self.vocab[token] for token in parts)
            self._rules[first, second] = (rank, new)
        if self.UNKNOWN and self.UNKNOWN not in self.vocab:
            raise UserError(f"no token {self.UNKNOWN!r}, which stands for unknown characters")
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    # --- learning ---

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, *, special_tokens: Iterable[str] = (), **options
    ) -> Self:
        """`learn` from texts, with its `options`; of the texts only distinct words are held.

        SPECIAL_TOKENS and then `special_tokens` have the lowest ids. Raises UserError as `learn`
        does, and for one text in place of several.
        """
        words: Counter[str] = Counter()
        for text in several(texts):
            words.update(cls._split(text))
        words = Counter({cls._write(word): count for word, count in words.items()})
        special_tokens = (*cls.SPECIAL_TOKENS, *special_tokens)
        options = {"alphabet": cls.ALPHABET} | options
        return cls(*learn(words, vocab_size, special_tokens=special_tokens, **options))

    @classmethod
    def _split(cls, text: str) -> Iterator[str]:
        """The words of `text`, which together are all of it."""
        return (match.group() for match in cls.SPLIT.finditer(cls._normalize(text)))

    @staticmethod
    def _normalize(text: str) -> str:
        return valid_unicode(text).replace(" ", SPACE)

    @staticmethod
    def _write(word: str) -> str:
        """A word in the characters of the alphabet."""
        return word

    # --- encoding ---

    def tokens(self, text: str, **options) -> list[str]:
        """As `encode`, but the tokens themselves."""
        return [self._tokens[index] for index in self.encode(text, **options)]

    def encode(
        self, text: str, *, dropout: float = 0.0, rng: np.random.Generator | None = None
    ) -> list[int]:
        """The ids of `text`.

        With `dropout` (BPE-dropout, Provilkov et al. 2020, arXiv:1910.13267, algorithm 1) each
        possible merge is passed over with that probability, drawn anew before every merge: the same
        text is cut in another way each time. 0 is plain encoding, 1 leaves characters. Raises
        UserError for a dropout outside [0, 1] or without `rng`.

        Words longer than LONGEST_ENCODED are cut there.
        """
        if not 0 <= dropout <= 1 or (dropout and rng is None):
            raise UserError(f"dropout {dropout} must be from 0 to 1, and have an rng if above 0")
        ids: list[int] = []
        cache = {} if dropout else self._cache
        for word in self._split(text):
            found = cache.get(word)
            if found is None:
                found = self._encode_word(self._write(word), dropout, rng)
                if not dropout and len(word) <= CACHED_LENGTH and len(cache) < CACHED_WORDS:
                    cache[word] = found
            ids += found
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens stand in it as they are called. Raises UserError for an
        id out of range."""
        pieces = (self._tokens[index] for index in known(ids, self.vocab_size))
        return "".join(pieces).replace(SPACE, " ")

    def _encode_word(self, word: str, dropout: float, rng) -> list[int]:
        unknown = self.vocab.get(self.UNKNOWN)
        ids: list[int] = []
        for start in range(0, len(word), LONGEST_ENCODED):
            symbols = [self.vocab.get(c, unknown) for c in word[start : start + LONGEST_ENCODED]]
            ids += self._merge_all(symbols, dropout, rng)
        return ids

    def _merge_all(self, symbols: list[int], dropout: float, rng) -> list[int]:
        """Merge the pair learned first, the leftmost of its kind, until none is left.

        Symbols stay where they are, linked to their neighbours; a merge writes to the place of its
        left half and empties that of the right.
        """
        rules, size = self._rules, len(symbols)
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))
        heap = [(*rules[p], i) for i, p in enumerate(pairwise(symbols)) if p in rules]
        heapify(heap)
        dropped = []
        while heap:
            candidate = rank, new, i = heappop(heap)
            j = after[i]
            if j == size or rules.get((symbols[i], symbols[j]), (0, None))[1] != new:
                continue  # one of the two has been merged with another
            if dropout and rng.random() < dropout:
                dropped.append(candidate)
                continue
            symbols[i], symbols[j] = new, None
            after[i] = after[j]
            if after[i] < size:
                before[after[i]] = i
            for left, right in ((before[i], i), (i, after[i])):
                if left >= 0 and right < size:
                    rule = rules.get((symbols[left], symbols[right]))
                    if rule:
                        heappush(heap, (*rule, left))
            while dropped:
                heappush(heap, dropped.pop())
        return [symbol for symbol in symbols if symbol is not None]

    # --- files ---

    @classmethod
    def from_files(cls, vocab: str | Path, merges: str | Path) -> Self:
        """From a vocab.json (token: id) and a merges.txt (a pair a line, the first learned first).

        Raises UserError for files that are missing, broken or do not fit each other.
        """
        tokens, pairs = read_json(vocab), []
        if not isinstance(tokens, dict) or not all(type(n) is int for n in tokens.values()):
            raise UserError(f"{vocab}: not a JSON object of tokens and their ids")
        for number, line in enumerate(read_text(merges).rstrip("\n").split("\n"), 1):
            pair = tuple(line.split(" "))
            if line.startswith("#version") or (not line and number == 1):
                continue
            if len(pair) != 2 or not all(pair):
                raise UserError(
                    f"{merges}:{number}: {line!r} is not two tokens with a space between"
                )
            pairs.append(pair)
        try:
            return cls(tokens, pairs)
        except UserError as error:
            raise UserError(f"{vocab} and {merges}: {error}") from None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` wrote."""
        return cls.from_files(Path(folder) / "vocab.json", Path(folder) / "merges.txt")

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt, and tokenizer.json for the `tokenizers` library.

        The library, unlike us, takes the names of special tokens in a text for the tokens.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        runs.write_json(folder / "vocab.json", self.vocab)
        lines = ("#version: 0.2", *map(" ".join, self.merges), "")
        runs.write_text(folder / "merges.txt", "\n".join(lines))
        made = set(map("".join, self.merges))
        special = [token for token in self._tokens if len(token) > 1 and token not in made]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer = {
            "version": "1.0",
            "added_tokens": [
                {"id": self.vocab[token], "content": token, **flags, "special": True}
                for token in special
            ],
            **self.PIPELINE,
            "model": {
                "type": "BPE",
                "unk_token": self.UNKNOWN,
                "vocab": self.vocab,
                "merges": self.merges,
            },
        }
        runs.write_json(folder / "tokenizer.json", tokenizer)
