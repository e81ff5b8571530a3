"""Solutions of the drills: one good way each, seldom the only one."""

from collections.abc import Callable

import torch
from torch import Tensor


def flatten_images(images):
    return images.flatten(1)


def channels_last(images):
    return images.permute(0, 2, 3, 1)


def center_rows(x):
    return x - x.mean(1, keepdim=True)


def pairwise_distances(x, y):
    return (x[:, None] - y[None]).square().sum(-1).sqrt()  # (N, 1, D) - (1, M, D)


def one_hot(labels, n_classes):
    return (labels[:, None] == torch.arange(n_classes)).float()


def pick(x, labels):
    return x.gather(1, labels[:, None]).squeeze(1)


def class_counts(labels, n_classes):
    return torch.zeros(n_classes, dtype=torch.long).index_add(0, labels, torch.ones_like(labels))


def class_means(x, labels, n_classes):
    sums = x.new_zeros(n_classes, x.shape[1]).index_add(0, labels, x)
    return sums / class_counts(labels, n_classes).clamp(min=1)[:, None]


def masked_mean(x, mask):
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def mask_from_lengths(lengths, T):
    return torch.arange(T) < lengths[:, None]


def lower_mask(T):
    return torch.ones(T, T, dtype=torch.bool).tril()


def pad(sequences, value):
    out = torch.full((len(sequences), max(map(len, sequences))), value)
    for row, sequence in zip(out, sequences, strict=True):
        row[: len(sequence)] = sequence
    return out


def packed_positions(lengths):
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)


def packed_mask(documents):
    T = len(documents)
    return (documents[:, None] == documents) & lower_mask(T)


def bilinear(x, w, y):
    return torch.einsum("bn,knm,bm->bk", x, w, y)


def to_heads(x, n_heads):
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def sliding_windows(x, size, stride):
    return x.unfold(0, size, stride)


def im2col(images, size):
    patches = images.unfold(2, size, 1).unfold(3, size, 1)  # (B, C, H', W', size, size)
    return patches.permute(0, 1, 4, 5, 2, 3).flatten(1, 3).flatten(2)


def logsumexp(x):
    largest = x.amax(-1, keepdim=True)
    return (x - largest).exp().sum(-1).log() + largest.squeeze(-1)


def masked_softmax(x, mask):
    x = x.masked_fill(~mask, -torch.inf)
    largest = x.amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).min)  # no -inf - -inf
    weights = (x - largest).exp()
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def normalize_rows(x, eps):
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()


def cross_entropy(logits, labels, ignore_index):
    counted = labels != ignore_index
    log_p = logits.log_softmax(-1).gather(1, labels.where(counted, 0)[:, None]).squeeze(1)
    return -(log_p * counted).sum() / counted.sum().clamp(min=1)


def mean_of_all(losses):
    return sum(part.sum() for part in losses) / sum(len(part) for part in losses)


def clip_gradients(gradients, max_norm):
    norm = sum(g.square().sum() for g in gradients).sqrt()
    for g in gradients:
        g.mul_((max_norm / norm).clamp(max=1))
    return norm


def sgd_step(weight, gradient, velocity, learning_rate, momentum):
    velocity.mul_(momentum).add_(gradient)
    weight.sub_(learning_rate * velocity)


def adam_step(weight, gradient, mean, square, step, learning_rate, betas, eps):
    mean.lerp_(gradient, 1 - betas[0])
    square.lerp_(gradient.square(), 1 - betas[1])
    mean_hat = mean / (1 - betas[0] ** step)
    square_hat = square / (1 - betas[1] ** step)
    weight.sub_(learning_rate * mean_hat / (square_hat.sqrt() + eps))


def sample_top_k(logits, k, u):
    best, tokens = logits.topk(k)  # (B, k), best first
    below = best.softmax(-1).cumsum(-1) <= u[:, None]
    return tokens.gather(1, below.sum(1, keepdim=True).clamp(max=k - 1)).squeeze(1)


def numerical_gradient(function: Callable[[Tensor], Tensor], x, h):
    out = torch.empty_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x)
        step.view(-1)[i] = h
        out.view(-1)[i] = (function(x + step) - function(x - step)) / (2 * h)
    return out


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.scale * gradient, None


def reverse_gradient(x, scale):
    return _Reverse.apply(x, scale)


def hessian_times(function: Callable[[Tensor], Tensor], x, v):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x, create_graph=True)
    return torch.autograd.grad(gradient @ v, x)[0]
