import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common import batching
from common.batching import Batches
from common.cli import UserError

LENGTHS = np.random.default_rng(0).integers(3, 129, 5000)


def test_buckets_waste_almost_nothing_and_lose_nothing():
    batches = Batches(LENGTHS, batch_size=32, drop_last=False).epoch(0)
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    padded = sum(len(b) * LENGTHS[b].max() for b in batches)
    assert padded < 1.05 * LENGTHS.sum()
    plain = Batches(LENGTHS, batch_size=32, bucket=False, drop_last=False).epoch(0)
    assert sum(len(b) * LENGTHS[b].max() for b in plain) > 1.5 * LENGTHS.sum()


def test_every_sample_has_its_turn_where_the_last_batch_is_dropped():
    batches = Batches(LENGTHS[:100], batch_size=32)
    seen = [np.concatenate(batches.epoch(e)) for e in range(40)]
    assert all(len(epoch) == 96 for epoch in seen)
    assert set(np.concatenate(seen)) == set(range(100))


def test_batches_by_tokens_respect_the_limit():
    batches = Batches(LENGTHS, max_tokens=1024).epoch(0)
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    assert max(len(b) * LENGTHS[b].max() for b in batches) <= 1024


def test_order_depends_on_seed_and_epoch_only():
    def first(seed, epoch):
        return np.concatenate(Batches(LENGTHS, batch_size=32, seed=seed).epoch(epoch))

    assert np.array_equal(first(1, 2), first(1, 2))
    assert not np.array_equal(first(1, 2), first(1, 3))
    assert not np.array_equal(first(1, 2), first(2, 2))


def test_starting_in_the_middle_continues_the_same_sequence():
    batches = Batches(LENGTHS[:200], batch_size=32, seed=3)
    stream = batches.starting_at(0, 0)
    sequence = [next(stream) for _ in range(20)]
    for epoch, position, indices in sequence:
        assert np.array_equal(next(batches.starting_at(epoch, position))[2], indices)


def test_too_few_samples_for_one_batch():
    with pytest.raises(UserError, match="do not fill one batch"):
        next(Batches([1, 2, 3], batch_size=8).starting_at(0, 0))


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 64))
def test_shares_partition_the_batch_into_full_pieces(size, world, micro):
    shares = [batching.share(np.arange(size), r, world, micro) for r in range(world)]
    assert np.array_equal(np.concatenate([p for s in shares for p in s]), np.arange(size))
    assert [bool(s) for s in shares] == [r < size for r in range(world)]
    assert max(len(s) for s in shares) - min(len(s) for s in shares) <= 1
    assert all(1 <= len(piece) <= micro for s in shares for piece in s)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
def test_packing_keeps_every_sample_once_and_fills_rows(lengths):
    rows = batching.pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert max(filled) <= 64
    assert sum(f <= 32 for f in filled) <= 1


def test_packed_rows_restart_positions_and_mask_by_document():
    packed = batching.pack_rows([[0, 1], [2]], [[5, 6], [7, 8, 9], [4]], 6)
    assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0], [4, 0, 0, 0, 0, 0]]
    assert packed["position_ids"][0].tolist() == [0, 1, 0, 1, 2, 0]
    mask = packed["attention_mask"][0]
    assert mask[:2, :2].all() and mask[2:5, 2:5].all()
    assert not mask[:2, 2:].any() and not mask[2:5, :2].any()
    assert torch.equal(mask[5], torch.tensor([False] * 5 + [True]))


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="does not fit a row of 8"):
        batching.pack([3, 9], 8)
