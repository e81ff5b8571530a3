"""Every token of a document tells where it is from: document, sentence and place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from common.cli import UserError
from step3_peripherals.segments import Formats, Text

CLS, SEP = 1, 2
FIRST = 10  # the id of the first token of the text; they count from there

lengths = st.lists(
    st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=2, max_size=7
).filter(lambda documents: sum(any(d) for d in documents) > 1)


def documents(lengths):
    """Sentences of these lengths, each token another id."""
    ids = iter(range(FIRST, 10**9))
    return [[[next(ids) for _ in range(n)] for n in sentences] for sentences in lengths]


def formats(max_seq_len=20, seed=0):
    return Formats(max_seq_len, CLS, SEP, seed)


def pieces(samples, index):
    """The stretches between the special tokens of a sample, each (first id, last id + 1)."""
    tokens, _ = samples[index]
    assert tokens[0] == CLS and tokens[-1] == SEP
    inside = np.split(tokens[1:-1], np.flatnonzero(tokens[1:-1] == SEP))
    inside = [inside[0], *(part[1:] for part in inside[1:])]
    for part in inside:
        assert len(part) and (np.diff(part) == 1).all() and part[0] >= FIRST
    return [(int(part[0]), int(part[-1]) + 1) for part in inside]


def all_pieces(samples):
    return [pieces(samples, i) for i in range(len(samples))]


def edges(text):
    """Ids at which sentences, and documents, begin or end."""
    return set((text.sentences + FIRST).tolist()), set(
        (text.sentences[text.documents] + FIRST).tolist()
    )


def document(text, token):
    bounds = text.sentences[text.documents]
    return int(np.searchsorted(bounds, token - FIRST, side="right")) - 1


# -- full sentences, doc sentences -----------------------------------------------------------


@given(lengths, st.integers(3, 60))
def test_full_sentences_have_every_token_once_and_in_order(lengths, limit):
    text = Text.of(documents(lengths))
    samples = formats(limit).full_sentences(text)
    assert samples.lengths.max() <= limit
    assert samples.labels is None and not samples.segment_ids.any()
    kept = samples.tokens[samples.tokens >= FIRST]
    np.testing.assert_array_equal(kept, np.arange(FIRST, FIRST + len(text.tokens)))


@given(lengths, st.integers(3, 60))
def test_full_sentences_are_cut_at_sentences_and_separated_at_documents(lengths, limit):
    text = Text.of(documents(lengths))
    sentence_edges, document_edges = edges(text)
    found = all_pieces(formats(limit).full_sentences(text))
    longest = dict(zip(text.sentences + FIRST, np.diff(text.sentences), strict=False))
    for sample, following in zip(found, [*found[1:], None], strict=True):
        assert {start for start, _ in sample[1:]} <= document_edges
        assert all(document(text, a) == document(text, b - 1) for a, b in sample)
        end = sample[-1][1]
        used = sum(b - a + 1 for a, b in sample)
        if end not in sentence_edges:  # only what is longer than an input is cut
            start = max(e for e in sentence_edges if e < end)
            assert longest[start] > limit - 2 and len(sample) == 1 and used == limit - 1
        elif following and end in longest:  # it is full: the next sentence would not have fitted
            extra = int(end in document_edges)
            assert used + longest[end] + extra > limit - 1


@given(lengths, st.integers(3, 60))
def test_doc_sentences_are_the_stretches_of_each_document_by_itself(lengths, limit):
    """No input crosses the end of a document, and each is filled as if it were alone."""
    raw = [d for d in documents(lengths) if any(d)]
    samples = formats(limit).doc_sentences(Text.of(raw))
    assert samples.lengths.max() <= limit
    alone = [formats(limit).full_sentences(Text.of([each])) for each in raw]
    np.testing.assert_array_equal(samples.tokens, np.concatenate([s.tokens for s in alone]))
    np.testing.assert_array_equal(samples.lengths, np.concatenate([s.lengths for s in alone]))
    assert all(len(sample) == 1 for sample in all_pieces(samples))


def test_full_sentences_by_hand():
    text = Text.of([[[11, 12], [13]], [], [[14, 15, 16], []], [[17] * 9]])
    full, doc = formats(8).full_sentences(text), formats(8).doc_sentences(text)
    assert [full[i][0].tolist() for i in range(len(full))] == [
        [CLS, 11, 12, 13, SEP],
        [CLS, 14, 15, 16, SEP],
        [CLS, *[17] * 6, SEP],
        [CLS, *[17] * 3, SEP],
    ]
    assert [doc[i][0].tolist() for i in range(len(doc))] == [
        full[i][0].tolist() for i in range(len(full))
    ]
    wide = formats(9).full_sentences(text)
    assert wide[0][0].tolist() == [CLS, 11, 12, 13, SEP, 14, 15, 16, SEP]


# -- pairs -----------------------------------------------------------------------------------


@given(lengths, st.integers(5, 60), st.integers(0, 99), st.booleans())
def test_pairs(lengths, limit, seed, single):
    text = Text.of(documents(lengths))
    make = formats(limit, seed).sentence_pairs if single else formats(limit, seed).segment_pairs
    samples = make(text)
    assert len(samples.labels) == len(samples)
    assert len(samples) == 0 or samples.lengths.max() <= limit
    for i, found in enumerate(all_pieces(samples)):
        (a, a_end), (b, b_end) = found
        segment_ids = samples[i][1].tolist()
        assert segment_ids == [0] * (a_end - a + 2) + [1] * (b_end - b + 1)
        assert document(text, a) == document(text, a_end - 1)
        assert document(text, b) == document(text, b_end - 1)
        assert (document(text, a) != document(text, b)) == samples.labels[i]
        assert samples.labels[i] or b >= a_end
        if single:
            assert len(sentences_of(text, a, a_end)) == len(sentences_of(text, b, b_end)) == 1
    again = make(text)
    np.testing.assert_array_equal(samples.tokens, again.tokens)
    np.testing.assert_array_equal(samples.labels, again.labels)


def sentences_of(text, start, end):
    places = np.searchsorted(text.sentences, np.arange(start, end) - FIRST, side="right") - 1
    return set(places.tolist())


@given(lengths, st.integers(0, 99), st.booleans())
def test_sop_swaps_what_follows_each_other(lengths, seed, single):
    text = Text.of(documents(lengths))
    form = formats(500, seed)
    samples = (form.sentence_pairs if single else form.segment_pairs)(text, "sop")
    for i, found in enumerate(all_pieces(samples)):
        first, second = found[::-1] if samples.labels[i] else found
        assert first[1] == second[0], "in the right order they are one stretch of text"
        assert document(text, first[0]) == document(text, second[0])


@given(lengths, st.integers(0, 99))
def test_a_sentence_is_in_one_true_pair_at_most(lengths, seed):
    text = Text.of(documents(lengths))
    samples = formats(500, seed).sentence_pairs(text)
    found, seen = all_pieces(samples), []
    for (a, b), label in zip(found, samples.labels, strict=True):
        seen += [a] if label else [a, b]
    assert len(set(seen)) == len(seen)
    lasts = {d - 1 for d in text.documents[1:]}  # those alone may be in none
    starts = {a - FIRST for a, _ in seen}
    missing = {s for s in range(len(text.sentences) - 1) if text.sentences[s] not in starts}
    assert missing <= lasts


@pytest.fixture(scope="module")
def long_text():
    rng = np.random.default_rng(0)
    return Text.of(documents([rng.integers(3, 12, 300) for _ in range(40)]))


@pytest.mark.parametrize("negatives", ["nsp", "sop"])
@pytest.mark.parametrize("name", ["segment_pairs", "sentence_pairs"])
def test_half_the_pairs_are_negative(long_text, name, negatives):
    samples = getattr(formats(64), name)(long_text, negatives)
    labels = samples.labels
    if (name, negatives) == ("segment_pairs", "nsp"):  # the last of a document has no choice
        lasts = set((long_text.sentences[long_text.documents[1:]] + FIRST).tolist())
        ends = [found[0][1] for found in all_pieces(samples)]
        labels = labels[[end not in lasts for end in ends]]
    assert len(labels) > 1000
    assert binomtest(int(labels.sum()), len(labels), 0.5).pvalue > 1e-3


def test_random_sentences_come_from_all_other_documents(long_text):
    samples = formats(64).sentence_pairs(long_text)
    negative = np.flatnonzero(samples.labels)
    others = [document(long_text, pieces(samples, i)[1][0]) for i in negative]
    counts = np.bincount(others, minlength=40)
    assert counts.min() > 0.6 * len(others) / 40
    assert counts.max() < 1.5 * len(others) / 40


def test_how_long_the_inputs_of_each_format_are(long_text):
    """Sentence pairs are short; the others fill up to the limit, but for what is left over."""
    form = formats(128)
    mean = {
        name: getattr(form, name)(long_text).lengths.mean()
        for name in ("segment_pairs", "sentence_pairs", "full_sentences", "doc_sentences")
    }
    assert mean["sentence_pairs"] < 20
    assert 100 < mean["segment_pairs"] < 128
    assert 120 < mean["doc_sentences"] < mean["full_sentences"] < 128


def test_other_seeds_draw_others(long_text):
    for name in ("segment_pairs", "sentence_pairs"):
        first, second = (getattr(formats(64, seed), name)(long_text) for seed in (0, 1))
        assert len(first) != len(second) or (first.labels != second.labels).any()


def test_bad_input():
    one, two = Text.of([[[5, 6], [7]]]), Text.of([[[5, 6], [7]], [[8]]])
    for make in (formats().segment_pairs, formats().sentence_pairs):
        with pytest.raises(UserError, match="two or more"):
            make(one)
        assert len(make(one, "sop")) == 1
        with pytest.raises(UserError, match="is too short"):
            make.__func__(formats(4), two)
    with pytest.raises(UserError, match="is too short"):
        formats(2).full_sentences(two)
    with pytest.raises(UserError, match="any token"):
        Text.of([[], [[]]])
