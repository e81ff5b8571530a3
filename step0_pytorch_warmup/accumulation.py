"""Gradient accumulation: one optimizer step out of several micro-batches, right and wrong.

The loss of a batch is a mean over its *targets*, L = (sum of l_i) / n. Cut into K micro-batches
with the sums s_j and n_j targets each, n = n_1 + ... + n_K, it is

    L = (s_1 + ... + s_K) / n      and not      (s_1/n_1 + ... + s_K/n_K) / K.

The second gives a target in micro-batch j the weight 1/(K n_j) in place of 1/n.

Every rule below makes one pass over `micro_batches`, each images (B, 64) and labels (B,), with a
step for each window of K of them; the last window may be short. A label of -100 is no target: as a
padding token, it is computed but not scored.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MicroBatch = tuple[Tensor, Tensor]
NO_TARGET = -100  # what F.cross_entropy ignores


def windows(micro_batches: list[MicroBatch], K: int) -> Iterator[list[MicroBatch]]:
    """K micro-batches at a time; the last time those that are left."""
    for start in range(0, len(micro_batches), K):
        yield micro_batches[start : start + K]


def big_batch(model: nn.Module, optimizer, micro_batches: list[MicroBatch], K: int) -> None:
    """What accumulation must equal: each window as one batch, if memory allows it."""
    for window in windows(micro_batches, K):
        images, labels = (torch.cat(parts) for parts in zip(*window, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def sums_and_counts(model: nn.Module, optimizer, micro_batches: list[MicroBatch], K: int) -> None:
    """Right: count the targets of the whole window first, then divide every sum by that count."""
    for window in windows(micro_batches, K):
        n = sum((labels != NO_TARGET).sum() for _, labels in window)
        if n == 0:
            continue  # nothing to learn from
        optimizer.zero_grad()
        for images, labels in window:
            loss = F.cross_entropy(model(images), labels, reduction="sum") / n
            loss.backward()  # frees this micro-batch's graph: memory is that of one
        optimizer.step()


def mean_of_means(model: nn.Module, optimizer, micro_batches: list[MicroBatch], K: int) -> None:
    """Wrong: each micro-batch divides by its own count; few targets weigh as much as many."""
    for window in windows(micro_batches, K):
        optimizer.zero_grad()
        for images, labels in window:
            loss = F.cross_entropy(model(images), labels) / len(window)
            loss.backward()
        optimizer.step()


def short_last_window(model: nn.Module, optimizer, micro_batches: list[MicroBatch], K: int) -> None:
    """Wrong: divides by K where fewer than K micro-batches are left, so the last step is short."""
    for window in windows(micro_batches, K):
        optimizer.zero_grad()
        for images, labels in window:
            loss = F.cross_entropy(model(images), labels) / K
            loss.backward()
        optimizer.step()


def step_on_the_first(model: nn.Module, optimizer, micro_batches: list[MicroBatch], K: int) -> None:
    """Wrong: i % K is 0 at i = 0, so the first step has seen one micro-batch.

    The windows that follow are shifted by one, and what comes after the last step is lost.
    """
    optimizer.zero_grad()
    for i, (images, labels) in enumerate(micro_batches):
        loss = F.cross_entropy(model(images), labels) / K
        loss.backward()
        if i % K == 0:  # right: (i + 1) % K, and at the last micro-batch
            optimizer.step()
            optimizer.zero_grad()
