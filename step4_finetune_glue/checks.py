"""How each drill of this step is judged: its inputs, and its usual mistakes with their hints."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from step0_pytorch_warmup.checker import Drill
from step0_pytorch_warmup.checks import floats, ids
from step4_finetune_glue import solutions as s

CLS, SEP = 101, 102
A, B = list(range(1, 21)), list(range(31, 51))  # tokens of two texts
NAMES = [
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.LayerNorm.bias",
    "bert.encoder.layer.0.attention.self.query.weight",
    "bert.encoder.layer.1.output.dense.bias",
    "bert.encoder.layer.11.output.LayerNorm.weight",
    "bert.pooler.dense.weight",
    "classifier.bias",
]


def double(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.double)


# -- metrics ---------------------------------------------------------------------------------


def said(n: int, truth: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Predictions and labels of `n` rows, 70 % of them right and three in ten of class 1."""
    labels = (torch.rand(n) < 0.3).long() if truth is None else truth
    return torch.where(torch.rand(n) < 0.7, labels, 1 - labels), labels


def _f1(of):
    """accuracy_and_f1 with another second number: `of` TP, FP, FN."""

    def wrong(predictions, labels):
        hits = ((predictions == 1) & (labels == 1)).sum().item()
        false, missed = ((p == 1).sum().item() - hits for p in (predictions, labels))
        return s.accuracy_and_f1(predictions, labels)[0], of(hits, false, missed)

    return wrong


def _ratio(above, below):
    return above / below if below else 0.0


def _other_class(predictions, labels):
    return (
        s.accuracy_and_f1(predictions, labels)[0],
        s.accuracy_and_f1(1 - predictions, 1 - labels)[1],
    )


def _macro(predictions, labels):
    right, f1 = s.accuracy_and_f1(predictions, labels)
    return right, (f1 + _other_class(predictions, labels)[1]) / 2


def _cells(predictions, labels):
    """TN, FP, FN, TP as int64 tensors."""
    return torch.bincount(2 * labels + predictions, minlength=4)


def _in_64_bits(predictions, labels):
    tn, fp, fn, tp = _cells(predictions, labels)
    below = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).double().sqrt()
    return ((tp * tn - fp * fn) / below).item()


def _without_root(predictions, labels):
    tn, fp, fn, tp = _cells(predictions, labels).tolist()
    return _ratio(tp * tn - fp * fn, (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def _cosine(x, y):
    return (x @ y / (x.norm() * y.norm())).item()


def _covariance(x, y):
    return ((x - x.mean()) * (y - y.mean())).mean().item()


def _mixed(x, y):
    return _covariance(x, y) / (x.std() * y.std()).item()


def _one_pass(x, y):
    above = len(x) * (x @ y) - x.sum() * y.sum()
    parts = (len(z) * z.square().sum() - z.sum().square() for z in (x, y))
    return (above / math.prod(parts).clamp(min=0).sqrt()).item()


def _order(x):
    return x.argsort().double() + 1


def _no_ties(x):
    return x.argsort(stable=True).argsort().double() + 1


def _least_rank(x):
    return (x[:, None] > x).sum(1).double() + 1


def _greatest_rank(x):
    return (x[:, None] >= x).sum(1).double()


def _dense(x):
    return x.unique(return_inverse=True)[1].double() + 1


def _by_ranks(ranks):
    return lambda x, y: s.pearson_correlation(ranks(x), ranks(y))


def _shortcut(x, y):
    d, n = s.ranks_with_ties(x) - s.ranks_with_ties(y), len(x)
    return 1 - 6 * d.square().sum().item() / (n * (n * n - 1))


# -- inputs ----------------------------------------------------------------------------------


def _pair(cut, types=None):
    """encode_pair that cuts two texts otherwise, or numbers them so."""

    def wrong(first, second, cls_id, sep_id, max_seq_len):
        a, b = cut(first, second, max_seq_len - 3)
        found = [0] * (len(a) + 2) + [1] * (len(b) + 1) if types is None else types(a, b)
        return [cls_id, *a, sep_id, *b, sep_id], found

    return wrong


def _right_cut(a, b, room):
    found, types = s.encode_pair(a, b, CLS, SEP, room + 3)
    middle = types.count(0)
    return found[1 : middle - 1], found[middle:-1]


def _room_forgotten(first, second, cls_id, sep_id, max_seq_len):
    return s.encode_pair(first, second, cls_id, sep_id, max_seq_len + 3)


def _from_the_front(a, b, room):
    mirrored = _right_cut(a[::-1], b[::-1], room)
    return [side[::-1] for side in mirrored]


def _odd_to_first(a, b, room):
    second, first = _right_cut(b, a, room)
    return first, second


def _halves(a, b, room):
    if len(a) + len(b) <= room:
        return a, b
    return a[: room // 2], b[: room - room // 2]


def _as_it_comes(lengths, batch_size, pool_batches):
    n = len(lengths)
    return [list(range(i, min(i + batch_size, n))) for i in range(0, n, batch_size)]


def _pools_of_rows(lengths, batch_size, pool_batches):
    pool = max(1, pool_batches // batch_size)
    return s.length_buckets(lengths, batch_size, pool)


def _longest_first(lengths, batch_size, pool_batches):
    return s.length_buckets([-length for length in lengths], batch_size, pool_batches)


def _lengths_not_rows(lengths, batch_size, pool_batches):
    found = s.length_buckets(lengths, batch_size, pool_batches)
    return [[lengths[row] for row in batch] for batch in found]


def _places_in_pool(lengths, batch_size, pool_batches):
    found = s.length_buckets(lengths, batch_size, pool_batches)
    return [[row % (batch_size * pool_batches) for row in batch] for batch in found]


def _padded(left=False, width=None, mask=lambda ids, mask, pad_id: mask):
    """pad_batch that pads elsewhere, or makes another mask."""

    def wrong(rows, pad_id):
        turned = [row.flip(0) for row in rows] if left else rows
        found, real = s.pad_batch(turned, pad_id)
        if left:
            found, real = found.flip(1), real.flip(1)
        more = max(0, (width or 0) - found.shape[1])
        found, real = F.pad(found, (0, more), value=pad_id), F.pad(real, (0, more))
        return found, mask(found, real, pad_id)

    return wrong


# -- learning --------------------------------------------------------------------------------


def _rates(depth=lambda k, n: k, power=lambda k, n: n + 1 - k, digit=False):
    """layer_rates with other depths (0 embeddings, n + 1 the head) or powers of the decay."""

    def wrong(names, n_layers, rate, decay):
        found = {}
        for name in names:
            k = 0 if ".embeddings." in name else n_layers + 1
            if ".layer." in name:
                number = name.split(".layer.")[1].split(".")[0]
                k = 1 + int(number[0] if digit else number)
            found[name] = rate * decay ** power(depth(k, n_layers), n_layers)
        return found

    return wrong


def _adam(corrected=False, coupled=False, decay=True, eps_inside=False, square=True, swapped=False):
    """bert_adam_step with one thing done otherwise."""

    def wrong(w, gradient, mean, variance, learning_rate, betas, eps, weight_decay):
        gradient = gradient + weight_decay * w if coupled else gradient
        beta1, beta2 = betas[::-1] if swapped else betas
        mean.mul_(beta1).add_((1 - beta1) * gradient)
        variance.mul_(beta2).add_((1 - beta2) * (gradient.square() if square else gradient.abs()))
        m = mean / (1 - beta1) if corrected else mean
        v = variance / (1 - beta2) if corrected else variance
        root = (v + eps).sqrt() if eps_inside else v.sqrt() + eps
        scale = learning_rate if decay else 1.0
        w.sub_(learning_rate * m / root + (0.0 if coupled else scale * weight_decay * w))

    return wrong


def adam_case(started: bool) -> tuple:
    """With moments of earlier steps, or in the first one."""
    moments = (floats(6, scale=0.1), floats(6, scale=0.1).square()) if started else ()
    moments = moments or (torch.zeros(6), torch.zeros(6))
    return floats(6), floats(6), *moments, 0.1, (0.9, 0.99), 1e-2, 0.1


def _mean(hidden, attention_mask):
    real = attention_mask[..., None].to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1)


def _of_tokens(hidden, attention_mask):
    return F.normalize(_mean(F.normalize(hidden, dim=-1), attention_mask), dim=-1)


def seeds() -> tuple[Tensor, Tensor]:
    """Scores of five seeds, of which two say 1 of every row, and one 0."""
    predictions = ids(2, 5, 9)
    predictions[:, :2] = torch.tensor([0, 1])
    predictions[1], predictions[2], predictions[4] = 1, 1, 0
    return double(70.0, 52.0, 52.0, 68.0, 48.0), predictions


def _of_those_that_learned(scores, predictions):
    collapsed = (predictions == predictions[:, :1]).all(1)
    kept = scores[~collapsed]
    return kept.mean().item(), kept.std().item(), int(collapsed.sum())


def _summary(mean=lambda x: x.mean(), sd=lambda x: x.std(), collapsed=None):
    """summary_of_seeds with one number made otherwise."""

    def wrong(scores, predictions):
        _, _, n = s.summary_of_seeds(scores, predictions)
        n = collapsed(predictions) if collapsed else n
        return mean(scores).item(), sd(scores).item(), int(n)

    return wrong


DRILLS = [
    Drill(
        s.accuracy_and_f1,
        lambda: {
            "30 rows": said(30),
            "class 1 nowhere": (torch.zeros(4).long(), torch.zeros(4).long()),
            "all wrong": (torch.tensor([1, 0]), torch.tensor([0, 1])),
        },
        {
            "0 / 0 is 0 here": _f1(
                lambda tp, fp, fn: 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0
            ),
            "this is F1 of class 0": _other_class,
            "this is the mean of both classes' F1; GLUE asks for that of class 1": _macro,
            "F1 is no accuracy: right answers of class 0 do not count": (
                lambda p, y: s.accuracy_and_f1(p, y)[:1] * 2
            ),
            "this is the precision: what was missed counts too": _f1(
                lambda tp, fp, fn: _ratio(tp, tp + fp)
            ),
            "this is the recall: false alarms count too": _f1(
                lambda tp, fp, fn: _ratio(tp, tp + fn)
            ),
            "the harmonic mean of precision and recall, not the plain one": _f1(
                lambda tp, fp, fn: (_ratio(tp, tp + fp) + _ratio(tp, tp + fn)) / 2
            ),
            "F1 first: the accuracy is asked for first": (
                lambda p, y: s.accuracy_and_f1(p, y)[::-1]
            ),
        },
    ),
    Drill(
        s.matthews_correlation,
        lambda: {
            "40 rows": said(40),
            "one class predicted": (torch.ones(5).long(), torch.tensor([0, 1, 1, 0, 1])),
            "200,000 rows": said(200_000, torch.arange(200_000) % 2),
        },
        {
            "this is the accuracy": lambda p, y: s.accuracy_and_f1(p, y)[0],
            "the root is missing": _without_root,
            "a product of four sums is over 2^63: not in int64": (
                lambda p, y: _in_64_bits(p, y) if p.min() != p.max() else 0.0
            ),
        },
    ),
    Drill(
        s.pearson_correlation,
        lambda: {
            "20 rows": (floats(20).double(), floats(20).double() + 1),
            "constant": (double(3, 3, 3), double(1, 2, 4)),
            "near 10^8": (1e8 + floats(50).double(), 1e8 + floats(50).double()),
        },
        {
            "this is the cosine: subtract the means first": _cosine,
            "this is the covariance: divide by both standard deviations": _covariance,
            "over N above and over N - 1 below: the same in both, it cancels": _mixed,
            "this is r squared": lambda x, y: s.pearson_correlation(x, y) ** 2,
            "E[xy] - E[x] E[y] cancels far from 0: subtract the means first": (
                lambda x, y: 0.0 if x.min() == x.max() else _one_pass(x, y)
            ),
        },
    ),
    Drill(
        s.ranks_with_ties,
        lambda: {
            "no ties": (double(30, 10, 20, 50, 40),),
            "ties": (double(3, 1, 3, 2, 1, 3, 0),),
            "all equal": (double(7, 7),),
        },
        {
            "this is the order, which row comes first: a rank is asked for each row": _order,
            "ranks count from 1": lambda x: s.ranks_with_ties(x) - 1,
            "1 is for the smallest": lambda x: s.ranks_with_ties(-x),
            "right without ties: equal ones share the mean of their ranks": _no_ties,
            "equal ones share the mean of their ranks, not the least": _least_rank,
            "equal ones share the mean of their ranks, not the greatest": _greatest_rank,
            "equal ones take up as many ranks as they are: the next rank is not 1 more": _dense,
        },
    ),
    Drill(
        s.spearman_correlation,
        lambda: {
            "no ties": (double(1, 9, 3, 4, 27), double(2, 3, 8, 1, 90)),
            "ties": (double(3, 2, 2, 1, 3, 2), double(1, 3, 4, 2, 2, 5)),
        },
        {
            "this is Pearson's, of the values: take their ranks": s.pearson_correlation,
            "1 - 6 sum d^2 / (n (n^2 - 1)) holds without ties alone": _shortcut,
            "right without ties: equal ones share the mean of their ranks": _by_ranks(_no_ties),
            "argsort is the order, not the ranks": _by_ranks(_order),
        },
    ),
    Drill(
        s.encode_pair,
        lambda: {
            "it fits": (A[:3], B[:2], CLS, SEP, 8),
            "a long one": (A[:10], B[:3], CLS, SEP, 12),
            "both long": (A[:12], B[:9], CLS, SEP, 14),
            "equal, an odd room": (A[:9], B[:9], CLS, SEP, 14),
            "the second is longer": (A[:9], B[:15], CLS, SEP, 14),
        },
        {
            "the first [SEP] ends A: type 0": _pair(
                _right_cut, lambda a, b: [0] * (len(a) + 1) + [1] * (len(b) + 2)
            ),
            "B and its [SEP] have type 1": _pair(
                _right_cut, lambda a, b: [0] * (len(a) + len(b) + 3)
            ),
            "[CLS] and both [SEP] count in max_seq_len": _room_forgotten,
            "B alone is cut here; the longer one loses": _pair(
                lambda a, b, room: (a[:room], b[: max(0, room - len(a))])
            ),
            "A alone is cut here; the longer one loses": _pair(
                lambda a, b, room: (a[: max(0, room - len(b))], b[:room])
            ),
            "a text that fits in half of the room stays whole, and the other gets the rest": (
                _pair(_halves)
            ),
            "a text is cut at its end": _pair(_from_the_front),
            "of two equally long texts, the second gets the odd token": _pair(_odd_to_first),
        },
        loops=True,
    ),
    Drill(
        s.length_buckets,
        lambda: {
            "two pools": ([5, 3, 9, 3, 7, 1, 4, 8, 2, 6], 2, 3),
            "equal lengths": ([4, 4, 4, 4, 4], 2, 2),
            "one pool": ([3, 1, 2], 2, 50),
        },
        {
            "not sorted: rows of like length are to meet": _as_it_comes,
            "sorted as a whole: every epoch would have the same batches; sort within a pool": (
                lambda lengths, size, n: s.length_buckets(lengths, size, len(lengths))
            ),
            "a pool is so many batches, not rows": _pools_of_rows,
            "from short to long": _longest_first,
            "the numbers of the rows are asked for, not their lengths": _lengths_not_rows,
            "rows of a later pool: add where it starts": _places_in_pool,
            "the last rows are missing: a smaller batch": (
                lambda lengths, size, n: [
                    b for b in s.length_buckets(lengths, size, n) if len(b) == size
                ]
            ),
        },
        loops=True,
    ),
    Drill(
        s.pad_batch,
        lambda: {
            "three rows": ([1 + ids(9, 3), 1 + ids(9, 5), 1 + ids(9, 1)], 0),
            "a token like the pad": ([torch.tensor([4, 1, 6]), torch.tensor([1, 2])], 1),
        },
        {
            "from the left: the pads come after": _padded(left=True),
            "no longer than the longest row: pads cost as much as tokens": _padded(width=128),
            "the mask is True at tokens, not at pads": _padded(mask=lambda ids, mask, pad: ~mask),
            "a mask of bool": _padded(mask=lambda ids, mask, pad: mask.long()),
            "a token may have the pad's id: the mask comes from the lengths": (
                _padded(mask=lambda ids, mask, pad: ids != pad)
            ),
        },
        loops=True,
    ),
    Drill(
        s.layer_rates,
        lambda: {
            "12 layers": (NAMES, 12, 1e-3, 0.9),
            "2 layers": ([NAMES[0], *NAMES[2:4], *NAMES[5:]], 2, 3e-4, 0.5),
        },
        {
            "layer.11 is no layer.1: read the whole number": _rates(digit=True),
            "upside down: the embeddings learn slowest": _rates(power=lambda k, n: k),
            "the top block learns at rate * decay: only what is above at the rate itself": (
                _rates(power=lambda k, n: max(0, n - k))
            ),
            "the embeddings are one below the lowest block": (_rates(depth=lambda k, n: max(1, k))),
            "what is above the blocks learns at the full rate": (
                _rates(power=lambda k, n: n + 2 - k)
            ),
            "a power of the decay, not a multiple": (
                lambda names, n, rate, decay: {
                    name: rate * (1 - (1 - decay) * round(math.log(r / rate, decay)))
                    for name, r in s.layer_rates(names, n, rate, decay).items()
                }
            ),
        },
        loops=True,
    ),
    Drill(
        s.bert_adam_step,
        lambda: {"a later step": adam_case(True), "the first step": adam_case(False)},
        {
            "this corrects the bias, as for a first step: BERT's code does not": (
                _adam(corrected=True)
            ),
            "the decay acts on the weight alone, not through the gradient": _adam(coupled=True),
            "the decay is times the learning rate too": _adam(decay=False),
            "eps is added to the root, not under it": _adam(eps_inside=True),
            "the second average is of the gradient's square": _adam(square=False),
            "betas[0] is for the gradient, betas[1] for its square": _adam(swapped=True),
        },
        in_place=True,
    ),
    Drill(
        s.sentence_vectors,
        lambda: {
            "with pads": (floats(2, 4, 6, grad=True), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])),
            "one token": (floats(2, 3, 4), torch.tensor([[1, 0, 0], [1, 1, 1]])),
        },
        {
            "pads count: leave them out": (
                lambda hidden, mask: s.sentence_vectors(hidden, torch.ones_like(mask))
            ),
            "not divided by its norm": _mean,
            "this is [CLS]: take the mean of all tokens": (
                lambda hidden, mask: F.normalize(hidden[:, 0], dim=-1)
            ),
            "this is the maximum, not the mean": (
                lambda hidden, mask: F.normalize(
                    hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1), dim=-1
                )
            ),
            "the mean first, then its norm: tokens keep their lengths": _of_tokens,
        },
    ),
    Drill(
        s.summary_of_seeds,
        lambda: {"three of five collapsed": seeds()},
        {
            "this is the best seed: the mean is asked for": _summary(mean=lambda x: x.max()),
            "this is the median: the mean is asked for": _summary(mean=lambda x: x.median()),
            "over S - 1: the seeds are a sample": _summary(sd=lambda x: x.std(correction=0)),
            "this is the standard error of the mean": (
                _summary(sd=lambda x: x.std() / math.sqrt(len(x)))
            ),
            "this is the variance: take its root": _summary(sd=lambda x: x.var()),
            "collapsed seeds count in the mean": _of_those_that_learned,
            "a seed that says 1 of everything has collapsed too": (
                _summary(collapsed=lambda p: (p == 0).all(1).sum())
            ),
            "a seed that says 0 of everything has collapsed too": (
                _summary(collapsed=lambda p: (p == 1).all(1).sum())
            ),
        },
    ),
]
