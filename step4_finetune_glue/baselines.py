"""What a task gives without a BERT: the commonest answer, and a linear model on words."""

import numpy as np

from step4_finetune_glue import metrics
from step4_finetune_glue.tasks import Rows

NAMES = ("majority", "bag_of_words")


def majority(train: Rows) -> int | float:
    """The commonest class of the training labels, the lower of two; for a regression their mean."""
    if train.task.kind == "regression":
        return float(train.labels.mean())
    return int(np.bincount(train.labels).argmax())


def bag_of_words(train: Rows, *others: Rows) -> list[np.ndarray]:
    """Predictions (N,) for each of `others` of logistic (ridge) regression on TF-IDF features.

    Words and word pairs; of two texts the features of both, what they share and differ in, and how
    far they overlap. Where no word is in two training texts, it answers the majority.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    try:
        words.fit(train.first + (train.second or []))
    except ValueError:  # an empty vocabulary
        return [np.full(len(rows), majority(train)) for rows in others]
    regression = train.task.kind == "regression"
    model = Ridge() if regression else LogisticRegression(C=3, max_iter=300)
    if regression or len(np.unique(train.labels)) > 1:
        model.fit(_features(words, train), train.labels)
        return [model.predict(_features(words, rows)) for rows in others]
    return [np.full(len(rows), majority(train)) for rows in others]


def score(train: Rows, *devs: Rows) -> list[dict[str, dict[str, float]]]:
    """For each of `devs`, the task's metrics x100 of both baselines, by their names."""
    commonest = majority(train)
    return [
        {
            "majority": metrics.score(dev.task, np.full(len(dev), commonest), dev.labels),
            "bag_of_words": metrics.score(dev.task, said, dev.labels),
        }
        for dev, said in zip(devs, bag_of_words(train, *devs), strict=True)
    ]


def _features(words, rows: Rows):
    """A sparse matrix (N, F)."""
    from scipy import sparse

    first = words.transform(rows.first)
    if rows.second is None:
        return first
    second = words.transform(rows.second)
    has = [matrix.astype(bool).astype(np.float32) for matrix in (first, second)]
    sizes = [np.asarray(matrix.sum(1)).ravel() for matrix in has]
    shared = np.asarray(has[0].multiply(has[1]).sum(1)).ravel()
    cosine = np.asarray(first.multiply(second).sum(1)).ravel()
    overlap = [cosine, *(shared / np.maximum(size, 1) for size in sizes)]
    parts = [first, second, first.multiply(second), abs(first - second), np.stack(overlap, 1)]
    return sparse.hstack(parts, format="csr")
