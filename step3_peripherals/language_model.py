"""A small language model: the decoder of step 1 without a memory, and with a choice of positions.

Pre-norm, tied embeddings, otherwise "Attention is all you need" (arXiv:1706.03762). Letters in
shapes: B rows, T tokens, d = d_model, h heads, V = vocab_size, M predicted tokens of the batch.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step1_transformer.attention import MultiHeadAttention, drop
from step1_transformer.checkpoint import CheckpointFormat
from step1_transformer.layers import Dropout, FeedForward, LayerConfig, Residual
from step1_transformer.loss import LinearCrossEntropy
from step1_transformer.model import causal
from step3_peripherals.positions import SCHEMES, NoPositions

IGNORED = -100  # the label of a position that is not to be predicted


@dataclass(kw_only=True)
class LanguageModelConfig(LayerConfig):
    """ValueError for what cannot be built."""

    vocab_size: int = 4096
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int = 512
    max_seq_len: int = 128  # of the training; only learned positions end there
    positions: str = "rope"  # a name of positions.SCHEMES
    dropout: float = 0.0
    attention_dropout: float = 0.0
    ff_dropout: float = 0.0
    norm: str = "pre"
    activation: str = "gelu"

    def __post_init__(self):
        super().__post_init__()
        if self.n_layers < 1:
            raise ValueError(f"n_layers {self.n_layers} is not 1 or more")
        if self.positions not in SCHEMES:
            known = ", ".join(SCHEMES)
            raise ValueError(f"positions is {self.positions!r}, not one of {known}")
        if self.norm != "pre":
            raise ValueError(f"norm is {self.norm!r}: the language model is pre-norm only")


class CausalAttention(MultiHeadAttention):
    """Self-attention to what came before, with the three hooks of a position scheme inside."""

    def forward(self, x: Tensor, positions: NoPositions) -> Tensor:
        """x (B, T, d) -> (B, T, d)."""
        q, k, v = self._heads(self.qkv(x), 3)  # (B, h, T, d_k)
        q, k = positions.rotate(q, k)
        heads = self._causal(q, k, v, positions).transpose(1, 2)  # (B, T, h, d_k)
        return self.out(heads.flatten(2))

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, positions: NoPositions) -> Tensor:
        p, T = self.dropout if self.training else 0.0, q.shape[-2]
        added = positions.scores(q)  # (h, T, T), or (B, h, T, T) if it depends on q
        fused = self._fused(q, added, positions, p)
        if fused and added is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        bias = q.new_zeros(T, T) if added is None else added
        bias = bias.masked_fill(~causal(T, q.device), -math.inf)
        if fused:  # on CPU, a bias of three dimensions would get the slowest kernel
            bias = bias.to(q.dtype).reshape(-1, *bias.shape[-3:])
            return F.scaled_dot_product_attention(q, k, v, bias, p)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias  # (B, h, T, T)
        weights = drop(scores.softmax(-1), p).to(v.dtype)
        heads = weights @ v
        added = positions.values(weights)
        return heads if added is None else heads + added

    def _fused(self, q: Tensor, added: Tensor | None, positions: NoPositions, p: float) -> bool:
        """Whether PyTorch's kernel can do it, and (with "auto") is the faster way."""
        if type(positions).values is not NoPositions.values or self.kind == "explicit":
            return False
        slow = q.device.type == "cpu" and (p > 0 or q.dtype == torch.bfloat16)
        slow |= added is not None and added.requires_grad
        return self.kind == "fused" or not slow


class Layer(nn.Module):
    """x + Attention(LayerNorm(x)), then x + FFN(LayerNorm(x))."""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        parts = (config.d_model, config.n_heads, config.attention_dropout, config.attention)
        self.attention = Residual(CausalAttention(*parts), config)
        self.feed_forward = Residual(FeedForward(config), config)

    def forward(self, x: Tensor, positions: NoPositions) -> Tensor:
        """x (B, T, d) -> (B, T, d)."""
        return self.feed_forward(self.attention(x, positions))


class TokenLoss(NamedTuple):
    """Sums over the M tokens whose label is not ignored."""

    loss: Tensor  # -log p(label), in nats
    correct: Tensor  # labels that score best


class LanguageModel(CheckpointFormat, nn.Module):
    """Token ids to scores of the next token. Saved and loaded as step 1's models are."""

    config_class = LanguageModelConfig

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.config = config
        d, scheme = config.d_model, SCHEMES[config.positions]
        self.token = nn.Embedding(config.vocab_size, d)
        nn.init.normal_(self.token.weight, std=d**-0.5)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        # Last: with one seed, all that comes before starts alike whatever the scheme
        self.positions = nn.ModuleList(
            scheme(d, config.n_heads, config.max_seq_len)
            for _ in range(config.n_layers if scheme.per_layer else 1)
        )

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor | TokenLoss:
        """Scores (B, T, V) of the token that follows each of input_ids (B, T).

        Or, with labels (B, T), those tokens themselves (no shift is made here) and -100 where none
        is to be predicted, the summed loss, which never builds the scores of ignored positions.
        Raises ValueError for a row longer than learned positions go.
        """
        x = self.hidden(input_ids)
        if labels is None:
            return F.linear(x, self.token.weight)
        x, labels = x.flatten(0, 1), labels.flatten()
        wanted = labels != IGNORED
        if not wanted.all():
            x, labels = x[wanted], labels[wanted]  # (M, d), (M,)
        loss, _, correct = LinearCrossEntropy.apply(x, self.token.weight, None, labels, 0.0)
        return TokenLoss(loss, correct)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, d), after the last LayerNorm."""
        x = self.token(input_ids) * math.sqrt(self.config.d_model)
        x = self.dropout(self.positions[0].embed(x))
        for i, layer in enumerate(self.layers):
            x = layer(x, self.positions[i % len(self.positions)])
        return self.norm(x)
