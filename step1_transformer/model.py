"""The Transformer: "Attention is all you need", Vaswani et al. 2017, arXiv:1706.03762.

`attention.py` and `layers.py` have the blocks; here they become an encoder, a decoder, and the
whole model, from token ids to scores. Letters in shapes: B sentences, S source tokens, T target
tokens, d = d_model, h heads, V = vocab_size, M real target tokens of the whole batch.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step1_transformer.checkpoint import CheckpointFormat
from step1_transformer.convert import copy_from_torch, layer_fields
from step1_transformer.layers import (
    DecoderLayer,
    Dropout,
    EncoderLayer,
    LayerCache,
    LayerConfig,
    LayerNorm,
    sinusoids,
)
from step1_transformer.loss import LinearCrossEntropy

SIZES = {  # base and big: table 3 of the paper; the others fit the data that fits a small machine
    "tiny": dict(n_layers=2, d_model=128, n_heads=4, d_ff=512),
    "small": dict(n_layers=3, d_model=256, n_heads=8, d_ff=1024),
    "base": dict(n_layers=6, d_model=512, n_heads=8, d_ff=2048),
    "big": dict(
        n_layers=6, d_model=1024, n_heads=16, d_ff=4096,
        dropout=0.3, attention_dropout=0.3, ff_dropout=0.3,
    ),
}  # fmt: skip


@dataclass(kw_only=True)
class TransformerConfig(LayerConfig):
    """The whole model's; ValueError for what cannot be built."""

    vocab_size: int = 37000
    n_encoder_layers: int = 6
    n_decoder_layers: int = 6
    max_seq_len: int = 256
    positions: str = "sinusoidal"  # or "learned", row (E) of the paper's table 3
    final_norm: bool | None = None  # after the last layer; None: with norm="pre" only
    scale_embedding: bool = True  # by sqrt(d) (section 3.4)
    output_bias: bool = False
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.positions not in ("sinusoidal", "learned"):
            raise ValueError(f"positions is {self.positions!r}, not sinusoidal or learned")
        for name in ("n_encoder_layers", "n_decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not 1 or more")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} is outside the vocabulary")
        if self.final_norm is None:
            self.final_norm = self.norm == "pre"

    @classmethod
    def named(cls, size: str, **overrides) -> "TransformerConfig":
        """The config of a size: tiny, small, base or big."""
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
        shape = dict(SIZES[size])
        n_layers = shape.pop("n_layers")
        layers = {"n_encoder_layers": n_layers, "n_decoder_layers": n_layers}
        return cls(**{**shape, **layers, **overrides})


class Embedding(nn.Module):
    """Tokens and positions to vectors, and vectors to scores of tokens, with one V x d matrix for
    source, target and output (section 3.4)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d = config.d_model
        self.scale = math.sqrt(d) if config.scale_embedding else 1.0
        self.token = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.output_bias else None
        self.dropout = Dropout(config.dropout)
        if config.positions == "learned":
            self.position = nn.Parameter(torch.randn(config.max_seq_len, d) * d**-0.5)
        else:
            self.register_buffer("position", sinusoids(config.max_seq_len, d), persistent=False)
        # Scaled, a token is about as large as its position; as output weights, scores start small.
        nn.init.normal_(self.token.weight, std=d**-0.5)
        with torch.no_grad():
            self.token.weight[config.pad_token_id].zero_()

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """ids (B, T) of tokens at positions start, start + 1, ... -> (B, T, d).

        Raises ValueError for more tokens than positions.
        """
        end, limit = start + ids.shape[1], len(self.position)
        if end > limit:
            raise ValueError(
                f"a sequence of {end} tokens, but the model has only {limit} positions"
            )
        return self.dropout(self.token(ids) * self.scale + self.position[start:end])

    def logits(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., V)."""
        return F.linear(x, self.token.weight, self.bias)


def final_norm(config: TransformerConfig) -> nn.Module:
    """The LayerNorm after a stack, or nothing."""
    return LayerNorm(config) if config.final_norm else nn.Identity()


class Encoder(nn.Module):
    """A stack of n_encoder_layers (section 3.1)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.norm = final_norm(config)

    @classmethod
    def from_torch(cls, module: nn.TransformerEncoder, **changes) -> "Encoder":
        """A copy of PyTorch's stack; ValueError if it has a part that ours lacks."""
        return copy_from_torch(module, cls(TransformerConfig(**stack_fields(module) | changes)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, S, d), mask True where a query may look, broadcastable to (B, h, S, S)."""
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class Decoder(nn.Module):
    """A stack of n_decoder_layers (section 3.1)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        self.norm = final_norm(config)

    @classmethod
    def from_torch(cls, module: nn.TransformerDecoder, **changes) -> "Decoder":
        """A copy of PyTorch's stack; ValueError if it has a part that ours lacks."""
        return copy_from_torch(module, cls(TransformerConfig(**stack_fields(module) | changes)))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: "Cache | None" = None,
    ) -> Tensor:
        """x (B, T, d), memory (B, S, d), masks True where a query may look, broadcastable to
        (B, h, T, T) and (B, h, T, S). The causal mask is the caller's: see `causal`."""
        for i, layer in enumerate(self.layers):
            x = layer(x, memory, mask, memory_mask, cache and cache.layers[i])
        return self.norm(x)


def stack_fields(stack: nn.TransformerEncoder | nn.TransformerDecoder) -> dict:
    """The fields of our config that a stack of PyTorch's determines."""
    n = {"n_encoder_layers": len(stack.layers), "n_decoder_layers": len(stack.layers)}
    return {**layer_fields(stack.layers[0]), **n, "final_norm": stack.norm is not None}


def causal(T: int, device: torch.device | None = None) -> Tensor:
    """(T, T), True where a query may look: at itself and at what is before it (section 3.2.3)."""
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


class EncoderDecoder(nn.Module):
    """Figure 1 of the paper between the embeddings and the output: all of nn.Transformer."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @classmethod
    def from_torch(cls, module: nn.Transformer, **changes) -> "EncoderDecoder":
        """A copy of PyTorch's model; ValueError if it has a part that ours lacks."""
        return copy_from_torch(module, cls(TransformerConfig(**model_fields(module) | changes)))

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """source (B, S, d), target (B, T, d) -> (B, T, d); masks as in Encoder and Decoder."""
        return self.decoder(target, self.encoder(source, source_mask), target_mask, memory_mask)


def model_fields(module: nn.Transformer) -> dict:
    """The same of both stacks."""
    return stack_fields(module.encoder) | {"n_decoder_layers": len(module.decoder.layers)}


@dataclass
class Cache:
    """What decoding one token at a time need not compute again.

    attention_mask (B, S), or None: True at the source's real tokens.
    """

    layers: list[LayerCache]
    attention_mask: Tensor | None = None

    @property
    def length(self) -> int:
        """Target tokens so far."""
        return self.layers[0].target.length

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was: a beam's survivors, or the unfinished sentences."""
        for layer in self.layers:
            layer.target.reorder(rows)
            layer.memory.reorder(rows)
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[rows]


class TokenLoss(NamedTuple):
    """Sums over M target tokens."""

    loss: Tensor  # label-smoothed cross-entropy, to be minimised (nats)
    nll: Tensor  # -log p(label) (nats), without a gradient
    correct: Tensor  # labels that score best


class Transformer(CheckpointFormat, nn.Module):
    """Token ids to scores of the next target token; one joint vocabulary."""

    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @classmethod
    def from_torch(
        cls,
        module: nn.Transformer,
        embedding: nn.Embedding | None = None,
        output: nn.Linear | None = None,
        **changes,
    ) -> "Transformer":
        """A copy of PyTorch's model, between an embedding and an output layer tied to it.

        Without an embedding it gets a new one, of `vocab_size=` tokens. Raises ValueError if the
        output's matrix is another, or a part is one that ours lacks.
        """
        bias = None if output is None else output.bias
        fields = model_fields(module) | {"output_bias": bias is not None}
        if embedding is not None:
            fields["vocab_size"] = embedding.num_embeddings
        ours = cls(cls.config_class(**fields | changes))
        embedding = embedding or ours.embedding.token
        if output is not None and not torch.equal(output.weight, embedding.weight):
            raise ValueError("the output layer has another matrix than the embedding")
        copy_from_torch(module.encoder, ours.encoder)
        copy_from_torch(module.decoder, ours.decoder)
        with torch.no_grad():
            ours.embedding.to(embedding.weight).token.weight.copy_(embedding.weight)
            if bias is not None:
                ours.embedding.bias.copy_(bias)
        return ours.train(module.training)

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        label_smoothing: float = 0.1,
    ) -> Tensor | TokenLoss:
        """Scores (B, T, V) of the token after each of decoder_input_ids (B, T), which sees only
        those before it, given input_ids (B, S); masks (B, S) and (B, T) are True at real tokens.

        Or, with positions (M,), flat indices into B*T, and their labels (M,), the loss there,
        which never builds (B, T, V).
        """
        memory = self.encode(input_ids, attention_mask)
        x = self.decode(
            decoder_input_ids, memory, attention_mask,
            decoder_attention_mask=decoder_attention_mask,
        )  # fmt: skip
        if positions is None:
            return self.logits(x)
        x, output = x.flatten(0, 1)[positions], self.embedding  # (M, d)
        return TokenLoss(
            *LinearCrossEntropy.apply(x, output.token.weight, output.bias, labels, label_smoothing)
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The memory (B, S, d) of source tokens (B, S)."""
        return self.encoder(self.embedding(input_ids), for_all_queries(attention_mask))

    def decode(
        self,
        decoder_input_ids: Tensor,
        memory: Tensor | None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        *,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The hidden states (B, T, d) of target tokens (B, T), given the memory (B, S, d).

        With a cache, the tokens are those that come after the ones it has seen, memory is not
        looked at, and attention_mask is the cache's unless given.
        """
        T, start = decoder_input_ids.shape[1], 0
        if cache is not None:
            start = cache.length
            attention_mask = cache.attention_mask if attention_mask is None else attention_mask
        # A single token may look at all there is.
        mask = causal(start + T, decoder_input_ids.device)[start:] if T > 1 else None
        if decoder_attention_mask is not None:
            real = for_all_queries(decoder_attention_mask)
            mask = real if mask is None else mask & real
        x = self.embedding(decoder_input_ids, start)
        return self.decoder(x, memory, mask, for_all_queries(attention_mask), cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., V) from hidden states (..., d)."""
        return self.embedding.logits(hidden)

    def start_cache(self, memory: Tensor, attention_mask: Tensor | None = None) -> Cache:
        """An empty cache for decoding the sentences of memory (B, S, d), with its mask (B, S)."""
        return Cache([layer.start_cache(memory) for layer in self.decoder.layers], attention_mask)


def for_all_queries(attention_mask: Tensor | None) -> Tensor | None:
    """(B, S) -> (B, 1, 1, S): the same for every head and query."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None]
