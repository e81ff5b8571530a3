"""Our blocks in the form of the drills of step 1, so that one test judges ours or a learner's."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from common import optim
from step1_transformer import averaging, decoding, layers, model
from step1_transformer.attention import MultiHeadAttention, scaled_dot_product  # noqa: F401
from step1_transformer.layers import layer_norm  # noqa: F401
from step1_transformer.loss import LinearCrossEntropy


def decoder_mask(attention_mask):
    return model.causal(attention_mask.shape[1]) & model.for_all_queries(attention_mask)


def multi_head_attention(query, memory, w_in, b_in, w_out, b_out, n_heads, mask):
    block = MultiHeadAttention(query.shape[-1], n_heads, attention="explicit")
    weights = {"qkv.weight": w_in, "qkv.bias": b_in, "out.weight": w_out, "out.bias": b_out}
    return torch.func.functional_call(block, weights, (query, memory, mask))


def sinusoidal_positions(n_positions, d_model):
    return layers.sinusoids(n_positions, d_model)


def feed_forward(x, w_1, b_1, w_2, b_2):
    config = layers.LayerConfig(d_model=x.shape[-1], d_ff=len(w_1), n_heads=1, ff_dropout=0.0)
    weights = {"up.weight": w_1, "up.bias": b_1, "down.weight": w_2, "down.bias": b_2}
    return torch.func.functional_call(layers.FeedForward(config), weights, (x,))


def residual(x, sublayer, norm, order):
    config = layers.LayerConfig(d_model=x.shape[-1], n_heads=1, dropout=0.0, norm=order)
    block = layers.Residual(torch.nn.Identity(), config)
    del block.sublayer, block.norm
    block.sublayer, block.norm = sublayer, norm
    return block(x)


def label_smoothing(logits, labels, smoothing, pad):
    real = labels != pad
    identity = torch.eye(logits.shape[1])
    loss, _, _ = LinearCrossEntropy.apply(logits[real], identity, None, labels[real], smoothing)
    return loss / real.sum()


def warmup_rate(step, d_model, warmup_steps):
    peak = (d_model * warmup_steps) ** -0.5
    return peak * optim.schedule("inverse_sqrt", warmup_steps, 10 * warmup_steps)(step - 1)


class TableModel:
    """A model without a network: `next_log_p` of all that was written so far."""

    def __init__(self, next_log_p, bos, eos, max_len):
        self.next_log_p = next_log_p
        self.config = SimpleNamespace(
            bos_token_id=bos, eos_token_id=eos, max_seq_len=max_len, pad_token_id=0
        )

    def encode(self, input_ids, attention_mask):
        return input_ids

    def start_cache(self, memory, attention_mask=None):
        return Written(memory.new_zeros((len(memory), 0)))

    def decode(self, ids, memory, mask, cache):
        cache.ids = torch.cat((cache.ids, ids), 1)
        return cache.ids[:, None]

    def logits(self, hidden):
        return self.next_log_p(hidden)


class Written:
    def __init__(self, ids):
        self.ids = ids

    def reorder(self, rows):
        self.ids = self.ids[rows]


def beam_search(next_log_p, bos, eos, beam_size, max_len, alpha):
    table = TableModel(next_log_p, bos, eos, max_len)
    options = dict(beam_size=beam_size, length_penalty=alpha, max_len=max_len)
    (found,) = decoding.beam(table, torch.tensor([[bos]]), None, **options)
    return found if len(found) == max_len else [*found, eos]


def average_checkpoints(checkpoints):
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(len(checkpoints))]
        for file, weights in zip(files, checkpoints, strict=True):
            save_file(weights, file)
        return averaging.average(files)
