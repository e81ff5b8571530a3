import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from common.cli import UserError
from step3_peripherals import mixing
from step3_peripherals.mixing import Mix

SIZES = [90_000, 3_000, 120, 7]
sizes = st.lists(st.integers(1, 10**12), min_size=1, max_size=8)


@given(sizes, st.floats(0.05, 50))
def test_shares_are_the_closed_form(sizes, T):
    exact = [float(n) ** (1 / T) for n in sizes]
    np.testing.assert_allclose(mixing.shares(sizes, T), np.divide(exact, sum(exact)), rtol=1e-9)


def test_the_ends_of_the_scale():
    np.testing.assert_allclose(mixing.shares(SIZES, 1.0), np.divide(SIZES, sum(SIZES)))
    np.testing.assert_allclose(mixing.shares(SIZES, 1e9), [0.25] * 4, rtol=1e-6)
    np.testing.assert_allclose(mixing.shares(SIZES, 1e-9), [1, 0, 0, 0])


def test_multilingual_berts_example():
    """1,000 times as much English as Icelandic: drawn about 100 times as often (its exponent is
    0.7; google-research/bert, multilingual.md)."""
    english, icelandic = mixing.shares([1000, 1], 1 / 0.7)
    assert english / icelandic == pytest.approx(1000**0.7)
    assert 100 < english / icelandic < 130


def test_epochs_of_each_source():
    by_size = mixing.epochs(SIZES, 2 * sum(SIZES))
    np.testing.assert_allclose(by_size, 2)
    hot = mixing.epochs(SIZES, 1000, temperature=1 / 0.3)
    assert (np.diff(hot) > 0).all(), "the smaller a source, the more often it is repeated"
    np.testing.assert_allclose((hot * SIZES).sum(), 1000)


@pytest.mark.parametrize("T", [1.0, 1 / 0.3])
def test_sources_are_drawn_by_their_shares(T):
    mix, n = Mix(SIZES, temperature=T, seed=1), 50_000
    sources, samples = mix.take(n)
    counts = np.bincount(sources, minlength=4)
    assert chisquare(counts, n * mixing.shares(SIZES, T)).pvalue > 1e-3
    assert (counts == mix.drawn).all()
    np.testing.assert_allclose(mix.epochs, counts / SIZES)
    assert (samples < np.array(SIZES)[sources]).all()


@given(st.lists(st.integers(0, 6000), min_size=1, max_size=5), st.integers(0, 9))
def test_a_resumed_mix_goes_on_as_if_it_had_never_stopped(parts, seed):
    options = dict(temperature=2.0, seed=seed)
    whole = np.stack(Mix([50, 9, 2000], **options).take(sum(parts)))
    mix, taken = Mix([50, 9, 2000], **options), []
    for part in parts:
        taken.append(np.stack(mix.take(part)))
        drawn = json.loads(json.dumps(mix.drawn.tolist()))  # as a checkpoint would hold it
        mix = Mix([50, 9, 2000], **options, drawn=drawn)
    np.testing.assert_array_equal(np.concatenate(taken, 1), whole)


def test_each_turn_through_a_source_has_every_sample_once_in_an_order_of_its_own():
    sources, samples = Mix([40, 11], temperature=3.0, seed=4).take(2000)
    for source, size in enumerate([40, 11]):
        mine = samples[sources == source]
        turns = [mine[i : i + size].tolist() for i in range(0, len(mine) - size + 1, size)]
        assert len(turns) > 10
        assert all(Counter(turn) == Counter(range(size)) for turn in turns)
        assert len(set(map(tuple, turns))) == len(turns)


def test_seeds_differ():
    first, second = (np.stack(Mix(SIZES, seed=seed).take(100)) for seed in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: Mix([]), "at least one sample"),
        (lambda: Mix([5, 0]), "at least one sample"),
        (lambda: Mix([5], temperature=0), "above 0"),
        (lambda: Mix([5], temperature=float("nan")), "above 0"),
        (lambda: Mix([5, 5], drawn=[1]), "1 sources, now 2"),
    ],
)
def test_mistakes(make, told):
    with pytest.raises(UserError, match=told):
        make()
