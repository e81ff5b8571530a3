"""Attention: "Attention is all you need", Vaswani et al. 2017, arXiv:1706.03762, section 3.2.

Letters in shapes: B sentences, T queries, S keys, d = d_model, h heads, d_k = d_v = d/h.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step1_transformer.convert import attention_fields, copy_from_torch

KINDS = ("auto", "explicit", "fused")


def drop(x: Tensor, p: float) -> Tensor:
    """Inverted dropout: zero with probability p (to 1/65536), the rest scaled to keep the mean.

    On the CPU, F.dropout spends more time on its random numbers than some layers on their matrix
    products; 16 random bits an element, four elements a draw, are four times cheaper.
    """
    if p == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    threshold = round(p * 2**16)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = bits.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - 2**15
    return x * keep.to(x.dtype).mul_(2**16 / (2**16 - threshold))


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)), (B, h, T, S): how much each query takes from each key.

    A query that may look at nothing looks at everything alike: a padded row stays finite.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, h, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V (equation 1).

    q (B, h, T, d_k), k (B, h, S, d_k), v (B, h, S, d_v), mask True where a query may look,
    broadcastable to (B, h, T, S) -> (B, h, T, d_v). Dropout, which the paper does not have here,
    acts on the weights, as in its authors' code and in PyTorch.
    """
    return drop(attention_weights(q, k, mask), dropout_p) @ v


class KeyValues:
    """Keys and values of S tokens, computed once and kept to be attended to many times.

    Of the source sentence they are fixed; of the decoder's own tokens they grow step by step, into
    a store (2, B, h, room, d/h) that doubles when it is full, so that most steps copy one token.
    """

    def __init__(self):
        self.length = 0  # S
        self.store: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Keep those of T more tokens, (B, h, T, d/h) each."""
        start, self.length = self.length, self.length + keys.shape[2]
        if self.store is None or self.length > self.store.shape[3]:
            B, h, _, d_k = keys.shape
            store = keys.new_empty(2, B, h, max(2 * start, self.length), d_k)
            if start:
                store[:, :, :, :start] = self.store[:, :, :, :start]
            self.store = store
        self.store[0, :, :, start : self.length] = keys
        self.store[1, :, :, start : self.length] = values

    def all(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, (B, h, S, d/h) each."""
        return self.store[:, :, :, : self.length].unbind()

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was; rows may be repeated or left out."""
        if self.store is not None:
            self.store = self.store.index_select(1, rows)


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1, ..., head_h) W^O (section 3.2.2),
    head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V).

    The W^Q of all heads side by side are one d x d matrix, and so are W^K and W^V; `qkv` stacks
    the three, so that self-attention takes one product, and attention to a memory two.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.0, attention: str = "auto"):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of n_heads {n_heads}")
        if attention not in KINDS:
            raise ValueError(f"attention is {attention!r}, not auto, explicit or fused")
        self.n_heads, self.dropout, self.kind = n_heads, dropout, attention
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.keep_weights = False
        self.weights: Tensor | None = None  # of the last call, (B, h, T, S), if keep_weights
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention, **changes) -> "MultiHeadAttention":
        """A copy of PyTorch's module; ValueError if it has a part that ours lacks."""
        return copy_from_torch(module, cls(**attention_fields(module) | changes))

    def forward(
        self,
        query: Tensor,
        memory: Tensor | KeyValues | None = None,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Each query (B, T, d) gathers from the memory (B, S, d), or from the query itself.

        memory may also be `keys_values` of one. mask is True where a query may look, broadcastable
        to (B, h, T, S). cache, for self-attention only, holds the tokens before these.
        """
        if memory is None:
            q, k, v = self._heads(self.qkv(query), 3)
            if cache is not None:
                cache.append(k, v)
                k, v = cache.all()
        else:
            d = query.shape[-1]
            w_q, w_kv = self.qkv.weight.split((d, 2 * d))
            b_q, b_kv = self.qkv.bias.split((d, 2 * d))
            (q,) = self._heads(F.linear(query, w_q, b_q), 1)
            if isinstance(memory, KeyValues):
                k, v = memory.all()
            else:
                k, v = self._heads(F.linear(memory, w_kv, b_kv), 2)
        heads = self._attend(q, k, v, mask).transpose(1, 2)  # (B, T, h, d/h)
        return self.out(heads.flatten(2))

    def keys_values(self, memory: Tensor) -> KeyValues:
        """The keys and values of a memory (B, S, d)."""
        d, kept = memory.shape[-1], KeyValues()
        kept.append(*self._heads(F.linear(memory, self.qkv.weight[d:], self.qkv.bias[d:]), 2))
        return kept

    def _heads(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        """(B, T, n d) -> n times (B, h, T, d/h)."""
        return x.unflatten(-1, (n, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        p = self.dropout if self.training else 0.0
        if self.keep_weights:
            self.weights = attention_weights(q, k, mask).detach()
        # PyTorch's fused kernel for the CPU is good at fp32 without dropout, and slow at all else.
        slow = q.device.type == "cpu" and (p > 0 or q.dtype == torch.bfloat16)
        explicit = slow if self.kind == "auto" else self.kind == "explicit"
        attend = scaled_dot_product if explicit else F.scaled_dot_product_attention
        return attend(q, k, v, mask, p)
