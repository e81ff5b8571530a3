"""Write the Transformer's parts yourself, in the order of the paper (arXiv:1706.03762).

    cp step1_transformer/drills.py my_blocks.py
    python my_blocks.py --check
    python my_blocks.py --check --only sinusoidal_positions

Eleven of these can stand in for the gym's own blocks in its parity tests:

    pytest tests/parity/test_blocks.py --mine my_blocks.py

Letters: B sentences, T and S target and source tokens, d = d_model, h heads, V vocabulary, k beams.
A mask is True where a query may look. Unless it says "may loop", a drill wants no Python loop.
"""

from collections.abc import Callable

from torch import Tensor

from common import cli
from step0_pytorch_warmup import checker
from step1_transformer import checks


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Equation 1: (B, h, T, d/h), twice (B, h, S, d/h), mask for (B, h, T, S) -> (B, h, T, d/h)."""
    raise NotImplementedError


def decoder_mask(attention_mask: Tensor) -> Tensor:
    """(B, T) bool, True at real tokens -> (B, 1, T, T) bool: i sees j if j <= i and j is real."""
    raise NotImplementedError


def multi_head_attention(
    query: Tensor, memory: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor,
    n_heads: int, mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """Section 3.2.2: query (B, T, d), memory (B, S, d) -> (B, T, d). May loop over q, k and v.

    w_in (3d, d) and b_in (3d,) hold W^Q, W^K, W^V below each other, out (d, d) and (d,) W^O; each
    acts as in nn.Linear, x W' + b. Head i takes the i-th d/h features.
    """
    raise NotImplementedError


def sinusoidal_positions(n_positions: int, d_model: int) -> Tensor:
    """Section 3.5 -> (n, d) float32: sine at even features, cosine at odd ones; d is even."""
    raise NotImplementedError


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(..., d), (d,), (d,) -> (..., d): (x - mean) / sqrt(variance + eps) * weight + bias."""
    raise NotImplementedError


def feed_forward(x: Tensor, w_1: Tensor, b_1: Tensor, w_2: Tensor, b_2: Tensor) -> Tensor:
    """Equation 2, weights as in nn.Linear: (B, T, d), (f, d), (f,), (d, f), (d,) -> (B, T, d)."""
    raise NotImplementedError


def residual(x: Tensor, sublayer: Callable, norm: Callable, order: str) -> Tensor:
    """(B, T, d) -> (B, T, d): norm after the sum (order "post", the paper), or before sublayer."""
    raise NotImplementedError


def embed(ids: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    """(B, T), (V, d), (n >= T, d) -> (B, T, d): scaled as in section 3.4, plus its position."""
    raise NotImplementedError


def shift_right(labels: Tensor, bos: int) -> Tensor:
    """(B, T) -> (B, T): what the decoder reads when it is to say `labels`; bos comes first."""
    raise NotImplementedError


def label_smoothing(logits: Tensor, labels: Tensor, smoothing: float, pad: int) -> Tensor:
    """(N, V), (N,) -> (): cross-entropy with (1 - smoothing) onehot + smoothing / V.

    The mean over the labels that are not pad.
    """
    raise NotImplementedError


def warmup_rate(step: int, d_model: int, warmup_steps: int) -> float:
    """Equation 3; step counts from 1."""
    raise NotImplementedError


def cached_attention(q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, Tensor]) -> tuple:
    """The newest token's q, k, v (B, h, 1, d/h), earlier keys and values (B, h, T, d/h).

    Returns its attention (B, h, 1, d/h), and the cache with T + 1 tokens. May loop over k and v.
    """
    raise NotImplementedError


def greedy_step(logits: Tensor, finished: Tensor, eos: int, pad: int) -> tuple[Tensor, Tensor]:
    """(B, V), (B,) bool -> the likeliest tokens (B,), pad after the end; finished (B,) by now."""
    raise NotImplementedError


def length_penalty(length: int, alpha: float) -> float:
    """lp = ((5 + length) / (5 + 1))^alpha (arXiv:1609.08144, equation 14)."""
    raise NotImplementedError


def beam_step(scores: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log P of k beams (k,), of each next token (k, V) -> the best k of all k*V, best first:

    their scores (k,), which beam they go on from (k,), and their new token (k,).
    """
    raise NotImplementedError


def beam_search(
    next_log_p: Callable[[Tensor], Tensor], bos: int, eos: int, beam_size: int, max_len: int,
    alpha: float
) -> list[int]:  # fmt: skip
    """The tokens, without bos, of the finished sentence with the best log P / lp(length). May loop.

    next_log_p takes n beginnings (n, T), bos first, to log P of their next token (n, V). At each
    length, of all continuations: among the best beam_size, those with eos (or max_len tokens) are
    finished; the best beam_size of those without eos go on. eos counts in the length and stays in
    the answer.
    """
    raise NotImplementedError


def average_checkpoints(checkpoints: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Section 6.1: the mean of each weight over checkpoints of the same names. May loop."""
    raise NotImplementedError


def ngram_matches(hypothesis: list[str], reference: list[str], n: int) -> tuple[int, int]:
    """How many n-grams of the hypothesis the reference has, and how many there are. May loop.

    An n-gram matches at most as often as the reference has it.
    """
    raise NotImplementedError


def brevity_penalty(hypothesis_length: int, reference_length: int) -> float:
    """1 if the hypothesis is longer, else exp(1 - reference / hypothesis); 0 for none at all."""
    raise NotImplementedError


def bleu(hypotheses: list[list[str]], references: list[list[str]]) -> float:
    """BLEU-4 of a corpus, 0 to 100 (Papineni et al. 2002), from words. May loop.

    100 x brevity penalty x geometric mean of the precisions for n = 1 to 4; counts and lengths are
    summed over the corpus first. 0 if some n has no match.
    """
    raise NotImplementedError


def main(config: checker.Config) -> None:
    checker.main(config, __file__, checks.DRILLS)


if __name__ == "__main__":
    cli.run(main, checker.Config, {})
