"""From sentence pairs to tokens on disk, and from there to batches.

Each side is tokenised once, in chunks. A prepared directory holds tokenizer/, a safetensors file a
split (flat tokens of each side, and the offsets that cut them into sentences), the raw text of dev
and test, and manifest.json. It is written beside and renamed when whole.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from common import runs
from common.cli import UserError
from common.data import SPLITS
from common.formats import Skipped
from step1_transformer import parallel
from step1_transformer import tokenizer as bpe

FORMAT = 1
CHUNK = 20_000  # pairs tokenised at once
TOKENIZER_CHARACTERS = 200_000_000  # a vocabulary needs no more text than this
LEAST_CORRELATION = 0.3  # real translations of sentences have 0.7 or more, unrelated lines about 0
SIDES = ("source", "target")


@dataclass(frozen=True)
class PrepareOptions:
    """What decides the prepared data."""

    data: str
    source: str
    target: str
    vocab_size: int = 8192
    max_seq_len: int = 256
    truncate: bool = False
    skip_bad_lines: bool = False
    unaligned: bool = False

    @classmethod
    def of(cls, config: Any) -> "PrepareOptions":
        """The options among a script's flags."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


def key_of(options: PrepareOptions) -> str:
    """A hash over the options and the content of the data."""
    found = _sources(options)
    content = [source.fingerprint() for source in found.values()]
    text = json.dumps([FORMAT, asdict(options), content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prepared(options: PrepareOptions, root: Path) -> Path:
    """The directory that `options.data` names, or one under `root`, prepared now or earlier.

    Languages left empty are the data's usual ones. Raises what `prepare` raises.
    """
    if (folder := Path(options.data)).joinpath("manifest.json").is_file():
        held = read_manifest(folder)["options"]
        for side in SIDES:
            if getattr(options, side) not in ("", held[side]):
                raise UserError(f"{folder} has {side} {held[side]}: leave --{side} out")
        return folder
    if not (options.source and options.target):
        source, target = parallel.default_languages(options.data)
        languages = dict(source=options.source or source, target=options.target or target)
        options = replace(options, **languages)
    name = Path(options.data.split(",")[0]).stem
    name = f"prepared-{name}-{options.source}-{options.target}-{key_of(options)[:8]}"
    return prepare(options, root / name)


def prepare(options: PrepareOptions, out: str | Path) -> Path:
    """Fill the directory `out`, or leave it as it is when it already holds just that; returns it.

    Raises UserError for data that cannot be read or has no pairs, for sides that are not aligned,
    for sentences longer than `max_seq_len` tokens (</s> included) unless `truncate`, and for a
    directory with other data in it.
    """
    out, key = Path(out), key_of(options)
    if (out / "manifest.json").is_file():
        if read_manifest(out)["key"] != key:
            raise UserError(f"{out} holds other prepared data; choose another directory")
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with _alone(out.with_name(f".{out.name}")) as unfinished:
        if not (out / "manifest.json").is_file():  # else another process was faster
            _fill(unfinished, options, key)
            unfinished.rename(out)
    return out


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """An empty folder held by this process; another waits here. What a kill left is cleared."""
    held = False
    while not held:
        folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        # while we waited, it may have been renamed, or removed and made anew
        held = folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
        if not held:
            os.close(handle)
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _fill(folder: Path, options: PrepareOptions, key: str) -> None:
    started = time.perf_counter()
    texts = (text for pair in _pairs(options, "train", Skipped()) for text in pair)
    tokenizer = bpe.train_bpe(_at_most(texts, TOKENIZER_CHARACTERS), options.vocab_size)
    bpe.save(tokenizer, folder / "tokenizer", options.max_seq_len)
    splits = {split: _write_split(options, split, tokenizer, folder) for split in SPLITS}
    manifest = {
        "format": FORMAT,
        "key": key,
        "source": _sources(options)["train"].facts(),
        "options": asdict(options),
        "vocab_size": tokenizer.get_vocab_size(),
        "splits": splits,
        "seconds": round(time.perf_counter() - started, 2),
    }
    runs.write_json(folder / "manifest.json", manifest)


def _sources(options: PrepareOptions) -> dict:
    return {s: parallel.resolve(options.data, s, options.source, options.target) for s in SPLITS}


def _pairs(options: PrepareOptions, split: str, skipped: Skipped) -> Iterator[parallel.Pair]:
    where = (options.data, split, options.source, options.target)
    return parallel.pairs(*where, skipped=skipped if options.skip_bad_lines else None)


def _at_most(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        characters -= len(text)
        if characters < 0:
            return
        yield text


def _write_split(options: PrepareOptions, split: str, tokenizer, folder: Path) -> dict:
    """Tokenise one split into the folder; returns its facts."""
    skipped, too_long, longest = Skipped(), 0, 0
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.int32
    lengths: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
    found = _pairs(options, split, skipped)
    with contextlib.ExitStack() as stack:
        tokens = {side: stack.enter_context(tempfile.TemporaryFile()) for side in SIDES}
        raw = {}
        if split != "train":
            for side in SIDES:
                path = folder / f"{split}.{side}"
                raw[side] = stack.enter_context(open(path, "w", encoding="utf-8", newline="\n"))
        while chunk := list(islice(found, CHUNK)):
            over = np.zeros(len(chunk), bool)
            for side, texts in zip(SIDES, zip(*chunk, strict=True), strict=True):
                rows = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
                size = np.fromiter(map(len, rows), np.int64, len(rows))
                over |= size > options.max_seq_len
                longest = max(longest, int(size.max()))
                if (size > options.max_seq_len).any():
                    rows = [row[: options.max_seq_len - 1] + row[-1:] for row in rows]
                    size = np.minimum(size, options.max_seq_len)
                flat = np.fromiter(chain.from_iterable(rows), dtype, int(size.sum()))
                tokens[side].write(flat.tobytes())
                lengths[side].append(size)
                if raw:
                    raw[side].writelines(one_line(text) + "\n" for text in texts)
            too_long += int(over.sum())
        if not lengths["source"]:
            raise UserError(f"{options.data}: no sentence pairs for split {split!r}")
        if too_long and not options.truncate:
            raise UserError(
                f"{options.data}: {too_long:,} {split} pairs have more than {options.max_seq_len} "
                f"tokens (the longest {longest:,}): raise --max-seq-len, or --truncate them"
            )
        if too_long:
            runs.say(f"{too_long:,} {split} pairs cut to {options.max_seq_len} tokens a side")
        sizes = {side: np.concatenate(lengths[side]) for side in SIDES}
        correlation = _check_alignment(options, split, sizes)
        _write_safetensors(folder / f"{split}.safetensors", tokens, sizes, dtype)
    return {
        "pairs": len(sizes["source"]),
        **{f"{side}_tokens": int(sizes[side].sum()) for side in SIDES},
        "length_correlation": correlation,
        "truncated_pairs": too_long,
        "skipped_lines": skipped.count,
    }


def one_line(text: str) -> str:
    """Text as a reference has it: normalised as what the model writes is, on one line."""
    return re.sub(r"[\r\n]+", " ", unicodedata.normalize("NFC", text))


def _check_alignment(options: PrepareOptions, split: str, sizes: dict) -> float | None:
    """Long sentences have long translations: the correlation of the logarithms of the lengths.

    None where there is too little to tell. Raises UserError if there is next to none.
    """
    logs = [np.log(sizes[side]) for side in SIDES]
    if len(logs[0]) < 100 or min(log.std() for log in logs) < 0.1:
        return None
    correlation = float(np.corrcoef(*logs)[0, 1])
    if correlation < LEAST_CORRELATION and not options.unaligned:
        raise UserError(
            f"{options.data}: the lengths of {options.source} and {options.target} sentences in "
            f"split {split!r} have nothing to do with each other (correlation {correlation:.2f}): "
            "the sides are not aligned line by line; if they are, say --unaligned"
        )
    return round(correlation, 3)


def _write_safetensors(path: Path, tokens: dict, sizes: dict, dtype: type) -> None:
    """Write {side}_offsets and {side}_tokens, those from files: the length of the header (8 bytes),
    the header, the tensors. The library could do it, but with everything in memory."""
    offsets = {side: np.concatenate([[0], np.cumsum(sizes[side])]) for side in SIDES}
    kind, width = ("U16", 2) if dtype is np.uint16 else ("I32", 4)
    tensors = [
        (f"{side}_offsets", "I64", 8, len(offsets[side])) for side in SIDES
    ]  # aligned: first
    tensors += [(f"{side}_tokens", kind, width, int(offsets[side][-1])) for side in SIDES]
    header, at = {}, 0
    for name, dtype_name, size, count in tensors:
        place = [at, at := at + count * size]
        header[name] = {"dtype": dtype_name, "shape": [count], "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for side in SIDES:
            file.write(offsets[side].astype("<i8").tobytes())
        for side in SIDES:
            tokens[side].seek(0)
            shutil.copyfileobj(tokens[side], file)
        file.flush()
        os.fsync(file.fileno())


# --- reading -------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared directory; UserError when there is none or it is broken."""
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(f"{file}: format {manifest['format']} is not ours; prepare again")
        return manifest
    except OSError:
        raise UserError(f"{folder}: not a prepared directory") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}: broken; prepare again") from None


class Corpus:
    """One split of a prepared directory, memory mapped. Pairs keep the order of the data."""

    def __init__(self, folder: Path, split: str, manifest: dict):
        self.folder, self.split, self.manifest = folder, split, manifest
        file = folder / f"{split}.safetensors"
        try:
            with safe_open(file, framework="pt") as stored:
                arrays = {name: stored.get_tensor(name).numpy() for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: missing, broken or cut off ({error})") from None
        self._tokens = {side: arrays[f"{side}_tokens"] for side in SIDES}
        self._offsets = {side: arrays[f"{side}_offsets"] for side in SIDES}
        self.source_lengths, self.target_lengths = (np.diff(self._offsets[s]) for s in SIDES)

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> "Corpus":
        """Raises UserError when the directory is no finished preparation or a file is broken."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            raise UserError(f"{folder}: no split {split!r}; it has {', '.join(manifest['splits'])}")
        return cls(folder, split, manifest)

    def __len__(self) -> int:
        return len(self.source_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """(pairs,) tokens of the longer side: what a pair costs in a batch."""
        return np.maximum(self.source_lengths, self.target_lengths)

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def max_seq_len(self) -> int:
        return self.manifest["options"]["max_seq_len"]

    @property
    def source(self) -> dict[str, str]:
        """What the pairs were read from: name, kind and fingerprint of the data."""
        return self.manifest["source"]

    @property
    def languages(self) -> str:
        """Such as de-en: from, to."""
        return "-".join(self.manifest["options"][side] for side in SIDES)

    @property
    def tokenizer_dir(self) -> Path:
        return self.folder / "tokenizer"

    def batch(self, indices) -> dict:
        """Collate the pairs `indices` (B,) into rows as long as the longest, S and T.

        Returns tensors input_ids (B, S) ending in </s>, attention_mask (B, S) bool or None when no
        row is padded, decoder_input_ids (B, T): <s> and the target (its padding comes after all
        that counts, where the causal mask hides it), positions (M,): where in B*T a label belongs,
        labels (M,): the target and </s>; and the counts targets {"token": M} and tokens (of both
        sides, not padding).
        """
        indices = np.asarray(indices, dtype=np.int64)
        source, source_present = self._rows("source", indices)
        labels, present = self._rows("target", indices)
        decoder = np.full_like(labels, bpe.PAD)
        decoder[:, 0] = bpe.BOS
        decoder[:, 1:] = np.where(present[:, 1:], labels[:, :-1], bpe.PAD)
        wanted = labels[present]
        return {
            "input_ids": torch.from_numpy(source),
            "attention_mask": None if source_present.all() else torch.from_numpy(source_present),
            "decoder_input_ids": torch.from_numpy(decoder),
            "positions": torch.from_numpy(np.flatnonzero(present)),
            "labels": torch.from_numpy(wanted),
            "targets": {"token": len(wanted)},
            "tokens": int(source_present.sum()) + len(wanted),
        }

    def _rows(self, side: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, longest) token ids, and which of them are real."""
        starts = self._offsets[side][indices][:, None]
        lengths = self._offsets[side][indices + 1][:, None] - starts
        column = np.arange(lengths.max())
        present = column < lengths
        flat = np.minimum(starts + column, len(self._tokens[side]) - 1)
        return np.where(present, self._tokens[side][flat], bpe.PAD).astype(np.int64), present

    def text(self, side: str) -> list[str]:
        """The raw sentences of one side, source or target, of dev or test."""
        return (self.folder / f"{self.split}.{side}").read_text(encoding="utf-8").split("\n")[:-1]
