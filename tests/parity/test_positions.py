"""Every position scheme against Hugging Face's of the same name, or against its paper's equations.

Equal values, and equal gradients of queries, keys and tables, on the same inputs.
"""

import math

import pytest
import torch
from transformers import LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_rotary
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from step1_transformer.layers import sinusoids
from step3_peripherals.positions import ALiBi, RoPE, Shaw, Sinusoidal, T5Buckets, t5_bucket

torch.set_num_threads(1)
LENGTHS = (1, 2, 7, 300)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_()


def same(ours, theirs, inputs=(), their_inputs=None):
    """Equal values, to 1e-5, and equal gradients, to 1e-4."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if inputs:
        weights = draw(*theirs.shape, seed=99).detach()
        found = torch.autograd.grad((ours * weights).sum(), inputs)
        want = torch.autograd.grad((theirs * weights).sum(), their_inputs or inputs)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-4)


def seen(x, causal):
    """x (..., T, T), of a causal scheme without what no query may see."""
    return x.tril() if causal else x


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_t5_is_hugging_faces(T, causal, n_buckets, max_distance):
    shape = dict(d_model=32, num_heads=4, d_kv=8)
    buckets = dict(
        relative_attention_num_buckets=n_buckets, relative_attention_max_distance=max_distance
    )
    config = T5Config(**shape, **buckets, is_decoder=causal)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    ours = T5Buckets(32, 4, T, causal, n_buckets=n_buckets, max_distance=max_distance).double()
    with torch.no_grad():
        ours.table.copy_(theirs.relative_attention_bias.weight)
    bias = seen(theirs.compute_bias(T, T), causal)[0]
    found = seen(ours.scores(draw(2, 4, T, 8)), causal)
    same(found, bias, (ours.table,), (theirs.relative_attention_bias.weight,))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (32, 127), (16, 64), (6, 7)])
def test_t5_buckets_are_hugging_faces_at_any_distance(causal, n_buckets, max_distance):
    distance = torch.arange(-3000, 3001)
    ours = t5_bucket(distance, causal, n_buckets, max_distance)
    theirs = T5Attention._relative_position_bucket(distance, not causal, n_buckets, max_distance)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 12, 16, 20])
def test_alibi_is_blooms(T, n_heads):
    """Bloom adds m j instead of m (j - i): the same after the softmax, which a row's constant m i
    does not change."""
    q = draw(1, n_heads, T, 4)
    alibi = build_alibi_tensor(torch.ones(1, T), n_heads, torch.float32)[:, 0]  # (h, T)
    ours = ALiBi(4 * n_heads, n_heads, T).scores(q)
    row = ours.diagonal(dim1=-2, dim2=-1)  # at j = i, where a causal model's penalty is 0
    assert not row.any()
    moved = ours + alibi[:, :, None]  # (h, T, T): bloom's m i, back at the queries
    wanted = alibi[:, None].expand(-1, T, -1).tril()
    torch.testing.assert_close(seen(moved, True), wanted, rtol=1e-5, atol=1e-4)
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    scores = [x.masked_fill(~mask, -math.inf).softmax(-1) for x in (ours, alibi[:, None])]
    same(*scores)
    both = ALiBi(4 * n_heads, n_heads, T, causal=False).scores(q)
    assert torch.equal(both, both.transpose(-2, -1))
    assert torch.equal(both.tril(), ours.tril())


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_rope_is_llamas(T, base):
    q, k = draw(2, 4, T, 16), draw(2, 4, T, 16, seed=1)
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=T,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )  # fmt: skip
    cos, sin = LlamaRotaryEmbedding(config)(q, torch.arange(T)[None])
    theirs = apply_rotary_pos_emb(q, k, cos, sin)
    ours = RoPE(64, 4, T, base=base).rotate(q, k)
    for our, their in zip(ours, theirs, strict=True):
        same(our, their, (q if our is ours[0] else k,))


def test_interleaved_rope_is_gpt_js():
    T, d_k = 50, 8
    q, k = draw(2, 4, T, d_k), draw(2, 4, T, d_k, seed=1)
    angle = torch.arange(T)[:, None] / 10000 ** (torch.arange(0, d_k, 2) / d_k)
    sin, cos = angle.sin()[None], angle.cos()[None]
    ours = RoPE(4 * d_k, 4, T, interleaved=True).rotate(q, k)
    for our, x in zip(ours, (q, k), strict=True):
        theirs = gptj_rotary(x.transpose(1, 2), sin, cos).transpose(1, 2)
        same(our, theirs, (x,))


def shaw_by_definition(scheme, q, k, v, causal):
    """Equations 3 to 5, pair by pair."""
    (_, _, T, d_k), (w_k, w_v) = q.shape, (scheme.keys_table, scheme.values_table)
    z = []
    for i in range(T):
        keys = range(i + 1) if causal else range(T)
        relative = [max(-scheme.k, min(scheme.k, j - i)) + scheme.k for j in keys]
        e = [
            (q[:, :, i] * (k[:, :, j] + w_k[r])).sum(-1) / math.sqrt(d_k)
            for j, r in zip(keys, relative, strict=True)
        ]
        alpha = torch.stack(e, -1).softmax(-1)
        pairs = enumerate(zip(keys, relative, strict=True))
        z.append(sum(alpha[..., n, None] * (v[:, :, j] + w_v[r]) for n, (j, r) in pairs))
    return torch.stack(z, 2)


@pytest.mark.parametrize("T", [1, 2, 5, 12])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("k", [1, 3, 16])
def test_shaw_is_its_definition(T, causal, k):
    scheme = Shaw(16, 2, T, causal, k=k)
    inputs = [draw(2, 2, T, 8, seed=seed) for seed in range(3)]
    q, key, v = inputs
    scores = q @ key.transpose(-2, -1) / math.sqrt(8) + scheme.scores(q)
    if causal:
        scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf)
    weights = scores.softmax(-1)
    ours = weights @ v + scheme.values(weights)
    tables = (scheme.keys_table, scheme.values_table)
    same(ours, shaw_by_definition(scheme, *inputs, causal), (*inputs, *tables))


@pytest.mark.parametrize("d", [8, 64])
def test_sinusoidal_is_step_1s(d):
    x = draw(2, 40, d)
    assert torch.equal(Sinusoidal(d, 4, 40).embed(x), x + sinusoids(40, d))
