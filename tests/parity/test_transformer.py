"""Every block of our Transformer against PyTorch's, and the whole against Hugging Face's Marian."""

import math
import random

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from common.cli import UserError
from step1_transformer.attention import MultiHeadAttention
from step1_transformer.layers import EncoderLayer, sinusoids
from step1_transformer.model import EncoderDecoder, Transformer, TransformerConfig
from step1_transformer.parity_cases import BLOCKS, Case, Shape, compare, rough

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")
seeds = st.integers(0, 10**6)


def draw(block: str, path: str, seed: int) -> Case:
    torch.manual_seed(seed)
    return BLOCKS[block](Shape.draw(random.Random(seed)), path)


@pytest.mark.parametrize("path", ["explicit", "fused"])
@pytest.mark.parametrize("block", BLOCKS)
@settings(max_examples=8)
@given(seed=seeds)
def test_outputs_and_every_gradient(block, path, seed):
    differences = compare(draw(block, path, seed))
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("block", BLOCKS)
@settings(max_examples=8)
@given(seed=seeds)
def test_what_differs_is_rounding_only(block, seed):
    case = draw(block, "explicit", seed)
    case.ours.double(), case.theirs.double()
    vectors = [x.detach().double() if x.is_floating_point() else x for x in case.inputs]
    case.inputs = [x.requires_grad_() if x.is_floating_point() else x for x in vectors]
    differences = compare(case)
    assert max(differences.values()) < 1e-11, differences


@pytest.mark.parametrize("block", BLOCKS)
def test_the_comparison_sees_a_small_mistake(block):
    case = draw(block, "explicit", 3)
    parameter = max(case.ours.parameters(), key=lambda p: p.ndim)
    with torch.no_grad():
        parameter[-1, -1] += 0.01
    assert max(compare(case).values()) > 1e-5


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_whole_model_from_torch(norm_first):
    torch.manual_seed(0)
    d, V, S, T = 20, 43, 7, 5
    middle = rough(nn.Transformer(d, 4, 2, 3, 33, 0.0, batch_first=True, norm_first=norm_first))
    embedding, output = nn.Embedding(V, d), nn.Linear(d, V)
    output.weight = embedding.weight
    ours = Transformer.from_torch(middle, embedding, output, max_seq_len=9)

    source, target = torch.randint(V, (3, S)), torch.randint(V, (3, T))
    real = torch.arange(S) < torch.tensor([[7], [4], [1]])
    vectors = [embedding(ids) * math.sqrt(d) + sinusoids(9, d)[: ids.shape[1]]
               for ids in (source, target)]  # fmt: skip
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    hidden = middle(*vectors, tgt_mask=future, src_key_padding_mask=~real,
                    memory_key_padding_mask=~real)  # fmt: skip
    torch.testing.assert_close(ours(source, target, real), output(hidden), rtol=0, atol=1e-5)

    with pytest.raises(ValueError, match="another matrix"):
        Transformer.from_torch(middle, embedding, nn.Linear(d, V))
    fresh = Transformer.from_torch(middle, vocab_size=31, max_seq_len=9)
    assert fresh.config.vocab_size == 31
    for part in ("encoder", "decoder"):
        mine, its = (getattr(model, part).state_dict() for model in (fresh, ours))
        assert all(torch.equal(mine[name], value) for name, value in its.items())


def test_copies_share_nothing_and_keep_mode_and_precision():
    theirs = nn.Transformer(8, 2, 1, 1, 16, 0.25, batch_first=True).double().eval()
    ours = EncoderDecoder.from_torch(theirs)
    assert not ours.training
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    pointers = {p.data_ptr() for p in theirs.parameters()}
    assert not pointers & {p.data_ptr() for p in ours.parameters()}
    layer = ours.encoder.layers[0]
    assert layer.self_attention.dropout.p == layer.feed_forward.sublayer.dropout.p == 0.25
    assert layer.self_attention.sublayer.dropout == 0.25


@pytest.mark.parametrize(
    "theirs, copy",
    [
        (lambda: nn.MultiheadAttention(8, 2, bias=False), MultiHeadAttention),
        (lambda: nn.MultiheadAttention(8, 2, kdim=4), MultiHeadAttention),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), MultiHeadAttention),
        (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), MultiHeadAttention),
        (lambda: nn.TransformerEncoderLayer(8, 2, 4, bias=False), EncoderLayer),
        (lambda: nn.TransformerEncoderLayer(8, 2, 4, activation=F.elu), EncoderLayer),
    ],
)
def test_modules_that_ours_cannot_be_are_refused(theirs, copy):
    with pytest.raises(ValueError):
        copy.from_torch(theirs())


ODD = TransformerConfig(
    vocab_size=41, d_model=15, n_heads=3, d_ff=7, n_encoder_layers=2, n_decoder_layers=1,
    max_seq_len=11, activation="gelu", output_bias=True,
)  # fmt: skip


def test_to_marian_and_back_is_exact():
    ours = rough(Transformer(ODD))
    back = Transformer.from_hf(ours.to_hf())
    assert back.config == ours.config
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, back.get_parameter(name)), name


def test_transformers_opens_what_we_save(tmp_path):
    torch.manual_seed(0)
    ours = rough(Transformer(ODD)).eval()
    ours.save(tmp_path)
    theirs, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    ids, target = torch.randint(3, 41, (4, 6)), torch.randint(3, 41, (4, 5))
    want = ours(ids, target)
    got = theirs.eval()(input_ids=ids, decoder_input_ids=target).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)

    generated = theirs.generate(input_ids=ids, num_beams=1, max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        first = ours(ids, torch.ones(4, 1, dtype=torch.long)).argmax(-1)
    assert torch.equal(generated[:, :2], torch.cat((torch.ones_like(first), first), 1))


def test_we_open_what_transformers_saves(tmp_path):
    torch.manual_seed(0)
    theirs = rough(Transformer(ODD)).to_hf().eval()
    theirs.save_pretrained(tmp_path)
    ours = Transformer.load(tmp_path)
    ids, target = torch.randint(41, (4, 6)), torch.randint(41, (4, 5))
    got = ours(ids, target)
    want = theirs(input_ids=ids, decoder_input_ids=target).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_marians_that_ours_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no Marian has norm 'pre'"):
        Transformer(TransformerConfig.named("tiny", vocab_size=9, norm="pre")).to_hf()
    sizes = dict(vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=4,
                 decoder_ffn_dim=4, encoder_attention_heads=2, pad_token_id=0, eos_token_id=2,
                 decoder_start_token_id=1, max_position_embeddings=9)  # fmt: skip
    config = transformers.MarianConfig(**sizes, decoder_attention_heads=4)
    with pytest.raises(UserError, match="decoder_attention_heads differ"):
        Transformer.from_hf(transformers.MarianMTModel(config))
