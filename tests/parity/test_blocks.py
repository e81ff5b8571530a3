"""Block by block against PyTorch: our blocks and the solutions of the drills, or a learner's.

A learner's are those of `pytest --mine FILE`. What a block takes and gives is written in its drill,
step1_transformer/drills.py.
"""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

STEP = "step1_transformer"  # whose drills these are
torch.set_num_threads(1)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_()


def same(ours, theirs, inputs=()):
    """Equal values, and equal gradients of `inputs`, to 1e-5."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    if inputs:
        weights = draw(*theirs.shape, seed=99).detach()
        found, want = (torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs))
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def key_mask(B, S, seed=0):
    """(B, 1, 1, S), True at the first tokens of each sentence: one at least, all of the first."""
    lengths = torch.randint(1, S + 1, (B,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = S
    return (torch.arange(S) < lengths[:, None])[:, None, None]


@pytest.mark.parametrize("masked", ["no mask", "keys", "causal"])
@pytest.mark.parametrize(("T", "S"), [(5, 5), (3, 7), (1, 4)])
def test_scaled_dot_product(block, masked, T, S):
    q, k, v = inputs = [draw(3, 2, n, 8, seed=n + i) for i, n in enumerate((T, S, S))]
    causal = torch.ones(T, S, dtype=torch.bool).tril()
    mask = {"no mask": None, "keys": key_mask(3, S), "causal": causal}[masked]
    ours = block("scaled_dot_product")(q, k, v, mask)
    same(ours, F.scaled_dot_product_attention(q, k, v, mask), inputs)


def test_decoder_mask(block):
    real = key_mask(4, 6)[:, 0, 0]
    hidden = (
        nn.Transformer.generate_square_subsequent_mask(6)
        + torch.where(real, 0.0, -torch.inf)[:, None, None]
    )
    assert torch.equal(block("decoder_mask")(real), hidden == 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("n_heads", "T", "S"), [(1, 4, 4), (2, 3, 6), (4, 4, 4)])
def test_multi_head_attention(block, n_heads, T, S, masked):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, n_heads, batch_first=True)
    nn.init.normal_(module.in_proj_bias)
    nn.init.normal_(module.out_proj.bias)
    query, memory = draw(3, T, 16), draw(3, S, 16, seed=1)
    mask = key_mask(3, S) if masked else None
    padding = ~mask[:, 0, 0] if masked else None
    theirs, _ = module(query, memory, memory, key_padding_mask=padding)
    out = module.out_proj
    weights = module.in_proj_weight, module.in_proj_bias, out.weight, out.bias
    ours = block("multi_head_attention")(query, memory, *weights, n_heads, mask)
    same(ours, theirs, [query, memory, *module.parameters()])


@pytest.mark.parametrize(("n", "d"), [(1, 2), (50, 16), (512, 64)])
def test_sinusoidal_positions(block, n, d):
    """As complex numbers: e^(i pos / 10000^(2i/d)) turns by the same angle at each step."""
    found = block("sinusoidal_positions")(n, d)
    assert found.shape == (n, d) and found.dtype == torch.float32
    turn = np.exp(1j * 10000.0 ** (-np.arange(0, d, 2) / d))
    want = turn ** np.arange(n)[:, None]
    numbers = torch.view_as_complex(found.unflatten(1, (-1, 2)).flip(-1).contiguous())
    assert np.abs(numbers.numpy() - want).max() < 1e-4  # an fp32 angle of 512 errs by 3e-5


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_layer_norm(block, eps):
    x, weight, bias = inputs = [draw(2, 5, 12), draw(12, seed=1), draw(12, seed=2)]
    ours = block("layer_norm")(x, weight, bias, eps)
    same(ours, F.layer_norm(x, (12,), weight, bias, eps), inputs)


@pytest.mark.parametrize("order", ["post", "pre"])
def test_an_encoder_layer_of_these_blocks(block, order):
    """Attention, feed-forward, layer norm and residual together are nn.TransformerEncoderLayer."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, norm_first=order == "pre"
    )
    for norm in (layer.norm1, layer.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x, mask = draw(3, 5, 16), key_mask(3, 5)

    def attend(x):
        inner, outer = layer.self_attn, layer.self_attn.out_proj
        weights = inner.in_proj_weight, inner.in_proj_bias, outer.weight, outer.bias
        return block("multi_head_attention")(x, x, *weights, 4, mask)

    def feed(x):
        parts = layer.linear1, layer.linear2
        weights = [weight for part in parts for weight in (part.weight, part.bias)]
        return block("feed_forward")(x, *weights)

    def norm(x, module):
        return block("layer_norm")(x, module.weight, module.bias, module.eps)

    y = block("residual")(x, attend, partial(norm, module=layer.norm1), order)
    y = block("residual")(y, feed, partial(norm, module=layer.norm2), order)
    same(y, layer(x, src_key_padding_mask=~mask[:, 0, 0]), [x, *layer.parameters()])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing(block, smoothing):
    logits, labels = draw(9, 6), torch.tensor([3, 0, 1, 5, 0, 2, 4, 4, 0])
    theirs = F.cross_entropy(logits, labels, ignore_index=0, label_smoothing=smoothing)
    same(block("label_smoothing")(logits, labels, smoothing, 0), theirs, [logits])


def test_warmup_rate(block):
    """PyTorch has no such schedule: equation 3 as printed."""
    for step, d, warmup in itertools.product((1, 7, 10, 11, 5000), (64, 512), (1, 10)):
        want = d**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert block("warmup_rate")(step, d, warmup) == pytest.approx(want)


def language(seed, V):
    """next_log_p of a made-up language whose next token depends on the two before."""
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(V, V, V, generator=g, dtype=torch.double).log_softmax(-1)
    return lambda ids: table[ids[:, -2] if ids.shape[1] > 1 else 0, ids[:, -1]]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_beam_search(block, seed, alpha):
    """A beam as wide as the tree finds the best of all sentences, here listed one by one."""
    V, bos, eos, max_len = 4, 1, 2, 4
    next_log_p = language(seed, V)
    others, found = [token for token in range(V) if token != eos], []
    for length in range(1, max_len + 1):
        for start in itertools.product(others, repeat=length - 1):
            for end in range(V) if length == max_len else [eos]:
                ids = torch.tensor([[bos, *start, end]])
                steps = [next_log_p(ids[:, :t])[0, ids[0, t]] for t in range(1, length + 1)]
                score = float(sum(steps)) / ((5 + length) / 6) ** alpha
                found.append((score, [*start, end]))
    best = max(found)[1]
    assert block("beam_search")(next_log_p, bos, eos, V**max_len, max_len, alpha) == best


def test_average_checkpoints(block):
    models = [nn.Linear(3, 2) for _ in range(4)]
    average = torch.optim.swa_utils.AveragedModel(models[0])
    for each in models:
        average.update_parameters(each)
    found = block("average_checkpoints")([dict(each.state_dict()) for each in models])
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(found[name], value)
