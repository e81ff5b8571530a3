"""What SentencePiece's two algorithms share: how text is normalised, and how ids become text again.

    text  --Normalizer-->  ▁text▁with▁spaces  --segment-->  pieces  -->  ids

`unigram.py` and `scored_bpe.py` each have their own `segment`.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Self

from common.cli import UserError
from step3_peripherals.vocabulary.base import known, valid_unicode, windows
from step3_peripherals.vocabulary.sentencepiece_model import SPACE, Kind, Model

FILE = "spiece.model"
CACHED_WORDS, CACHED_LENGTH = 1 << 17, 64
_INVISIBLE = (Kind.UNKNOWN, Kind.CONTROL, Kind.BYTE)  # their names are no text


class Normalizer:
    """Raw text -> what is segmented: rewritten by the rules, spaces tidied and written as ▁.

    The rules are NFKC and the like, spelt out: ﬁ -> fi, e + ´ -> é, tab -> space. At each position
    the longest applies. A user-defined piece goes before any rule and stays as it is.

    Text is rewritten in `windows`: at the end of one that has no space, no rule sees beyond.
    """

    def __init__(self, model: Model):
        self.model = model
        user_defined = [p.text for p in model.pieces if p.kind == Kind.USER_DEFINED]
        self.tables = ({text: text for text in user_defined}, model.rules)
        self.longest: dict[str, int] = {}  # by first character
        for source in chain(*self.tables):
            self.longest[source[0]] = max(len(source), self.longest.get(source[0], 1))
        # Each rule matches a character of `inner`: words without one, nearly all, stay as they are.
        sources = list(chain(*self.tables))
        self.inner = {c for source in sources for c in source[min(1, len(source) - 1) :]}
        self.divisible = not any(" " in source for source in sources)
        self._cache: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        text = "".join(map(self._window, windows(valid_unicode(text))))
        if self.model.remove_extra_spaces:
            while "  " in text:
                text = text.replace("  ", " ")
            text = text.lstrip(" ")
        if not text:
            return ""
        if self.model.add_dummy_prefix:
            text = " " + text
        space = SPACE if self.model.escape_spaces else " "
        text = text.replace(" ", space)
        return text.rstrip(space) if self.model.remove_extra_spaces else text

    def split_user_defined(self, text: str) -> list[str]:
        """Normalised text in characters, but user-defined pieces whole."""
        whole = sorted(self.tables[0], key=len, reverse=True)
        return re.findall("|".join([*map(re.escape, whole), "."]), text, re.S) if whole else [*text]

    def _window(self, text: str) -> str:
        return " ".join(map(self._word, text.split(" ") if self.divisible else [text]))

    def _word(self, word: str) -> str:
        if self.inner.isdisjoint(word):
            return word
        found = self._cache.get(word)
        if found is None:
            found = "".join(self._rewrite(word))
            if len(word) <= CACHED_LENGTH and len(self._cache) < CACHED_WORDS:
                self._cache[word] = found
        return found

    def _rewrite(self, text: str) -> Iterator[str]:
        at = 0
        while at < len(text):
            source, target = self._longest_match(text, at)
            yield target
            at += len(source)

    def _longest_match(self, text: str, at: int) -> tuple[str, str]:
        for table in self.tables:
            for size in range(self.longest.get(text[at], 1), 0, -1):
                source = text[at : at + size]
                if source in table:
                    return source, table[source]
        return text[at], text[at]


class SentencePieces:
    """A vocabulary as in a .model file; what it does is what `sentencepiece` does, to the id."""

    algorithm: int

    def __init__(self, model: Model):
        """Raises UserError for a model of the other algorithm, or one without an unknown piece."""
        kinds = [piece.kind for piece in model.pieces]
        if model.algorithm != self.algorithm:
            raise UserError(f"the model is not of the kind that {type(self).__name__} reads")
        if Kind.UNKNOWN not in kinds:
            raise UserError("the model has no piece for what is unknown")
        self.model = model
        self.normalize = Normalizer(model)
        self.unknown = kinds.index(Kind.UNKNOWN)
        self.vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
        self.visible = {p.text: i for i, p in enumerate(model.pieces) if p.kind not in _INVISIBLE}
        self._bytes = [i for i, kind in enumerate(kinds) if kind == Kind.BYTE]
        if model.byte_fallback and len(self._bytes) != 256:
            raise UserError(f"the model has pieces for {len(self._bytes)} bytes, not 256")
        self._byte_of = {index: byte for byte, index in enumerate(self._bytes)}

    @property
    def vocab_size(self) -> int:
        return len(self.model.pieces)

    def segment(self, text: str, **options) -> Iterable[str]:
        """Cut normalised text into pieces; a character that no piece has is one by itself."""
        raise NotImplementedError

    def encode(self, text: str, **options) -> list[int]:
        """The ids of `text`. `options` are those of `segment`."""
        return [index for _, index in self._pieces(text, **options)]

    def tokens(self, text: str, **options) -> list[str]:
        """As `encode`, but the pieces themselves; what is unknown stands as in the text."""
        return [piece for piece, _ in self._pieces(text, **options)]

    def _pieces(self, text: str, **options) -> Iterator[tuple[str, int]]:
        unknown = ""
        for piece in self.segment(self.normalize(text), **options):
            index = self.visible.get(piece)
            if index is None and not self.model.byte_fallback:  # a run is one unknown
                unknown += piece
                continue
            if unknown:
                yield unknown, self.unknown
                unknown = ""
            if index is not None:
                yield piece, index
                continue
            for byte in piece.encode():
                index = self._bytes[byte]
                yield self.model.pieces[index].text, index
        if unknown:
            yield unknown, self.unknown

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: the space in front is taken away, bytes that are no UTF-8 become
        U+FFFD, what was unknown the model's sign for it. Raises UserError for an id out of range.
        """
        model, text, held = self.model, [], bytearray()
        strip = model.add_dummy_prefix or model.remove_extra_spaces
        for index in known(ids, self.vocab_size):
            piece = model.pieces[index]
            if piece.kind == Kind.BYTE:
                held.append(self._byte_of[index])
                continue
            if held:
                text.append(held.decode(errors="each_replaced"))
                held.clear()
                strip = False
            if piece.kind == Kind.UNKNOWN:
                text.append(model.unknown_surface)
                strip = False
            elif piece.kind != Kind.CONTROL:
                shown = piece.text
                if strip and shown.startswith(SPACE):
                    shown = shown[1:]
                    # Where extra spaces are removed, all that are in front are extra.
                    strip = model.remove_extra_spaces and not shown
                elif shown:
                    strip = False
                text.append(shown.replace(SPACE, " "))
        text.append(held.decode(errors="each_replaced"))
        return "".join(text)

    # --- files ---

    @classmethod
    def from_sentencepiece(cls, path: str | Path) -> Self:
        """From a .model file. Raises UserError for a missing, broken or foreign one."""
        try:
            return cls(Model.read(path))
        except UserError as error:
            prefix = "" if str(error).startswith(str(path)) else f"{path}: "
            raise UserError(f"{prefix}{error}") from None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` wrote."""
        return cls.from_sentencepiece(Path(folder) / FILE)

    def save(self, folder: str | Path) -> None:
        """Write spiece.model, for `sentencepiece`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.model.write(Path(folder) / FILE)


codecs.register_error("each_replaced", lambda e: ("\ufffd" * (e.end - e.start), e.end))
