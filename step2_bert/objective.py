"""What BERT is trained on: the sums of its two losses over a batch, and the held-out scores."""

import math

import numpy as np
import torch
from torch import nn

from common import batching, engine
from common.cli import UserError
from common.runs import metric, words
from step2_bert.samples import Samples


def losses(model: nn.Module, batch: engine.Batch) -> dict[str, torch.Tensor]:
    """Sums over a batch of `Samples.batch`: masked-LM loss (nats) and hits, and, where the samples
    are sentence pairs, next-sentence loss and hits (arXiv:1810.04805, section 3.1).

    The engine divides `mlm_*` by the number of masked positions and `nsp_*` by that of pairs.
    """
    pairs = batch["targets"].get("nsp")
    out = model(
        batch["input_ids"],
        batch["attention_mask"],
        batch["token_type_ids"],
        masked_positions=batch["masked_positions"],
        masked_labels=batch["masked_labels"],
        is_random_next=batch["is_random_next"] if pairs else None,
    )
    sums = {"mlm_loss": out.mlm_loss_sum, "mlm_accuracy": out.mlm_correct}
    if pairs:
        sums |= {"nsp_loss": out.nsp_loss_sum, "nsp_accuracy": out.nsp_correct}
    else:  # the head that is not trained still gets a gradient, zero, which DDP waits for
        sums["mlm_loss"] = sums["mlm_loss"] + 0 * out.nsp_logits.sum()
    return sums


def check_fit(model: nn.Module, samples: Samples, where: str) -> None:
    """Raises UserError when the samples' vocabulary or length is not the model's."""
    config = model.config
    if config.vocab_size != samples.vocab_size:
        raise UserError(
            f"{where} has a vocabulary of {config.vocab_size:,} tokens, {samples.directory} one of "
            f"{samples.vocab_size:,}: prepare the data with --vocab {where}"
        )
    if config.max_seq_len < samples.max_seq_len:
        raise UserError(
            f"{where} has {config.max_seq_len} positions, but samples in {samples.directory} have "
            f"up to {samples.max_seq_len} tokens: prepare them with --max-seq-len"
        )


def batch_of(samples: Samples, rows: np.ndarray, *, nsp: bool = True, **drawing) -> engine.Batch:
    """`Samples.batch`, without the second task unless `nsp`."""
    batch = samples.batch(rows, **drawing)
    if not nsp:
        batch["targets"]["nsp"] = 0
    return batch


def heldout_scores(
    model: nn.Module, samples: Samples, accelerator=None, *, nsp: bool = True
) -> dict[str, float]:
    """Means over the whole held-out split; its masks are fixed: all models see the same blanks."""
    rank = accelerator.process_index if accelerator else 0
    world = accelerator.num_processes if accelerator else 1
    order = batching.Batches(samples.lengths, batch_size=128, shuffle=False, drop_last=False)
    mine = (batch_of(samples, rows, nsp=nsp) for rows in order.epoch(0)[rank::world])
    return engine.evaluate(model, mine, losses, accelerator)


def metrics(scores: dict[str, float]) -> dict[str, dict]:
    """`heldout_scores` as metrics of a result, with the perplexity exp(loss) of masked tokens."""
    named = {"mlm_loss": metric(scores["mlm_loss"], unit="nats", higher_is_better=False)}
    named["mlm_perplexity"] = metric(math.exp(scores["mlm_loss"]), higher_is_better=False)
    for name in ("mlm_accuracy", "nsp_accuracy"):
        if name in scores:
            named[name] = metric(100 * scores[name], unit="%")
    return named


def baseline_metrics(train: Samples, samples: Samples) -> dict[str, dict]:
    """The metrics of knowing word frequencies only, and, for pairs, of always giving the commoner
    answer.

    Frequencies are those of the training tokens, each counted once more than seen.
    """
    counts = train.token_counts() + 1.0
    surprise, sums = -np.log(counts / counts.sum()), np.zeros(3)
    targets = {"mlm": 0, "nsp": 0}
    order = batching.Batches(samples.lengths, batch_size=1024, shuffle=False, drop_last=False)
    for rows in order.epoch(0):
        batch = samples.batch(rows)
        labels = batch["masked_labels"].numpy()
        hits = (labels == counts.argmax()).sum()
        sums += surprise[labels].sum(), hits, batch["is_random_next"].sum().item()
        targets = {name: n + batch["targets"][name] for name, n in targets.items()}
    scores = {"mlm_loss": sums[0] / targets["mlm"], "mlm_accuracy": sums[1] / targets["mlm"]}
    if targets["nsp"]:
        random = sums[2] / targets["nsp"]
        scores["nsp_accuracy"] = max(random, 1 - random)
    return metrics({name: float(score) for name, score in scores.items()})


def table(model: dict[str, dict], baseline: dict[str, dict], samples: Samples) -> str:
    """Two columns of metrics, for people."""
    lines = [f"{f'{len(samples):,} {samples.split} samples':28}{'this model':>12}{'baseline':>12}"]
    for name in model:
        unit = f" ({model[name]['unit']})" if model[name]["unit"] else ""
        values = "".join(f"{entry[name]['value']:12.3f}" for entry in (model, baseline))
        lines.append(f"{words(name) + unit:28}{values}")
    lines.append("baseline: word frequencies alone; for NSP, always the commoner answer")
    return "\n".join(lines)
