"""Text as a language model reads it: one long array of token ids, cut into rows.

Documents follow each other, each behind a separator, and rows pay no heed to where they end. Every
so-many-th document is held out. The arrays lie on disk, in a folder that is named after all that
they depend on, and are mapped into memory, so that a corpus may be larger than that.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import data, runs
from common.cli import UserError
from step1_transformer.resuming import json_object
from step3_peripherals.language_model import IGNORED
from step3_peripherals.vocabulary.base import windows

FORMAT = 2
SEPARATOR = "<|endoftext|>"
AT_ONCE = 256  # documents that are encoded together, or fewer: those of so many characters:
LOT = 1 << 20
LONGEST = 1 << 18  # characters; a longer document is encoded in parts
ENDLESS = re.compile(r"[^\W\d_]{1001,}|\d{1001,}|(?:[^\w\s]|_){1001,}")  # to the library, words


@dataclass(frozen=True)
class StreamOptions:
    """What decides, beside the text and the tokenizer, what is in a stream."""

    max_documents: int | None = None
    """Read the first so many only."""
    heldout_every: int = 20
    """Each so-many-th document is held out."""

    def __post_init__(self):
        most, every = self.max_documents, self.heldout_every
        if most is not None and most < 1:
            raise UserError(f"--max-documents {most} must be 1 or more")
        if every < 2:
            raise UserError(f"--heldout-every {every} must be 2 or more: one is to be trained on")


@dataclass(frozen=True)
class Stream:
    """A prepared folder: train.bin, heldout.bin, and manifest.json, which says what they hold."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Stream":
        """Raises UserError when the folder holds no stream, or a damaged one."""
        file = Path(folder) / "manifest.json"
        if not file.exists():
            raise UserError(f"{folder} is no token stream: it has no manifest.json")
        try:
            manifest = json_object(file)
        except ValueError:
            manifest = {}
        if not {"source", "dtype", "vocab_size", "train", "heldout"} <= manifest.keys():
            raise UserError(f"{file} is damaged: delete the folder, and the text is encoded anew")
        return cls(Path(folder), manifest)

    @property
    def vocab_size(self) -> int:
        """Ids are below this; the separator's is one of them."""
        return self.manifest["vocab_size"]

    def n_bytes(self, split: str) -> int:
        """UTF-8 bytes of the split's text, separators not counted."""
        return self.manifest[split]["bytes"]

    def tokens(self, split: str) -> np.ndarray:
        """The split's ids, (N,) uint16 or uint32; the first is a separator."""
        return np.memmap(self.folder / f"{split}.bin", self.manifest["dtype"], mode="r")

    def rows(self, split: str, max_seq_len: int) -> "Rows":
        """The split in rows that do not overlap."""
        return Rows(self.tokens(split), max_seq_len)


class Rows:
    """Rows of T tokens, each with the tokens that follow them as labels.

    Together they predict each token of the stream but the first, once, whatever T is. The last row
    may be short: it is filled up with labels that are ignored.
    """

    def __init__(self, tokens: np.ndarray, max_seq_len: int):
        self.tokens, self.max_seq_len = tokens, max_seq_len
        self.n_targets = len(tokens) - 1
        starts = np.arange(0, self.n_targets, max_seq_len)
        self.lengths = np.minimum(max_seq_len, self.n_targets - starts)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """input_ids and labels (B, T), int64, and the counts that the engine asks for."""
        T, last = self.max_seq_len, self.n_targets
        at = np.asarray(rows)[:, None] * T + np.arange(T + 1)
        ids = torch.from_numpy(self.tokens[np.minimum(at, last)].astype(np.int64))
        n = int(self.lengths[rows].sum())
        labels = ids[:, 1:].clone()
        if n < labels.numel():
            labels[torch.from_numpy(at[:, 1:] > last)] = IGNORED
        inputs = ids[:, :-1].contiguous()
        return {"input_ids": inputs, "labels": labels, "targets": {"token": n}, "tokens": n}


def prepare(
    name: str,
    tokenizer: Any,
    separator: int,
    cache: Path,
    options: StreamOptions | None = None,
) -> Stream:
    """The stream of a source's documents, from the cache if it was made before.

    `name` is what common.data resolves; `separator` is the id that goes before each document, one
    of the tokenizer's or, if it has none to spare, its vocab_size. Raises UserError when there are
    too few documents to hold one out.
    """
    options, source = options or StreamOptions(), data.resolve(name)
    facts = source.facts()
    n_tokens = max(_vocab_size(tokenizer), separator + 1)
    told = [FORMAT, facts["fingerprint"], tokenizer_key(tokenizer), separator, asdict(options)]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    folder = Path(cache) / f"stream-{Path(name).name}-{n_tokens}-{key[:12]}"
    if (folder / "manifest.json").exists():
        return Stream.open(folder)

    dtype = np.dtype(np.uint16 if n_tokens <= 2**16 else np.uint32)
    counts = {s: {"documents": 0, "tokens": 0, "bytes": 0} for s in ("train", "heldout")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with (
            (unfinished / "train.bin").open("wb") as train,
            (unfinished / "heldout.bin").open("wb") as heldout,
            runs.progress(None, desc="encoding", unit=" documents") as bar,
        ):
            files = {"train": train, "heldout": heldout}
            found = parts(source, options)
            for some in lots(found):
                encoded = encode_all(tokenizer, [text for _, _, text in some])
                for (split, begins, text), ids in zip(some, encoded, strict=True):
                    ids = [separator, *ids] if begins else ids
                    files[split].write(np.array(ids, dtype).tobytes())
                    new = {"documents": begins, "tokens": len(ids), "bytes": len(text.encode())}
                    counts[split] = {n: counts[split][n] + new[n] for n in new}
                    bar.update(begins)
        if not counts["heldout"]["documents"]:
            raise UserError(
                f"{name}: {counts['train']['documents']} documents are too few: each "
                f"{options.heldout_every}th is held out (in a .txt file, blank lines part them)"
            )
        manifest = {"key": key, "source": facts, "options": asdict(options), "dtype": dtype.name}
        manifest |= {"vocab_size": n_tokens, "separator": separator, **counts}
        runs.write_json(unfinished / "manifest.json", manifest)
        unfinished.chmod(0o755)  # a cache may be shared
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Stream.open(folder)


def texts(source: data.Source, options: StreamOptions) -> Iterator[tuple[str, str]]:
    """(split, text) of each document; its paragraphs are lines. Half a surrogate pair, which is no
    character, becomes "?"."""
    for i, paragraphs in enumerate(islice(data.documents(source), options.max_documents), 1):
        text = "\n".join(paragraphs).encode("utf-8", "replace").decode()
        yield "train" if i % options.heldout_every else "heldout", text


def parts(source: data.Source, options: StreamOptions) -> Iterator[tuple[str, bool, str]]:
    """(split, whether a document begins here, text): all of a document, unless it is long."""
    for split, text in texts(source, options):
        for i, part in enumerate(windows(text, LONGEST)):
            yield split, i == 0, part


def lots(found: Iterable[tuple[str, bool, str]]) -> Iterator[list[tuple[str, bool, str]]]:
    """What is encoded together: the library takes a hundred bytes and more for each token."""
    some, size = [], 0
    for part in found:
        some.append(part)
        size += len(part[-1])
        if len(some) == AT_ONCE or size >= LOT:
            yield some
            some, size = [], 0
    if some:
        yield some


def encode_all(tokenizer: Any, some: list[str]) -> list[list[int]]:
    """The ids of each text, without special tokens, even where it spells one; on all cores where
    the library can."""
    if hasattr(tokenizer, "encode_batch_fast"):
        tokenizer.encode_special_tokens = True
        encoded = tokenizer.encode_batch_fast(some, add_special_tokens=False)
        return [one.ids for one in encoded]
    return [tokenizer.encode(text) for text in some]


def tokenizer_key(tokenizer: Any) -> str:
    """What tells a tokenizer from any other: a hash of all that it saves."""
    if hasattr(tokenizer, "to_str"):
        return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def byte_level_bpe(name: str, vocab_size: int, cache: Path, options: StreamOptions):
    """A `tokenizers.Tokenizer`, byte-level BPE with `SEPARATOR`, trained on the training documents
    of a source and kept in the cache. Words of more than 1,000 characters are left out: each
    merge would go through them again. Raises UserError for a size below that of its alphabet."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise UserError(f"--vocab-size {vocab_size} must be 257 or more: 256 bytes, a separator")
    source = data.resolve(name)
    told = [FORMAT, source.fingerprint(), vocab_size, asdict(options)]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
    file = Path(cache) / f"bpe-{Path(name).name}-{vocab_size}-{key}.json"
    if not file.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[SEPARATOR],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        train = (
            ENDLESS.sub(" ", text) if max(map(len, text.split()), default=0) > 1000 else text
            for split, _, text in parts(source, options)
            if split == "train"
        )
        tokenizer.train_from_iterator(train, trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        runs.write_text(file, tokenizer.to_str())
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no other
        told = "delete it, and the vocabulary is learned anew"
        raise UserError(f"{file} is damaged ({error}): {told}") from None


def _vocab_size(tokenizer: Any) -> int:
    known = getattr(tokenizer, "vocab_size", None)
    return tokenizer.get_vocab_size() if known is None else known
