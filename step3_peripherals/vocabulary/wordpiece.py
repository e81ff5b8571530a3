"""WordPiece, BERT's vocabulary: a word is cut from the left into the longest pieces known.

    "unaffable"  ->  un ##aff ##able            (## : goes on with the word)

Encoding is all that the BERT paper uses; how its vocabulary was learned was never published. Two
ways are here. The plain one is that of the `tokenizers` library (WordPieceTrainer), and makes the
same vocabulary: byte-pair encoding, which merges the pair that is most frequent,

    argmax f(ab)

With `likelihood=True`, it is the score that the Hugging Face course teaches: the merge of which one
occurrence most raises the likelihood, under a model in which symbols are independent,

    argmax log P(ab) / (P(a) P(b))  =  argmax f(ab) / (f(a) f(b))

(Schuster & Nakajima 2012 say that the likelihood of the whole text counts, f(ab) times as much.)
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Self

from common.cli import UserError
from common.runs import write_json, write_text
from step3_peripherals.vocabulary import bpe
from step3_peripherals.vocabulary.base import known, read_json, read_text, several
from step3_peripherals.vocabulary.normalize import chunks, words

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNKNOWN, PREFIX = "[UNK]", "##"
MAX_WORD = 100  # characters; a longer word is unknown
CACHED_CHUNKS = 1 << 17
Word = tuple[str, ...]


class WordPiece:
    """A WordPiece vocabulary with BERT's normalisation; `lowercase` also strips accents.

    What stands in a text is text: [CLS] and the like are never read from it.
    """

    def __init__(self, vocab: dict[str, int], lowercase: bool = True):
        """Raises UserError without [UNK], or unless the ids are 0, 1, 2, ..."""
        if UNKNOWN not in vocab:
            raise UserError(f"the vocabulary has no {UNKNOWN}: it is no WordPiece vocabulary")
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise UserError(f"the ids of the {len(vocab):,} tokens are not 0, 1, 2, ...")
        self.vocab, self.lowercase = dict(vocab), lowercase
        self._tokens = sorted(vocab, key=vocab.get)
        self._longest = max(map(len, vocab))
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    # --- encoding ---

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without [CLS] and [SEP]."""
        ids: list[int] = []
        for chunk in chunks(text):
            found = self._cache.get(chunk)
            if found is None:
                found = [i for word in words(chunk, self.lowercase) for i in self._pieces(word)]
                if len(chunk) <= MAX_WORD and len(self._cache) < CACHED_CHUNKS:
                    self._cache[chunk] = found
            ids += found
        return ids

    def tokens(self, text: str) -> list[str]:
        """As `encode`, but the tokens themselves."""
        return [self._tokens[index] for index in self.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` with a space between; what normalisation took away is lost. Raises
        UserError for an id out of range."""
        pieces = (self._tokens[index] for index in known(ids, self.vocab_size))
        return " ".join(pieces).replace(f" {PREFIX}", "")

    def _pieces(self, word: str) -> list[int]:
        """Greedy longest match; a word with a part that no piece matches is [UNK] as a whole."""
        unknown = [self.vocab[UNKNOWN]]
        if len(word) > MAX_WORD:
            return unknown
        ids, start, prefix = [], 0, ""
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                index = self.vocab.get(prefix + word[start:end])
                if index is not None:
                    break
            else:
                return unknown
            ids.append(index)
            start, prefix = end, PREFIX
        return ids

    # --- learning ---

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        lowercase: bool = True,
        likelihood: bool = False,
        min_frequency: int = 0,
        special_tokens: Iterable[str] = SPECIAL_TOKENS,
    ) -> Self:
        """Learn from texts, of which only distinct words are held.

        The ids are first `special_tokens`, then the characters with ##, those without, the merges.
        Words longer than LONGEST_LEARNED add their characters, but no pairs.
        `likelihood` prefers pairs of rare symbols: give it a `min_frequency`, such as 10, or it
        spends the vocabulary on misprints. Raises UserError as `BPE.train` does.
        """
        seen: Counter[str] = Counter()
        for text in several(texts):
            seen.update(chunks(text))
        counts: Counter[Word] = Counter()
        beside: Counter[str] = Counter()  # the symbols of words too long to learn from
        for chunk, count in seen.items():
            for word in words(chunk, lowercase):
                if len(word) <= bpe.LONGEST_LEARNED:
                    counts[(word[0], *(PREFIX + c for c in word[1:]))] += count
                    continue
                beside[word[0]] += count
                for character, often in Counter(word[1:]).items():
                    beside[PREFIX + character] += often * count
        if beside and not counts:
            raise bpe.no_short_word()
        counts.update({(symbol,): count for symbol, count in beside.items()})

        inside = sorted({symbol for word in counts for symbol in word if len(symbol) > 1})
        options = {
            "special_tokens": (*special_tokens, *inside),
            "alphabet": [symbol.removeprefix(PREFIX) for symbol in inside],
            "min_frequency": min_frequency,
        }
        if likelihood:
            vocab = _learn_by_likelihood(counts, vocab_size, **options)
        else:  # the pieces of a merge are written next to each other: ##a##b
            vocab, _ = bpe.learn(counts, vocab_size, **options)
        return cls({_written(token): index for token, index in vocab.items()}, lowercase)

    # --- files ---

    @classmethod
    def from_vocab(cls, path: str | Path, lowercase: bool = True) -> Self:
        """From a vocab.txt: a token a line, its id is the number of the line, from 0.

        Raises UserError for a file that is missing, not UTF-8, without [UNK], or has a token twice.
        """
        tokens = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
        vocab = {token: index for index, token in enumerate(tokens)}
        if len(vocab) < len(tokens):
            raise UserError(f"{path}: the same token on two lines")
        try:
            return cls(vocab, lowercase)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` wrote, or any BERT's folder with a vocab.txt. Lower-cases unless its
        tokenizer_config.json says otherwise.

        Raises UserError as `from_vocab` does, and for a tokenizer_config.json that is no object.
        """
        config = Path(folder) / "tokenizer_config.json"
        options = read_json(config) if config.is_file() else {}
        if not isinstance(options, dict):
            raise UserError(f"{config}: not a JSON object")
        return cls.from_vocab(Path(folder) / "vocab.txt", options.get("do_lower_case", True))

    def save(self, folder: str | Path) -> None:
        """Write vocab.txt with tokenizer_config.json, which `transformers.AutoTokenizer` opens, and
        tokenizer.json for the `tokenizers` library."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "vocab.txt", "".join(f"{token}\n" for token in self._tokens))
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": self.lowercase}
        write_json(folder / "tokenizer_config.json", config)
        normalizer = {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": self.lowercase,
        }  # fmt: skip
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer = {
            "version": "1.0",
            "added_tokens": [
                {"id": self.vocab[token], "content": token, **flags, "special": True}
                for token in SPECIAL_TOKENS
                if token in self.vocab
            ],
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": False},
            "model": {
                "type": "WordPiece",
                "unk_token": UNKNOWN,
                "continuing_subword_prefix": PREFIX,
                "max_input_chars_per_word": MAX_WORD,
                "vocab": self.vocab,
            },
        }
        write_json(folder / "tokenizer.json", tokenizer)


def _written(token: str) -> str:
    """##a##b -> ##ab, a##b -> ab."""
    return PREFIX * token.startswith(PREFIX) + token.replace(PREFIX, "")


def _learn_by_likelihood(
    words: Counter[Word], vocab_size: int, *, min_frequency: int, **options
) -> dict[str, int]:
    """`bpe.learn` with the score f(ab) / (f(a) f(b)).

    A merge makes a and b rarer, so it raises the scores of all other pairs that they are in: these
    go to the heap anew. An entry whose score is out of date is passed over.
    """
    vocab, _ = bpe.learn(words, vocab_size, **options | {"min_frequency": math.inf})  # no merges
    texts, frequency = [list(word) for word in words], list(words.values())
    single, double = Counter(), Counter()  # f(a), f(ab)
    holders, pairs_of = defaultdict(set), defaultdict(set)

    def count(index: int, sign: int) -> None:
        for symbol in texts[index]:
            single[symbol] += sign * frequency[index]
        for pair in pairwise(texts[index]):
            double[pair] += sign * frequency[index]
            holders[pair].add(index)
            for symbol in pair:
                pairs_of[symbol].add(pair)

    def entry(pair: tuple[str, str]) -> tuple[float, tuple[str, str]]:
        return -double[pair] / (single[pair[0]] * single[pair[1]]), pair

    for index in range(len(texts)):
        count(index, +1)
    least = max(1, min_frequency)
    heap = [entry(pair) for pair in double if double[pair] >= least]
    heapify(heap)
    while heap and len(vocab) < vocab_size:
        score, pair = heappop(heap)
        if double[pair] < least or (score, pair) != entry(pair):
            continue
        left, right = pair
        new = left + right
        vocab.setdefault(_written(new), len(vocab))
        for index in holders.pop(pair):
            count(index, -1)
            merged: list[str] = []
            for symbol in texts[index]:
                if merged and (merged[-1], symbol) == pair:
                    merged[-1] = new
                else:
                    merged.append(symbol)
            texts[index] = merged
            count(index, +1)
        for symbol in {left, right, new}:
            changed = {p for p in pairs_of[symbol] if double[p] >= least}
            pairs_of[symbol] = changed
            for pair in changed:
                heappush(heap, entry(pair))
    return vocab
