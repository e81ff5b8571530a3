"""The Transformer's building blocks (arXiv:1706.03762, sections 3.1, 3.3 and 3.5).

Letters in shapes: B sentences, T target tokens, S source tokens, d = d_model, h heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step1_transformer.attention import KINDS, KeyValues, MultiHeadAttention, drop
from step1_transformer.convert import copy_from_torch, layer_fields

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "swish": F.silu}


@dataclass(kw_only=True)
class LayerConfig:
    """What an encoder or decoder layer is made of; the defaults are the paper's base model."""

    d_model: int = 512
    n_heads: int = 8
    d_ff: int = 2048
    dropout: float = 0.1  # of what is added to the residual stream (section 5.4)
    attention_dropout: float = 0.1  # of attention weights; this and the next as in nn.Transformer
    ff_dropout: float = 0.1  # of the feed-forward layer's inside
    norm: str = "post"  # LayerNorm after the sum, as in the paper, or "pre", before the sublayer
    activation: str = "relu"
    layer_norm_eps: float = 1e-5
    attention: str = "auto"  # and norm: explicit, fused (PyTorch's kernels), or the faster

    def __post_init__(self):
        for name in ("d_model", "n_heads", "d_ff"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} {value} is not 1 or more")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        known_values = {"norm": ("post", "pre"), "activation": ACTIVATIONS, "attention": KINDS}
        for name, known in known_values.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(known)}")
        for name in ("dropout", "attention_dropout", "ff_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1)")


class Dropout(nn.Module):
    """`drop` in training, nothing in evaluation."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p) if self.training else x


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last dimension of x (..., d), the
    variance being the mean of the squares (Ba et al. 2016, arXiv:1607.06450, equation 4).
    """
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * weight + bias


class LayerNorm(nn.LayerNorm):
    """`layer_norm`, or PyTorch's kernel for it, with a weight and a bias (d,) to be learnt."""

    def __init__(self, config: LayerConfig):
        super().__init__(config.d_model, eps=config.layer_norm_eps)
        self.explicit = config.attention == "explicit"

    def forward(self, x: Tensor) -> Tensor:
        if self.explicit:
            return layer_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)


class FeedForward(nn.Module):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2 (equation 2); `up` is W_1, `down` W_2."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.ff_dropout)
        for linear in (self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))


class Residual(nn.Module):
    """A sublayer with its residual connection: LayerNorm(x + Sublayer(x)) (section 3.1).

    With norm="pre", x + Sublayer(LayerNorm(x)): nothing stands in the way of the gradient of x,
    so deep models train without warm-up; the last layer's output then wants a LayerNorm.
    """

    def __init__(self, sublayer: nn.Module, config: LayerConfig):
        super().__init__()
        self.sublayer = sublayer
        self.norm = LayerNorm(config)
        self.dropout = Dropout(config.dropout)
        self.pre = config.norm == "pre"

    def forward(self, x: Tensor, *context) -> Tensor:
        """x (B, T, d) -> (B, T, d); context goes to the sublayer as it is."""
        if self.pre:
            return x + self.dropout(self.sublayer(self.norm(x), *context))
        return self.norm(x + self.dropout(self.sublayer(x, *context)))


def residual_attention(config: LayerConfig) -> Residual:
    """Multi-head attention as a layer has it."""
    parts = (config.d_model, config.n_heads, config.attention_dropout, config.attention)
    return Residual(MultiHeadAttention(*parts), config)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward (figure 1, left)."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.self_attention = residual_attention(config)
        self.feed_forward = Residual(FeedForward(config), config)

    @classmethod
    def from_torch(cls, module: nn.TransformerEncoderLayer, **changes) -> "EncoderLayer":
        """A copy of PyTorch's layer; ValueError if it has a part that ours lacks."""
        config = LayerConfig(**layer_fields(module) | changes)
        return copy_from_torch(module, cls(config))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, S, d), mask broadcastable to (B, h, S, S) -> (B, S, d)."""
        return self.feed_forward(self.self_attention(x, None, mask))


@dataclass
class LayerCache:
    """What one decoder layer keeps from step to step."""

    target: KeyValues  # of the tokens written so far, for self-attention
    memory: KeyValues  # of the source sentence, for cross-attention


class DecoderLayer(nn.Module):
    """Self-attention to earlier tokens, attention to the memory, feed-forward (figure 1, right)."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.self_attention = residual_attention(config)
        self.cross_attention = residual_attention(config)
        self.feed_forward = Residual(FeedForward(config), config)

    @classmethod
    def from_torch(cls, module: nn.TransformerDecoderLayer, **changes) -> "DecoderLayer":
        """A copy of PyTorch's layer; ValueError if it has a part that ours lacks."""
        config = LayerConfig(**layer_fields(module) | changes)
        return copy_from_torch(module, cls(config))

    def start_cache(self, memory: Tensor) -> LayerCache:
        """No token yet, and the memory's keys and values."""
        return LayerCache(KeyValues(), self.cross_attention.sublayer.keys_values(memory))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T, d), memory (B, S, d), masks broadcastable to (B, h, T, T) and (B, h, T, S)
        -> (B, T, d). With a cache, x are the new tokens and memory is not looked at."""
        kept, memory = (cache.target, cache.memory) if cache else (None, memory)
        x = self.self_attention(x, None, mask, kept)
        x = self.cross_attention(x, memory, memory_mask)
        return self.feed_forward(x)


def sinusoids(n_positions: int, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(the same) (section 3.5); (n, d)"""
    pos = torch.arange(n_positions, dtype=torch.float64)[:, None]
    two_i = torch.arange(0, d_model, 2, dtype=torch.float64)
    angle = pos / 10000 ** (two_i / d_model)  # (n, d/2)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :d_model].float()
