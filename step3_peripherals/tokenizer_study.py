"""The four vocabularies on one text: what compare_tokenizers.py measures without a language model.

The text is tidied first, for all alike: no control characters, runs of spaces one space, paragraphs
lines. Then BPE, byte-level BPE and unigram lose nothing but characters that they do not know. What
is lost must be paid for where vocabularies are compared by bits, or the one that forgets most wins:

    unknown     what an <unk> stands for is spelt out in UTF-8, 8 bits a byte, and 8 to end it
    gaps        WordPiece forgets where spaces and line ends were. Each gap between two words costs
                -log2 p(gap | character before, character after), as counted in the training text
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from common import data, runs
from common.cli import UserError
from step3_peripherals.vocabulary.base import read_json, windows
from step3_peripherals.vocabulary.bpe import BPE, SPACE
from step3_peripherals.vocabulary.byte_level import ByteLevelBPE
from step3_peripherals.vocabulary.normalize import chunks, is_han, words
from step3_peripherals.vocabulary.unigram import Unigram
from step3_peripherals.vocabulary.wordpiece import UNKNOWN, WordPiece

Facts = dict[tuple[str, int], dict[str, Any]]  # what `build` found, by (algorithm, size)
GAPS = 3  # nothing, a space, the end of a line
PASSAGE = 2_000  # characters, at least; a shorter one only where its document ends
LONGEST = 1 << 18  # characters of a line; a longer one is cut


@dataclass(frozen=True)
class Text:
    """Tidied passages: a few paragraphs each, of documents that are in one of the splits only."""

    train: list[str]
    heldout: list[str]
    by_character: bool  # Chinese: fertility is tokens a character, for it has no words to count
    source: dict[str, str]

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the held-out text."""
        return sum(len(text.encode()) for text in self.heldout)

    @property
    def n_words(self) -> int:
        """What fertility is counted by, in the held-out text: characters, or words at spaces."""
        return sum(sum(map(len, t.split())) if self.by_character else len(t.split())
                   for t in self.heldout)  # fmt: skip


def read(name: str, max_documents: int | None, heldout_every: int) -> Text:
    """Each so-many-th document is held out. Raises UserError when none is, or all are."""
    source, train, heldout = data.resolve(name), [], []
    for i, paragraphs in enumerate(islice(data.documents(source), max_documents), 1):
        (train if i % heldout_every else heldout).extend(passages(paragraphs))
    if not (train and heldout):
        raise UserError(f"{name}: too few documents to hold one in {heldout_every} out")
    visible = "".join("".join(heldout).split())
    return Text(train, heldout, sum(map(is_han, visible)) > len(visible) / 5, source.facts())


def passages(paragraphs: Iterable[str]) -> Iterator[str]:
    """Whole paragraphs of a document, tidied, until they are a passage long."""
    lines: list[str] = []
    for paragraph in paragraphs:
        for line in windows(" ".join(chunks(paragraph.replace(SPACE, "_"))), LONGEST):
            if line := line.strip():
                lines.append(line)
            if sum(map(len, lines)) >= PASSAGE:
                yield "\n".join(lines)
                lines = []
    if lines:
        yield "\n".join(lines)


# --- the four ------------------------------------------------------------------------------------


def _library_tokenizer(folder: Path) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _library_sentencepiece(folder: Path) -> Callable[[str], list[int]]:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")).encode


def _unknown_characters(tokenizer: BPE, text: str) -> Iterator[str]:
    return (c for c in text if c.replace(" ", SPACE) not in tokenizer.vocab)


def _unknown_pieces(tokenizer: Unigram, text: str) -> Iterator[str]:
    pairs = zip(tokenizer.tokens(text), tokenizer.encode(text), strict=True)
    return (piece for piece, index in pairs if index == tokenizer.unknown)


def _unknown_words(tokenizer: WordPiece, text: str) -> Iterator[str]:
    found = (word for chunk in chunks(text) for word in words(chunk, tokenizer.lowercase))
    return (word for word in found if tokenizer.encode(word) == [tokenizer.vocab[UNKNOWN]])


@dataclass(frozen=True)
class Algorithm:
    """One of ours: how it is learned, what it does not know in a text, and the library's twin."""

    kind: type
    unknown: Callable[[Any, str], Iterable[str]]
    library: Callable[[Path], Callable[[str], list[int]]]
    options: dict[str, Any]
    forgets_gaps: bool = False
    has_bytes: bool = False

    def train(self, texts: list[str], vocab_size: int, alphabet_share: float) -> tuple[Any, int]:
        """The tokenizer, and how many characters were left out, of which it never heard: all but
        the commonest, where they would be more than that share of the vocabulary (SentencePiece's
        character_coverage, BpeTrainer's limit_alphabet)."""
        rare = [] if self.has_bytes else by_frequency(texts)[int(alphabet_share * vocab_size) :]
        if rare:
            gone = dict.fromkeys(map(ord, rare), " ")
            texts = [text.translate(gone) for text in texts]
        return self.kind.train(texts, vocab_size, **self.options), len(rare)


def by_frequency(texts: list[str]) -> list[str]:
    """The characters of the texts, the commonest first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return sorted(counts, key=lambda character: (-counts[character], character))


ALGORITHMS = {
    "bpe": Algorithm(BPE, _unknown_characters, _library_tokenizer, {}),
    "byte-level": Algorithm(ByteLevelBPE, lambda *_: (), _library_tokenizer, {}, has_bytes=True),
    "wordpiece": Algorithm(
        WordPiece, _unknown_words, _library_tokenizer, {"lowercase": False}, forgets_gaps=True
    ),
    "unigram": Algorithm(Unigram, _unknown_pieces, _library_sentencepiece, {}),
}


# --- measuring -----------------------------------------------------------------------------------


def build(
    name: str, vocab_size: int, text: Text, folder: Path, repeats: int, alphabet_share: float = 1.0
) -> dict[str, Any]:
    """Learn a vocabulary into `folder`, and measure it on the held-out text; or say why not.

    It is smaller than `vocab_size` where the text has no use for more. `left_out` characters are
    unknown to it, see `Algorithm.train`.

    The facts, which are also written there: {"skipped": why}, or `training_seconds` (of processor
    time), the numbers that `measure` has, and the `seconds` that both took.
    What is there already is not done again.
    """
    file = folder / "facts.json"
    if file.exists():
        return read_json(file)
    algorithm, begun, start = ALGORITHMS[name], time.monotonic(), time.process_time()
    try:
        tokenizer, left_out = algorithm.train(text.train, vocab_size, alphabet_share)
    except UserError as error:
        if "too small" not in str(error) and "too large" not in str(error):
            raise
        facts = {"skipped": str(error)}
        folder.mkdir(parents=True, exist_ok=True)
    else:
        seconds = time.process_time() - start
        tokenizer.save(folder)
        facts = {"training_seconds": seconds} | measure(algorithm, text, folder, repeats)
        facts |= {"asked": vocab_size, "left_out": left_out}
        facts["seconds"] = round(time.monotonic() - begun, 1)
    runs.write_json(file, facts)
    return facts


def exhausted(facts: dict[str, Any] | None) -> int:
    """The size of a vocabulary that fell short though no character was left out, which is all that
    this text can give; 0 of another."""
    if not facts or "skipped" in facts or facts["left_out"]:
        return 0
    return facts["vocab_size"] * (facts["vocab_size"] < facts["asked"])


def measure(algorithm: Algorithm, text: Text, folder: Path, repeats: int) -> dict[str, Any]:
    """Numbers of the vocabulary saved in `folder`, on the held-out text.

    `bytes_per_token`; `fertility`; `unknown_tokens` and `unknown_characters` (shares); `in_use`
    (share of the vocabulary); `unknown_bits` (see above); `ours` and `library` (MB a second of
    processor time, the median of `repeats` in turn, each with its caches empty); `equal` (share of
    passages with the same ids).
    """
    tokenizer = algorithm.kind.load(folder)
    loaders = (lambda: algorithm.kind.load(folder).encode, lambda: algorithm.library(folder))
    (ours, encoded), (library, expected) = _speeds(loaders, text, repeats)
    unknown = [part for passage in text.heldout for part in algorithm.unknown(tokenizer, passage)]
    n_tokens = sum(map(len, encoded))
    n_characters = sum(map(len, text.heldout))
    return {
        "vocab_size": tokenizer.vocab_size,
        "tokens": n_tokens,
        "bytes_per_token": text.n_bytes / n_tokens,
        "fertility": n_tokens / text.n_words,
        "unknown_tokens": len(unknown) / n_tokens,
        "unknown_characters": sum(map(len, unknown)) / n_characters,
        "unknown_bits": sum(8 * (len(part.encode()) + 1) for part in unknown),
        "in_use": len(set().union(*encoded)) / tokenizer.vocab_size,
        "ours": ours,
        "library": library,
        "equal": sum(map(list.__eq__, encoded, expected)) / len(encoded),
    }


def _speeds(
    loaders: Iterable[Callable[[], Callable]], text: Text, repeats: int
) -> list[tuple[float, list[list[int]]]]:
    """MB/s of each, and the ids of each passage. They take turns, so that whatever slows the
    machine for a while slows all; processor time leaves out what waits for other programs."""
    found: list[list] = [[[], None] for _ in loaders]
    for _ in range(repeats):
        for load, one in zip(loaders, found, strict=True):
            encode = load()
            start = time.process_time()
            one[1] = [encode(passage) for passage in text.heldout]
            one[0].append(time.process_time() - start)
    return [(text.n_bytes / 1e6 / statistics.median(times), ids) for times, ids in found]


def gap_bits(text: Text) -> float:
    """What the gaps between the words of the held-out text cost; add-one estimates."""
    seen = Counter(gap for passage in text.train for gap in _gaps(passage))
    context: Counter[tuple[str, str]] = Counter()
    for (before, after, _), n in seen.items():
        context[before, after] += n
    found = Counter(gap for passage in text.heldout for gap in _gaps(passage))
    return sum(
        n * math.log2((context[gap[:2]] + GAPS) / (seen[gap] + 1)) for gap, n in found.items()
    )


def _gaps(passage: str) -> Iterator[tuple[str, str, str]]:
    """(last character before, first after, what was between them) of all neighbouring words."""
    last, gap = "", ""
    for line in passage.split("\n"):
        for chunk in line.split(" "):
            for word in words(chunk, lowercase=False):
                if last:
                    yield last, word[0], gap
                last, gap = word[-1], ""
            gap = " "
        gap = "\n"
