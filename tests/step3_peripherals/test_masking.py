"""Masks and corruptions: what must hold exactly, and the distributions that papers give."""

import dataclasses
from collections import Counter
from itertools import groupby
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.cli import UserError
from step2_bert.masking import MaskingOptions, Vocabulary, draws, mask_batch, sample_keys
from step3_peripherals.corruption import Corruption, corrupt, noise_mask, poisson_ends
from step3_peripherals.masking import (
    SPAN_LENGTHS,
    Masking,
    choose_spans,
    mask,
    words_of_span,
)

SIZE, MASK, N_SPECIAL, FIRST_CONTINUATION = 200, 4, 5, 120
VOCABULARY = Vocabulary(MASK, np.arange(SIZE) < N_SPECIAL, np.arange(SIZE) >= FIRST_CONTINUATION)
SCHEMES = ("token", "whole_word", "ngram", "span")
PERIODS, SENTINEL = (10, 11), 1000
CORRUPTIONS = [
    Corruption("t5", first_sentinel=SENTINEL),
    Corruption("infilling", rate=0.3),
    Corruption("deletion", rate=0.3),
    Corruption("permutation", sentence_ends=PERIODS),
    Corruption("rotation"),
]


def rows_of(seed, n=6, shortest=1, longest=90, separator=True, words=SIZE):
    """[CLS] A [SEP] B [SEP] rows, or [CLS] A [SEP], with random texts, padded with 0."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(shortest, longest, n)
    ids = np.zeros((n, texts.max() + 3), np.int64)
    for row, length in zip(ids, texts, strict=True):
        row[: length + 2] = [2, *rng.integers(N_SPECIAL, words, length), 3]
        if separator:
            row[rng.integers(1, length + 2)] = 3
    return ids, texts + 2


def masked(ids, lengths, masking, samples=None, seed=0, epoch=0):
    seen = ids.copy()
    samples = np.arange(len(ids)) if samples is None else samples
    return seen, *mask(seen, lengths, samples, VOCABULARY, masking, seed=seed, epoch=epoch)


def corrupted(ids, lengths, corruption, samples=None, seed=0, epoch=0):
    samples = np.arange(len(ids)) if samples is None else samples
    before = ids.copy()
    made = corrupt(ids, lengths, samples, VOCABULARY, corruption, seed=seed, epoch=epoch)
    assert (ids == before).all()
    return made


def lists(ids, lengths):
    for row, length in zip(ids, lengths, strict=True):
        assert (row[length:] == 0).all()
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


def fits(counts, expected, significance=1e-6):
    """Chi-square: whether counts are such as `expected` probabilities give."""
    expected = np.asarray(expected) / np.sum(expected) * np.sum(counts)
    assert expected.min() > 5
    assert stats.chisquare(counts, expected).pvalue > significance, (counts, expected)


# -- masks that keep a row's length ----------------------------------------------------------


@given(
    seed=st.integers(0, 2**31),
    scheme=st.sampled_from(SCHEMES),
    rate=st.floats(0.01, 0.99),
    shares=st.sampled_from([(0.8, 0.1), (1, 0), (0.8, 0), (0, 1), (0, 0.8), (0, 0)]),
)
def test_invariants_of_a_masked_batch(seed, scheme, rate, shares):
    ids, lengths = rows_of(seed)
    seen, positions, labels = masked(ids, lengths, Masking(scheme, rate, *shares), seed=seed)
    flat = ids.ravel()
    assert (labels == flat[positions]).all()
    assert not VOCABULARY.is_special[labels].any()  # special tokens and padding stay
    assert (np.diff(positions) > 0).all()
    untouched = np.delete(np.arange(flat.size), positions)
    assert (seen.ravel()[untouched] == flat[untouched]).all()
    shown = seen.ravel()[positions]
    assert ((shown == MASK) | ~VOCABULARY.is_special[shown]).all()
    if shares == (1, 0):
        assert (shown == MASK).all()
    if shares == (0, 0):
        assert (shown == labels).all()
    counts = np.bincount(positions // ids.shape[1], minlength=len(ids))
    n_ordinary = ((np.arange(ids.shape[1]) < lengths[:, None]) & (ids >= N_SPECIAL)).sum(1)
    wanted = np.minimum(n_ordinary, np.maximum(1, np.rint(lengths * rate)))
    assert (counts == wanted if scheme == "token" else counts <= wanted).all()
    assert (counts >= np.minimum(1, n_ordinary)).all()


@given(seed=st.integers(0, 2**31), rate=st.floats(0.05, 0.95))
def test_token_and_whole_word_masks_are_those_of_step_2(seed, rate):
    ids, lengths = rows_of(seed)
    for scheme in ("token", "whole_word"):
        options = MaskingOptions(rate, whole_word=scheme == "whole_word")
        theirs = ids.copy()
        drawing = dict(seed=seed, epoch=3)
        found = mask_batch(theirs, lengths, np.arange(6), VOCABULARY, options, **drawing)
        ours, *places = masked(ids, lengths, Masking(scheme, rate), **drawing)
        assert (ours == theirs).all()
        assert all((a == b).all() for a, b in zip(found, places, strict=True))


def reference_spans(row, length, score, budget, n_words):
    """`choose_spans` for one row, word after word; None where no word fits."""
    words, joins = [], False
    for column in range(length):
        if row[column] < N_SPECIAL:
            words.append([])
            joins = False
        elif joins and row[column] >= FIRST_CONTINUATION:
            words[-1].append(column)
        else:
            words.append([column])
            joins = True
    chosen = {}
    for start in sorted(
        (w for w in range(len(words)) if words[w]), key=lambda w: score[words[w][0]]
    ):
        if words[start][0] in chosen:
            continue
        for word in words[start : start + n_words[words[start][0]]]:
            if not word or word[0] not in chosen and len(chosen) + len(word) > budget:
                break
            chosen |= {c: words[start][0] for c in word if c not in chosen}
    return chosen


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    probabilities=st.sampled_from([*SPAN_LENGTHS.values(), np.ones(1)]),
    share=st.floats(0.02, 1),
)
def test_spans_equal_those_of_the_plain_loop(seed, probabilities, share):
    ids, lengths = rows_of(seed, longest=60)
    candidates = (np.arange(ids.shape[1]) < lengths[:, None]) & (ids >= N_SPECIAL)
    score = np.random.default_rng(seed).integers(0, 2**62, ids.shape).astype(np.uint64)
    score = np.where(candidates, score, np.uint64(2**64 - 1))
    budget = np.minimum(np.maximum(1, np.rint(lengths * share)), candidates.sum(1)).astype(int)
    continues = ids >= FIRST_CONTINUATION
    chosen, leader = choose_spans(candidates, continues, score, budget, probabilities)
    n_words = words_of_span(score, probabilities)
    for row in range(len(ids)):
        wanted = reference_spans(ids[row], lengths[row], score[row], budget[row], n_words[row])
        got = {c: leader[row, c] for c in np.flatnonzero(chosen[row]).tolist()}
        if wanted:
            assert got == wanted
        else:  # no word fits: pieces
            assert len(got) == budget[row]


@pytest.mark.parametrize("scheme", ["ngram", "span"])
def test_span_lengths_have_the_paper_s_distribution(scheme):
    n, width = 6000, 60
    probabilities = SPAN_LENGTHS[scheme]
    score = draws(sample_keys(1, 0, np.arange(n)), width) >> np.uint64(1)
    plain = np.ones((n, width), bool)
    first = score.argmin(1)
    chosen, leader = choose_spans(plain, ~plain, score, np.full(n, 10), probabilities)
    far = first < width - 10
    lengths = (chosen & (leader == first[:, None])).sum(1)[far]
    fits(np.bincount(lengths, minlength=len(probabilities) + 1)[1:], probabilities)
    mean = {"span": 3.797, "ngram": 18 / 11}[scheme]  # SpanBERT's paper: 3.8
    assert abs(probabilities @ np.arange(1, len(probabilities) + 1) - mean) < 1e-3


def test_a_span_is_shown_in_one_way_and_an_n_gram_token_by_token():
    ids, lengths = rows_of(5, n=800, shortest=60, words=FIRST_CONTINUATION, separator=False)
    broken = {}
    for scheme in ("ngram", "span"):
        masking = Masking(scheme, mask_share=0.5, random_share=0.5)
        seen, positions, _ = masked(ids, lengths, masking)
        shown = seen.ravel()[positions] == MASK
        together = np.diff(positions) == 1
        broken[scheme] = (shown[1:] != shown[:-1])[together].mean()
    assert abs(broken["ngram"] - 0.5) < 0.03
    assert broken["span"] < 0.2  # where two spans meet


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.8, 0.2), (0.0, 0.8), (0.0, 1.0)])
def test_shares_of_what_is_shown(scheme, shares):
    ids, lengths = rows_of(2, n=8000 if scheme == "span" else 1500, shortest=40)
    seen, positions, labels = masked(ids, lengths, Masking(scheme, 0.15, *shares))
    shown, kinds = seen.ravel()[positions], SIZE - N_SPECIAL
    if scheme == "span":  # one draw a span: count it once
        first = np.insert(np.diff(positions) > 1, 0, True)
        shown, labels = shown[first], labels[first]
    same = 1 - sum(shares)
    counts = [(shown == MASK).sum(), (shown == labels).sum()]
    counts.append(len(labels) - sum(counts))
    expected = [shares[0], same + shares[1] / kinds, shares[1] * (1 - 1 / kinds)]
    possible = np.array(expected) > 1e-9
    assert (np.array(counts)[~possible] == 0).all()
    fits(np.array(counts)[possible], np.array(expected)[possible])
    random = shown[(shown != MASK) & (shown != labels)]
    fits(np.bincount(random, minlength=SIZE)[N_SPECIAL:], np.ones(kinds))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_positions_are_masked_equally_often(scheme):
    length, n = 60, 8000
    ids = np.full((n, length), 50)
    ids[:, 0], ids[:, -1] = 2, 3
    _, positions, _ = masked(ids, np.full(n, length), Masking(scheme))
    counts = np.bincount(positions % length, minlength=length)
    assert counts[0] == counts[-1] == 0
    assert counts.sum() == n * 9
    if scheme in ("token", "whole_word"):  # 9 of 58 in each row, without replacement
        n_inner, share = length - 2, 9 / (length - 2)
        variance = n * share * (1 - share) * n_inner / (n_inner - 1)
        squares = ((counts[1:-1] - n * share) ** 2).sum() / variance
        assert 1e-6 < stats.chi2.sf(squares, n_inner - 1) < 1 - 1e-6
    # Spans only go forward: a token needs as many before it as a span is long
    inner = counts[10:-1] if scheme in SPAN_LENGTHS else counts[1:-1]
    spread = {"span": 4, "ngram": 2}.get(scheme, 1)  # tokens of a span come together
    assert np.abs(inner - inner.mean()).max() < 5 * (spread * inner.mean()) ** 0.5


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_batches_without_a_token(shape):
    ids, lengths = np.zeros(shape, np.int64), np.zeros(shape[0], np.int64)
    for scheme in SCHEMES:
        _, positions, tokens = masked(ids, lengths, Masking(scheme))
        assert positions.shape == tokens.shape == (0,)
    for corruption in CORRUPTIONS:
        made = corrupted(ids, lengths, corruption)
        assert made.input_ids.shape == shape and made.target_lengths.tolist() == [0] * shape[0]


def test_static_masks_stay_and_dynamic_ones_change():
    ids, lengths = rows_of(9, n=20, shortest=40)
    for scheme in SCHEMES:
        still = [masked(ids, lengths, Masking(scheme, static=True), epoch=e)[0] for e in (0, 1)]
        anew = [masked(ids, lengths, Masking(scheme), epoch=e)[0] for e in (0, 1)]
        assert (still[0] == still[1]).all() and (anew[0] != anew[1]).any()


@given(seed=st.integers(0, 2**31), which=st.sampled_from([*SCHEMES, *CORRUPTIONS]))
def test_a_sample_s_corruption_does_not_depend_on_its_batch(seed, which):
    ids, lengths = rows_of(seed, shortest=12)
    samples = np.arange(6) + 40

    def done(ids, lengths, samples, seed=7, epoch=2):
        drawing = dict(seed=seed, epoch=epoch)
        if isinstance(which, Corruption):
            made = corrupted(ids, lengths, which, samples, **drawing)
            return [lists(*made[:2]), lists(*made[2:])]
        return [lists(masked(ids, lengths, Masking(which), samples, **drawing)[0], lengths)]

    together = done(ids, lengths, samples)
    for row in range(6):  # alone, in a narrower batch, it is the same
        alone = done(ids[[row], : lengths[row]], lengths[[row]], samples[[row]])
        assert [part[row] for part in together] == [part[0] for part in alone]
    if which == "token":
        assert done(ids, lengths, samples, seed=8) != together
        assert done(ids, lengths, samples, epoch=3) != together


# -- corruptions that change a row's length --------------------------------------------------


@given(seed=st.integers(0, 2**31), separator=st.booleans(), rate=st.floats(0.05, 0.9))
def test_t5_input_and_target_reassemble_the_original(seed, separator, rate):
    ids, lengths = rows_of(seed, separator=separator)
    corruption = Corruption("t5", rate, first_sentinel=SENTINEL)
    made = corrupted(ids, lengths, corruption)
    originals = lists(ids, lengths)
    for original, shown, target in zip(originals, lists(*made[:2]), lists(*made[2:]), strict=True):
        sentinels = [token for token in shown if token > SIZE]
        assert sentinels == [SENTINEL - i for i in range(len(sentinels))]
        assert [token for token in target if token > SIZE] == [
            *sentinels,
            SENTINEL - len(sentinels),
        ]
        hidden = {}
        for token in target:
            if token > SIZE:
                hidden[token] = part = []
            else:
                part.append(token)
        assert hidden.pop(target[-1]) == []  # the last sentinel ends the target
        assert all(hidden.values())
        assert [t for token in shown for t in hidden.get(token, [token])] == original
        if not separator:  # the counts of the released code
            n = max(2, len(original) - 2)
            noise = min(max(round(n * rate), 1), n - 1)
            spans = min(max(round(noise / 3), 1), n - noise)
            if len(original) > 3:
                assert (sum(map(len, hidden.values())), len(hidden)) == (noise, spans)
                assert shown[-2] == sentinels[-1] and shown[1] not in sentinels


def test_t5_noise_masks_are_equally_likely():
    n, length = 12_000, 12  # 5 noise tokens in 2 spans, 7 others: 4 * 6 ways
    keys = [sample_keys(0, 0, np.arange(n), stream) for stream in (1, 2)]
    masks = noise_mask(np.full(n, length), 0.4, 2.5, *keys)
    found = Counter(map(bytes, masks))
    assert len(found) == 24
    fits(list(found.values()), np.ones(24))
    for row in masks[:50]:
        runs = [(bool(kind), len(list(group))) for kind, group in groupby(row)]
        assert [kind for kind, _ in runs] == [False, True, False, True]
        assert sum(size for kind, size in runs if kind) == 5


def test_t5_span_lengths_have_the_distribution_of_random_compositions():
    n, length = 3000, 200  # 30 noise tokens in 10 spans
    keys = [sample_keys(3, 0, np.arange(n), stream) for stream in (1, 2)]
    masks = noise_mask(np.full(n, length), 0.15, 3.0, *keys)
    edges = np.diff(np.pad(masks, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lengths = (np.argwhere(edges == -1) - np.argwhere(edges == 1))[:, 1]
    assert len(lengths) == 10 * n and lengths.mean() == 3
    first = lengths.reshape(n, 10)[:, 0]  # one a row: the ten add up to thirty
    expected = [comb(29 - k, 8) for k in range(1, 9)]
    expected.append(comb(29, 9) - sum(expected))
    fits(np.bincount(np.minimum(first, 9), minlength=10)[1:], expected)


def test_t5_needs_enough_sentinels():
    ids, lengths = rows_of(0, shortest=80, separator=False)
    with pytest.raises(UserError, match="sentinels are needed and 3 there"):
        corrupted(ids, lengths, Corruption("t5", first_sentinel=SENTINEL, n_sentinels=3))


@given(seed=st.integers(0, 2**31), rate=st.floats(0.05, 0.95), mean=st.floats(0.3, 8))
def test_infilling_hides_the_share_and_keeps_the_rest_in_order(seed, rate, mean):
    ids, lengths = rows_of(seed)
    made = corrupted(ids, lengths, Corruption("infilling", rate, mean))
    assert lists(*made[2:]) == lists(ids, lengths)
    for original, shown in zip(lists(ids, lengths), lists(*made[:2]), strict=True):
        n = sum(token >= N_SPECIAL for token in original)
        kept = [token for token in shown if token != MASK]
        budget = min(max(round(n * rate), 1), n)
        assert len(original) - len(kept) == budget
        assert MASK in shown or n == 0
        assert [t for t in kept if t < N_SPECIAL] == [t for t in original if t < N_SPECIAL]
        rest = iter(original)
        assert all(token in rest for token in kept)
        assert shown[0] == 2 and shown[-1] == 3


def test_infilling_s_span_lengths_are_poisson():
    n, budget, poisson = 3000, 18, stats.poisson(3)
    ends = poisson_ends(np.full(n, budget), 3.0, sample_keys(0, 0, np.arange(n), 1))
    assert (ends[:, 0] == 0).all() and (ends[:, -1] >= budget).all()
    lengths = np.diff(ends, axis=1)
    expected = [poisson.pmf(k) for k in range(9)]
    fits(np.bincount(np.minimum(lengths.ravel(), 9), minlength=10), [*expected, poisson.sf(8)])


def test_infilling_hides_any_token_with_equal_chance():
    n, length = 4000, 80
    ids = np.tile(np.arange(10, 10 + length), (n, 1))
    made = corrupted(ids, np.full(n, length), Corruption("infilling", rate=0.3))
    hidden = n - np.bincount(made.input_ids[made.input_ids >= 10] - 10, minlength=length)
    assert hidden.sum() == 24 * n
    inner = hidden[12:-12]  # at the edges no span reaches in from outside
    assert np.abs(inner - inner.mean()).max() < 5 * (4 * inner.mean()) ** 0.5
    assert abs(inner[:28].mean() - inner[28:].mean()) < 5 * (8 * inner.mean() / 28) ** 0.5
    is_mask = made.input_ids == MASK  # the first is as far from the start as the last from the end
    last = is_mask.shape[1] - 1 - is_mask[:, ::-1].argmax(1)
    assert stats.kstest(is_mask.argmax(1), made.input_lengths - 1 - last).pvalue > 1e-6


@given(seed=st.integers(0, 2**31), rate=st.floats(0.05, 0.95))
def test_deletion_leaves_a_subsequence_of_the_right_length(seed, rate):
    ids, lengths = rows_of(seed)
    made = corrupted(ids, lengths, Corruption("deletion", rate))
    assert lists(*made[2:]) == lists(ids, lengths)
    for original, shown in zip(lists(ids, lengths), lists(*made[:2]), strict=True):
        n = sum(token >= N_SPECIAL for token in original)
        assert len(original) - len(shown) == min(max(round(n * rate), 1), n)
        rest = iter(original)
        assert all(token in rest for token in shown)
        assert [t for t in shown if t < N_SPECIAL] == [t for t in original if t < N_SPECIAL]


def sentences(text):
    parts = [[]]
    for token in text:
        parts[-1].append(token)
        if token in PERIODS:
            parts.append([])
    return [part for part in parts if part]


@given(seed=st.integers(0, 2**31))
def test_permutation_permutes_whole_sentences(seed):
    ids, lengths = rows_of(seed, separator=False, words=20)
    made = corrupted(ids, lengths, Corruption("permutation", sentence_ends=PERIODS))
    for original, shown in zip(lists(ids, lengths), lists(*made[:2]), strict=True):
        assert (shown[0], shown[-1]) == (2, 3)
        parts = sentences(original[1:-1])
        if parts and parts[-1][-1] not in PERIODS:  # the last lacks its end: cut it out first
            last, text = parts.pop(), shown[1:-1]
            starts = range(len(text) - len(last) + 1)
            cuts = [
                text[:i] + text[i + len(last) :] for i in starts if text[i:][: len(last)] == last
            ]
            assert any(sorted(sentences(cut)) == sorted(parts) for cut in cuts)
        else:
            assert sorted(sentences(shown[1:-1])) == sorted(parts)


def test_all_orders_of_sentences_are_equally_likely():
    n = 6000
    text = [2, 20, 10, 21, 22, 10, 23, 10, 24, 3]
    ids = np.tile(text, (n, 1))
    made = corrupted(ids, np.full(n, 10), Corruption("permutation", sentence_ends=(10,)))
    found = Counter(map(tuple, made.input_ids.tolist()))
    assert len(found) == 24
    fits(list(found.values()), np.ones(24))


@given(seed=st.integers(0, 2**31))
def test_rotation_rotates_between_the_special_tokens(seed):
    ids, lengths = rows_of(seed, separator=False)
    made = corrupted(ids, lengths, Corruption("rotation"))
    for original, shown in zip(lists(ids, lengths), lists(*made[:2]), strict=True):
        assert (shown[0], shown[-1]) == (2, 3)
        text, rotated = original[1:-1], shown[1:-1]
        assert any(text[i:] + text[:i] == rotated for i in range(len(text)))


def test_rotation_starts_anywhere_with_equal_chance():
    n = 4000
    ids = np.tile([2, *range(20, 40), 3], (n, 1))
    made = corrupted(ids, np.full(n, 22), Corruption("rotation"))
    fits(np.bincount(made.input_ids[:, 1] - 20, minlength=20), np.ones(20))


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: c.scheme)
def test_rows_without_text_stay_as_they_are(corruption):
    ids = np.array([[2, 3, 0, 0], [2, 20, 3, 0]])
    made = corrupted(ids, np.array([2, 3]), corruption)
    assert lists(*made[:2])[0] == [2, 3]
    if corruption.scheme == "t5":
        assert lists(*made[2:])[0] == [SENTINEL]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Masking("words"),
        lambda: Masking(rate=0),
        lambda: Masking(mask_share=0.9, random_share=0.2),
        lambda: Masking(mask_share=-0.1),
        lambda: Corruption("shuffle"),
        lambda: Corruption("t5"),
        lambda: Corruption("t5", first_sentinel=10),  # 100 of them would end below 0
        lambda: Masking(mask_share=float("nan")),
        lambda: Corruption("permutation"),
        lambda: Corruption("infilling", mean_length=0),
        lambda: dataclasses.replace(CORRUPTIONS[2], rate=1.0),
    ],
)
def test_impossible_options_are_refused(make):
    with pytest.raises(UserError):
        make()
