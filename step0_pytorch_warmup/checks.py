"""How each drill of this step is judged: its inputs, and its usual mistakes with their hints."""

import torch
from torch import Tensor
from torch.nn import functional as F

from step0_pytorch_warmup import solutions as s
from step0_pytorch_warmup.checker import Drill


def floats(*shape: int, scale: float = 1.0, grad: bool = False) -> Tensor:
    return (scale * torch.randn(shape)).requires_grad_(grad)


def ids(n: int, *shape: int) -> Tensor:
    return torch.randint(n, shape)


def ragged(*lengths: int) -> list[Tensor]:
    return [floats(n) for n in lengths]


def _shared_by_counting(x, labels, n_classes):
    sums = x.new_zeros(n_classes, x.shape[1])
    sums[labels] += x
    return sums / s.class_counts(labels, n_classes).clamp(min=1)[:, None]


def _counted_once(labels, n_classes):
    counts = torch.zeros(n_classes, dtype=torch.long)
    counts[labels] += 1
    return counts


def _padded_left(sequences, value):
    flipped = [sequence.flip(0) for sequence in sequences]
    return s.pad(flipped, value).flip(1)


def _clip_each(gradients, max_norm):
    norm = sum(g.square().sum() for g in gradients).sqrt()
    for g in gradients:
        s.clip_gradients([g], max_norm)
    return norm


def _scale_always(gradients, max_norm):
    norm = sum(g.square().sum() for g in gradients).sqrt()
    for g in gradients:
        g.mul_(max_norm / norm)
    return norm


def _clip_copies(gradients, max_norm):
    return s.clip_gradients([g.clone() for g in gradients], max_norm)


def _clip_replaces(gradients, max_norm):
    norm = s.clip_gradients([g.clone() for g in gradients], max_norm)
    for i, g in enumerate(gradients):
        gradients[i] = g * (max_norm / norm).clamp(max=1)
    return norm


def _clip_returns_after(gradients, max_norm):
    return s.clip_gradients(gradients, max_norm).clamp(max=max_norm)


def _sgd_average(weight, gradient, velocity, learning_rate, momentum):
    velocity.mul_(momentum).add_((1 - momentum) * gradient)
    weight.sub_(learning_rate * velocity)


def _sgd_old_velocity(weight, gradient, velocity, learning_rate, momentum):
    weight.sub_(learning_rate * velocity)
    velocity.mul_(momentum).add_(gradient)


def _sgd_forgets(weight, gradient, velocity, learning_rate, momentum):
    weight.sub_(learning_rate * (momentum * velocity + gradient))


def _adam_uncorrected(weight, gradient, mean, square, step, learning_rate, betas, eps):
    s.adam_step(weight, gradient, mean, square, 10**6, learning_rate, betas, eps)


def _adam_eps_inside(weight, gradient, mean, square, step, learning_rate, betas, eps):
    mean.lerp_(gradient, 1 - betas[0])
    square.lerp_(gradient.square(), 1 - betas[1])
    corrected = square / (1 - betas[1] ** step)
    weight.sub_(learning_rate * mean / (1 - betas[0] ** step) / (corrected + eps).sqrt())


def _adam_from_zero(weight, gradient, mean, square, step, learning_rate, betas, eps):
    s.adam_step(weight, gradient, mean, square, step + 1, learning_rate, betas, eps)


def _one_sided(function, x, h):
    steps = h * torch.eye(len(x), dtype=x.dtype)
    return torch.stack([(function(x + step) - function(x)) / h for step in steps])


def _half_step(function, x, h):
    return 2 * s.numerical_gradient(function, x, h)


def _gradient_only(function, x, v):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x)[0] * v


def quartic(x: Tensor) -> Tensor:
    return (x**4).sum() + (x[:-1] * x[1:]).sum()


def optimizer_state(n: int) -> tuple[Tensor, ...]:
    return floats(n), floats(n), floats(n), floats(n).square()


MASK_ROW = torch.tensor([[True, False, True, True], [False, True, True, False]])
NO_ROW = torch.tensor([[True, False, True, True], [False, False, False, False]])

DRILLS = [
    Drill(
        s.flatten_images,
        lambda: {"images": (floats(4, 3, 5, 6),), "one image": (floats(1, 2, 2, 2),)},
        {
            "the batch is flattened too: keep the first dimension": lambda x: x.flatten(),
            "the pixels are in another order: H and W are the last, do not move C": (
                lambda x: x.permute(0, 2, 3, 1).flatten(1)
            ),
        },
    ),
    Drill(
        s.channels_last,
        lambda: {"images": (floats(2, 3, 5, 6),), "square": (floats(2, 4, 4, 4),)},
        {
            "reshape only cuts the same row of numbers anew; permute moves the axes": (
                lambda x: x.reshape(x.shape[0], x.shape[2], x.shape[3], x.shape[1])
            ),
            "height and width are exchanged": lambda x: x.transpose(1, 3),
        },
    ),
    Drill(
        s.center_rows,
        lambda: {"square": (floats(4, 4),), "3 rows of 5": (floats(3, 5),)},
        {
            "the means are subtracted along the wrong axis: keepdim=True keeps them a column": (
                lambda x: x - x.mean(1)
            ),
            "these are the means of columns": lambda x: x - x.mean(0),
            "this is one mean for all rows": lambda x: x - x.mean(),
        },
    ),
    Drill(
        s.pairwise_distances,
        lambda: {"5 to 3": (floats(5, 4), floats(3, 4)), "4 to 4": (floats(4, 2), floats(4, 2))},
        {
            "the square root is missing": lambda x, y: torch.cdist(x, y).square(),
            "this sums absolute differences, not squares": lambda x, y: torch.cdist(x, y, p=1),
        },
    ),
    Drill(
        s.one_hot,
        lambda: {"labels": (ids(4, 6), 4), "the last class is absent": (ids(3, 5), 5)},
        {
            "the number of classes is n_classes, not the largest label + 1": (
                lambda labels, n: F.one_hot(labels).float()
            ),
            "int64 where float32 is expected": lambda labels, n: F.one_hot(labels, n),
        },
    ),
    Drill(
        s.pick,
        lambda: {"6 rows": (floats(6, 4), ids(4, 6)), "square": (floats(4, 4), ids(4, 4))},
        {
            "x[:, labels] picks columns for every row: each row wants one index of its own": (
                lambda x, labels: x[:, labels]
            ),
            "the dimension of size 1 is left over": lambda x, labels: x.gather(1, labels[:, None]),
        },
    ),
    Drill(
        s.class_counts,
        lambda: {"labels": (ids(4, 20), 4), "the last class is absent": (ids(3, 9), 5)},
        {
            "counts[labels] += 1 adds once to an index that repeats: use index_add or bincount": (
                _counted_once
            ),
            "one count for each class: bincount wants minlength": (
                lambda labels, n: labels.bincount()
            ),
        },
    ),
    Drill(
        s.class_means,
        lambda: {
            "every class": (floats(20, 3), ids(4, 20), 4),
            "a class with no row": (floats(8, 2), ids(3, 8), 4),
        },
        {
            "sums[labels] += x keeps one row of an index that repeats: use index_add": (
                _shared_by_counting
            ),
            "these are sums: divide by the counts": (
                lambda x, y, n: x.new_zeros(n, x.shape[1]).index_add(0, y, x)
            ),
            "a class without rows divides 0 by 0: clamp the count": (
                lambda x, y, n: (
                    x.new_zeros(n, x.shape[1]).index_add(0, y, x) / y.bincount(minlength=n)[:, None]
                )
            ),
        },
    ),
    Drill(
        s.masked_mean,
        lambda: {
            "some masked": (floats(2, 4, 3), MASK_ROW),
            "a row with nothing to see": (floats(2, 4, 3), NO_ROW),
        },
        {
            "this is right without the mask": lambda x, mask: x.mean(1),
            "masked positions still count in the divisor": lambda x, mask: (
                x * mask[..., None]
            ).mean(1),
            "a row that is all False divides 0 by 0: clamp the count": lambda x, mask: (
                (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            ),
        },
    ),
    Drill(
        s.mask_from_lengths,
        lambda: {"lengths": (torch.tensor([2, 4, 1]), 5), "0 and T": (torch.tensor([0, 3]), 3)},
        {
            "one True too many: positions count from 0": (
                lambda lengths, T: torch.arange(T) <= lengths[:, None]
            ),
            "right but for the dtype: a mask is bool": (
                lambda lengths, T: (torch.arange(T) < lengths[:, None]).long()
            ),
            "T is an argument, not the longest length": (
                lambda lengths, T: torch.arange(int(lengths.max())) < lengths[:, None]
            ),
        },
    ),
    Drill(
        s.lower_mask,
        lambda: {"T = 4": (4,), "T = 1": (1,)},
        {
            "this shows what comes after: tril, not triu": (
                lambda T: torch.ones(T, T, dtype=torch.bool).triu()
            ),
            "a position may look at itself: keep the diagonal": (
                lambda T: torch.ones(T, T, dtype=torch.bool).tril(-1)
            ),
            "right but for the dtype: a mask is bool": lambda T: torch.ones(T, T).tril(),
        },
    ),
    Drill(
        s.pad,
        lambda: {
            "ragged": ([ids(9, 3), ids(9, 5), ids(9, 1)], -1),
            "an empty one": ([ids(9, 0), ids(9, 2)], 0),
        },
        {
            "padding goes behind, not in front": _padded_left,
            "the padding is 0, not `value`": lambda sequences, value: s.pad(sequences, 0),
        },
        loops=True,
    ),
    Drill(
        s.packed_positions,
        lambda: {
            "lengths": (torch.tensor([2, 3, 1]),),
            "an empty one": (torch.tensor([0, 4, 0, 2]),),
        },
        {
            "positions start again at 0 with each sequence": (
                lambda lengths: torch.arange(int(lengths.sum()))
            ),
            "these are the numbers of the sequences": (
                lambda lengths: torch.arange(len(lengths)).repeat_interleave(lengths)
            ),
        },
    ),
    Drill(
        s.packed_mask,
        lambda: {
            "three documents": (torch.tensor([0, 0, 1, 1, 1, 2]),),
            "one document": (torch.tensor([7, 7, 7]),),
        },
        {
            "right inside a document, but a token sees what comes after it": (
                lambda documents: documents[:, None] == documents
            ),
            "right without documents: a token sees its neighbour's text": (
                lambda documents: s.lower_mask(len(documents))
            ),
        },
    ),
    Drill(
        s.bilinear,
        lambda: {
            "shapes": (floats(5, 3), floats(2, 3, 4), floats(5, 4)),
            "square": (floats(3, 3), floats(3, 3, 3), floats(3, 3)),
        },
        {
            "x and y of different rows meet: b stands in both and in the result": (
                lambda x, w, y: torch.einsum("bn,knm,cm->bk", x, w, y)
            ),
            "w is transposed: x goes with its n, y with its m": (
                lambda x, w, y: torch.einsum(
                    "bn,kmn,bm->bk", x, w.reshape(len(w), w.shape[2], -1), y
                )
            ),
        },
    ),
    Drill(
        s.to_heads,
        lambda: {"2 heads": (floats(3, 5, 8), 2), "T = h": (floats(2, 4, 8), 4)},
        {
            "view(B, h, T, d) mixes positions and heads: split the last axis, then transpose": (
                lambda x, h: x.reshape(x.shape[0], h, x.shape[1], -1)
            ),
            "each head gets every h-th feature: d is the inner axis, h the outer": (
                lambda x, h: x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2)
            ),
        },
    ),
    Drill(
        s.sliding_windows,
        lambda: {
            "stride 2": (floats(9), 3, 2),
            "a rest that fits no window": (floats(8), 3, 3),
            "one window": (floats(4), 4, 1),
        },
        {
            "the last window is missing: n = (T - size) // stride + 1": (
                lambda x, size, stride: x.unfold(0, size, stride)[:-1]
            ),
            "the stride is ignored": lambda x, size, stride: x.unfold(0, size, 1),
        },
    ),
    Drill(
        s.im2col,
        lambda: {"3 x 3": (floats(2, 3, 5, 6), 3), "1 x 1": (floats(1, 4, 4, 4), 1)},
        {
            "within a column the channel comes first, then the row, then the place in the row": (
                lambda x, size: (
                    F.unfold(x, size).unflatten(1, (x.shape[1], -1)).transpose(1, 2).flatten(1, 2)
                )
            ),
            "the patches lie side by side: the stride is 1": (
                lambda x, size: F.unfold(x, size, stride=size)
            ),
        },
    ),
    Drill(
        s.logsumexp,
        lambda: {
            "small": (floats(3, 5, grad=True),),
            "near 1000": (1000 + floats(3, 5),),
            "near -1000": (-1000 + floats(3, 5),),
        },
        {
            "exp(1000) overflows: take the largest out first, add it back at the end": (
                lambda x: x.exp().sum(-1).log()
            ),
            "the largest that was taken out is not added back": (
                lambda x: (x - x.amax(-1, keepdim=True)).exp().sum(-1).log()
            ),
            "the largest of the batch is not each row's: a row far below it underflows": (
                lambda x: (x - x.max()).exp().sum(0).log() + x.max()
            ),
        },
    ),
    Drill(
        s.masked_softmax,
        lambda: {
            "some masked": (floats(2, 4, grad=True), MASK_ROW),
            "nothing masked": (floats(2, 4), torch.ones(2, 4, dtype=torch.bool)),
            "near 1000": (1000 + floats(2, 4), MASK_ROW),
            "a row with nothing to see": (floats(2, 4, grad=True), NO_ROW),
        },
        {
            "this is right without the mask": lambda x, mask: x.softmax(-1),
            "the rows no longer sum to 1: mask before the softmax": (
                lambda x, mask: x.softmax(-1) * mask
            ),
            "-inf in a whole row gives NaN: a row without True is all zeros": (
                lambda x, mask: x.masked_fill(~mask, -torch.inf).softmax(-1)
            ),
            "a row with nothing to see is shared out evenly: it should be all zeros": (
                lambda x, mask: x.masked_fill(~mask, torch.finfo(x.dtype).min).softmax(-1)
            ),
            "0 is an ordinary score: a masked one is -inf before the softmax": (
                lambda x, mask: (x * mask).softmax(-1)
            ),
        },
    ),
    Drill(
        s.normalize_rows,
        lambda: {
            "3 dimensions": (floats(2, 3, 6, grad=True), 1e-5),
            "a large eps": (floats(3, 4), 0.5),
            "a constant row": (torch.ones(2, 4), 1e-5),
        },
        {
            "the variance divides by D, not D - 1: unbiased=False": (
                lambda x, eps: (
                    (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt()
                )
            ),
            "eps stands under the root": (
                lambda x, eps: (
                    (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + eps)
                )
            ),
            "this divides by the variance: its root is missing": (
                lambda x, eps: (
                    (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps)
                )
            ),
        },
    ),
    Drill(
        s.cross_entropy,
        lambda: {
            "some ignored": (floats(5, 4, grad=True), torch.tensor([1, -100, 3, 0, -100]), -100),
            "a real class ignored": (floats(4, 3), torch.tensor([0, 2, 1, 0]), 0),
            "logits near 1000": (1000 * floats(3, 4), torch.tensor([1, 2, 3]), -100),
            "all ignored": (floats(2, 3), torch.tensor([-1, -1]), -1),
        },
        {
            "ignored labels still count in the divisor": (
                lambda x, y, ignore: F.cross_entropy(
                    x, y, ignore_index=ignore, reduction="none"
                ).mean()
            ),
            "this is the sum: divide by the labels that count": (
                lambda x, y, ignore: F.cross_entropy(x, y, ignore_index=ignore, reduction="sum")
            ),
            "no label counts: 0 / 0 is NaN, the mean is 0": (
                lambda x, y, ignore: F.cross_entropy(x, y, ignore_index=ignore)
            ),
            "log of a softmax that underflowed: log_softmax in one": (
                lambda x, y, ignore: F.nll_loss(x.softmax(-1).log(), y, ignore_index=ignore)
            ),
        },
    ),
    Drill(
        s.mean_of_all,
        lambda: {"ragged": (ragged(4, 4, 1),), "equal": (ragged(3, 3),)},
        {
            "a mean of means: the short micro-batch weighs too much; add sums and counts": (
                lambda losses: torch.stack([part.mean() for part in losses]).mean()
            ),
            "this divides by the number of micro-batches": (
                lambda losses: torch.cat(losses).sum() / len(losses)
            ),
        },
        loops=True,
    ),
    Drill(
        s.clip_gradients,
        lambda: {
            "too long": ([floats(3, 4), floats(5)], 1.0),
            "short enough": ([floats(3), floats(2)], 100.0),
        },
        {
            "each tensor is clipped on its own: the direction changes; take one norm of all": (
                _clip_each
            ),
            "short gradients are made longer: only ever scale down": _scale_always,
            "the gradients are unchanged: multiply in place (mul_)": _clip_copies,
            "the list holds new tensors and the old ones are as they were: multiply in place": (
                _clip_replaces
            ),
            "return the norm from before the clipping": _clip_returns_after,
        },
        loops=True,
        in_place=True,
    ),
    Drill(
        s.sgd_step,
        lambda: {
            "a later step": (floats(4), floats(4), floats(4), 0.1, 0.9),
            "no momentum": (floats(3), floats(3), floats(3), 0.5, 0.0),
        },
        {
            "the gradient enters whole, not times (1 - momentum)": _sgd_average,
            "the weight moves by the old velocity: update the velocity first": _sgd_old_velocity,
            "the velocity is forgotten: change it in place": _sgd_forgets,
        },
        in_place=True,
    ),
    Drill(
        s.adam_step,
        lambda: {
            "step 3": (*optimizer_state(4), 3, 0.1, (0.9, 0.999), 1e-8),
            "a large eps": (*optimizer_state(4), 5, 0.1, (0.8, 0.9), 0.5),
        },
        {
            "no bias correction: divide m by 1 - beta1^step, v by 1 - beta2^step": (
                _adam_uncorrected
            ),
            "eps is added to the root, not under it": _adam_eps_inside,
            "step counts from 1: the power is step, not step + 1": _adam_from_zero,
        },
        in_place=True,
    ),
    Drill(
        s.sample_top_k,
        lambda: {
            "k = 3": (floats(6, 8), 3, torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 0.99])),
            "k = 1": (floats(3, 5), 1, torch.tensor([0.1, 0.5, 0.9])),
            "all": (floats(4, 5), 5, torch.tensor([0.1, 0.4, 0.7, 0.95])),
        },
        {
            "these are places among the k best: look up which tokens they are": (
                lambda x, k, u: (
                    (x.topk(k).values.softmax(-1).cumsum(-1) <= u[:, None]).sum(1).clamp(max=k - 1)
                )
            ),
            "this always takes the best one": lambda x, k, u: x.argmax(-1),
            "right without k: the tail is sampled too": (
                lambda x, k, u: s.sample_top_k(x, x.shape[1], u)
            ),
        },
    ),
    Drill(
        s.numerical_gradient,
        lambda: {"a polynomial": (quartic, floats(4).double(), 1e-2)},
        {
            "one-sided: f(x + h) - f(x) errs by O(h), the central difference by O(h^2)": (
                _one_sided
            ),
            "the two points are 2h apart: divide by 2h": _half_step,
        },
        loops=True,
    ),
    Drill(
        s.reverse_gradient,
        lambda: {"scale 0.5": (floats(3, 4, grad=True), 0.5), "1": (floats(5, grad=True), 1.0)},
        {
            "the value changes too: forward gives x, only backward reverses": (
                lambda x, scale: -scale * x
            ),
            "the gradient is scaled but not reversed": (
                lambda x, scale: s.reverse_gradient(x, -scale)
            ),
            "the gradient passes as it is: write backward": lambda x, scale: x * 1,
        },
    ),
    Drill(
        s.hessian_times,
        lambda: {
            "a polynomial": (quartic, floats(5), floats(5)),
            "a wave": (lambda x: x.sin().sum() * x.cos().sum(), floats(3), floats(3)),
        },
        {
            "this is the gradient times v: differentiate gradient @ v once more": _gradient_only,
            "this is the sum of the Hessian's columns: v is not in it": (
                lambda f, x, v: s.hessian_times(f, x, torch.ones_like(v))
            ),
        },
    ),
]
