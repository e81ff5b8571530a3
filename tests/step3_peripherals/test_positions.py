"""positions.py: what holds for every scheme, and what is promised beyond parity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from step3_peripherals.positions import (
    SCHEMES,
    NoPositions,
    RoPE,
    Shaw,
    by_distance,
    by_pair,
    distances,
)

torch.set_num_threads(1)
SCORED = ("shaw", "t5", "alibi")


def hooks(scheme):
    own = vars(type(scheme))
    return {name for name in ("embed", "rotate", "scores", "values") if name in own}


def test_each_scheme_writes_only_the_hooks_it_needs():
    wanted = {
        "none": {"embed", "rotate", "scores", "values"},  # the defaults
        "sinusoidal": {"embed"},
        "learned": {"embed"},
        "shaw": {"scores", "values"},
        "t5": {"scores"},
        "alibi": {"scores"},
        "rope": {"rotate"},
    }
    assert {name: hooks(made(16, 2, 8)) for name, made in SCHEMES.items()} == wanted


def test_the_defaults_do_nothing():
    scheme, x = NoPositions(16, 2, 8), torch.randn(2, 2, 8, 8)
    assert scheme.embed(x) is x
    assert scheme.rotate(x, x) == (x, x)
    assert scheme.scores(x) is None and scheme.values(x) is None


@settings(max_examples=40)
@given(T=st.integers(1, 20), causal=st.booleans())
def test_shifting_rows_puts_each_distance_at_its_pairs(T, causal):
    offsets = distances(T, causal)
    placed = by_pair(offsets.expand(3, T, -1))
    wanted = torch.arange(T) - torch.arange(T)[:, None]  # j - i
    look = torch.ones(T, T, dtype=torch.bool).tril() if causal else torch.ones(T, T) > 0
    assert torch.equal(placed[:, look], wanted[look].expand(3, -1))

    weights = torch.rand(2, T, T) * look
    back = by_distance(weights, len(offsets))
    assert back.shape == (2, T, len(offsets))
    assert torch.equal(by_pair(back)[:, look], weights[:, look])
    torch.testing.assert_close(back.sum((1, 2)), weights.sum((1, 2)))  # and nothing else


def test_shifting_rows_copies_nothing():
    x = torch.randn(2, 5, len(distances(5, False)))
    assert by_pair(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("causal", [True, False])
def test_scores_depend_on_the_distance_alone(name, causal):
    scheme = SCHEMES[name](16, 2, 8, causal)
    q = torch.randn(1, 2, 1, 8).expand(-1, -1, 30, -1)
    scores = scheme.scores(q)
    for offset in range(-29, 1 if causal else 30):
        line = scores.diagonal(offset, -2, -1)
        torch.testing.assert_close(line, line[..., :1].expand_as(line))


@pytest.mark.parametrize("interleaved", [False, True])
def test_turned_products_depend_on_the_distance_alone(interleaved):
    scheme = RoPE(16, 2, 8, interleaved=interleaved)
    q, k = torch.randn(2, 1, 2, 1, 8).expand(-1, -1, -1, 30, -1)
    q, k = scheme.rotate(q, k)
    torch.testing.assert_close(q.norm(dim=-1), q.norm(dim=-1)[..., :1].expand(-1, -1, 30))
    products = q @ k.transpose(-2, -1)
    for offset in range(-29, 30):
        line = products.diagonal(offset, -2, -1)
        torch.testing.assert_close(line, line[..., :1].expand_as(line), rtol=1e-4, atol=1e-4)
    assert products[0, 0].unique().numel() > 50  # and they do depend on it


@pytest.mark.parametrize("name", sorted(set(SCHEMES) - {"learned"}))
def test_no_other_scheme_ends_at_the_training_length(name):
    scheme, q = SCHEMES[name](16, 2, 8), torch.randn(1, 2, 50, 8)
    assert scheme.embed(torch.randn(1, 50, 16)).shape == (1, 50, 16)
    assert scheme.rotate(q, q)[0].shape == q.shape
    if name in SCORED:
        assert scheme.scores(q).expand(1, 2, 50, 50).isfinite().all()


def test_learned_positions_end_where_training_ended():
    scheme = SCHEMES["learned"](16, 2, 8)
    assert scheme.embed(torch.zeros(1, 8, 16))[0].equal(scheme.table)
    with pytest.raises(ValueError, match="9 tokens, but only 8 positions were learned"):
        scheme.embed(torch.zeros(1, 9, 16))


def test_shaw_clips():
    scheme = Shaw(16, 2, 8, causal=False, k=2)
    scores = scheme.scores(torch.randn(1, 2, 1, 8).expand(-1, -1, 9, -1))
    assert torch.equal(scores[..., 0, 2], scores[..., 0, 8])  # 2 and 8 ahead
    assert not torch.equal(scores[..., 0, 1], scores[..., 0, 2])
    assert not torch.equal(scores[..., 0, 2], scores[..., 8, 6])  # ahead and behind


def test_rope_needs_pairs():
    with pytest.raises(ValueError, match="odd"):
        RoPE(15, 3, 8)
