"""Rules of thumb that tell text from the rest of the web, each a small pure function.

C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2) throws out lines, and documents of which too
little is left. Gopher (Rae et al. 2021, arXiv:2112.11446, A.1.1) throws out whole documents:
those that repeat themselves, and those whose words, symbols or lines have unlikely statistics.
Decisions are those of datatrove's filters, given the same words, sentences and thresholds, but for
one rule: Gopher wants 80 % of the words to hold a letter, and datatrove counts every comma as a
word without one, by which a seventh of the English Wikipedia falls. `count_marks` decides as it
does. Of C4's thresholds datatrove has 3 words and 5 sentences, the paper 5 words and 3 sentences.

Both sets of rules count words, which Chinese does not set apart. Here a Han character is a word,
and what counts words is scaled by 1.6, the usual number of characters in a Chinese word: lengths
of lines, documents and n-grams. The rule on the length of words has no meaning and goes; marks that
end a line and stop words are Chinese ones.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np

from step2_bert.sentences import split_sentences

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_TOKEN = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:['’-][^\W_{HAN}]+)*|[^\w\s]|_")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # any odd number of 64 mixed bits
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


@dataclass(frozen=True)
class Rules:
    """The thresholds; the defaults are the papers' own, for English."""

    spaces: bool = True  # between words
    # C4: menus, titles and cut-off text lack an end mark or words, and pages of them sentences
    end_marks: tuple[str, ...] = (".", "?", "!", '"', "'")
    min_line_words: int = 5
    max_word_characters: int = 1000
    min_sentences: int = 3
    policy: tuple[str, ...] = POLICY
    # Gopher, repetition: the share of a document that may be ...
    duplicate_paragraphs: float = 0.30
    duplicate_paragraph_characters: float = 0.20
    duplicate_lines: float = 0.30
    duplicate_line_characters: float = 0.20
    top_ngram_characters: dict[int, float] = field(
        default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16}
    )
    duplicate_ngram_characters: dict[int, float] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    # Gopher, quality: prose lies within these; lists, tables, code and teasers do not
    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3
    max_mean_word_length: float = 10
    max_symbols_a_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    count_marks: bool = False  # among the words of these last shares, as datatrove does
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    min_stop_words: int = 2


ENGLISH = Rules()
CHINESE = Rules(
    spaces=False,
    end_marks=(*ENGLISH.end_marks, *"。！？；”’」』）"),
    min_line_words=8,
    policy=(*POLICY, "使用条款", "使用條款", "隐私政策", "隱私政策", "使用cookie"),
    top_ngram_characters={3: 0.20, 5: 0.18, 6: 0.16},
    duplicate_ngram_characters={8: 0.15, 10: 0.14, 11: 0.13, 13: 0.12, 14: 0.11, 16: 0.10},
    min_words=80,
    max_words=160_000,
    min_mean_word_length=0,
    max_mean_word_length=float("inf"),
    stop_words=tuple("的是在了和有不我之一人为為与與于於以而也"),
)


@cache
def rules_for(language: str) -> Rules:
    """The rules of a language; one that is neither English nor Chinese has no stop words."""
    known = {"en": ENGLISH, "zh": CHINESE}
    return known.get(language) or replace(ENGLISH, stop_words=(), min_stop_words=0)


def split_words(text: str) -> list[str]:
    """Words, Han characters and marks; a word may hold an apostrophe or a hyphen."""
    return _TOKEN.findall(text)


# --- C4: lines -----------------------------------------------------------------------------------


class Cleaned(NamedTuple):
    """What C4 leaves of a document."""

    text: str | None  # None: nothing
    reason: str | None  # why nothing is left
    removed: Counter[str]  # lines by reason


def c4(text: str, rules: Rules = ENGLISH) -> Cleaned:
    """Take out bad lines; give up a document with a forbidden one, or with too few sentences."""
    kept, removed, n_sentences = [], Counter(), 0
    for line in map(str.strip, text.splitlines()):
        words = line.split() if rules.spaces else split_words(line)
        line = line if has_long_word(words, rules) else _CITATION.sub("", line)
        if fault := short_or_open(line, words, rules):
            removed[fault] += 1
        elif reason := forbidden(line):
            return Cleaned(None, reason, removed)
        elif is_notice(line, rules):
            removed["notice"] += 1
        else:
            kept.append(line)
            n_sentences += len(split_sentences(line))
    if n_sentences < rules.min_sentences:
        return Cleaned(None, "too few sentences", removed)
    return Cleaned("\n".join(kept).strip(), None, removed)


def has_long_word(words: Sequence[str], rules: Rules) -> bool:
    """True if a word has more than `rules.max_word_characters`, as no word of prose has."""
    return any(len(word) > rules.max_word_characters for word in words)


def short_or_open(line: str, words: Sequence[str], rules: Rules) -> str | None:
    """Why a line is no sentence: menus, titles, code and cut-off text look like that."""
    if has_long_word(words, rules):
        return "long word"
    if not line.endswith(rules.end_marks) or line.endswith("..."):
        return "no end mark"
    return "few words" if len(words) < rules.min_line_words else None


def forbidden(line: str) -> str | None:
    """What condemns a whole document: filler, or a curly bracket, which is code."""
    lowered = line.lower()
    if "lorem ipsum" in lowered:
        return "lorem ipsum"
    return "curly bracket" if "{" in line and "javascript" not in lowered else None


def is_notice(line: str, rules: Rules) -> bool:
    """A line that asks for JavaScript or speaks of cookies and terms of use."""
    lowered = line.lower()
    return "javascript" in lowered or any(phrase in lowered for phrase in rules.policy)


# --- Gopher: repetition --------------------------------------------------------------------------


def gopher_repetition(text: str, rules: Rules = ENGLISH) -> str | None:
    """Why a document repeats itself too much, or None."""
    if not text:
        return "empty"
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
    if duplicate_share(paragraphs) > rules.duplicate_paragraphs:
        return "duplicate paragraphs"
    if duplicate_characters(paragraphs) / len(text) > rules.duplicate_paragraph_characters:
        return "duplicate paragraph characters"
    if duplicate_share(lines) > rules.duplicate_lines:
        return "duplicate lines"
    if duplicate_characters(lines) / len(text) > rules.duplicate_line_characters:
        return "duplicate line characters"
    words = Ngrams(split_words(text))
    for n, most in rules.top_ngram_characters.items():
        if words.top_characters(n, spaces=rules.spaces) / len(text) > most:
            return f"top {n}-gram"
    for n, most in rules.duplicate_ngram_characters.items():
        if words.most_duplicate_characters(n) / len(text) <= most:
            continue  # most documents end here, which spares them the slow exact count
        if words.duplicate_characters(n) / len(text) > most:
            return f"duplicate {n}-grams"
    return None


def duplicate_share(parts: Sequence[str]) -> float:
    """Share of the parts that have occurred before."""
    return 1 - len(set(parts)) / len(parts)


def duplicate_characters(parts: Sequence[str]) -> int:
    """Characters in parts that have occurred before."""
    return sum(map(len, parts)) - sum(map(len, set(parts)))


class Ngrams:
    """The n-grams of a document as numbers, equal where the words are."""

    def __init__(self, words: Sequence[str]):
        table: dict[str, int] = {}
        self.numbers = np.array([table.setdefault(word, len(table) + 1) for word in words], "u8")
        self.lengths = np.array([len(word) for word in words], np.int64)

    def of(self, n: int) -> np.ndarray:
        """(n_words - n + 1,) uint64: a polynomial of the n word numbers, modulo 2^64."""
        ngrams = np.zeros(max(0, len(self.numbers) - n + 1), np.uint64)
        for k in range(n):
            ngrams = ngrams * _BASE + self.numbers[k : k + len(ngrams)]
        return ngrams

    def top_characters(self, n: int, spaces: bool = True) -> int:
        """Characters that the commonest n-gram covers (of several, the one that comes first)."""
        _, first, counts = np.unique(self.of(n), return_index=True, return_counts=True)
        if not len(counts):
            return 0
        start = first[counts == counts.max()].min()
        return int(counts.max() * (self.lengths[start : start + n].sum() + spaces * (n - 1)))

    def duplicate_characters(self, n: int) -> int:
        """Characters in n-grams that have occurred before, read from left to right, none twice."""
        seen, characters, i, ngrams = set(), 0, 0, self.of(n).tolist()
        while i < len(ngrams):
            if ngrams[i] in seen:
                characters += int(self.lengths[i : i + n].sum())
                i += n
            else:
                seen.add(ngrams[i])
                i += 1
        return characters

    def most_duplicate_characters(self, n: int) -> int:
        """Characters in all n-grams that have occurred before: never less than the exact count."""
        ngrams = self.of(n)
        again = np.ones(len(ngrams), np.int64)
        again[np.unique(ngrams, return_index=True)[1]] = 0
        depth = np.zeros(len(self.lengths) + 1, np.int64)
        depth[: len(again)] += again
        depth[n : n + len(again)] -= again
        return int(self.lengths[np.cumsum(depth[:-1]) > 0].sum())


# --- Gopher: quality -----------------------------------------------------------------------------


def gopher_quality(text: str, rules: Rules = ENGLISH) -> str | None:
    """Why the statistics of a document are not those of prose, or None."""
    tokens = split_words(text)
    words, lines = [token for token in tokens if not is_mark(token)], text.splitlines()
    if len(words) < rules.min_words:
        return "few words"
    if len(words) > rules.max_words:
        return "many words"
    counted = tokens if rules.count_marks else words
    mean_length = sum(map(len, words)) / len(words)
    if mean_length < rules.min_mean_word_length:
        return "short words"
    if mean_length > rules.max_mean_word_length:
        return "long words"
    if text.count("#") / len(counted) > rules.max_symbols_a_word:
        return "hashes"
    if (text.count("...") + text.count("…")) / len(counted) > rules.max_symbols_a_word:
        return "ellipses"
    if share(line.lstrip().startswith(("•", "-")) for line in lines) > rules.max_bullet_lines:
        return "bullet lines"
    if share(line.rstrip().endswith(("...", "…")) for line in lines) > rules.max_ellipsis_lines:
        return "ellipsis lines"
    if share(any(map(str.isalpha, word)) for word in counted) < rules.min_alphabetic_words:
        return "not alphabetic"
    if len(set(rules.stop_words) & set(tokens)) < rules.min_stop_words:
        return "no stop words"
    return None


@cache
def _is_mark(character: str) -> bool:
    ascii_symbol = character.isascii() and not character.isalnum()
    return ascii_symbol or unicodedata.category(character)[0] in "PZC"


def is_mark(token: str) -> bool:
    """Nothing but punctuation and the like."""
    return not token[0].isalnum() and all(map(_is_mark, token))


def share(truths) -> float:
    """The share of `truths` that are true. Raises ZeroDivisionError if there are none."""
    truths = list(truths)
    return sum(truths) / len(truths)
