"""The pairs of modules that `parity.py` compares: PyTorch's or Hugging Face's, and our copy of it.

Letters in shapes: B sentences, S source and T target vectors of d numbers.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from step1_transformer.attention import MultiHeadAttention
from step1_transformer.checkpoint import to_marian
from step1_transformer.convert import our_names
from step1_transformer.layers import DecoderLayer, EncoderLayer
from step1_transformer.model import (
    Decoder,
    Encoder,
    EncoderDecoder,
    Transformer,
    causal,
    for_all_queries,
)

MODES = ((True, True), (False, True), (False, False))  # (training, gradients)


@dataclass
class Shape:
    """Numbers that hide no transposition: odd widths, few or many heads, ragged lengths."""

    d: int
    n_heads: int
    d_ff: int
    n_layers: int
    B: int
    S: int
    T: int
    pre_norm: bool
    activation: str
    batch_first: bool
    masked: bool

    @classmethod
    def draw(cls, rng: random.Random) -> "Shape":
        n_heads, coin = rng.randint(1, 5), (False, True)
        return cls(
            d=n_heads * rng.choice((5, 7, 8, 13)), n_heads=n_heads, d_ff=rng.choice((5, 19, 33)),
            n_layers=rng.randint(1, 3), B=rng.randint(1, 4), S=rng.randint(1, 9),
            T=rng.randint(1, 9), pre_norm=rng.choice(coin), batch_first=rng.choice(coin),
            activation=rng.choice(("relu", "gelu")), masked=rng.random() < 0.8,
        )  # fmt: skip

    @property
    def layer(self) -> dict:
        """The arguments that PyTorch's layers share."""
        return dict(
            d_model=self.d, nhead=self.n_heads, dim_feedforward=self.d_ff, dropout=0.0,
            activation=self.activation, batch_first=self.batch_first, norm_first=self.pre_norm,
        )  # fmt: skip

    def source(self) -> Tensor:
        return torch.randn(self.B, self.S, self.d, requires_grad=True)

    def target(self) -> Tensor:
        return torch.randn(self.B, self.T, self.d, requires_grad=True)

    def real(self, length: int) -> Tensor:
        """(B, length), True at the real tokens of sentences of different length."""
        shortest = 1 if self.masked else length
        return torch.arange(length) < torch.randint(shortest, length + 1, (self.B, 1))

    def some(self, queries: int, keys: int) -> Tensor:
        """A random mask (queries, keys); all may look at the first key, which is never padding."""
        mask = torch.rand(queries, keys) < (0.7 if self.masked else 1.0)
        mask[:, 0] = True
        return mask

    def swap(self, *tensors: Tensor) -> list[Tensor]:
        """(B, T, ...) as PyTorch's module wants or gives it: its batch may come second."""
        return [t if self.batch_first else t.transpose(0, 1) for t in tensors]


@dataclass
class Case:
    """Both modules, a call of each on the same inputs, and which outputs (B, T) count."""

    ours: nn.Module
    theirs: nn.Module
    inputs: list[Tensor]
    call_ours: Callable[..., Tensor]
    call_theirs: Callable[..., Tensor]
    real: Tensor

    def gradients(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of our and of their parameters, by the same names."""
        ours = {name: p.grad for name, p in self.ours.named_parameters()}
        theirs = {name: p.grad for name, p in self.theirs.named_parameters() if p.grad is not None}
        if isinstance(self.ours, Transformer):
            ours = to_marian(ours, self.ours.config.d_model)
            del ours["final_logits_bias"]  # Marian's is not trained
            return ours, theirs
        names = our_names(self.theirs)
        return ours, {names[name]: grad for name, grad in theirs.items()}


@torch.no_grad()
def rough(module: nn.Module) -> nn.Module:
    """The module with biases and norms moved too, or their mistakes would not show."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def compare(case: Case) -> dict[str, float]:
    """Largest differences of outputs and gradients over the three modes."""
    largest = {"output": 0.0, "gradient": 0.0}
    for training, grad in MODES:
        case.ours.train(training), case.theirs.train(training)
        with torch.set_grad_enabled(grad):
            got, want = case.call_ours(*case.inputs), case.call_theirs(*case.inputs)
        got, want = got[case.real], want[case.real]
        largest["output"] = max(largest["output"], (got - want).abs().max().item())
        if not grad:
            continue
        upstream, input_gradients = torch.randn_like(got), []
        for module, output in ((case.ours, got), (case.theirs, want)):
            module.zero_grad()
            vectors = [x for x in case.inputs if x.is_floating_point()]
            for x in vectors:
                x.grad = None
            (output * upstream).sum().backward()
            input_gradients.append([x.grad for x in vectors])
        ours, theirs = case.gradients()
        pairs = [(ours[name], theirs[name]) for name in ours.keys() | theirs.keys()]
        pairs += zip(*input_gradients, strict=True)
        largest["gradient"] = max(largest["gradient"], relative(pairs))
    return largest


def relative(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The largest over all pairs (got, want) of max|got - want| / max|want|.

    max|want| counts as a tenth of the largest gradient at least. A gradient is a sum of terms, each
    rounded at 1e-7 of its size: where they cancel, as for a key's bias, which cannot change a
    softmax, or for the query of a single key, only noise is left.
    """
    floor = max(want.abs().max().item() for _, want in pairs) / 10
    return max(((a - b).abs().max() / b.abs().max().clamp(min=floor)).item() for a, b in pairs)


# The blocks. Where ours takes one mask, True where a query may look, PyTorch takes one for keys and
# one for pairs, True where it may not; where two tensors meet, `swap` puts the batch second.


def attention(shape: Shape, path: str) -> Case:
    """Attention of target vectors to source vectors, or, where pre_norm, to themselves."""
    theirs = nn.MultiheadAttention(shape.d, shape.n_heads, batch_first=shape.batch_first)
    itself, target = shape.pre_norm, shape.target()
    inputs = [target] if itself else [target, shape.source()]
    T, S = shape.T, inputs[-1].shape[1]
    mask, keys = causal(T) if itself else shape.some(T, S), shape.real(S)
    ours = MultiHeadAttention.from_torch(rough(theirs), attention=path)

    def call_theirs(query: Tensor, memory: Tensor | None = None) -> Tensor:
        q, m = shape.swap(query, query if memory is None else memory)
        return shape.swap(theirs(q, m, m, ~keys, need_weights=False, attn_mask=~mask)[0])[0]

    def call_ours(query: Tensor, memory: Tensor | None = None) -> Tensor:
        return ours(query, memory, mask & for_all_queries(keys))

    return Case(ours, theirs, inputs, call_ours, call_theirs, shape.real(T))


def encoder(shape: Shape, path: str, *, stack: bool = True) -> Case:
    """A stack of encoder layers, or one."""
    theirs = nn.TransformerEncoderLayer(**shape.layer)
    if stack:
        norm = nn.LayerNorm(shape.d) if shape.pre_norm else None
        theirs = nn.TransformerEncoder(theirs, shape.n_layers, norm)
    ours = (Encoder if stack else EncoderLayer).from_torch(rough(theirs), attention=path)
    mask, keys = shape.some(shape.S, shape.S), shape.real(shape.S)

    def call_theirs(x: Tensor) -> Tensor:
        return shape.swap(theirs(*shape.swap(x), ~mask, src_key_padding_mask=~keys))[0]

    def call_ours(x: Tensor) -> Tensor:
        return ours(x, mask & for_all_queries(keys))

    return Case(ours, theirs, [shape.source()], call_ours, call_theirs, keys)


def decoder(shape: Shape, path: str, *, stack: bool = True) -> Case:
    """A stack of decoder layers, or one."""
    theirs = nn.TransformerDecoderLayer(**shape.layer)
    if stack:
        norm = nn.LayerNorm(shape.d) if shape.pre_norm else None
        theirs = nn.TransformerDecoder(theirs, shape.n_layers, norm)
    ours = (Decoder if stack else DecoderLayer).from_torch(rough(theirs), attention=path)
    memory_mask = shape.some(shape.T, shape.S)
    own, keys = shape.real(shape.T), shape.real(shape.S)

    def call_theirs(x: Tensor, memory: Tensor) -> Tensor:
        masks = (~causal(shape.T), ~memory_mask, ~own, ~keys)
        return shape.swap(theirs(*shape.swap(x, memory), *masks))[0]

    def call_ours(x: Tensor, memory: Tensor) -> Tensor:
        mask = causal(shape.T) & for_all_queries(own)
        return ours(x, memory, mask, memory_mask & for_all_queries(keys))

    return Case(ours, theirs, [shape.target(), shape.source()], call_ours, call_theirs, own)


def encoder_decoder(shape: Shape, path: str) -> Case:
    """All of nn.Transformer."""
    n = dict(num_encoder_layers=shape.n_layers, num_decoder_layers=shape.T % 3 + 1)
    theirs = nn.Transformer(**shape.layer, **n)
    ours = EncoderDecoder.from_torch(rough(theirs), attention=path)
    mask, memory_mask = shape.some(shape.S, shape.S), shape.some(shape.T, shape.S)
    own, keys = shape.real(shape.T), shape.real(shape.S)

    def call_theirs(source: Tensor, target: Tensor) -> Tensor:
        masks = (~mask, ~causal(shape.T), ~memory_mask, ~keys, ~own, ~keys)
        return shape.swap(theirs(*shape.swap(source, target), *masks))[0]

    def call_ours(source: Tensor, target: Tensor) -> Tensor:
        real = for_all_queries(keys)
        target_mask = causal(shape.T) & for_all_queries(own)
        return ours(source, target, mask & real, target_mask, memory_mask & real)

    return Case(ours, theirs, [shape.source(), shape.target()], call_ours, call_theirs, own)


def marian(shape: Shape, path: str) -> Case:
    """The whole model, from tokens to scores; all Marians are post-norm."""
    import transformers

    n_heads, V = shape.n_heads, 31 + shape.d
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in dict(attention_heads=n_heads, ffn_dim=shape.d_ff).items()
    }
    config = transformers.MarianConfig(
        vocab_size=V, d_model=shape.d, encoder_layers=shape.n_layers,
        decoder_layers=shape.T % 3 + 1, max_position_embeddings=9, dropout=0.0,
        activation_function="swish" if shape.pre_norm else shape.activation,
        scale_embedding=shape.batch_first, init_std=0.2, pad_token_id=0, eos_token_id=2,
        forced_eos_token_id=2, decoder_start_token_id=1, **sides,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(config)
    theirs.final_logits_bias.normal_()
    ours = Transformer.from_hf(rough(theirs), attention=path)
    source, target = torch.randint(V, (shape.B, shape.S)), torch.randint(V, (shape.B, shape.T))
    keys, own = shape.real(shape.S), shape.real(shape.T)

    def call_theirs(source: Tensor, target: Tensor) -> Tensor:
        masks = dict(attention_mask=keys.long(), decoder_attention_mask=own.long())
        return theirs(input_ids=source, decoder_input_ids=target, **masks).logits

    def call_ours(source: Tensor, target: Tensor) -> Tensor:
        return ours(source, target, keys, own)

    return Case(ours, theirs, [source, target], call_ours, call_theirs, own)


BLOCKS: dict[str, Callable[[Shape, str], Case]] = {
    "nn.MultiheadAttention": attention,
    "nn.TransformerEncoderLayer": partial(encoder, stack=False),
    "nn.TransformerDecoderLayer": partial(decoder, stack=False),
    "nn.TransformerEncoder": encoder,
    "nn.TransformerDecoder": decoder,
    "nn.Transformer": encoder_decoder,
    "transformers.MarianMTModel": marian,
}
