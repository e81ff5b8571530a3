"""Warps by their definitions, draws by their frequencies, and writing against writing by hand."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import chisquare

from step3_peripherals import sampling

EOS = 0


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Bigrams:
    """p(v | u) from a table; its hidden state says nothing but which token it is of."""

    def __init__(self, V=12, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(V, V, generator=generator) * 2
        self.rows_seen = 0

    def __call__(self, ids):
        self.rows_seen += len(ids)
        return self.table[ids]

    def with_hidden(self, ids):
        return self(ids), torch.eye(len(self.table))[ids]


distributions = hnp.arrays("float32", (3, 9), elements=st.floats(-6, 6, width=32)).map(
    lambda scores: torch.from_numpy(scores.copy())
)


def stay(logits):
    return logits > -torch.inf


# -- warps -----------------------------------------------------------------------------------


@given(distributions, st.floats(0.01, 1))
def test_the_nucleus_is_the_smallest_set_of_its_mass(logits, p):
    for row, kept in zip(logits, stay(sampling.top_p(logits, p)), strict=True):
        probability = row.double().softmax(-1)
        inside = probability[kept].sort().values
        assert inside.sum() >= p - 1e-6
        assert inside[1:].sum() < p + 1e-6
        assert kept.all() or inside[0] >= probability[~kept].max()


@given(distributions, st.floats(0.01, 1))
def test_typical_tokens_are_the_fewest_of_their_mass_around_the_entropy(logits, mass):
    for row, kept in zip(logits, stay(sampling.typical(logits, mass)), strict=True):
        p = torch.distributions.Categorical(logits=row.double())
        distance = (-p.logits - p.entropy()).abs()
        assert p.probs[kept].sum() >= mass - 1e-6
        assert kept.all() or distance[kept].max() <= distance[~kept].min() + 1e-5
        inside = kept & (distance < distance[kept].max() - 1e-5)
        assert p.probs[inside].sum() < mass + 1e-6


@given(distributions, st.integers(1, 12), st.floats(0, 1))
def test_the_likeliest_always_stays_and_no_logit_changes(logits, k, p):
    for warped in (
        sampling.top_k(logits, k),
        sampling.top_p(logits, p),
        sampling.min_p(logits, p),
    ):
        assert torch.equal(warped.amax(-1), logits.amax(-1))
        assert torch.equal(warped[stay(warped)], logits[stay(warped)])
    assert (stay(sampling.top_k(logits, k)).sum(-1) >= min(k, 9)).all()


def test_warps_that_cut_nothing_off():
    logits = torch.randn(4, 9)
    for warp in (
        partial(sampling.temperature, tau=1.0),
        partial(sampling.top_k, k=9),
        partial(sampling.top_p, p=1.0),
        partial(sampling.min_p, share=0.0),
        partial(sampling.typical, mass=1.0),
    ):
        assert torch.equal(warp(logits), logits)


def test_typical_may_drop_the_likeliest():
    """0.4 is nearer to certain than the entropy of this distribution is; a tenth is typical."""
    logits = torch.tensor([[0.4, *[0.1] * 6]]).log()
    assert stay(sampling.typical(logits, 0.5)).tolist() == [[False, *[True] * 6]]


def test_the_penalty_makes_what_was_written_less_likely():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    penalised = sampling.repetition_penalty(logits, torch.tensor([[0, 1, 1], [3, 3, 3]]), 2.0)
    assert penalised.tolist() == [[1.0, -4.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.5]]


@pytest.mark.parametrize(
    "warp, value",
    [
        (sampling.temperature, 0.0),
        (sampling.top_k, 0),
        (sampling.top_p, 1.1),
        (sampling.min_p, -0.1),
        (sampling.typical, 0.0),
    ],
)
def test_impossible_values(warp, value):
    with pytest.raises(ValueError, match="must be"):
        warp(torch.zeros(1, 4), value)


# -- draws -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "warps",
    [
        (),
        (partial(sampling.temperature, tau=0.5),),
        (partial(sampling.top_k, k=3),),
        (partial(sampling.top_p, p=0.8),),
        (partial(sampling.min_p, share=0.2),),
        (partial(sampling.typical, mass=0.7),),
        (partial(sampling.temperature, tau=1.5), partial(sampling.top_k, k=6)),
    ],
)
def test_draws_by_chi_square(warps):
    model, n = Bigrams(), 6000
    model.table /= 2  # so that more than one token stays, whatever the warp
    logits = model.table[3:4]
    for warp in warps:
        logits = warp(logits)
    p = logits.double().softmax(-1)[0]
    generator = torch.Generator().manual_seed(5)
    found = sampling.generate(model, [[1, 3]] * n, 1, warps=warps, generator=generator)
    counts = torch.tensor([row[0] for row in found]).bincount(minlength=len(p))
    assert counts[p == 0].sum() == 0
    assert (p > 0).sum() > 1 and chisquare(counts[p > 0], n * p[p > 0]).pvalue > 1e-3


def test_the_seed_decides():
    def write(seed):
        generator = torch.Generator().manual_seed(seed)
        return sampling.generate(Bigrams(), [[1], [2, 3]], 20, generator=generator)

    assert write(0) == write(0) != write(1)


# -- writing ---------------------------------------------------------------------------------


def test_greedy_by_hand():
    model = Bigrams()
    model.table[:, EOS] = -torch.inf
    [found] = sampling.generate(model, [[4, 7]], 6)
    last, expected = 7, []
    for _ in range(6):
        last = int(model.table[last].argmax())
        expected.append(last)
    assert found == expected


def test_a_finished_text_leaves_the_batch():
    """The chain 5 4 3 2 1 end: a prompt v is finished after v - 1 tokens."""
    model = Bigrams(6)
    model.table = torch.full((6, 6), -9.0) + 18 * torch.eye(6).roll(-1, 1)
    found = sampling.generate(model, [[3], [5], [5, 1], [2, 2]], 9, eos_token_id=EOS)
    assert found == [[2, 1], [4, 3, 2, 1], [], [1]]
    assert model.rows_seen == 4 + 3 + 2 + 1 + 1
    assert sampling.generate(model, [[5]], 2, eos_token_id=EOS) == [[4, 3]]
    assert sampling.generate(model, [[1]], 3) == [[0, 5, 4]], "without an end it goes on"


def searches(model):
    greedy = partial(sampling.generate, model)
    beam = partial(sampling.beam, model, beam_size=3)
    contrastive = partial(sampling.contrastive, model.with_hidden, k=3)
    return {"greedy": greedy, "beam": beam, "contrastive": contrastive}


@pytest.mark.parametrize("name", ["greedy", "beam", "contrastive"])
def test_the_rest_of_the_batch_changes_nothing(name):
    search = searches(Bigrams(seed=3))[name]
    prompts = [[v] * (1 + v % 4) for v in range(1, 12)]
    together = search(prompts, 8, eos_token_id=EOS)
    assert together == [search([prompt], 8, eos_token_id=EOS)[0] for prompt in prompts]
    assert len({len(row) for row in together}) > 1
    assert search([], 8) == []
    for dtype in (torch.int64, torch.int32, torch.uint16):
        tensors = [torch.tensor(prompt, dtype=dtype) for prompt in prompts]
        assert search(tensors, 8, eos_token_id=EOS) == together
    with pytest.raises(ValueError, match="at least one token"):
        search([[1], []], 8)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(alpha):
    V, limit = 4, 4
    log_p = Bigrams(V, seed=1).table.double().log_softmax(-1)
    model = Bigrams(V, seed=1)
    model.table = log_p

    def grow(last, written, total):
        if written and (written[-1] == EOS or len(written) == limit):
            yield total / len(written) ** alpha, written
            return
        for v in range(V):
            yield from grow(v, [*written, v], total + float(log_p[last, v]))

    for prompt in range(V):
        best = max(grow(prompt, [], 0.0))[1]
        options = dict(beam_size=V**limit, length_penalty=alpha, eos_token_id=EOS)
        [found] = sampling.beam(model, [[prompt]], limit, **options)
        assert found == (best[:-1] if best[-1] == EOS else best)


def test_contrastive_search_leaves_a_loop():
    """1 -> 2 -> 1 is the likeliest by far, and a token is only like itself."""
    model = Bigrams(8)
    model.table = torch.zeros(8, 8)
    model.table[1, 2] = model.table[2, 1] = 3.0
    [loop] = sampling.contrastive(model.with_hidden, [[1]], 6, alpha=0.0)
    assert loop == [2, 1] * 3
    [found] = sampling.contrastive(model.with_hidden, [[1]], 3, k=8, alpha=0.6)
    assert len({1, *found}) == 4


@pytest.mark.parametrize("name, option", [("beam", "beam_size"), ("contrastive", "k")])
def test_impossible_options(name, option):
    with pytest.raises(ValueError, match="must be|between"):
        searches(Bigrams())[name]([[1]], 3, **{option: 0})
