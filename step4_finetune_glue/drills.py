"""Write the parts of a fine-tuning yourself: metrics, pairs, batches, learning rates, seeds.

    cp step4_finetune_glue/drills.py my_glue.py
    python my_glue.py --check
    python my_glue.py --check --only matthews_correlation

All of them can stand in for the gym's own in its parity tests, against scikit-learn, scipy,
`tokenizers` and `transformers`:

    pytest tests/parity/test_glue_blocks.py --mine my_glue.py

Letters: N rows of a task, B of them in a batch, T tokens, d = d_model, S seeds. Unless it says "may
loop", a drill wants no Python loop.
"""

from torch import Tensor

from common import cli
from step0_pytorch_warmup import checker
from step4_finetune_glue import checks


def accuracy_and_f1(predictions: Tensor, labels: Tensor) -> tuple[float, float]:
    """(N,), (N,) int64: the share that is right, and F1 of class 1, 2 TP / (2 TP + FP + FN).

    F1 is 0 where that is 0 / 0.
    """
    raise NotImplementedError


def matthews_correlation(predictions: Tensor, labels: Tensor) -> float:
    """(N,), (N,) int64 of 0 and 1, N up to 10^6: the metric of CoLA; 0 where it is 0 / 0.

    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))
    """
    raise NotImplementedError


def pearson_correlation(x: Tensor, y: Tensor) -> float:
    """(N,), (N,) float64: covariance over the product of both standard deviations.

    0 where one of them is constant; right for numbers near 10^8 that differ little.
    """
    raise NotImplementedError


def ranks_with_ties(x: Tensor) -> Tensor:
    """(N,) -> (N,) float64: 1 for the smallest; those that are equal share the mean of their ranks.

    [30, 10, 30] -> [2.5, 1, 2.5]
    """
    raise NotImplementedError


def spearman_correlation(x: Tensor, y: Tensor) -> float:
    """(N,), (N,) float64: the Pearson correlation of their ranks, ties and all."""
    raise NotImplementedError


def encode_pair(
    first: list[int], second: list[int], cls_id: int, sep_id: int, max_seq_len: int
) -> tuple[list[int], list[int]]:
    """[CLS] A [SEP] B [SEP] and its token types: 0 up to the first [SEP], 1 after. May loop.

    What does not fit in max_seq_len is cut from the ends, of the longer text first: if the shorter
    one fits in half of the room, the longer gets what is left; if not, the shorter gets half,
    rounded down, and the longer the rest. Of two equally long, the second counts as the longer.
    """
    raise NotImplementedError


def length_buckets(lengths: list[int], batch_size: int, pool_batches: int) -> list[list[int]]:
    """Rows of these lengths, in a random order already -> batches of their numbers. May loop.

    Take pool_batches * batch_size rows at a time, sort them by length (equal ones in their order),
    and cut them into batches. The last ones may be smaller.
    """
    raise NotImplementedError


def pad_batch(rows: list[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """B rows (T_b,) int64 -> ids (B, T), T the longest of them, and the mask (B, T) bool.

    Each row from the left, then pads; the mask is True at tokens, whatever their id. May loop.
    """
    raise NotImplementedError


def layer_rates(names: list[str], n_layers: int, rate: float, decay: float) -> dict[str, float]:
    """The learning rate of each parameter of a BERT, by name. May loop.

    What is above the blocks learns at `rate`; the top block, ...encoder.layer.{n_layers - 1}...,
    at rate * decay, each one below it at decay times that; ...embeddings... at
    rate * decay^(n_layers + 1).
    """
    raise NotImplementedError


def bert_adam_step(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, learning_rate: float,
    betas: tuple[float, float], eps: float, weight_decay: float
) -> None:  # fmt: skip
    """In place, all (d,): AdamW as in BERT's own code, without bias correction (arXiv:2006.05987).

    The running averages of the gradient and of its square, then
    weight <- weight - learning_rate (mean / (sqrt(square) + eps) + weight_decay weight).
    """
    raise NotImplementedError


def sentence_vectors(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, T, d), (B, T) int64, 1 at tokens -> (B, d): their mean, then divided by its 2-norm.

    So the product of two of them is the cosine of two sentences, as MiniLM was trained for.
    """
    raise NotImplementedError


def summary_of_seeds(scores: Tensor, predictions: Tensor) -> tuple[float, float, int]:
    """(S,), (S, N) int64 -> mean and standard deviation of the scores, and how many collapsed.

    The standard deviation is that of a sample, over S - 1. A seed has collapsed if it says the same
    of every row, whatever that is; it counts in the mean like any other.
    """
    raise NotImplementedError


def main(config: checker.Config) -> None:
    checker.main(config, __file__, checks.DRILLS)


if __name__ == "__main__":
    cli.run(main, checker.Config, {})
