"""BERT's basic tokeniser (Devlin et al. 2019): raw text -> words to be cut into word pieces.

    "Crème  brûlée, 東京!"  ->  ["creme", "brulee", ",", "東", "京", "!"]

1. clean       drop control characters, make every white space a plain space
2. han         set each Chinese character apart, as a word of its own
3. accents     NFD splits é into e + ´; drop the marks        (uncased models only)
4. lower-case                                                 (uncased models only)
5. split       at spaces, and around every punctuation character

All five look at characters, not at what is on the other side of a space. So a text can be split at
spaces first, and each distinct chunk be treated once.
"""

import string
import unicodedata
from collections.abc import Iterator

from step3_peripherals.vocabulary.base import valid_unicode, windows

LONGEST_CHUNK = 1 << 21  # characters; bounds the memory
HAN = (  # BERT's blocks of CJK ideographs; kana, hangul and Han of later blocks stay in words
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),  # a slip for 2B820; vocabularies and libraries have kept to it
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class _Table(dict):
    """For `str.translate`: each code point's replacement, worked out when first met."""

    def __init__(self, replacement):
        super().__init__()
        self.replacement = replacement

    def __missing__(self, code: int) -> str:
        self[code] = value = self.replacement(chr(code))
        return value


def clean_character(c: str) -> str:
    """ " " for white space, "" for control, format, private-use and broken characters."""
    category = unicodedata.category(c)
    if c in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
        return " "
    return "" if c == "\ufffd" or category in ("Cc", "Cf", "Co", "Cs") else c


def is_han(c: str) -> bool:
    return any(first <= ord(c) <= last for first, last in HAN)


def is_punctuation(c: str) -> bool:
    """Unicode's P*, and the ASCII symbols, such as $ + < ^, that Unicode calls symbols."""
    return c in string.punctuation or unicodedata.category(c).startswith("P")


_CLEAN = _Table(clean_character)
_HAN = _Table(lambda c: f" {c} " if is_han(c) else c)
_NO_MARKS = _Table(lambda c: "" if unicodedata.category(c) == "Mn" else c)
_PUNCTUATION = _Table(lambda c: f" {c} " if is_punctuation(c) else c)


def chunks(text: str) -> Iterator[str]:
    """`text`, cleaned (1.) and split at white space; a chunk holds one or more words.

    Chunks longer than LONGEST_CHUNK are cut there: a word that it goes through becomes two.
    """
    for window in windows(valid_unicode(text).translate(_CLEAN), LONGEST_CHUNK):
        yield from window.split()


def words(chunk: str, lowercase: bool) -> list[str]:
    """Steps 2 to 5 on one of the `chunks`."""
    chunk = chunk.translate(_HAN)
    if lowercase:
        chunk = unicodedata.normalize("NFD", chunk).translate(_NO_MARKS)
        # Python alone turns the Σ that ends a word into ς; a character's own lower case is σ.
        chunk = chunk.replace("Σ", "σ").lower()
    return chunk.translate(_PUNCTUATION).split()
