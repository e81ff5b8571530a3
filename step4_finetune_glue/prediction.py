"""From batches to a loss, and from a split to the logits of all its rows."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import batching, engine, runs
from step4_finetune_glue import metrics
from step4_finetune_glue.encoding import Encoded
from step4_finetune_glue.tasks import Task

AT_ONCE = 128  # rows


def call(model: nn.Module, batch: engine.Batch) -> Tensor:
    """The logits (B, C) of a batch, in fp32."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return model(*(batch[name] for name in names)).float()


def losses(model: nn.Module, batch: engine.Batch) -> dict[str, Tensor]:
    """Sums over a batch, whose "labels" (B,) are int64 classes of the logits (B, C): cross-entropy
    in nats, and hits. Where they are float32 scores of logits (B, 1): squared errors."""
    logits, labels = call(model, batch), batch["labels"]
    if labels.is_floating_point():
        return {"label_loss": F.mse_loss(logits[:, 0], labels, reduction="sum")}
    return {
        "label_loss": F.cross_entropy(logits, labels, reduction="sum"),
        "label_accuracy": (logits.argmax(-1) == labels).sum(),
    }


def predict(model: nn.Module, rows: Encoded, accelerator=None) -> np.ndarray:
    """Logits (N, C), float32, of all rows in their order; dropout off, processes share the work."""
    order = batching.Batches(rows.lengths, batch_size=AT_ONCE, shuffle=False, drop_last=False)
    rank, world = 0, 1
    if accelerator is not None:
        rank, world = accelerator.process_index, accelerator.num_processes
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with torch.no_grad():
        found = [
            (at, call(model, engine.to_device(rows.batch(at), device)).cpu().numpy())
            for at in order.epoch(0)[rank::world]
        ]
    model.train(was_training)
    if world > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    order, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return logits[np.argsort(order)]


def scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The mean loss, and every metric of the task x100, of logits (N, C) and labels (N,).

    The loss is cross-entropy in nats, or for a regression, with logits (N, 1), the squared error.
    Raises UserError for no rows, and for a score that is not a number.
    """
    if task.kind == "regression":
        loss = float(np.mean((logits[:, 0] - labels) ** 2))
    else:
        wide = logits.astype(np.float64)
        likely = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
        loss = -float(np.mean(likely[np.arange(len(labels)), labels]))
    return {"label_loss": loss} | metrics.score(task, metrics.predictions(task, logits), labels)


def save(folder: Path, split: str, logits: np.ndarray, labels: np.ndarray | None) -> None:
    """Write predictions-<split>.npz: logits (N, C) float32, and labels (N,) unless secret."""
    arrays = {"logits": logits.astype(np.float32)} | ({} if labels is None else {"labels": labels})
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    runs.write_bytes(folder / f"predictions-{split}.npz", content.getvalue())
