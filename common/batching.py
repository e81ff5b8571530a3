"""Which samples meet in a batch: length buckets, packing, and an order that can be resumed.

Everything here is a function of (seed, epoch), so a run that stopped at micro-batch n of epoch e
finds the same batch n again without having saved any iterator.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from common.cli import UserError

POOL = 64


class Batches:
    """An endless, reproducible sequence of index batches over samples of known length.

    With `bucket`, samples are shuffled, cut into pools of `POOL` batches, sorted by length within
    a pool and only then cut into batches, whose order is shuffled again: rows of a batch have
    nearly equal length, so almost nothing is computed on pad tokens, and batches stay random.

    Give `batch_size` (rows) or `max_tokens` (rows times longest row at most this).
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        bucket: bool = True,
        shuffle: bool = True,
        drop_last: bool = True,
    ):
        self.lengths = np.asarray(lengths)
        if (batch_size is None) == (max_tokens is None):
            raise ValueError("give batch_size or max_tokens, not both")
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.seed, self.bucket, self.shuffle, self.drop_last = seed, bucket, shuffle, drop_last
        self.size = f"{batch_size} samples" if batch_size else f"at most {max_tokens:,} tokens"

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """All batches of one epoch, each an int64 array of sample indices."""
        rng = np.random.default_rng((self.seed, epoch))
        order = np.arange(len(self.lengths))
        if self.shuffle:
            order = rng.permutation(order)
        if self.drop_last and self.batch_size:  # before sorting: else it is always the longest
            order = order[: len(order) // self.batch_size * self.batch_size]
        if not self.bucket:
            return list(self._cut(order))
        rows = self.batch_size or max(1, self.max_tokens // max(1, int(self.lengths.mean())))
        pools = np.split(order, range(rows * POOL, len(order), rows * POOL))
        by_length = (pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools)
        batches = [batch for pool in by_length for batch in self._cut(pool)]
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _cut(self, order: np.ndarray) -> Iterator[np.ndarray]:
        if self.batch_size:
            for start in range(0, len(order), self.batch_size):
                yield order[start : start + self.batch_size]
            return
        start, longest = 0, 0
        for i, length in enumerate(self.lengths[order]):
            longest = max(longest, length)
            if i > start and longest * (i - start + 1) > self.max_tokens:
                yield order[start:i]
                start, longest = i, length
        if start < len(order):
            yield order[start:]

    def starting_at(self, epoch: int, position: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (epoch, position, indices) for ever, from `position` in `epoch` on.

        Raises UserError when the samples do not fill one batch.
        """
        while True:
            batches = self.epoch(epoch)
            if not batches:
                n = len(self.lengths)
                raise UserError(f"{n} samples do not fill one batch: --batch-size {n} at most")
            for at in range(position, len(batches)):
                yield epoch, at, batches[at]
            epoch, position = epoch + 1, 0


def share(batch: np.ndarray, rank: int, world: int, micro_batch_size: int) -> list[np.ndarray]:
    """This process's micro-batches of a global batch, none of them empty.

    The batch is cut into `world` near-equal runs and each run into near-equal micro-batches, so
    what is the same sum on one process stays the same sum on many. Processes may differ by one
    micro-batch; a batch of fewer samples than processes leaves some without any.
    """
    mine = np.array_split(batch, world)[rank]
    return np.array_split(mine, math.ceil(len(mine) / micro_batch_size)) if len(mine) else []


def pack(lengths: Sequence[int] | np.ndarray, max_seq_len: int) -> list[list[int]]:
    """Rows of sample indices whose lengths add up to at most `max_seq_len`: best-fit decreasing.

    Raises ValueError if a sample alone is longer than a row.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > max_seq_len:
        raise ValueError(f"a sample of {lengths.max()} tokens does not fit a row of {max_seq_len}")
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(max_seq_len + 1)]
    for i in np.argsort(-lengths, kind="stable"):
        length = int(lengths[i])
        room = next((r for r in range(length, max_seq_len + 1) if by_room[r]), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, max_seq_len
        else:
            row = by_room[room].pop()
        rows[row].append(int(i))
        by_room[room - length].append(row)
    return rows


def pack_rows(
    rows: list[list[int]], samples: Sequence[Sequence[int]], max_seq_len: int, pad_id: int = 0
) -> dict[str, torch.Tensor]:
    """Lay samples end to end in rows that cannot see across their borders.

    Returns input_ids (B, T), position_ids (B, T) that restart at each sample, document_ids (B, T)
    counting from 1 with 0 on padding, and attention_mask (B, T, T), true where query and key
    belong to the same sample. Restarting positions alone would not isolate the samples: only
    the mask does.
    """
    shape = (len(rows), max_seq_len)
    input_ids = torch.full(shape, pad_id)
    position_ids, document_ids = torch.zeros(2, *shape, dtype=torch.long)
    for r, row in enumerate(rows):
        at = 0
        for d, i in enumerate(row, start=1):
            n = len(samples[i])
            input_ids[r, at : at + n] = torch.as_tensor(samples[i])
            position_ids[r, at : at + n] = torch.arange(n)
            document_ids[r, at : at + n] = d
            at += n
    packed = {"input_ids": input_ids, "position_ids": position_ids, "document_ids": document_ids}
    return packed | {"attention_mask": document_mask(document_ids)}


def document_mask(document_ids: torch.Tensor) -> torch.Tensor:
    """(B, T) document numbers, 0 = padding -> (B, T, T) bool, true within a document.

    A pad position sees itself, so that no softmax runs over an empty set.
    """
    same = document_ids[:, :, None] == document_ids[:, None, :]
    real = (document_ids > 0)[:, None, :]
    itself = torch.eye(document_ids.shape[1], dtype=torch.bool, device=document_ids.device)
    return (same & real) | itself
