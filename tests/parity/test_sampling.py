"""Text sampling against the logits processors and the searches of transformers.

Contrastive search has left transformers for a repository of its own: it is held against the
paper's equation, computed one text and one candidate at a time.
"""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process as theirs

from step3_peripherals import sampling

V = 31


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


# Few different values make ties; some are too far from the others for any probability, or -inf.
values = st.one_of(
    st.floats(-8, 8, width=32),
    st.sampled_from([-1.5, 0.0, 0.0, 2.0, 1e4, -1e4, 3e38, -3e38, -float("inf")]),
)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 24))


@st.composite
def logits(draw, shapes=shapes):
    scores = torch.from_numpy(draw(hnp.arrays("float32", shapes, elements=values)).copy())
    scores[:, 0] = scores[:, 0].clamp(min=-9)  # something can be drawn
    return scores


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def same_but_for_ties(ours, theirs, scores):
    """Where the nucleus ends among equal logits, their sort, which is not stable, decides which of
    them stay: as many as ours."""
    same(ours.sort().values, theirs.sort().values)
    clear = torch.tensor([len(row.unique()) == len(row) for row in scores])
    same(ours[clear], theirs[clear])


@given(logits(), st.floats(0.05, 20))
def test_temperature(scores, T):
    same(sampling.temperature(scores, T), theirs.TemperatureLogitsWarper(T)(None, scores))


@given(logits(), st.integers(1, 50))
def test_top_k(scores, k):
    same(sampling.top_k(scores, k), theirs.TopKLogitsWarper(k)(None, scores))


@settings(max_examples=200)
@given(logits(), st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_top_p(scores, p):
    same_but_for_ties(sampling.top_p(scores, p), theirs.TopPLogitsWarper(p)(None, scores), scores)


@given(logits(), st.floats(0, 1) | st.sampled_from([0.0, 0.1, 1.0]))
def test_min_p(scores, share):
    same(sampling.min_p(scores, share), theirs.MinPLogitsWarper(share)(None, scores))


@settings(max_examples=200)
@given(logits(), st.floats(0.001, 0.999) | st.sampled_from([0.25, 0.5, 0.95]))
def test_typical(scores, mass):
    same(sampling.typical(scores, mass), theirs.TypicalLogitsWarper(mass)(None, scores))


@given(logits(), st.floats(0.1, 5), st.data())
def test_repetition_penalty(scores, penalty, data):
    tokens = st.integers(0, scores.shape[1] - 1)
    written = data.draw(hnp.arrays("int64", (len(scores), 6), elements=tokens))
    written = torch.from_numpy(written.copy())
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(written, scores)
    same(sampling.repetition_penalty(scores, written, penalty), expected)


@given(logits(), st.floats(0.1, 3), st.integers(1, 20), st.floats(0.1, 1))
def test_a_chain_of_warps(scores, T, k, p):
    ours = sampling.top_p(sampling.top_k(sampling.temperature(scores, T), k), p)
    expected = scores
    for warper in (
        theirs.TemperatureLogitsWarper(T),
        theirs.TopKLogitsWarper(k),
        theirs.TopPLogitsWarper(p),
    ):
        expected = warper(None, expected)
    same_but_for_ties(ours, expected, scores)


# -- searches --------------------------------------------------------------------------------


def gpt2():
    shape = dict(n_positions=64, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, **shape, bos_token_id=None, eos_token_id=1))


def llama():
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, **shape, bos_token_id=None, eos_token_id=1))


@pytest.fixture(scope="module", params=[gpt2, llama])
def model(request):
    """It has begun to learn random walks that may end at every step; untrained ones do not end."""
    torch.manual_seed(0)
    model = request.param()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        steps = torch.randint(1, 4, (32, 12)) * (torch.rand(32, 12) < 0.8)
        walk = 2 + steps.cumsum(1) * 5 % (V - 2)
        walk = torch.where((torch.rand(walk.shape) < 0.2).cumsum(1) > 0, 1, walk)
        model(walk, labels=walk).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.double().eval()


def ours(model):
    return lambda ids: model(ids).logits


def with_hidden(model):
    def call(ids):
        outputs = model(ids, output_hidden_states=True)
        return outputs.logits, outputs.hidden_states[-1]

    return call


def prompts(n=24, longest=7):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(2, V, (length,), generator=generator).tolist() for length in lengths]


def generate(model, prompt, **options):
    """transformers' continuation of one prompt, up to the end of sequence."""
    ids = torch.tensor([prompt])
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), pad_token_id=0, do_sample=False, **options
    )[0, len(prompt) :].tolist()
    return written[: written.index(1)] if 1 in written else written


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy(model, penalty):
    """Ours together, although the prompts are of different lengths, and theirs one by one."""
    found = sampling.generate(ours(model), prompts(), 20, penalty=penalty, eos_token_id=1)
    options = dict(max_new_tokens=20, repetition_penalty=penalty)
    assert found == [generate(model, prompt, **options) for prompt in prompts()]
    assert len({len(row) for row in found}) > 3, "texts should leave the batch one by one"


@pytest.mark.parametrize("beam_size, length_penalty", [(1, 0.0), (3, 0.0), (4, 1.0), (4, 2.0)])
def test_beam(model, beam_size, length_penalty):
    """`early_stopping="never"` is their exact search."""
    found = sampling.beam(
        ours(model), prompts(), 12, beam_size=beam_size, length_penalty=length_penalty,
        eos_token_id=1,
    )  # fmt: skip
    options = dict(num_beams=beam_size, length_penalty=length_penalty, max_new_tokens=12)
    if beam_size > 1:
        options["early_stopping"] = "never"
    assert found == [generate(model, prompt, **options) for prompt in prompts()]
    assert len({len(row) for row in found}) > 1


def plain_contrastive(model, prompt, max_new_tokens, k, alpha):
    """Equation 5 of Su et al. (2022), a candidate at a time."""
    call, text = with_hidden(model), list(prompt)
    for _ in range(max_new_tokens):
        p = call(torch.tensor([text]))[0][0, -1].softmax(-1)
        scores = {}
        for v in p.topk(k).indices.tolist():
            *before, h_v = call(torch.tensor([[*text, v]]))[1][0]
            similar = max(float(F.cosine_similarity(h_v, h, dim=0)) for h in before)
            scores[v] = (1 - alpha) * float(p[v]) - alpha * similar
        best = max(scores, key=scores.get)
        if best == 1:
            break
        text.append(best)
    return text[len(prompt) :]


@pytest.mark.parametrize("k, alpha", [(4, 0.6), (2, 0.9), (6, 0.1)])
@torch.no_grad()
def test_contrastive(model, k, alpha):
    found = sampling.contrastive(
        with_hidden(model), prompts(10), 12, k=k, alpha=alpha, eos_token_id=1
    )
    assert found == [plain_contrastive(model, each, 12, k, alpha) for each in prompts(10)]
    greedy = sampling.generate(ours(model), prompts(10), 12, eos_token_id=1)
    assert found != greedy


def test_contrastive_without_a_penalty_is_greedy(model):
    found = sampling.contrastive(with_hidden(model), prompts(), 12, alpha=0.0, eos_token_id=1)
    assert found == sampling.generate(ours(model), prompts(), 12, eos_token_id=1)


def test_draws_follow_the_same_distribution(model):
    """Frequencies of first tokens against the probabilities that transformers' warpers give."""
    from scipy.stats import chisquare

    prompt, n = prompts()[0], 4000
    warps = (partial(sampling.temperature, tau=2.0), partial(sampling.top_p, p=0.9))
    generator = torch.Generator().manual_seed(0)
    found = sampling.generate(ours(model), [prompt] * n, 1, warps=warps, generator=generator)
    scores = model(torch.tensor([prompt])).logits[:, -1].detach().float()
    warpers = theirs.TemperatureLogitsWarper(2.0), theirs.TopPLogitsWarper(0.9)
    for warper in warpers:
        scores = warper(None, scores)
    p = scores.double().softmax(-1)[0]
    counts = torch.tensor([row[0] for row in found]).bincount(minlength=V)
    assert counts[p == 0].sum() == 0 and (p > 0).sum() > 3
    assert chisquare(counts[p > 0], n * p[p > 0]).pvalue > 1e-3
