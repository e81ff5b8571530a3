"""What all vocabularies share: text that is Unicode, and files that are what they should be."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.cli import UserError

NO_TEXT = "no text to learn a vocabulary from; give texts that have more in them than spaces"


def valid_unicode(text: str) -> str:
    """`text` with its surrogates mended, for those cannot be written as UTF-8.

    A high and a low one side by side (halves that a reader of UTF-16 or JSON left apart) are the
    character that they stand for; one alone is U+FFFD, the replacement character.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def windows(text: str, size: int = 1 << 20) -> Iterator[str]:
    """`text` in parts of at most `size` characters, which end behind a space if they hold one."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            end = text.rfind(" ", start, end) + 1 or end
        yield text[start:end]
        start = end


def several(texts: Iterable[str]) -> Iterable[str]:
    """`texts`. Raises UserError if it is one text: its characters would be taken for texts."""
    if isinstance(texts, str):
        raise UserError("a vocabulary is learned from a list of texts: write [text]")
    return texts


def known(ids: Iterable[int], vocab_size: int) -> list[int]:
    """`ids`. Raises UserError for one out of range; below 0, Python would count from behind."""
    ids = list(ids)
    for index in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= index < vocab_size:
            raise UserError(f"id {index} is not from 0 to {vocab_size - 1}")
    return ids


def read_text(file: str | Path) -> str:
    """Raises UserError for a file that is missing, or not UTF-8."""
    try:
        return Path(file).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start + 1}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def read_json(file: str | Path) -> Any:
    """Raises UserError for a file that is missing, or not JSON."""
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None
