"""Word vectors by counting, against a count in plain Python and an exact decomposition."""

import math
from collections import Counter

import numpy as np
import pytest

from common.cli import UserError
from step2_bert import counting
from step2_bert.corpus import prepare
from step2_bert.samples import Samples
from step2_bert.shards import PrepareOptions

OPTIONS = dict(data="sotu", vocab_size=300, max_seq_len=32, max_documents=6, heldout_fraction=0.2)


def prepared(folder, **options):
    options = PrepareOptions(**OPTIONS | options)
    return Samples.open(prepare(options, folder, progress=False, workers=1, measure=False).parent)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("counting"))


def texts(samples, rows):
    """The segments of samples, as lists of tokens without the special ones."""
    special = samples._vocabulary.is_special
    for batch in (samples.batch([row], epoch=0) for row in rows):
        ids = batch["input_ids"].flatten()
        ids[batch["masked_positions"]] = batch["masked_labels"]
        for segment in (0, 1):
            part = ids[batch["token_type_ids"].flatten() == segment].tolist()
            yield [token for token in part if not special[token]]


@pytest.mark.parametrize("window", [1, 3])
def test_counts_are_those_of_a_loop_over_pairs(samples, window):
    rows, wanted = np.arange(0, len(samples), 3), Counter()
    for text in texts(samples, rows):
        for i, token in enumerate(text):
            for k, other in enumerate(text[i + 1 : i + 1 + window], start=1):
                wanted[token, other] += (window + 1 - k) / window
                wanted[other, token] += (window + 1 - k) / window
    counts = counting.cooccurrences(samples, rows, window).toarray()
    found = {(int(i), int(j)): counts[i, j] for i, j in np.argwhere(counts)}
    assert found == pytest.approx(wanted, rel=1e-5)


def test_masks_drawn_in_preparation_do_not_count(samples, tmp_path):
    static = prepared(tmp_path, dynamic_masking=False)
    every = np.arange(len(samples))
    assert static.static and not samples.static
    both = [counting.cooccurrences(one, every, 2).toarray() for one in (samples, static)]
    assert np.array_equal(*both)


def test_ppmi_is_the_equation(samples):
    counts = counting.cooccurrences(samples, np.arange(len(samples)), 2)
    dense, found = counts.toarray().astype(float), counting.ppmi(counts).toarray()
    smooth = dense.sum(0) ** 0.75
    for i, j in np.argwhere(dense > 0)[::97]:
        ratio = dense[i, j] * smooth.sum() / (dense[i].sum() * smooth[j])
        assert found[i, j] == pytest.approx(max(0.0, math.log(ratio)), abs=1e-9)
    assert not found[dense == 0].any()


def test_directions_keep_what_the_best_would_keep(samples):
    matrix, d = counting.ppmi(counting.cooccurrences(samples, np.arange(len(samples)), 3)), 20
    found, dense = counting.directions(matrix, d), matrix.toarray()
    q, _ = np.linalg.qr(found)
    left_out = np.linalg.norm(dense - q @ q.T @ dense)
    singular = np.linalg.svd(dense, compute_uv=False)
    assert left_out == pytest.approx(np.linalg.norm(singular[d:]), rel=0.01)
    assert left_out < 0.9 * np.linalg.norm(singular)
    assert np.linalg.norm(found, axis=0) ** 2 == pytest.approx(singular[:d], rel=0.05)


def test_vectors_have_one_length_also_without_company(samples):
    every, d = np.arange(len(samples)), 16
    vectors = counting.token_vectors(samples, every, d)
    assert vectors.shape == (samples.vocab_size, d) and vectors.dtype == np.float32
    assert not vectors[0].any()  # padding
    length = np.linalg.norm(vectors[1:], axis=1)
    assert length == pytest.approx(counting.RMS * math.sqrt(d), rel=1e-5)
    assert np.array_equal(vectors, counting.token_vectors(samples, every, d))


def test_more_directions_than_tokens_are_an_error(samples):
    with pytest.raises(UserError, match="300 tokens cannot be told apart in 301 directions"):
        counting.token_vectors(samples, np.arange(len(samples)), 301)
