"""Thirty drills: write the bodies, easy ones first. A copy of this file checks itself too.

    cp step0_pytorch_warmup/drills.py my_drills.py
    python my_drills.py --check
    python my_drills.py --check --only one_hot,pick

Letters: B batch, N and M rows, D features, C channels, T time, V classes. Unless it says "may loop"
or "in place", a drill wants no Python loop and leaves its inputs as they are.
"""

from collections.abc import Callable

from torch import Tensor

from common import cli
from step0_pytorch_warmup import checker, checks


def flatten_images(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C*H*W)"""
    raise NotImplementedError


def channels_last(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C): the pixel at [b, c, h, w] goes to [b, h, w, c]."""
    raise NotImplementedError


def center_rows(x: Tensor) -> Tensor:
    """(N, D) -> (N, D): each row minus its own mean."""
    raise NotImplementedError


def pairwise_distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M): the Euclidean distance of each row of x to each row of y."""
    raise NotImplementedError


def one_hot(labels: Tensor, n_classes: int) -> Tensor:
    """(N,) int64 -> (N, V) float32: 1 at the label, 0 elsewhere."""
    raise NotImplementedError


def pick(x: Tensor, labels: Tensor) -> Tensor:
    """(N, V), (N,) int64 -> (N,): x[i, labels[i]] of each row i."""
    raise NotImplementedError


def class_counts(labels: Tensor, n_classes: int) -> Tensor:
    """(N,) int64 -> (V,) int64: how often each label occurs."""
    raise NotImplementedError


def class_means(x: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(N, D), (N,) int64 -> (V, D): mean of the rows of each class; zeros for a class with none."""
    raise NotImplementedError


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D), (B, T) bool -> (B, D): mean over T where mask is True; zeros where it never is."""
    raise NotImplementedError


def mask_from_lengths(lengths: Tensor, T: int) -> Tensor:
    """(B,) int64 -> (B, T) bool: row b starts with lengths[b] times True."""
    raise NotImplementedError


def lower_mask(T: int) -> Tensor:
    """-> (T, T) bool: True at [i, j] where j <= i, as position i may look at itself and back."""
    raise NotImplementedError


def pad(sequences: list[Tensor], value: int) -> Tensor:
    """B times (T_b,) int64 -> (B, longest T_b): each from the left, then `value`. May loop."""
    raise NotImplementedError


def packed_positions(lengths: Tensor) -> Tensor:
    """(B,) int64 -> (sum of lengths,): the position in its own sequence; [2, 3] -> 0 1 0 1 2."""
    raise NotImplementedError


def packed_mask(documents: Tensor) -> Tensor:
    """(T,) int64, which document each token is of -> (T, T) bool: causal, inside one document."""
    raise NotImplementedError


def bilinear(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """(B, N), (K, N, M), (B, M) -> (B, K): out[b, k] = sum over n, m of x[b,n] w[k,n,m] y[b,m]."""
    raise NotImplementedError


def to_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, h*d) -> (B, h, T, d): head 0 gets the first d features of each position."""
    raise NotImplementedError


def sliding_windows(x: Tensor, size: int, stride: int) -> Tensor:
    """(T,) -> (n, size): every window that fits, `stride` apart, the first at 0."""
    raise NotImplementedError


def im2col(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C*size*size, L): the L size x size patches as columns, as F.unfold."""
    raise NotImplementedError


def logsumexp(x: Tensor) -> Tensor:
    """(B, V) -> (B,): log of the sum of exp(x), by hand; right for x near 1000 and -1000."""
    raise NotImplementedError


def masked_softmax(x: Tensor, mask: Tensor) -> Tensor:
    """(B, V), (B, V) bool -> (B, V): softmax over the True ones, 0 at the others; no NaN, ever."""
    raise NotImplementedError


def normalize_rows(x: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., D): layer norm without weights, (x - mean) / sqrt(variance + eps)."""
    raise NotImplementedError


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(N, V), (N,) int64 -> (): mean of -log p[label] over labels other than ignore_index, or 0."""
    raise NotImplementedError


def mean_of_all(losses: list[Tensor]) -> Tensor:
    """Micro-batches of (N_i,) losses, ragged -> (): their mean as in one big batch. May loop."""
    raise NotImplementedError


def clip_gradients(gradients: list[Tensor], max_norm: float) -> Tensor:
    """In place: scale all by one factor so that their joint 2-norm is max_norm at most. May loop.

    Returns the norm (), as it was before.
    """
    raise NotImplementedError


def sgd_step(weight: Tensor, gradient: Tensor, velocity: Tensor, learning_rate, momentum) -> None:
    """In place, all (D,): v <- momentum v + gradient, then weight <- weight - learning_rate v."""
    raise NotImplementedError


def adam_step(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, learning_rate: float,
    betas: tuple[float, float], eps: float
) -> None:  # fmt: skip
    """In place, all (D,): Adam (arXiv:1412.6980, algorithm 1); step counts from 1, eps by the root.

    mean and square are m and v, the running averages of the gradient and of its square.
    """
    raise NotImplementedError


def sample_top_k(logits: Tensor, k: int, u: Tensor) -> Tensor:
    """(B, V), u (B,) in [0, 1) -> (B,) int64: draw from the softmax over the k largest logits.

    Among these, best first: the first whose cumulative probability exceeds u.
    """
    raise NotImplementedError


def numerical_gradient(function: Callable[[Tensor], Tensor], x: Tensor, h: float) -> Tensor:
    """(D,) -> (D,): (f(x + h e_i) - f(x - h e_i)) / 2h for each unit vector e_i. May loop."""
    raise NotImplementedError


def reverse_gradient(x: Tensor, scale: float) -> Tensor:
    """(...) -> (...): x itself, but the gradient that passes back is times -scale."""
    raise NotImplementedError


def hessian_times(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """(D,), (D,) -> (D,): second derivatives of function, times v; no matrix is needed."""
    raise NotImplementedError


def main(config: checker.Config) -> None:
    checker.main(config, __file__, checks.DRILLS)


if __name__ == "__main__":
    cli.run(main, checker.Config, {})
