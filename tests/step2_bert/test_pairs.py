import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from step2_bert.pairs import sentence_pairs, stretches, truncate
from step2_bert.sentences import split_sentences

corpora = st.lists(
    st.lists(st.integers(1, 40), min_size=1, max_size=30), min_size=1, max_size=8
).map(lambda documents: (starts(map(len, documents)), starts(n for d in documents for n in d)))


def starts(lengths) -> list[int]:
    return [0, *np.cumsum(list(lengths)).tolist()]


@given(corpus=corpora, seed=st.integers(0, 999), limit=st.integers(4, 61))
def test_pairs_obey_the_rules(corpus, seed, limit):
    documents, sentences = corpus
    edges = set(sentences)
    document_of = np.searchsorted(documents, np.arange(documents[-1]), side="right") - 1
    by_token = np.repeat(document_of, np.diff(sentences))
    before = 0
    for pair in sentence_pairs(documents, sentences, limit, random.Random(seed)):
        assert {pair.a_start, pair.a_end, pair.b_start, pair.b_end} <= edges
        assert pair.a_start < pair.a_end
        assert pair.b_start < pair.b_end
        assert set(by_token[pair.a_start : pair.a_end]) == {pair.document}
        [other] = set(by_token[pair.b_start : pair.b_end])
        assert (other != pair.document) == bool(pair.is_random_next)
        if pair.is_random_next:
            consumed = pair.a_end  # what followed A is put back, and starts the next sample
        else:
            assert pair.b_start == pair.a_end
            consumed = pair.b_end
        if len(documents) > 2:  # with one document, a sentence that is left over makes no sample
            assert pair.a_start == before
        before = consumed
    if len(documents) > 2:
        assert before == sentences[-1]


@given(corpus=corpora, seed=st.integers(0, 999))
def test_without_random_next_every_sentence_is_in_one_sample(corpus, seed):
    documents, sentences = corpus
    found = sentence_pairs(
        documents, sentences, 30, random.Random(seed), random_next_probability=0.0
    )
    covered = np.zeros(sentences[-1], int)
    for pair in found:
        covered[pair.a_start : pair.a_end] += 1
        if not pair.is_random_next:
            covered[pair.b_start : pair.b_end] += 1
        else:  # a single sentence has no next one
            assert sentences.index(pair.a_end) == sentences.index(pair.a_start) + 1
    assert (covered <= 1).all()
    assert len(documents) == 2 or (covered == 1).all()


@given(corpus=corpora, seed=st.integers(0, 999), limit=st.integers(2, 61))
def test_stretches_hold_every_token_once_within_documents(corpus, seed, limit):
    documents, sentences = corpus
    found = stretches(documents, sentences, limit, random.Random(seed))
    ends = {sentences[index] for index in documents}
    assert [pair.a_start for pair in found] == [0, *(pair.a_end for pair in found[:-1])]
    assert found[-1].a_end == sentences[-1]
    assert all(0 < pair.a_end - pair.a_start <= limit for pair in found)
    assert ends <= {0, *(pair.a_end for pair in found)}
    assert all(pair.b_start == pair.b_end for pair in found)


def test_shares_of_random_next_and_of_short_samples():
    rng = np.random.default_rng(0)
    documents = starts([400] * 50)
    sentences = starts(rng.integers(5, 30, 20_000))
    pairs = np.array(sentence_pairs(documents, sentences, 125, random.Random(0)))
    n = len(pairs)
    assert abs(pairs[:, 4].mean() - 0.5) < 5 * (0.25 / n) ** 0.5 + 0.02  # single ones add to it
    length = np.minimum(pairs[:, 1] - pairs[:, 0] + pairs[:, 3] - pairs[:, 2], 125)
    assert 0.07 < (length < 110).mean() < 0.1  # a tenth, less those drawn just below the limit
    others = pairs[pairs[:, 4] == 1]
    where = np.searchsorted(np.array(sentences)[documents], others[:, 2], side="right") - 1
    assert np.bincount(where, minlength=50).min() > 0.4 * len(others) / 50


@given(
    a=st.integers(1, 200), b=st.integers(0, 200), limit=st.integers(4, 130), seed=st.integers(0, 99)
)
def test_truncation_is_that_of_one_token_at_a_time(a, b, limit, seed):
    keep_a, keep_b = a, b
    while keep_a + keep_b > limit:
        if keep_a > keep_b:
            keep_a -= 1
        else:
            keep_b -= 1
    pair = np.array([[1000, 1000 + a, 5000, 5000 + b, 0, 0]])
    [cut] = truncate(pair, limit, np.random.default_rng(seed))
    assert (cut[1] - cut[0], cut[3] - cut[2]) == (keep_a, keep_b)
    assert 1000 <= cut[0] <= cut[1] <= 1000 + a
    assert 5000 <= cut[2] <= cut[3] <= 5000 + b


def test_truncation_takes_from_front_and_back_alike():
    pairs = np.tile([0, 100, 0, 10, 1, 0], (4000, 1))
    cut = truncate(pairs, 60, np.random.default_rng(0))
    front = cut[:, 0]
    assert abs(front.mean() - 25) < 5 * (12.5 / 4000) ** 0.5
    assert abs(front.var() - 12.5) < 2


@settings(max_examples=200)
@given(st.text(st.sampled_from("aB .!?\"'”)。！中文\n1"), max_size=60))
def test_sentences_keep_every_character(text):
    pieces = split_sentences(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece and piece == piece.strip() for piece in pieces)


def test_sentences_of_prose():
    assert split_sentences(
        'Mr. J. K. Smith of the U.S. Senate met Dr. Nolan. "Why?" he asked. '
        "It cost 3.5 million (approx. 2%)! 1999 was better… Visit example.com now."
    ) == [
        "Mr. J. K. Smith of the U.S. Senate met Dr. Nolan.",
        '"Why?" he asked.',
        "It cost 3.5 million (approx. 2%)!",
        "1999 was better… Visit example.com now.",
    ]
    assert split_sentences("他说：“你好。”她笑了！真的？是的") == [
        "他说：“你好。”",
        "她笑了！",
        "真的？",
        "是的",
    ]
