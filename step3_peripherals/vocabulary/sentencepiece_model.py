"""SentencePiece's .model file, and the text normalisation that it prescribes.

The file is a protocol buffer: a sequence of (field number, value), where a value is an integer, a
float, or bytes, which may be such a sequence again:

    ModelProto      1 pieces*   2 trainer     3 normalizer
    Piece           1 text      2 score       3 kind
    Trainer         3 model kind (1 unigram, 2 BPE)   35 byte fallback
                    41, 42, 43 ids of <s>, </s>, <pad>   44 how to write an unknown when decoding
    Normalizer      1 name      2 charsmap    3 add a space in front    4 remove extra spaces
                    5 write spaces as ▁
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from common.cli import UserError
from common.runs import write_bytes

SPACE = "\u2581"  # ▁
UNIGRAM, BPE = 1, 2


class Kind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # <s>: never comes from text
    USER_DEFINED = 4  # found in the text before anything else
    UNUSED = 5
    BYTE = 6  # <0x0A>: one byte of a character that has no piece


@dataclass(frozen=True)
class Piece:
    text: str
    score: float = 0.0
    """log p(piece) in a unigram model; minus the number of the merge in a BPE model."""
    kind: Kind = Kind.NORMAL


@dataclass(frozen=True)
class Model:
    """What a .model file holds. The defaults are those of the file format."""

    pieces: list[Piece]
    algorithm: int = UNIGRAM
    byte_fallback: bool = False
    add_dummy_prefix: bool = True
    remove_extra_spaces: bool = True
    escape_spaces: bool = True
    charsmap: bytes = b""
    unknown_surface: str = " \u2047 "
    rules: dict[str, str] = field(default_factory=dict)
    """The rewriting rules that `charsmap` packs."""

    # --- files ---

    @classmethod
    def read(cls, path: str | Path) -> "Model":
        """Raises UserError for a missing, truncated or foreign file."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        try:
            fields = list(messages(data))
            pieces = [_piece(dict(messages(v))) for number, v in fields if number == 1]
            outer = dict(fields)
            trainer = dict(messages(outer[2]))
            normalizer = dict(messages(outer[3]))
            charsmap = normalizer.get(2, b"")
            if not pieces:
                raise ValueError
            return cls(
                pieces,
                algorithm=trainer.get(3, UNIGRAM),
                byte_fallback=bool(trainer.get(35, 0)),
                add_dummy_prefix=bool(normalizer.get(3, 1)),
                remove_extra_spaces=bool(normalizer.get(4, 1)),
                escape_spaces=bool(normalizer.get(5, 1)),
                charsmap=charsmap,
                unknown_surface=trainer.get(44, b" \xe2\x81\x87 ").decode(),
                rules=unpack_charsmap(charsmap),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
            raise UserError(f"{path}: truncated, or no SentencePiece model") from None

    def write(self, path: str | Path) -> None:
        """Write a file that `sentencepiece` opens."""
        ids = {piece.text: i for i, piece in enumerate(self.pieces)}
        unknown = next(i for i, piece in enumerate(self.pieces) if piece.kind == Kind.UNKNOWN)
        special = [ids.get(name, -1) for name in ("<s>", "</s>", "<pad>")]
        trainer = [(3, self.algorithm), (35, int(self.byte_fallback)), (40, unknown)]
        trainer += [*zip((41, 42, 43), special, strict=True), (44, self.unknown_surface.encode())]
        spaces = (self.add_dummy_prefix, self.remove_extra_spaces, self.escape_spaces)
        normalizer = [(2, self.charsmap), *((3 + i, int(flag)) for i, flag in enumerate(spaces))]
        pieces = [(1, pack([(1, p.text.encode()), (2, p.score), (3, p.kind)])) for p in self.pieces]
        write_bytes(Path(path), pack([*pieces, (2, pack(trainer)), (3, pack(normalizer))]))


def _piece(fields: dict) -> Piece:
    return Piece(fields[1].decode(), fields.get(2, 0.0), Kind(fields.get(3, Kind.NORMAL)))


# --- the wire format ---


def messages(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The (field number, value) pairs of a protocol buffer; ValueError where it makes no sense.

    Each begins with the integer 8 * number + wire type: 0 integer, 1 eight bytes, 2 a length and
    that many bytes, 5 four bytes, which are a float here.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _varint(data, at)
        elif wire_type in (1, 2, 5):
            size, at = (8, at) if wire_type == 1 else (4, at)
            if wire_type == 2:
                size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
            if len(value) < size:
                raise ValueError("truncated")
            if wire_type == 5:
                (value,) = struct.unpack("<f", value)
        else:
            raise ValueError("no protocol buffer")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer, seven bits a byte, low bits first; the top bit says that more follow."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("no protocol buffer")


def pack(fields: list[tuple[int, int | float | bytes]]) -> bytes:
    """The inverse of `messages`."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, float):
            out += _pack_varint(8 * number + 5) + struct.pack("<f", value)
        elif isinstance(value, bytes):
            out += _pack_varint(8 * number + 2) + _pack_varint(len(value)) + value
        else:
            out += _pack_varint(8 * number) + _pack_varint(value % (1 << 64))
    return bytes(out)


def _pack_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# --- normalisation ---


def unpack_charsmap(charsmap: bytes) -> dict[str, str]:
    """The rules {from: to} in a `precompiled_charsmap`: its length, a trie, the targets.

    The trie is a double array (Aoe 1989; Yata's Darts). It is one array of 32-bit units: from a
    node whose children start at `base`, the letter c leads to unit `base ^ c`, if the low byte of
    that unit says c. A node that ends a key has, at c = 0, a unit that holds the key's value: where
    its target begins among the NUL-terminated targets.
    """
    if not charsmap:
        return {}
    (size,) = struct.unpack_from("<I", charsmap)
    units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
    targets = charsmap[4 + size :]

    def base(unit: int) -> int:  # bits 10 and up; in units of 256 if bit 9 is set
        return unit >> 10 << (8 if unit & 1 << 9 else 0)

    children = defaultdict(list)  # by base
    for place, unit in enumerate(units):
        letter = unit & 0x8000_00FF
        if 0 < letter < 256:
            children[place ^ letter].append((letter, place))

    rules = {}
    nodes = [(b"", base(units[0]))]
    while nodes:
        prefix, start = nodes.pop()
        for letter, place in children.get(start, ()):
            key, child = prefix + bytes([letter]), place ^ base(units[place])
            nodes.append((key, child))
            if units[place] & 1 << 8:  # ends a key
                value = units[child] & 0x7FFF_FFFF
                rules[key.decode()] = targets[value : targets.index(0, value)].decode()
    return rules
