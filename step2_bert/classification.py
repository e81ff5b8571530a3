"""Classifying sentences: labelled rows, batches, loss and score, and baselines without a BERT."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from common import batching, data, engine
from common.cli import UserError


def sentences(name: str) -> tuple[list[tuple], list[tuple]]:
    """Rows (text, label) to train on and to test on. Raises UserError for other rows."""
    if Path(name).is_file():  # always the same tenth of it is kept for the test
        rows = data.labelled(name)
        order = np.random.default_rng(0).permutation(len(rows)).tolist()
        held = max(1, len(rows) // 10)
        train, test = [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]
    else:
        train, test = data.labelled(name, "train"), data.labelled(name, "test")
    for text, *_, label in train + test:
        if label < 0:
            raise UserError(f"{name}: labels are 0, 1, 2, ..., not {label} as that of {text!r}")
    if len({len(row) for row in train + test} - {2}) or not train:
        raise UserError(f"{name}: wants rows of one text and a label, at least two of them")
    if len({label for _, label in train}) < 2:
        raise UserError(f"{name}: all training rows have the label {train[0][1]}; give two classes")
    return train, test


class Encoded:
    """Tokenised sentences, ready to be cut into batches of near-equal length."""

    def __init__(self, tokenizer, rows: list[tuple[str, int]]):
        self.ids = [e.ids for e in tokenizer.encode_batch([text for text, _ in rows])]
        self.labels = [label for _, label in rows]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.pad_id = tokenizer.token_to_id("[PAD]")

    def batch(self, rows: np.ndarray) -> engine.Batch:
        """input_ids (B, T), attention_mask (B, T), labels (B,), T the longest of the rows."""
        width = int(self.lengths[rows].max())
        ids = np.full((len(rows), width), self.pad_id)
        for i, row in enumerate(rows):
            ids[i, : self.lengths[row]] = self.ids[row]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(np.arange(width) < self.lengths[rows, None]),
            "labels": torch.tensor([self.labels[row] for row in rows]),
            "targets": {"label": len(rows)},
            "tokens": int(self.lengths[rows].sum()),
        }


def losses(model: torch.nn.Module, batch: engine.Batch) -> dict[str, torch.Tensor]:
    """Summed cross-entropy and hits over a batch."""
    logits = model(batch["input_ids"], batch["attention_mask"]).float()
    return {
        "label_loss": F.cross_entropy(logits, batch["labels"], reduction="sum"),
        "label_accuracy": (logits.argmax(-1) == batch["labels"]).sum(),
    }


def score(model: torch.nn.Module, test: Encoded) -> dict[str, float]:
    """Mean loss and accuracy over all of `test`."""
    order = batching.Batches(test.lengths, batch_size=128, shuffle=False, drop_last=False)
    return engine.evaluate(model, (test.batch(rows) for rows in order.epoch(0)), losses)


def baselines(train: list[tuple[str, int]], test: list[tuple[str, int]]) -> dict[str, float]:
    """Test accuracy in % of the commonest class and of logistic regression on words and pairs of
    words, weighted by TF-IDF.

    Where no word is in two training texts, the second knows no more than the first.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (texts, labels), (test_texts, truth) = zip(*train, strict=True), zip(*test, strict=True)
    common = Counter(labels).most_common(1)[0][0]
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=10))
    majority = 100 * float(np.mean(np.array(truth) == common))
    try:
        bag = 100 * words.fit(texts, labels).score(test_texts, truth)
    except ValueError:  # an empty vocabulary
        bag = majority
    return {"majority_class": majority, "bag_of_words": bag}
