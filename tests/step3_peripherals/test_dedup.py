"""MinHash: its estimate and its curve, and the same decisions as datatrove's four stages."""

import random
from collections import defaultdict

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup import minhash as library
from datatrove.utils.hashing import HashConfig
from hypothesis import given
from hypothesis import strategies as st

from step3_peripherals import planting
from step3_peripherals.dedup import (
    Groups,
    MinHash,
    exact_hash,
    fold,
    jaccard,
    links,
    shingles,
)

MINHASH = MinHash()
WORDS = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]


def made_up(n, rng):
    return " ".join(rng.choice(WORDS) for _ in range(n))


class Tokenizer:
    """Stands in for the tokenizers of datatrove, which want downloads."""

    def word_tokenize(self, text):
        return text.split()


def datatrove_groups(texts, folder, monkeypatch):
    """The partition that datatrove's stages find, and its signatures (n, bands, rows)."""
    monkeypatch.setattr(library, "load_word_tokenizer", lambda language: Tokenizer())
    hashing = HashConfig(hash_fc="sha1")  # its default, xxhash, takes no str in some versions
    config = MinhashConfig(5, num_buckets=14, hashes_per_bucket=8, hash_config=hashing)
    sign = MinhashDedupSignature(str(folder / "signatures"), config)
    list(sign.run(Document(text, str(i)) for i, text in enumerate(texts)) or ())
    for bucket in range(14):
        step = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "links"), config=config)
        list(step.run(None, bucket, 14) or ())
    group = MinhashDedupCluster(
        str(folder / "links"), str(folder / "groups"), config, save_cluster_id=True
    )
    list(group.run(None, 0, 1) or ())
    table = np.fromfile(folder / "groups" / "000000.clusters", "<u4").reshape(-1, 2)
    signatures = np.array([sign.get_signature(sign.get_shingles(text)) for text in texts])
    return partition(table.tolist()), signatures


def partition(pairs):
    members = defaultdict(set)
    for document, head in pairs:
        members[head].add(document)
    return {frozenset(group) for group in members.values() if len(group) > 1}


def our_groups(bands):
    """Partition from (n, bands) band hashes."""
    keys = np.arange(len(bands), dtype=np.uint64)
    pairs = np.concatenate([links(column, keys) for column in bands.T]).astype(int).tolist()
    groups = Groups(pairs)
    return partition((key, groups.head(key)) for pair in pairs for key in pair)


def planted(rng, edits):
    """30 documents, most with copies of so many edited words."""
    texts = []
    for i in range(30):
        texts.append(made_up(rng.randint(150, 250), rng))
        texts += [planting.edit(texts[-1], n, rng) for n in edits[i % len(edits)]]
    rng.shuffle(texts)
    return texts


def test_planted_duplicates_are_decided_as_datatrove_does(tmp_path, monkeypatch):
    texts = planted(random.Random(0), [(), (0,), (1,), (0, 1, 2), (60,)])
    theirs, _ = datatrove_groups(texts, tmp_path, monkeypatch)
    assert our_groups(np.array([MINHASH.band_hashes(text) for text in texts])) == theirs
    assert sorted(map(len, theirs)) == [2] * 12 + [4] * 6


def test_the_same_signatures_are_decided_the_same_way_at_any_likeness(tmp_path, monkeypatch):
    """Near the threshold chance decides, by the hash functions: so both get the same ones."""
    texts = planted(random.Random(1), [(3, 8), (12,), (6, 6, 6), (16, 4)])
    theirs, signatures = datatrove_groups(texts, tmp_path, monkeypatch)
    assert our_groups(np.array([fold(signature) for signature in signatures])) == theirs
    assert 5 < len(theirs) < 60


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_equal_minima_estimate_the_jaccard_index(share):
    """112 minima under 40 families of functions: binomial, so 4.5 sd is a sure bound."""
    both = np.random.default_rng(0).choice(1 << 32, 300, replace=False).astype(np.uint64)
    n = round(300 * (1 - share) / 2)
    a, b = both[n:], both[: len(both) - n]
    s = jaccard(a, b)
    equal = [
        MinHash(seed=seed).signature(a) == MinHash(seed=seed).signature(b) for seed in range(40)
    ]
    assert abs(np.mean(equal) - s) < 4.5 * np.sqrt(s * (1 - s) / np.size(equal))


@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (5, 3)])
def test_candidates_follow_the_s_curve(bands, rows):
    rng = random.Random(3)
    n = 400
    likely = found = variance = 0.0
    for seed in range(n):
        functions = MinHash(bands, rows, seed=seed)
        text = made_up(120, rng)
        copy = planting.edit(text, rng.randint(1, 9), rng)
        p = functions.probability(jaccard(shingles(text), shingles(copy)))
        likely, variance = likely + p, variance + p * (1 - p)
        found += bool((functions.band_hashes(text) == functions.band_hashes(copy)).any())
    assert abs(found - likely) < 4.5 * np.sqrt(variance)
    assert 0.1 * n < likely < 0.95 * n  # not all on one side of the curve


def test_the_probability_is_the_formula():
    assert MINHASH.probability(0.8) == 1 - (1 - 0.8**8) ** 14
    assert MINHASH.probability((1 / 14) ** (1 / 8)) == pytest.approx(1 - (1 - 1 / 14) ** 14)


def test_shingles():
    assert len(shingles("")) == len(shingles("?! ...")) == 0
    assert len(shingles("three words only")) == 1
    assert len(shingles("a b c d e f g")) == 3
    assert len(shingles("中文没有空格的")) == 3  # a Han character is a word
    marked, plain = "It's ONE, two; three - four five.", "it s one two three four five"
    assert (shingles(marked) == shingles(plain)).all()
    assert jaccard(shingles("a b c d e"), shingles("e d c b a")) == 0  # order counts
    assert MINHASH.band_hashes("...") is None
    with pytest.raises(ValueError):
        MINHASH.signature(shingles(""))


def test_a_signature_is_the_least_hash_whatever_the_slices():
    found = np.arange(10_000, dtype=np.uint64) * np.uint64(397)
    whole = MINHASH.signature(found)
    halves = [MINHASH.signature(found[:5000]), MINHASH.signature(found[5000:])]
    assert (whole == np.minimum(*halves)).all() and whole.shape == (14, 8)
    assert (MinHash(seed=2).signature(found) != whole).any()


def test_exact_hashes():
    assert exact_hash("a  b\nc") == exact_hash("a b c") != exact_hash("A b c")
    assert exact_hash("\ud800")  # half a surrogate pair


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_groups_are_connected_components(pairs):
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups = Groups(pairs)
    a, b = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_array((np.ones(len(pairs)), (a, b)), (31, 31))
    labels = connected_components(graph, directed=False)[1]
    for key, head in groups.duplicates():
        assert head == np.flatnonzero(labels == labels[key]).min() < key
    linked = {key for pair in pairs for key in pair}
    heads = {groups.head(key) for key in linked}
    assert len(heads) + len(list(groups.duplicates())) == len(linked)


def test_links_chain_equal_hashes():
    keys = np.array([5, 3, 9, 1], np.uint64)
    assert links(np.array([7, 7, 2, 7], np.uint64), keys).tolist() == [[1, 3], [3, 5]]
    assert links(np.array([], np.uint64), np.array([], np.uint64)).shape == (0, 2)
