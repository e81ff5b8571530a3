"""Solutions of the drills: one good way each, seldom the only one."""

import math
import re

import torch
from torch.nn import functional as F


def accuracy_and_f1(predictions, labels):
    accuracy = (predictions == labels).double().mean().item()
    hits = ((predictions == 1) & (labels == 1)).sum().item()
    claimed, real = (predictions == 1).sum().item(), (labels == 1).sum().item()
    return accuracy, 2 * hits / (claimed + real) if claimed + real else 0.0


def matthews_correlation(predictions, labels):
    cells = torch.bincount(2 * labels + predictions, minlength=4).tolist()
    true_no, false_yes, false_no, true_yes = cells  # Python's integers: no product overflows
    claims = (true_yes + false_yes) * (true_no + false_no)
    truths = (true_yes + false_no) * (true_no + false_yes)
    agreement = true_yes * true_no - false_yes * false_no
    return agreement / math.sqrt(claims * truths) if claims * truths else 0.0


def pearson_correlation(x, y):
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x.norm() * y.norm())).item()


def ranks_with_ties(x):
    _, group, sizes = x.unique(return_inverse=True, return_counts=True)
    last = sizes.cumsum(0)  # the rank of the last of each group
    return (last - (sizes - 1) / 2)[group].double()


def spearman_correlation(x, y):
    return pearson_correlation(ranks_with_ties(x), ranks_with_ties(y))


def encode_pair(first, second, cls_id, sep_id, max_seq_len):
    room = max_seq_len - 3
    if len(first) + len(second) > room:
        shorter = min(len(first), len(second), room // 2)
        longer = room - shorter
        a, b = (longer, shorter) if len(first) > len(second) else (shorter, longer)
        first, second = first[:a], second[:b]
    ids = [cls_id, *first, sep_id, *second, sep_id]
    return ids, [0] * (len(first) + 2) + [1] * (len(second) + 1)


def length_buckets(lengths, batch_size, pool_batches):
    rows, batches = batch_size * pool_batches, []
    for start in range(0, len(lengths), rows):
        pool = sorted(range(start, min(start + rows, len(lengths))), key=lengths.__getitem__)
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return batches


def pad_batch(rows, pad_id):
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(lengths.max()) < lengths[:, None]  # (B, T)
    ids = torch.full(mask.shape, pad_id)
    ids[mask] = torch.cat(rows)
    return ids, mask


def layer_rates(names, n_layers, rate, decay):
    def depth(name):
        if block := re.search(r"\.layer\.(\d+)\.", name):
            return 1 + int(block[1])
        return 0 if ".embeddings." in name else n_layers + 1

    return {name: rate * decay ** (n_layers + 1 - depth(name)) for name in names}


def bert_adam_step(weight, gradient, mean, square, learning_rate, betas, eps, weight_decay):
    mean.lerp_(gradient, 1 - betas[0])
    square.lerp_(gradient.square(), 1 - betas[1])
    weight -= learning_rate * (mean / (square.sqrt() + eps) + weight_decay * weight)


def sentence_vectors(hidden, attention_mask):
    real = attention_mask[..., None].to(hidden.dtype)  # (B, T, 1)
    mean = (hidden * real).sum(1) / real.sum(1)
    return F.normalize(mean, dim=-1)


def summary_of_seeds(scores, predictions):
    collapsed = (predictions == predictions[:, :1]).all(1).sum()
    return scores.mean().item(), scores.std().item(), collapsed.item()
