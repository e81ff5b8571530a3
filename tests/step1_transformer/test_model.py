import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from common.cli import UserError
from step1_transformer import checkpoint
from step1_transformer.attention import MultiHeadAttention, drop, scaled_dot_product
from step1_transformer.layers import sinusoids
from step1_transformer.loss import LinearCrossEntropy
from step1_transformer.model import Transformer, TransformerConfig, causal

torch.set_num_threads(1)

NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0, ff_dropout=0.0)
SMALL = TransformerConfig(
    vocab_size=53, d_model=12, n_heads=3, d_ff=20, n_encoder_layers=2, n_decoder_layers=2,
    max_seq_len=16, **NO_DROPOUT,
)  # fmt: skip
CLOSE = {"rtol": 0, "atol": 1e-5}
seeds = st.integers(0, 10**6)


@st.composite
def odd_models(draw) -> Transformer:
    """A small model with numbers that hide no transposition, its biases and norms moved."""
    torch.manual_seed(draw(seeds))
    n_heads = draw(st.integers(1, 5))
    model = Transformer(
        TransformerConfig(
            vocab_size=draw(st.integers(11, 60)),
            d_model=n_heads * draw(st.sampled_from([3, 4, 7])),
            n_heads=n_heads,
            d_ff=draw(st.sampled_from([5, 19])),
            n_encoder_layers=draw(st.integers(1, 3)),
            n_decoder_layers=draw(st.integers(1, 3)),
            max_seq_len=16,
            norm=draw(st.sampled_from(["post", "pre"])),
            positions=draw(st.sampled_from(["sinusoidal", "learned"])),
            activation=draw(st.sampled_from(["relu", "gelu", "swish"])),
            output_bias=draw(st.booleans()),
            attention=draw(st.sampled_from(["auto", "explicit", "fused"])),
            **NO_DROPOUT,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def ids(model: Transformer, B: int, T: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (B, T))


def ragged(B: int, T: int) -> torch.Tensor:
    """(B, T), True at the real tokens of sentences of different length."""
    return torch.arange(T) < torch.randint(1, T + 1, (B, 1))


odd_sizes = dict(B=st.integers(1, 4), S=st.integers(1, 9), T=st.integers(2, 9))


# -- what a token can see -------------------------------------------------------------------------


@settings(max_examples=30)
@given(model=odd_models(), at=st.integers(1, 8), **odd_sizes)
def test_a_target_token_changes_no_earlier_score(model, at, B, S, T):
    source, target, at = ids(model, B, S), ids(model, B, T), min(at, T - 1)
    before = model(source, target)
    target[:, at] = (target[:, at] + 1) % model.config.vocab_size
    after = model(source, target)
    torch.testing.assert_close(after[:, :at], before[:, :at], **CLOSE)
    assert not torch.allclose(after[:, at], before[:, at], **CLOSE)


@settings(max_examples=30)
@given(model=odd_models(), more=st.integers(0, 5), **odd_sizes)
def test_padding_changes_no_real_position(model, more, B, S, T):
    source, target, keys, own = ids(model, B, S), ids(model, B, T), ragged(B, S), ragged(B, T)
    padded = [
        F.pad(torch.where(real, x, ids(model, *x.shape)), (0, more), value=3)  # other padding
        for x, real in ((source, keys), (target, own))
    ]
    masks = [F.pad(real, (0, more)) for real in (keys, own)]
    batch = model(*padded, *masks)[:, :T]
    for i, (n_source, n_target) in enumerate(zip(keys.sum(1), own.sum(1), strict=True)):
        alone = model(source[i : i + 1, :n_source], target[i : i + 1, :n_target])[0]
        torch.testing.assert_close(batch[i, :n_target], alone, **CLOSE)


@settings(max_examples=30)
@given(model=odd_models(), cuts=st.lists(st.integers(1, 3), min_size=1, max_size=5), **odd_sizes)
def test_cached_decoding_is_uncached_decoding(model, cuts, B, S, T):
    model.eval()
    source, target, keys = ids(model, B, S), ids(model, B, sum(cuts)), ragged(B, S)
    with torch.no_grad():
        want = model(source, target, keys)
        cache = model.start_cache(model.encode(source, keys), keys)
        hidden = [model.decode(new, None, cache=cache) for new in target.split(cuts, 1)]
    assert cache.length == sum(cuts)
    torch.testing.assert_close(model.logits(torch.cat(hidden, 1)), want, **CLOSE)


@settings(max_examples=20)
@given(model=odd_models(), data=st.data(), **odd_sizes)
def test_reordered_cache_goes_on_as_the_chosen_rows(model, data, B, S, T):
    model.eval()
    rows = torch.tensor(data.draw(st.lists(st.integers(0, B - 1), min_size=1, max_size=6)))
    source, target, keys = ids(model, B, S), ids(model, B, T), ragged(B, S)
    next_token = ids(model, len(rows), 1)
    with torch.no_grad():
        cache = model.start_cache(model.encode(source, keys), keys)
        model.decode(target, None, cache=cache)
        cache.reorder(rows)
        got = model.logits(model.decode(next_token, None, cache=cache))
        whole = torch.cat((target[rows], next_token), 1)
        want = model(source[rows], whole, keys[rows])[:, -1:]
    torch.testing.assert_close(got, want, **CLOSE)


def test_a_mask_given_to_decode_stands_in_for_that_of_the_cache():
    model = Transformer(SMALL).eval()
    source, target, keys = ids(model, 3, 6), ids(model, 3, 1), ragged(3, 6)
    memory = model.encode(source, keys)
    got = model.decode(target, memory, keys, model.start_cache(memory))
    torch.testing.assert_close(model.logits(got), model(source, target, keys), **CLOSE)


def test_a_query_that_may_look_at_nothing_stays_finite():
    q, k, v = torch.randn(3, 1, 2, 4, 5).requires_grad_().unbind()
    out = scaled_dot_product(q, k, v, torch.zeros(4, 4, dtype=torch.bool))
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(v))
    assert torch.autograd.grad(out.sum(), v)[0].isfinite().all()


def test_kept_weights_are_what_was_used():
    torch.manual_seed(0)
    attention = MultiHeadAttention(12, 3).eval()
    attention.keep_weights = True
    x, mask = torch.randn(2, 5, 12), causal(5)
    out = attention(x, None, mask)
    w = attention.weights  # (B, h, T, T)
    torch.testing.assert_close(w.sum(-1), torch.ones(2, 3, 5))
    assert (w.masked_select(~mask) == 0).all()
    v = attention.keys_values(x).all()[1]
    torch.testing.assert_close(out, attention.out((w @ v).transpose(1, 2).flatten(2)), **CLOSE)


# -- the parts ------------------------------------------------------------------------------------


def test_sinusoids_are_those_of_the_paper():
    table = sinusoids(40, 9)
    for pos, dim in ((0, 0), (0, 1), (17, 4), (39, 5), (39, 8)):
        angle = pos / 10000 ** (2 * (dim // 2) / 9)
        want = math.cos(angle) if dim % 2 else math.sin(angle)
        assert table[pos, dim] == pytest.approx(want, abs=1e-6)


def test_sinusoids_turn_by_the_same_angle_for_the_same_distance():
    """Why the paper chose them: PE(pos + k) is a linear function of PE(pos)."""
    table, k = sinusoids(60, 16), 7
    sine, cosine = table[:-k, 0::2], table[:-k, 1::2]
    sine_k, cosine_k = table[k, 0::2], table[k, 1::2]  # one matrix for every pos
    torch.testing.assert_close(table[k:, 0::2], sine * cosine_k + cosine * sine_k, **CLOSE)
    torch.testing.assert_close(table[k:, 1::2], cosine * cosine_k - sine * sine_k, **CLOSE)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_zeroes_p_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 1003, requires_grad=True)  # an odd count: the last draw is used in part
    y = drop(x, p)
    n, spread = x.numel(), (p * (1 - p) / x.numel()) ** 0.5
    assert abs((y == 0).sum() / n - p) < 5 * spread
    assert abs(y.mean() - 1) < 5 * spread / (1 - p)
    for other in (y.roll(1, 1), y.roll(4, 1), y.roll(1, 0)):  # neighbours fall independently
        assert abs(((y == 0) & (other == 0)).sum() / n - p * p) < 5 * spread
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(drop(x, 0.0), x)


@pytest.mark.parametrize("kind", list(NO_DROPOUT))
def test_each_dropout_acts_in_training_only(kind):
    model = Transformer(TransformerConfig(**vars(SMALL) | {kind: 0.3}))
    batch = ids(model, 2, 9), ids(model, 2, 8)
    assert not torch.equal(model(*batch), model(*batch))
    model.eval()
    assert torch.equal(model(*batch), model(*batch))


def test_scores_of_a_fresh_model_are_moderate():
    """A loss near ln V at the start; over it, for tied weights make a token predict itself."""
    torch.manual_seed(0)
    for norm in ("post", "pre"):
        model = Transformer(TransformerConfig.named("tiny", vocab_size=500, norm=norm)).eval()
        labels = torch.randint(500, (200,))
        loss = model(ids(model, 10, 20), ids(model, 10, 20),
                     positions=torch.arange(200), labels=labels)  # fmt: skip
        assert abs(loss.nll / 200 - math.log(500)) < 2


# `meta` allocates nothing. The paper says 65 and 213 million, with a vocabulary of about 37,000.
@pytest.mark.parametrize("size, millions", [("base", 63.1), ("big", 214.2)])
def test_sizes_have_the_published_parameter_counts(size, millions):
    with torch.device("meta"):
        model = Transformer(TransformerConfig.named(size))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(d_model=10, n_heads=3), "multiple of n_heads"),
        (dict(attention="flash"), "attention is 'flash'"),
        (dict(norm="sandwich"), "norm is 'sandwich', not one of post, pre"),
        (dict(activation="tanh"), "activation is 'tanh'"),
        (dict(positions="rotary"), "positions is 'rotary'"),
        (dict(dropout=1.0), "dropout 1.0 is not in"),
        (dict(vocab_size=2), "eos_token_id 2 is outside"),
        (dict(n_decoder_layers=0), "n_decoder_layers is 0"),
    ],
)
def test_wrong_configs_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**wrong)
    with pytest.raises(ValueError, match="known: tiny, small, base, big"):
        TransformerConfig.named("huge")


def test_more_tokens_than_positions():
    model = Transformer(SMALL)
    with pytest.raises(ValueError, match="17 tokens, but the model has only 16 positions"):
        model.encode(ids(model, 1, 17))
    cache = model.start_cache(model.encode(ids(model, 1, 3)))
    model.decode(ids(model, 1, 16), None, cache=cache)
    with pytest.raises(ValueError, match="17 tokens"):
        model.decode(ids(model, 1, 1), None, cache=cache)


# -- the loss -------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(model=odd_models(), eps=st.sampled_from([0.0, 0.1, 0.4]), mask=st.booleans(), **odd_sizes)
def test_loss_path_is_cross_entropy_of_the_full_scores(model, eps, mask, B, S, T):
    model.double()
    source, target, keys = ids(model, B, S), ids(model, B, T), ragged(B, S) if mask else None
    positions = torch.randperm(B * T)[: max(1, B * T // 2)]
    labels = torch.randint(model.config.vocab_size, positions.shape)
    got = model(source, target, keys, positions=positions, labels=labels, label_smoothing=eps)
    scores = model(source, target, keys).flatten(0, 1)[positions]
    want = F.cross_entropy(scores, labels, label_smoothing=eps, reduction="sum")
    torch.testing.assert_close(got.loss, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.nll, F.cross_entropy(scores, labels, reduction="sum"))
    assert got.correct == (scores.argmax(-1) == labels).sum()

    parameters = list(model.parameters())
    pairs = zip(*(torch.autograd.grad(loss / 3, parameters) for loss in (got.loss, want)),
                strict=True)  # fmt: skip
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_loss_survives_certainty_and_ties():
    weight = torch.eye(4).requires_grad_()
    x = torch.tensor([[900.0, 0, 0, 0], [-900.0, 0, 0, 0], [1.0, 1.0, 0, 0]])
    labels = torch.tensor([0, 0, 1])
    loss, nll, hits = LinearCrossEntropy.apply(x, weight, None, labels, 0.1)
    want = F.cross_entropy(x, labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=0)
    torch.testing.assert_close(nll, F.cross_entropy(x, labels, reduction="sum"))
    assert hits == 1.5  # sure and right, sure and wrong, a tie
    loss.backward()
    assert weight.grad.isfinite().all()


def test_loss_path_keeps_one_buffer_of_scores_in_bf16():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**vars(SMALL) | {"vocab_size": 3000}))
    kept, labels = [], torch.randint(3000, (70,))

    def note(tensor):
        if tensor.numel() >= 70 * 3000:
            kept.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model(ids(model, 9, 9), ids(model, 9, 9), positions=torch.arange(70), labels=labels)
    assert kept == [((70, 3000), torch.bfloat16)]


@pytest.mark.parametrize("output_bias", [False, True])
def test_bf16_training_step_is_close_to_fp32(output_bias):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**vars(SMALL) | {"output_bias": output_bias}))
    batch = ids(model, 8, 9), ids(model, 8, 9), ragged(8, 9)
    grads = []
    for bf16 in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            labels = torch.arange(36) % 53
            out = model(*batch, positions=torch.arange(0, 72, 2), labels=labels)
        out.loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.999


# -- checkpoints ----------------------------------------------------------------------------------

PRE_NORM = TransformerConfig(**vars(SMALL) | {"norm": "pre", "final_norm": None})


@pytest.fixture
def saved(tmp_path):
    Transformer(SMALL).save(tmp_path)
    return tmp_path


def one_line_error(directory) -> str:
    with pytest.raises(UserError) as error:
        Transformer.load(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


@settings(max_examples=15)
@given(model=odd_models())
def test_save_and_load_is_exact(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    again = Transformer.load(folder, attention=model.config.attention)
    assert again.config == model.config and not again.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_save_takes_the_tokenizer_along_and_nothing_else(saved, tmp_path):
    (saved / "tokenizer.json").write_text("{}")
    Transformer(PRE_NORM).save(tmp_path / "next", tokenizer=saved)
    names = {file.name for file in (tmp_path / "next").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_full_disk_keeps_the_previous_checkpoint(saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        Transformer(SMALL).save(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert {file.name for file in saved.iterdir()} == {"config.json", "model.safetensors"}


def test_no_checkpoint_there(tmp_path):
    assert "has no config.json" in one_line_error(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    assert "has no model.safetensors" in one_line_error(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(saved, share):
    file = saved / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "truncated or damaged" in one_line_error(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "bert"}, "another model: model_type is 'bert'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"encoder_ffn_dim": 21}, "encoder_ffn_dim and decoder_ffn_dim differ"),
        ({"activation_function": "tanh"}, "activation is 'tanh'"),
        ({"vocab_size": 60, "decoder_vocab_size": 60}, "embedding.token.weight has shape (53, 12)"),
        ({"encoder_layers": 3}, "lacks encoder.layers.2"),
        ({"d_model": 15}, "do not belong together"),
        ({"eos_token_id": None}, "eos_token_id missing"),
    ],
)
def test_config_that_does_not_fit(saved, change, message):
    file = saved / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert message in one_line_error(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 60}, "embedding.token.weight has shape (53, 12)"),
        ({"norm": "sandwich"}, "norm is 'sandwich'"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_our_own_config_that_does_not_fit(tmp_path, change, message):
    Transformer(PRE_NORM).save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert message in one_line_error(tmp_path)


@pytest.mark.parametrize("text, message", [("{broken", "is no JSON ("), ("[]", "no JSON object")])
def test_config_that_is_none(saved, text, message):
    (saved / "config.json").write_text(text)
    assert message in one_line_error(saved)
