"""The data of this step: 1,797 scanned handwritten digits that come with scikit-learn."""

from typing import NamedTuple

import numpy as np

SIDE, N_CLASSES = 8, 10
N_PIXELS = SIDE * SIDE


class Digits(NamedTuple):
    images: np.ndarray  # (N, 64) float64, 0 (paper) to 1 (ink)
    labels: np.ndarray  # (N,) int64, 0 to 9


def load() -> tuple[Digits, Digits]:
    """Training and held-out digits, four to one; the same split every time, classes balanced."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images / 16, labels, test_size=0.2, stratify=labels, shuffle=True, random_state=0
    )
    train_images, heldout_images, train_labels, heldout_labels = parts
    return Digits(train_images, train_labels), Digits(heldout_images, heldout_labels)
