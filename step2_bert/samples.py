"""Prepared samples on disk: opened without being read, handed out as batches.

A prepared directory holds manifest.json, tokenizer/ and, for each split, shards: safetensors files
with flat `tokens` and the `offsets` that cut them into samples (see shards.py). Shards are memory
mapped, so opening costs nothing and several processes share one copy.
"""

import bisect
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from common.cli import UserError
from step2_bert.masking import MaskingOptions, Vocabulary, mask_batch, usual_predictions
from step2_bert.shards import FORMAT
from step2_bert.tokenizer import load_tokenizer


class Samples:
    """One split of a prepared directory. Samples are numbered in the order of the corpus."""

    def __init__(self, directory: Path, split: str, manifest: dict):
        self.directory, self.split, self.manifest = directory, split, manifest
        self.static = manifest["splits"][split]["static_masking"]
        files = [directory / name for name in manifest["splits"][split]["shards"]]
        self._shards = [_open_shard(file) for file in files]
        sizes = [len(shard["second_start"]) for shard in self._shards]
        self._first = [0, *np.cumsum(sizes).tolist()]
        self.lengths = np.concatenate([np.diff(shard["offsets"]) for shard in self._shards])
        self.lengths = self.lengths.astype(np.int32)

    @classmethod
    def open(cls, directory: str | Path, split: str = "train") -> "Samples":
        """Raises UserError when the directory is no finished preparation or a shard is broken."""
        directory = Path(directory)
        manifest = read_manifest(directory)
        if split not in manifest["splits"]:
            known = ", ".join(manifest["splits"])
            raise UserError(f"{directory}: no split {split!r} in it; it has: {known}")
        return cls(directory, split, manifest)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def max_seq_len(self) -> int:
        return self.manifest["max_seq_len"]

    @property
    def source(self) -> dict[str, str]:
        """What the samples were made of: name, kind and fingerprint of the data."""
        return {part: self.manifest["source"][part] for part in ("name", "kind", "fingerprint")}

    @property
    def tokenizer_dir(self) -> Path:
        return self.directory / "tokenizer"

    @property
    def masking(self) -> MaskingOptions:
        """The masking that the data was prepared with."""
        return MaskingOptions(**self.manifest["options"]["masking"])

    def masking_of(self, probability: float | None) -> MaskingOptions:
        """The same with another share to predict, and a cap that lets it, if a share is given and
        masks are not static.

        Raises UserError for a share that is none.
        """
        if probability is None or self.static:
            return self.masking
        most = usual_predictions(self.max_seq_len, probability)
        return replace(self.masking, probability=probability, max_predictions=most)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.of(load_tokenizer(self.tokenizer_dir))

    def batch(
        self,
        indices,
        *,
        epoch: int = 0,
        seed: int = 0,
        masking: MaskingOptions | None = None,
    ) -> dict:
        """Collate the samples `indices` (B,) into rows as long as the longest of them, T.

        Returns tensors input_ids (B, T) int64 with masks in place, attention_mask (B, T) bool or
        None when no row is padded, token_type_ids (B, T) int64, masked_positions (M,) int64 flat in
        B*T, masked_labels (M,) int64, is_random_next (B,) int64; and the counts targets
        {"mlm": M, "nsp": B} (nsp 0 when the data has no pairs) and tokens (not padding).
        Data with static masking ignores epoch, seed and masking; otherwise they and the sample's
        number decide its mask.
        """
        indices = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[indices].astype(np.int64)
        column = np.arange(lengths.max())
        ids = np.full((len(indices), len(column)), self.manifest["pad_token_id"], np.int64)
        second, is_random = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        stored = []
        for row, index in enumerate(indices.tolist()):
            number = bisect.bisect_right(self._first, index) - 1
            shard, local = self._shards[number], index - self._first[number]
            start = shard["offsets"][local]
            ids[row, : lengths[row]] = shard["tokens"][start : start + lengths[row]]
            second[row] = shard["second_start"][local]
            is_random[row] = shard["is_random_next"][local]
            if self.static:
                begin, end = shard["masked_offsets"][local : local + 2]
                place = shard["masked_positions"][begin:end].astype(np.int64)
                stored.append((place + row * len(column), shard["masked_labels"][begin:end]))
        if self.static:
            positions, labels = (
                np.concatenate(part).astype(np.int64) for part in zip(*stored, strict=True)
            )
        else:
            positions, labels = mask_batch(
                ids,
                lengths,
                indices,
                self._vocabulary,
                masking or self.masking,
                seed=seed,
                epoch=epoch,
            )
        present = column < lengths[:, None]
        types = present & (column >= second[:, None])
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": None if present.all() else torch.from_numpy(present),
            "token_type_ids": torch.from_numpy(types.astype(np.int64)),
            "masked_positions": torch.from_numpy(positions),
            "masked_labels": torch.from_numpy(labels),
            "is_random_next": torch.from_numpy(is_random),
            "targets": {"mlm": len(labels), "nsp": len(indices) if self.manifest["nsp"] else 0},
            "tokens": int(lengths.sum()),
        }

    def token_counts(self) -> np.ndarray:
        """How often each token stands in the text of the split: (vocab_size,) int64.

        Special tokens count nothing, and masked ones as what they were.
        """
        counts = np.zeros(self.vocab_size, np.int64)
        for shard in self._shards:
            counts += np.bincount(self._true_tokens(shard), minlength=self.vocab_size)
        return np.where(self._vocabulary.is_special, 0, counts)

    def segments(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The text of the samples `rows`: by shard its tokens (n,) and, for each, the number of the
        segment that it stands in (n,), -1 for special tokens and for other samples."""
        wanted = np.zeros(len(self), bool)
        wanted[rows] = True
        for first, shard in zip(self._first, self._shards, strict=False):
            tokens, starts = self._true_tokens(shard), shard["offsets"][:-1]
            sample = np.repeat(np.arange(len(starts)), np.diff(shard["offsets"]))
            second = np.arange(len(tokens)) - starts[sample] >= shard["second_start"][sample]
            text = wanted[first + sample] & ~self._vocabulary.is_special[tokens]
            yield tokens, np.where(text, 2 * sample + second, -1)

    def _true_tokens(self, shard: dict[str, np.ndarray]) -> np.ndarray:
        """The tokens of a shard, without the masks that it may hold."""
        tokens = shard["tokens"]
        if self.static:
            starts = np.repeat(shard["offsets"][:-1], np.diff(shard["masked_offsets"]))
            tokens = tokens.copy()
            tokens[starts + shard["masked_positions"]] = shard["masked_labels"]
        return tokens

    def fraction(self, share: float, seed: int = 0) -> np.ndarray:
        """Numbers of the samples in a run of neighbouring documents that hold `share` of them all.

        It starts at a shard drawn by `seed`, whatever the share: so a smaller share is part of a
        larger one. Duplicates of a document go together. Random next segments, which stay within a
        shard, come from the share too, but for the shard where it ends.
        """
        if not 0 < share <= 1:
            raise UserError(f"a fraction of the data is above 0 and at most 1, not {share}")
        first = np.random.default_rng(seed).integers(len(self._shards))
        wanted, parts = max(1, round(share * len(self))), []
        for number in np.roll(np.arange(len(self._shards)), -first):
            document = np.asarray(self._shards[number]["document"])
            by_document = np.argsort(document, kind="stable") + self._first[number]
            parts.append(by_document[:wanted])
            wanted -= len(parts[-1])
        return np.sort(np.concatenate(parts))

    def readable(self, indices, *, epoch: int = 0, seed: int = 0) -> list[dict]:
        """Samples with the fields of BERT's original data: tokens (masked) as strings, segment_ids,
        masked_lm_positions, masked_lm_labels, is_random_next."""
        tokenizer = load_tokenizer(self.tokenizer_dir)
        batch = self.batch(indices, epoch=epoch, seed=seed)
        width = batch["input_ids"].shape[1]
        rows, columns = batch["masked_positions"] // width, batch["masked_positions"] % width
        samples = []
        for row, index in enumerate(np.asarray(indices).tolist()):
            length, mine = int(self.lengths[index]), rows == row
            samples.append(
                {
                    "tokens": _strings(tokenizer, batch["input_ids"][row, :length]),
                    "segment_ids": batch["token_type_ids"][row, :length].tolist(),
                    "masked_lm_positions": columns[mine].tolist(),
                    "masked_lm_labels": _strings(tokenizer, batch["masked_labels"][mine]),
                    "is_random_next": bool(batch["is_random_next"][row]),
                }
            )
        return samples


def read_manifest(directory: Path) -> dict:
    """The manifest of a prepared directory; UserError when there is none or it is broken."""
    file = directory / "manifest.json"
    if not file.is_file():
        raise UserError(f"{directory}: not a prepared directory (make one with prepare.py)")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(f"{file}: format {manifest['format']} is not ours; prepare again")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}: broken; prepare again") from None
    return manifest


def _open_shard(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework="pt") as shard:
            return {name: shard.get_tensor(name).numpy() for name in shard.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: missing, broken or cut off ({error}); prepare again") from None


def _strings(tokenizer, ids: torch.Tensor) -> list[str]:
    return [tokenizer.id_to_token(index) for index in ids.tolist()]
