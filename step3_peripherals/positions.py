"""Where is a token? Seven answers behind one interface.

Attention by itself is blind to order. A scheme can tell it at four places, each a hook that does
nothing in the first class below: the embeddings, queries and keys, the scores before the softmax,
and the values. The model calls every hook; a scheme writes the one or two that it needs.

Letters in shapes: B sentences, T tokens, d = d_model, h heads, d_k = d/h, W distances. A query
stands at i, a key at j, and j - i is the distance, which is negative for what came before.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step1_transformer.layers import sinusoids


class NoPositions(nn.Module):
    """Nothing. A causal decoder can still count what it may look at (Haviv et al. 2022,
    arXiv:2203.16634; "NoPE" of Kazemnejad et al. 2023, arXiv:2305.19466)."""

    per_layer = False  # whether each layer has its own, or all share one

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, causal: bool = True):
        super().__init__()
        self.d_model, self.n_heads, self.causal = d_model, n_heads, causal

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B, T, d) -> (B, T, d). Raises ValueError for more tokens than positions."""
        return x

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, h, T, d_k) -> the same shapes."""
        return q, k

    def scores(self, q: Tensor) -> Tensor | None:
        """What is added to q k^T / sqrt(d_k): for q (B, h, T, d_k), broadcastable to (B, h, T, T).

        Where a causal model must not look (j > i), any finite number may stand.
        """
        return None

    def values(self, weights: Tensor) -> Tensor | None:
        """What is added to weights @ v: for weights (B, h, T, T), (B, h, T, d_k)."""
        return None


class Sinusoidal(NoPositions):
    """x_i + PE(i), with PE(i, 2m) = sin(i / 10000^(2m/d)), PE(i, 2m+1) = cos(the same)
    (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""

    def embed(self, x: Tensor) -> Tensor:
        return x + _sinusoids(x.shape[1], self.d_model, x.device).to(x.dtype)


class Learned(NoPositions):
    """x_i + p_i, a vector learned for each of max_seq_len positions, and none for any other
    (Gehring et al. 2017, arXiv:1705.03122, section 3.1)."""

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, causal: bool = True):
        super().__init__(d_model, n_heads, max_seq_len, causal)
        self.table = nn.Parameter(torch.randn(max_seq_len, d_model) * d_model**-0.5)

    def embed(self, x: Tensor) -> Tensor:
        T, limit = x.shape[1], len(self.table)
        if limit < T:
            raise ValueError(f"a sequence of {T} tokens, but only {limit} positions were learned")
        return x + self.table[:T]


class Shaw(NoPositions):
    """A vector for each distance up to k, added to keys and to values (Shaw et al. 2018,
    arXiv:1803.02155, equations 3 and 4):

    e_ij = q_i (k_j + a^K_ij)^T / sqrt(d_k)        a^K_ij = w^K_clip(j - i, k)
    z_i  = sum_j alpha_ij (v_j + a^V_ij)           clip(x, k) = max(-k, min(k, x))

    The vectors are shared among heads, not among layers. No (T, T, d_k) tensor is built: queries
    meet each distance once (B, h, T, W), and `by_pair` shifts every row into place.
    """

    per_layer = True

    def __init__(
        self, d_model: int, n_heads: int, max_seq_len: int, causal: bool = True, k: int = 16
    ):
        super().__init__(d_model, n_heads, max_seq_len, causal)
        self.k, d_k = k, d_model // n_heads
        self.keys_table = nn.Parameter(torch.randn(2 * k + 1, d_k) * d_k**-0.5)
        self.values_table = nn.Parameter(torch.randn(2 * k + 1, d_k) * d_k**-0.5)

    def scores(self, q: Tensor) -> Tensor:
        a = self._vectors(self.keys_table, q.shape[-2])  # (W, d_k)
        return by_pair(q @ a.t()) / math.sqrt(q.shape[-1])

    def values(self, weights: Tensor) -> Tensor:
        a = self._vectors(self.values_table, weights.shape[-1])
        return by_distance(weights, len(a)) @ a

    def _vectors(self, table: Tensor, T: int) -> Tensor:
        return table[distances(T, self.causal, table.device).clamp(-self.k, self.k) + self.k]


class T5Buckets(NoPositions):
    """e_ij = q_i k_j^T / sqrt(d_k) + b_bucket(j - i), a number learned for each head and bucket of
    distances; all layers share them (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    T5 itself leaves out 1 / sqrt(d_k), and starts with smaller queries instead.
    """

    def __init__(
        self, d_model: int, n_heads: int, max_seq_len: int, causal: bool = True,
        n_buckets: int = 32, max_distance: int = 128,
    ):  # fmt: skip
        super().__init__(d_model, n_heads, max_seq_len, causal)
        self.n_buckets, self.max_distance = n_buckets, max_distance
        self.table = nn.Parameter(torch.randn(n_buckets, n_heads) * d_model**-0.5)

    def scores(self, q: Tensor) -> Tensor:
        T = q.shape[-2]
        bucket = t5_bucket(
            distances(T, self.causal, q.device), self.causal, self.n_buckets, self.max_distance
        )
        return by_pair(self.table[bucket].t()[:, None].expand(-1, T, -1))


class ALiBi(NoPositions):
    """e_ij = q_i k_j^T / sqrt(d_k) - m_h |j - i|, a fixed slope m_h for each head (Press et al.
    2022, arXiv:2108.12409, section 3): the farther, the fainter, at any length."""

    def scores(self, q: Tensor) -> Tensor:
        T = q.shape[-2]
        far = distances(T, self.causal, q.device).abs()
        penalty = alibi_slopes(self.n_heads).to(q.device)[:, None] * -far  # (h, W)
        return by_pair(penalty[:, None].expand(-1, T, -1))


class RoPE(NoPositions):
    """q and k are turned, pair of dimensions m by pair, by the angle i theta_m, with
    theta_m = 10000^(-2m/d_k): a turned q_i k_j^T depends on j - i alone (Su et al. 2021,
    arXiv:2104.09864, equations 13 to 16 and 34).

    The paper's pairs are neighbours, dimensions (2m, 2m+1): `interleaved`. Those of Llama in
    `transformers` are (m, m + d_k/2), the same but for the order of dimensions.
    """

    def __init__(
        self, d_model: int, n_heads: int, max_seq_len: int, causal: bool = True,
        base: float = 10000.0, interleaved: bool = False,
    ):  # fmt: skip
        super().__init__(d_model, n_heads, max_seq_len, causal)
        self.base, self.interleaved = base, interleaved
        if d_model // n_heads % 2:
            raise ValueError(f"RoPE turns pairs: {d_model // n_heads} dimensions a head are odd")

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = _turns(q.shape[-2], q.shape[-1], self.base, q.device)  # (T, d_k/2)

        def turn(x: Tensor) -> Tensor:
            a, b = (x[..., ::2], x[..., 1::2]) if self.interleaved else x.chunk(2, -1)
            turned = a * cos - b * sin, b * cos + a * sin
            return (
                torch.stack(turned, -1).flatten(-2) if self.interleaved else torch.cat(turned, -1)
            )

        return turn(q).to(q.dtype), turn(k).to(k.dtype)


SCHEMES: dict[str, type[NoPositions]] = {
    "none": NoPositions,
    "sinusoidal": Sinusoidal,
    "learned": Learned,
    "shaw": Shaw,
    "t5": T5Buckets,
    "alibi": ALiBi,
    "rope": RoPE,
}


def alibi_slopes(n_heads: int) -> Tensor:
    """(h,): 2^(-8/h), 2^(-16/h), ..., 2^-8. Where h is no power of two, those of the next lower
    power, then every other one of its double, as in the authors' code."""
    n = 2 ** int(math.log2(n_heads))
    halves = torch.arange(1, 2 * (n_heads - n) + 1, 2)
    return torch.cat((2.0 ** (-8 / n * torch.arange(1, n + 1)), 2.0 ** (-4 / n * halves)))


def t5_bucket(distance: Tensor, causal: bool, n_buckets: int, max_distance: int) -> Tensor:
    """The bucket of each distance j - i, a tensor of integers of any shape.

    Half of the buckets hold one distance each, the others ranges that grow as its logarithm up to
    max_distance; the last has all beyond. Not causal, what lies ahead has buckets of its own.
    """
    if causal:
        ahead, far = 0, (-distance).clamp(min=0)
    else:
        n_buckets //= 2
        ahead, far = n_buckets * (distance > 0), distance.abs()
    exact = n_buckets // 2
    growth = (far.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    wide = exact + (growth * (n_buckets - exact)).long()
    return ahead + torch.where(far < exact, far, wide.clamp(max=n_buckets - 1))


def distances(T: int, causal: bool, device: torch.device | None = None) -> Tensor:
    """(W,): all j - i of T tokens, 1-T, ..., 0 of a causal model, 1-T, ..., T-1 of any other; and
    one more, which belongs to no pair and gives `by_pair` the room to shift."""
    return torch.arange(1 - T, 2 if causal else T + 1, device=device)


def by_pair(x: Tensor) -> Tensor:
    """(..., T, W), by query and distance -> (..., T, T), by query and key: y_ij = x_i(j-i).

    Read with a stride of W-1 instead of W, each row begins one column earlier than the one above:
    just what j - i asks. A view of x, no copy. Causal, what stands at j > i means nothing.
    """
    T, W = x.shape[-2:]
    return x.flatten(-2)[..., T - 1 : -1].unflatten(-1, (T, W - 1))[..., :T]


def by_distance(weights: Tensor, W: int) -> Tensor:
    """The way back: (..., T, T) -> (..., T, W). Causal, weights must be 0 at j > i."""
    T = weights.shape[-1]
    rows = F.pad(weights, (0, W - 1 - T)).flatten(-2)
    return F.pad(rows, (T - 1, 1)).unflatten(-1, (T, W))


@lru_cache(16)
@torch.inference_mode(False)  # kept for a training that may follow
def _sinusoids(T: int, d_model: int, device: torch.device) -> Tensor:
    return sinusoids(T, d_model).to(device)


@lru_cache(16)
@torch.inference_mode(False)  # kept for a training that may follow
def _turns(T: int, d_k: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    theta = 1.0 / base ** (torch.arange(0, d_k, 2) / d_k)
    angle = (torch.arange(T)[:, None] * theta).to(device)
    return angle.cos(), angle.sin()
