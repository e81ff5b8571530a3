import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cli import UserError
from step2_bert.masking import MaskingOptions, Vocabulary, mask_batch

SIZE, MASK, N_SPECIAL = 200, 4, 5
VOCABULARY = Vocabulary(MASK, np.arange(SIZE) < N_SPECIAL, np.arange(SIZE) >= 120)


def rows_of(seed: int, n: int = 8, longest: int = 128, continuations: bool = True):
    """[CLS] A [SEP] B [SEP] rows of random lengths, padded with 0."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, longest + 1, n)
    ids = rng.integers(N_SPECIAL, SIZE if continuations else 120, (n, lengths.max()))
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = 0
        row[0], row[rng.integers(2, length - 1)], row[length - 1] = 2, 3, 3
    return ids, lengths


def masked(ids, lengths, options=MaskingOptions(), samples=None, seed=0, epoch=0):  # noqa: B008
    seen = ids.copy()
    samples = np.arange(len(ids)) if samples is None else samples
    positions, labels = mask_batch(
        seen, lengths, samples, VOCABULARY, options, seed=seed, epoch=epoch
    )
    return seen, positions, labels


@given(seed=st.integers(0, 2**31), whole_word=st.booleans(), most=st.integers(1, 30))
def test_invariants_of_a_masked_batch(seed, whole_word, most):
    ids, lengths = rows_of(seed)
    options = MaskingOptions(max_predictions=most, whole_word=whole_word)
    seen, positions, labels = masked(ids, lengths, options, seed=seed)
    flat = ids.ravel()
    assert (labels == flat[positions]).all()
    assert not VOCABULARY.is_special[labels].any()  # special tokens and padding stay
    assert (np.diff(positions) > 0).all()
    untouched = np.delete(np.arange(flat.size), positions)
    assert (seen.ravel()[untouched] == flat[untouched]).all()
    shown = seen.ravel()[positions]
    assert ((shown == MASK) | ~VOCABULARY.is_special[shown]).all()
    counts = np.bincount(positions // ids.shape[1], minlength=len(ids))
    wanted = np.minimum(most, np.maximum(1, np.rint(lengths * 0.15)))
    if whole_word:
        assert (counts >= 1).all()
        assert (counts <= wanted).all()
    else:
        assert (counts == wanted).all()


@given(seed=st.integers(0, 2**31))
def test_whole_words_are_masked_whole(seed):
    ids, lengths = rows_of(seed)
    _, positions, labels = masked(ids, lengths, MaskingOptions(whole_word=True), seed=seed)
    chosen = np.zeros(ids.size, bool)
    chosen[positions] = True
    chosen = chosen.reshape(ids.shape)
    budget = np.minimum(20, np.rint(lengths * 0.15))
    for row, length in enumerate(lengths):
        words, before_special = [], True
        for column in range(length):
            if ids[row, column] < N_SPECIAL:
                before_special = True
                continue
            if ids[row, column] < 120 or before_special:
                words.append([])
            words[-1].append(chosen[row, column])
            before_special = False
        whole = [word for word in words if all(word)]
        broken = [word for word in words if any(word) and not all(word)]
        assert not broken or (not whole and len(broken) <= budget[row])
        taken = sum(map(len, whole))
        if whole:  # no word left out would still have fitted
            assert all(taken + len(w) > budget[row] for w in words if not any(w))


def test_shares_are_those_of_the_paper():
    ids, lengths = rows_of(1, n=4000)
    seen, positions, labels = masked(ids, lengths)
    shown = seen.ravel()[positions]
    kept, n = (shown == labels), len(labels)
    assert abs((shown == MASK).mean() - 0.8) < 5 * (0.16 / n) ** 0.5
    # a random token is the true one in 1 of 195 cases
    assert abs(kept.mean() - 0.1 - 0.1 / 195) < 5 * (0.09 / n) ** 0.5
    random = shown[(shown != MASK) & ~kept]
    counts = np.bincount(random, minlength=SIZE)
    assert (counts[:N_SPECIAL] == 0).all()
    expected = len(random) / (SIZE - N_SPECIAL)
    assert ((counts[N_SPECIAL:] - expected) ** 2 / expected).sum() < 195 + 6 * (2 * 195) ** 0.5


def test_every_position_is_masked_equally_often():
    length, n = 42, 20_000
    ids = np.full((n, length), 50)
    ids[:, 0], ids[:, -1] = 2, 3
    _, positions, _ = masked(ids, np.full(n, length))
    counts = np.bincount(positions % length, minlength=length)[1:-1]
    expected = n * 6 / 40
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_a_mask_depends_on_seed_epoch_and_sample_alone():
    ids, lengths = rows_of(3, n=6)
    width = ids.shape[1]
    seen, positions, _ = masked(ids, lengths, samples=np.arange(6) + 40, seed=7, epoch=2)
    for row in range(6):  # alone, in a narrower batch, it is the same
        narrow = ids[row : row + 1, : lengths[row]]
        alone, place, _ = masked(
            narrow, lengths[[row]], samples=np.array([40 + row]), seed=7, epoch=2
        )
        assert (alone[0] == seen[row, : lengths[row]]).all()
        assert (place == positions[positions // width == row] % width).all()
    for other in ({"seed": 8, "epoch": 2}, {"seed": 7, "epoch": 3}, {"seed": 2, "epoch": 7}):
        assert (masked(ids, lengths, samples=np.arange(6) + 40, **other)[0] != seen).any()


def test_impossible_options_are_refused():
    for wrong in ({"probability": 0}, {"max_predictions": 0}, {"mask_share": 0.95}):
        with pytest.raises(UserError):
            MaskingOptions(**wrong)
