"""The metrics of GLUE in NumPy, and when a run has collapsed.

Each takes predictions and labels of shape (N,) and gives a fraction; `score` gives them x100, as
GLUE reports them. Where a metric is 0/0, as with constant predictions, it is 0 here: a model that
says the same of everything knows nothing. (scikit-learn does so too; scipy's correlations are NaN.)
"""

from typing import TYPE_CHECKING

import numpy as np

from common.cli import UserError

if TYPE_CHECKING:
    from step4_finetune_glue.tasks import Task


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of predictions that are right."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1: 2 TP / (2 TP + FP + FN)."""
    hits = np.sum((predictions == 1) & (labels == 1))
    return _ratio(2 * hits, np.sum(predictions == 1) + np.sum(labels == 1))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation; with more than two classes, R_K of Gorodkin (2004).

    With N rows, c of them right, p_k predicted and t_k true members of class k:
    (c N - sum_k p_k t_k) / sqrt((N^2 - sum_k p_k^2) (N^2 - sum_k t_k^2)).
    """
    n_classes = 1 + int(max(predictions.max(), labels.max()))
    n, right = len(labels), int(np.sum(predictions == labels))
    # Python's integers: N^4 is too large for 64 bits from 55,000 rows on
    p = [int(count) for count in np.bincount(predictions, minlength=n_classes)]
    t = [int(count) for count in np.bincount(labels, minlength=n_classes)]
    covariance = right * n - sum(a * b for a, b in zip(p, t, strict=True))
    spread = (n * n - sum(a * a for a in p)) * (n * n - sum(b * b for b in t))
    return _ratio(covariance, spread**0.5)


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Covariance over the product of the standard deviations."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if x.min() == x.max() or y.min() == y.max():  # their mean may be off by a rounding
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # or squares of tiny numbers vanish
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1, 1))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson correlation of the ranks."""
    return pearson(ranks(predictions), ranks(labels))


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest of (N,) values; those that tie share the mean of their ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes - 1) / 2)[group]


METRICS = {m.__name__: m for m in (accuracy, f1, matthews, pearson, spearman)}


def predictions(task: "Task", logits: np.ndarray) -> np.ndarray:
    """Classes (N,) of logits (N, C), or for a regression the scores of (N, 1), cut to 0..5."""
    if task.kind == "regression":
        return np.clip(logits.reshape(len(logits)).astype(np.float64), 0, 5)
    return logits.argmax(axis=1)


def score(task: "Task", predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the task x100, the one that ranks first.

    Raises UserError when there are no rows, or not as many predictions as labels.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or not len(labels):
        told = f"{predictions.shape} predictions for {labels.shape} labels"
        raise UserError(f"{task.name}: {told}; give one for each row")
    if not np.isfinite(predictions).all():
        raise UserError(f"{task.name}: a prediction is not a finite number; the run diverged")
    return {name: 100 * METRICS[name](predictions, labels) for name in task.metrics}


def collapsed(predictions: np.ndarray) -> bool:
    """True when all predictions are the same: a fine-tuning that learned nothing but the prior.

    Classes differ by 1 or more. Scores never agree to the last digit: the same is there what lies
    within a hundredth of the scale 0..5.
    """
    return bool(np.ptp(np.asarray(predictions, np.float64)) < 0.05)


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0
