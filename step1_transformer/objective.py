"""What the Transformer is trained on: sums over a batch, and the scores of a held-out split."""

import math

import torch
from torch import nn

from common import batching, engine
from common.cli import UserError
from common.runs import metric, words
from step1_transformer import decoding
from step1_transformer.corpus import Corpus

EVALUATION_TOKENS = 4096  # in a batch, padding included


def losses(
    model: nn.Module, batch: engine.Batch, label_smoothing: float = 0.1
) -> dict[str, torch.Tensor]:
    """Sums over the M target tokens of a batch of `Corpus.batch`: the label-smoothed loss that is
    minimised (section 5.4), the negative log-likelihood (both in nats), and the hits."""
    sums = model(
        batch["input_ids"],
        batch["decoder_input_ids"],
        batch["attention_mask"],
        positions=batch["positions"],
        labels=batch["labels"],
        label_smoothing=label_smoothing,
    )
    return {"token_loss": sums.loss, "token_nll": sums.nll, "token_accuracy": sums.correct}


def check_fit(model: nn.Module, corpus: Corpus, where: str) -> None:
    """Raises UserError when the corpus's vocabulary or longest sentence is not the model's."""
    config = model.config
    if config.vocab_size != corpus.vocab_size:
        raise UserError(
            f"{where} has a vocabulary of {config.vocab_size:,} tokens, {corpus.folder} one of "
            f"{corpus.vocab_size:,}: they were not made for each other; "
            "give --data the directory that the model was trained on"
        )
    if config.max_seq_len < corpus.lengths.max():
        raise UserError(
            f"{where} has {config.max_seq_len} positions, but sentences in {corpus.folder} have up "
            f"to {corpus.lengths.max()} tokens: prepare them with --max-seq-len and --truncate"
        )


def heldout_scores(model: nn.Module, corpus: Corpus, accelerator=None) -> dict[str, float]:
    """Negative log-likelihood (nats) and accuracy of a token, over the whole split."""
    rank = accelerator.process_index if accelerator else 0
    world = accelerator.num_processes if accelerator else 1
    order = dict(max_tokens=EVALUATION_TOKENS, shuffle=False, drop_last=False)
    batches = batching.Batches(corpus.lengths, **order).epoch(0)
    mine = (corpus.batch(rows) for rows in batches[rank::world])
    means = engine.evaluate(model, mine, losses, accelerator)
    return {name: means[name] for name in ("token_nll", "token_accuracy")}


def no_better(evaluations: list[dict], patience: int | None) -> bool:
    """Whether the last `patience` evaluations all failed to lower the held-out likelihood loss."""
    nll = [event["heldout/token_nll"] for event in evaluations]
    return patience is not None and len(nll) - 1 - nll.index(min(nll)) >= patience


def exact(model: nn.Module, corpus: Corpus) -> float:
    """The share of sentences whose greedy translation is the target, to the last token."""
    was_training, hits = model.training, 0
    device = next(model.parameters()).device
    order = dict(max_tokens=EVALUATION_TOKENS, shuffle=False, drop_last=False)
    model.eval()
    for rows in batching.Batches(corpus.lengths, **order).epoch(0):
        batch = engine.to_device(corpus.batch(rows), device)
        written = decoding.greedy(model, batch["input_ids"], batch["attention_mask"])
        wanted = batch["labels"].split(corpus.target_lengths[rows].tolist())
        hits += sum(w == t.tolist()[:-1] for w, t in zip(written, wanted, strict=True))
    model.train(was_training)
    return hits / len(corpus)


def metrics(scores: dict[str, float], prefix: str = "") -> dict[str, dict]:
    """`heldout_scores` as metrics of a result; perplexity is exp(nll) of a token of BPE, </s>
    included, so only models of one vocabulary can be compared by it."""
    nll = scores["token_nll"]
    return {
        f"{prefix}nll": metric(nll, unit="nats", higher_is_better=False),
        f"{prefix}perplexity": metric(math.exp(nll), higher_is_better=False),
        f"{prefix}accuracy": metric(100 * scores["token_accuracy"], unit="%"),
    }


def table(metrics_of: dict[str, dict[str, dict]]) -> str:
    """A row for each of `metrics_of`, for people."""
    names = list(next(iter(metrics_of.values())))
    lines = [" " * 24 + "".join(f"{words(name):>14}" for name in names)]
    for row, entries in metrics_of.items():
        lines.append(f"{row:24}" + "".join(f"{entries[name]['value']:14.3f}" for name in names))
    return "\n".join(lines)
