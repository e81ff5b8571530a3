"""Byte-level BPE, the vocabulary of GPT-2: its alphabet is the 256 bytes that UTF-8 is made of.

Radford et al. 2019, section 2.2. With bytes for an alphabet no character of any language is
unknown, and every text comes back exactly. Vocabularies are files of text, so each byte is written
as a character of its own that can be seen: itself in Latin-1 where it can, and for the others
(controls, the space, ...) U+0100, U+0101, ... in their order. A space, for one, is written Ġ.
"""

from collections.abc import Iterable
from itertools import chain

import regex

from common.cli import UserError
from step3_peripherals.vocabulary.base import known, valid_unicode
from step3_peripherals.vocabulary.bpe import BPE

END_OF_TEXT = "<|endoftext|>"
SEEN = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
HIDDEN = [byte for byte in range(256) if byte not in SEEN]
WRITTEN = dict(zip(chain(SEEN, HIDDEN), map(chr, chain(SEEN, range(0x100, 0x200))), strict=False))
READ = {ord(character): byte for byte, character in WRITTEN.items()}


class ByteLevelBPE(BPE):
    """Lossless for all text, but for surrogates, which UTF-8 cannot hold: they are mended first,
    see `valid_unicode`. Given GPT-2's vocab.json and merges.txt, `from_files` encodes as GPT-2.

    What stands in a text is text: <|endoftext|> is never read from it.
    """

    SPECIAL_TOKENS = (END_OF_TEXT,)
    ALPHABET = tuple(WRITTEN.values())
    UNKNOWN = None
    # English contractions, then runs of letters, of digits, of other signs, each with one space
    # before it; of a run of white space, all but the last when a word follows.
    SPLIT = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    PIPELINE = {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
        },
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
        },
    }  # fmt: skip

    def __init__(self, vocab: dict[str, int], merges: Iterable[tuple[str, str]]):
        super().__init__(vocab, merges)
        if missing := [character for character in WRITTEN.values() if character not in vocab]:
            raise UserError(f"no byte-level vocabulary: {len(missing)} bytes are not in it")
        # What is neither a byte nor merged of bytes is a special token, whatever characters it has
        written = {*WRITTEN.values(), *map("".join, self.merges)}
        self._bytes = [
            token.translate(READ).encode("latin-1") if token in written else token.encode()
            for token in self._tokens
        ]

    @staticmethod
    def _normalize(text: str) -> str:
        return valid_unicode(text)

    @staticmethod
    def _write(word: str) -> str:
        return word.encode().decode("latin-1").translate(WRITTEN)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises UserError for an id out
        of range."""
        written = (self._bytes[index] for index in known(ids, self.vocab_size))
        return b"".join(written).decode(errors="replace")
