"""Word vectors by counting: where the token embeddings of a BERT can start.

Words that stand among the same words mean alike (Harris 1954). So count which token stands beside
which, ask how far that is above chance, and keep the d main directions of the answer:

    PPMI(i, j) = max(0, log [ #(i, j) D / (#(i) #(j)^a) ]),  D = sum of #(j)^a over j
    PPMI ~ U S V^T,  E = U sqrt(S)

word2vec, trained word by word, tends to a factor of nearly this matrix, PMI less a constant (Levy
and Goldberg 2014, "Neural word embedding as implicit matrix factorization"). The exponent a = 0.75,
the root of S and counts that fall with the distance are from Levy, Goldberg and Dagan 2015 (TACL
3), section 3.
"""

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from common.cli import UserError
from step2_bert.samples import Samples

SMOOTHING = 0.75
RMS = 0.05  # of a vector's entries: large beside positions and segments, which start at 0.02


def fill(table: torch.Tensor, samples: Samples, rows: np.ndarray) -> None:
    """Let the token embeddings `table` (vocab_size, d) be `token_vectors`."""
    with torch.no_grad():
        table.copy_(torch.from_numpy(token_vectors(samples, rows, table.shape[1])))


def token_vectors(samples: Samples, rows: np.ndarray, d: int, window: int = 3) -> np.ndarray:
    """(vocab_size, d) float32: the tokens of the samples `rows` as vectors of length RMS * sqrt(d).

    A token without company, such as [MASK], has a random direction; padding is 0. Always the same
    for the same samples. Raises UserError when the vocabulary has fewer than d tokens.
    """
    if d > samples.vocab_size:
        raise UserError(
            f"{samples.vocab_size:,} tokens cannot be told apart in {d} directions by counting: "
            "take a larger vocabulary, or begin with random embeddings"
        )
    vectors = directions(ppmi(cooccurrences(samples, rows, window)), d)
    alone = np.linalg.norm(vectors, axis=1) < 1e-6
    vectors[alone] = np.random.default_rng(0).normal(size=(alone.sum(), d))
    vectors[samples.manifest["pad_token_id"]] = 0
    length = np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)
    return (RMS * np.sqrt(d) * vectors / length).astype(np.float32)


def cooccurrences(samples: Samples, rows: np.ndarray, window: int) -> sparse.csr_array:
    """(V, V), symmetric: how often two tokens stand in one segment, k <= window tokens apart.

    Each time counts as (window + 1 - k) / window. Special tokens count nothing.
    """
    shape = (samples.vocab_size, samples.vocab_size)
    total = sparse.csr_array(shape, dtype=np.float32)
    for tokens, segment in samples.segments(rows):
        for k in range(1, window + 1):
            here = (segment[k:] == segment[:-k]) & (segment[k:] >= 0)
            pairs = tokens[:-k][here], tokens[k:][here]
            weight = np.full(here.sum(), (window + 1 - k) / window, np.float32)
            total += sparse.coo_array((weight, pairs), shape=shape).tocsr()
    return total + total.T


def ppmi(counts: sparse.csr_array) -> sparse.csr_array:
    """log of how much more often than by chance, where that is above 0; shapes (V, V)."""
    counts = counts.astype(np.float64)
    i, j = counts.nonzero()
    of_i, of_j = counts.sum(1), counts.sum(0) ** SMOOTHING
    log_ratio = np.log(counts.data * of_j.sum() / (of_i[i] * of_j[j]))
    above = log_ratio > 0
    return sparse.csr_array((log_ratio[above], (i[above], j[above])), shape=counts.shape)


def directions(matrix: sparse.csr_array, d: int) -> np.ndarray:
    """U sqrt(S) of the d largest singular values, nearly: (V, d) from (V, V)."""
    u, s, _ = randomized_svd(matrix, d, n_iter=3, random_state=0)
    return u * np.sqrt(s)
