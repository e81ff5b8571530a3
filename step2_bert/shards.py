"""One chunk of documents becomes one shard: split, tokenised, paired, written as safetensors.

A shard is flat arrays: `tokens` (uint16, or uint32 for a vocabulary above 65,536) and the `offsets`
(n+1) that cut them into n samples; by sample `second_start` (where segment B starts; the sample's
length when there is none), `is_random_next` and `document` (its number in the corpus). With static
masking `tokens` are what the model sees, and `masked_offsets` (n+1) cut `masked_positions` (within
the sample) and `masked_labels` (the true tokens).
"""

import json
import os
import random
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common.cli import UserError
from step2_bert.masking import (
    STATIC_EPOCH,
    MaskingOptions,
    Vocabulary,
    mask_batch,
    usual_predictions,
)
from step2_bert.pairs import sentence_pairs, stretches, truncate
from step2_bert.sentences import split_sentences
from step2_bert.tokenizer import load_tokenizer, special_ids

FORMAT = 1  # of a prepared directory; another number cannot be read
ENCODE_BATCH = 4096  # sentences: bounds the memory of the tokenizer's own bookkeeping


@dataclass(frozen=True)
class PrepareOptions:
    """Everything that decides the content of a prepared directory."""

    data: str = "sotu"
    """Data name, file or folder."""
    vocab: str | None = None
    """Tokenizer directory, tokenizer.json or vocab.txt; None trains WordPiece on the text."""
    vocab_size: int = 8192
    """Size of a trained vocabulary."""
    lowercase: bool = True
    """Lower-case the text, for a trained vocabulary."""
    max_seq_len: int = 128
    """Longest sample, in tokens, [CLS] and [SEP] included."""
    nsp: bool = True
    """Sentence pairs for next sentence prediction; else one stretch of text, for MLM alone."""
    short_probability: float = 0.1
    """Share of samples whose length is drawn at random."""
    random_next_probability: float = 0.5
    """Share of pairs whose second segment comes from another document."""
    duplication: int = 1
    """Times that the text is gone over, with new pairs (and new masks, when static)."""
    dynamic_masking: bool = True
    """Draw training masks anew in each epoch; else once, here."""
    masking: MaskingOptions = field(default_factory=MaskingOptions)
    heldout_fraction: float = 0.01
    """Share of the documents, from the end, that are held out."""
    max_documents: int | None = None
    """Stop after so many documents."""
    exclude_titles: tuple[str, ...] = ()
    """Leave out documents whose first paragraph is one of these."""
    skip_bad_lines: bool = False
    """Leave out, and count, rows that are no JSON or have no text."""
    jsonl_samples: int = 1000
    """Samples of each split to write as readable JSON lines; -1: all."""
    seed: int = 0

    def __post_init__(self):
        if not 8 <= self.max_seq_len <= 65536:
            raise UserError(f"sequence length {self.max_seq_len}: give 8 to 65,536")
        if self.duplication < 1:
            raise UserError("duplication is at least 1")
        if self.masking.max_predictions is None:
            most = usual_predictions(self.max_seq_len, self.masking.probability)
            object.__setattr__(self, "masking", replace(self.masking, max_predictions=most))
        for name in ("short_probability", "random_next_probability", "heldout_fraction"):
            if not 0 <= getattr(self, name) < 1 + (name != "heldout_fraction"):
                raise UserError(f"{name} is a share, from 0 to 1")


class Chunk(NamedTuple):
    """One task: neighbouring documents of one split."""

    split: str
    number: int
    first_document: int
    documents: list[list[str]]
    file: Path


_STATE: dict = {}


def start_worker(tokenizer_dir: Path, options: PrepareOptions) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[SEP]" in the text is text
    _STATE.update(tokenizer=tokenizer, options=options, vocabulary=Vocabulary.of(tokenizer))


def do_chunk(chunk: Chunk) -> dict:
    """Write the shard of one chunk; return its counts, which are also in the shard's header."""
    options, tokenizer = _STATE["options"], _STATE["tokenizer"]
    tokens, sentences, documents, numbers = encode(chunk.documents, tokenizer)
    if chunk.split == "heldout":
        options = replace(options, duplication=1, dynamic_masking=False)
    limit = options.max_seq_len - (3 if options.nsp else 2)
    pairs = []
    for duplicate in range(options.duplication):
        key = f"{options.seed}/{chunk.split}/{chunk.number}/{duplicate}"
        rng = random.Random(key)  # seeded with the string's hash, the same on every machine
        if options.nsp:
            found = sentence_pairs(
                documents,
                sentences,
                limit,
                rng,
                options.short_probability,
                options.random_next_probability,
            )
        else:
            found = stretches(documents, sentences, limit, rng, options.short_probability)
        found = np.array(found, np.int64).reshape(-1, 6)
        pairs.append(truncate(found, limit, np.random.default_rng(rng.getrandbits(64))))
    pairs = np.concatenate(pairs)
    shard = _assemble(tokens, pairs, special_ids(tokenizer), tokenizer.get_vocab_size())
    shard["document"] = (chunk.first_document + numbers[pairs[:, 5]]).astype(np.int32)
    if not options.dynamic_masking:
        _mask_shard(shard, options, chunk)
    counts = {
        "documents": len(chunk.documents),
        "sentences": len(sentences) - 1,
        "text_tokens": len(tokens),
        "samples": len(pairs),
        "tokens": len(shard["tokens"]),
    }
    beside = chunk.file.with_suffix(".part")
    try:
        save_file(shard, beside, {"counts": json.dumps(counts)})
    except SafetensorError as error:  # what the library makes of a full disk
        beside.unlink(missing_ok=True)
        raise UserError(
            f"{chunk.file}: cannot be written ({error}); free some space and run again to go on"
        ) from None
    beside.chmod(0o644)  # the library makes it private
    os.replace(beside, chunk.file)
    return counts


def encode(texts: list[list[str]], tokenizer):
    """Split and tokenise documents.

    Returns the flat tokens, where sentences start in them, where documents start in the sentences
    (both with the end added), and which of `texts` the documents are, for some have no tokens.
    """
    sentences, counts = [], []
    for document in texts:
        before = len(sentences)
        for paragraph in document:
            sentences.extend(split_sentences(paragraph))
        counts.append(len(sentences) - before)
    tokens, lengths = [], []
    for start in range(0, len(sentences), ENCODE_BATCH):
        batch = sentences[start : start + ENCODE_BATCH]
        encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        lengths.extend(map(len, encoded))
        tokens.append(np.fromiter(chain.from_iterable(e.ids for e in encoded), np.int32))
    lengths = np.array(lengths, np.int64)
    numbers = np.repeat(np.arange(len(texts)), counts)[lengths > 0]
    numbers, per_document = np.unique(numbers, return_counts=True)
    tokens = np.concatenate([*tokens, np.empty(0, np.int32)])
    return tokens, _starts(lengths[lengths > 0]).tolist(), _starts(per_document).tolist(), numbers


def _assemble(tokens: np.ndarray, pairs: np.ndarray, special: dict, vocab_size: int) -> dict:
    """[CLS] A [SEP] B [SEP], or [CLS] A [SEP], for every pair, in one flat array."""
    a, b = pairs[:, 1] - pairs[:, 0], pairs[:, 3] - pairs[:, 2]
    offsets = _starts(a + b + 2 + (b > 0))
    start = offsets[:-1]
    flat = np.empty(offsets[-1], np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    flat[start] = special["[CLS]"]
    flat[start + 1 + a] = special["[SEP]"]
    flat[offsets[1:] - 1] = special["[SEP]"]
    flat[_ranges(start + 1, a)] = tokens[_ranges(pairs[:, 0], a)]
    flat[_ranges(start + 2 + a, b)] = tokens[_ranges(pairs[:, 2], b)]
    return {
        "tokens": flat,
        "offsets": offsets,
        "second_start": (a + 2).astype(np.int32),
        "is_random_next": pairs[:, 4].astype(np.uint8),
    }


def _mask_shard(shard: dict, options: PrepareOptions, chunk: Chunk) -> None:
    """Draw the masks for good: `tokens` then holds what the model sees."""
    tokens, offsets = shard["tokens"], shard["offsets"]
    numbers = np.arange(len(offsets) - 1) + (chunk.number << 32)
    positions, labels, counts = [], [], []
    for first in range(0, len(numbers), 1024):
        start = offsets[:-1][first : first + 1024]
        lengths = offsets[1:][first : first + 1024] - start
        column = np.arange(lengths.max())
        present = column < lengths[:, None]
        place = np.where(present, start[:, None] + column, 0)
        ids = tokens[place].astype(np.int64)
        flat, truth = mask_batch(
            ids,
            lengths,
            numbers[first : first + 1024],
            _STATE["vocabulary"],
            options.masking,
            seed=options.seed,
            epoch=STATIC_EPOCH,
        )
        tokens[place[present]] = ids[present]
        positions.append(flat % len(column))
        labels.append(truth)
        counts.append(np.bincount(flat // len(column), minlength=len(start)))
    empty = [np.empty(0, np.int64)]
    shard["masked_positions"] = np.concatenate(positions or empty).astype(np.int32)
    shard["masked_labels"] = np.concatenate(labels or empty).astype(tokens.dtype)
    shard["masked_offsets"] = _starts(np.concatenate(counts or empty))


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Where things of these lengths start when laid end to end, and the end."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices start, start + 1, ... of every range, end to end."""
    shift = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shift, lengths) + np.arange(lengths.sum())


def counts_of(file: Path) -> dict | None:
    """The counts in a shard's header; None when it is not there, or not whole."""
    try:
        with safe_open(file, framework="np") as shard:
            return json.loads(shard.metadata()["counts"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
