"""The drills of step 3 against libraries: our blocks and the solutions, or a learner's.

A learner's are those of `pytest --mine FILE`. What a block takes and gives is written in its drill,
step3_peripherals/drills.py.
"""

import io
import json
import math
import random

import pytest
import sentencepiece
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import jaccard_score
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, Wav2Vec2BertConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.generation import logits_process
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

STEP = "step3_peripherals"  # whose drills these are
torch.set_num_threads(1)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_()


def same(ours, theirs, inputs=()):
    """Equal values, and equal gradients of `inputs`, to 1e-5."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if inputs:
        weights = draw(*theirs.shape, seed=99).detach()
        found, want = (torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, theirs))
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


# -- vocabulary ------------------------------------------------------------------------------

text = st.one_of(st.text(letters, min_size=1, max_size=12) for letters in ("ab", "aabc", "abcdef"))
counted_words = st.dictionaries(text, st.integers(1, 9), min_size=1, max_size=8)


def library_bpe(words, n_merges):
    """The tokenizer that the library learns from words with their counts, and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = len(set("".join(words))) + n_merges
    texts = (word for word, n in words.items() for _ in range(n))
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer, list(map(tuple, json.loads(tokenizer.to_str())["model"]["merges"]))


@settings(max_examples=20)
@given(counted_words)
def test_count_pairs(block, words):
    words = {"ab": 1} | words
    counter = CountVectorizer(analyzer="char", ngram_range=(2, 2), lowercase=False)
    counts = torch.tensor(list(words.values())).numpy() @ counter.fit_transform(words)
    theirs = dict(zip(map(tuple, counter.get_feature_names_out()), counts.tolist(), strict=True))
    assert block("count_pairs")({tuple(word): n for word, n in words.items()}) == theirs


@settings(max_examples=50)
@given(word=text, pair=st.sampled_from([("a", "a"), ("a", "b"), ("b", "a"), ("b", "c")]))
@example(word="aaa", pair=("a", "a"))
def test_merge_pair(block, word, pair):
    tokens = dict.fromkeys([*word, *pair, "".join(pair)])
    library = models.BPE({token: i for i, token in enumerate(tokens)}, [pair])
    theirs = Tokenizer(library).encode(word).tokens
    assert list(block("merge_pair")(tuple(word), pair)) == theirs


@settings(max_examples=50)
@given(counted_words, st.integers(0, 12))
def test_learn_bpe(block, words, n_merges):
    _, theirs = library_bpe(words, n_merges)
    assert block("learn_bpe")(words, n_merges) == theirs[:n_merges]


@settings(max_examples=50)
@given(counted_words, st.integers(0, 12), st.data())
def test_encode_bpe(block, words, n_merges, data):
    tokenizer, merges = library_bpe(words, n_merges)
    word = data.draw(st.text(sorted(set("".join(words))), min_size=1, max_size=20))
    assert block("encode_bpe")(word, merges) == tokenizer.encode(word).tokens


def test_byte_characters(block):
    assert block("byte_characters")() == bytes_to_unicode()


@settings(max_examples=50)
@given(word=text, vocab=st.sets(text | text.map("##".__add__), max_size=12))
@example(word="abcd", vocab={"ab", "##c", "##bcd"})
def test_longest_match(block, word, vocab):
    vocab = vocab | {"a", "##a", "b", "##b"}
    tokens = {token: i for i, token in enumerate(["[UNK]", *sorted(vocab)])}
    theirs = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]")).encode(word).tokens
    assert block("longest_match")(word, vocab) == theirs


@pytest.fixture(scope="module")
def unigram():
    """A small model of `sentencepiece`, and the log p of its pieces."""
    rng, model = random.Random(0), io.BytesIO()
    parts = ["low", "new", "wide", "slow", "owl", "er", "est", "d", "s", "in", "re"]
    options = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=("".join(rng.choices(parts, k=8)) for _ in range(500)),
        model_writer=model,
        vocab_size=60,
        max_sentencepiece_length=4,
        **options,
    )
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(3, len(library))  # the first are <unk>, <s> and </s>
    return library, {library.id_to_piece(i): library.get_score(i) for i in ids}


@settings(max_examples=50)
@given(word=st.text("lowernstid", min_size=1, max_size=25))
def test_viterbi(block, unigram, word):
    library, log_p = unigram
    assert block("viterbi")(word, log_p) == library.encode(word, out_type=str)


@settings(max_examples=30)
@given(word=st.text("lowernstid", min_size=1, max_size=9))
def test_log_likelihood(block, unigram, word):
    """The library can list all ways to cut a short text, 2^8 at most."""
    library, log_p = unigram
    ways = library.nbest_encode(word, nbest_size=300, out_type=str)
    theirs = torch.tensor([sum(map(log_p.get, way)) for way in ways]).logsumexp(0).item()
    assert block("log_likelihood")(word, log_p) == pytest.approx(theirs, abs=1e-4)


# -- positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_heads", [1, 2, 8, 16])
@pytest.mark.parametrize("T", [1, 7, 60])
def test_alibi_bias(block, n_heads, T):
    """Bloom adds m j for -m (i - j): after a softmax the same."""
    ahead = torch.ones(T, T, dtype=torch.bool).triu(1)
    alibi = build_alibi_tensor(torch.ones(1, T), n_heads, torch.float32).expand(-1, T, -1)
    ours = block("alibi_bias")(n_heads, T)
    same(ours.softmax(-1), alibi.masked_fill(ahead, -math.inf).softmax(-1))
    assert not ours.diagonal(dim1=1, dim2=2).any()


@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (32, 127), (16, 64), (8, 20)])
def test_t5_buckets(block, n_buckets, max_distance):
    distance = torch.arange(-2000, 2001)
    theirs = T5Attention._relative_position_bucket(distance, True, n_buckets, max_distance)
    assert torch.equal(block("t5_buckets")(distance, n_buckets, max_distance), theirs)


@pytest.mark.parametrize(("T", "base"), [(1, 10000.0), (7, 500000.0), (200, 10000.0)])
def test_rope(block, T, base):
    x = draw(2, 4, T, 16)
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=T,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )  # fmt: skip
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(T)[None])
    theirs, _ = apply_rotary_pos_emb(x, x, cos, sin)
    same(block("rope")(x, base), theirs, [x])


@pytest.mark.parametrize(("T", "k"), [(1, 2), (5, 1), (9, 4), (6, 8)])
def test_relative_scores(block, T, k):
    """Added to q k', they make the attention of Wav2Vec2-BERT."""
    torch.manual_seed(0)
    config = Wav2Vec2BertConfig(
        hidden_size=16, num_attention_heads=2, position_embeddings_type="relative_key",
        left_max_position_embeddings=k, right_max_position_embeddings=k,
        attention_dropout=0.0, attn_implementation="eager",
    )  # fmt: skip
    module, hidden = Wav2Vec2BertSelfAttention(config).eval(), draw(2, T, 16)
    theirs = module(hidden, output_attentions=True)[1]
    q, key = (
        linear(hidden).unflatten(-1, (2, 8)).transpose(1, 2)
        for linear in (module.linear_q, module.linear_k)
    )
    table = module.distance_embedding.weight
    scores = q @ key.transpose(-2, -1) / math.sqrt(8) + block("relative_scores")(q, table)
    same(scores.softmax(-1), theirs, [hidden, table])


@pytest.mark.parametrize("T", [1, 2, 9])
def test_skew(block, T):
    """XLNet's shift, whose rows hold one distance more, in front."""
    x = draw(3, T, 2 * T - 1)
    theirs = XLNetRelativeAttention.rel_shift_bnij(F.pad(x, (1, 0))[:, None], klen=T)[:, 0]
    same(block("skew")(x), theirs, [x])


# -- corruption ------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data(), st.integers(1, 20), st.integers(1, 8))
def test_span_mask(block, data, T, longest):
    """Spans put down whole; of the tokens in the order in which they were hidden, the first."""
    starts = data.draw(st.permutations(range(T)))
    lengths = data.draw(st.lists(st.integers(1, longest), min_size=T, max_size=T))
    order = []
    for start, length in zip(starts, lengths, strict=True):
        if start not in order:
            order += [i for i in range(start, min(start + length, T)) if i not in order]
    budget = data.draw(st.integers(1, T))
    found = block("span_mask")(starts, lengths, budget)
    assert found.nonzero().flatten().tolist() == sorted(order[:budget])


def test_t5_corrupt_is_the_papers_example(block):
    """Thank you <X> me to your party <Y> week. / <X> for inviting <Y> last <Z>"""
    ids, hidden = list(range(10)), [i in (2, 3, 8) for i in range(10)]
    x, y, z = 32099, 32098, 32097
    theirs = [0, 1, x, 4, 5, 6, 7, y, 9], [x, 2, 3, y, 8, z]
    assert block("t5_corrupt")(ids, hidden, 32099) == theirs


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=20))
def test_t5_corrupt(block, tokens):
    """Whoever reads both can put the text together again: they have the same sentinels."""
    ids, hidden = map(list, zip(*tokens, strict=True))
    shown, target = block("t5_corrupt")(ids, hidden, 99)
    sentinels = [token for token in target if token > 50]
    assert sentinels == list(range(99, 99 - len(sentinels), -1)) and target[-1] == sentinels[-1]
    assert [token for token in shown if token > 50] == sentinels[:-1]
    places = [target.index(sentinel) for sentinel in sentinels]
    runs = {s: target[a + 1 : b] for s, a, b in zip(sentinels, places, places[1:], strict=False)}
    assert [token for each in shown for token in runs.get(each, [each])] == ids
    assert [token for run in runs.values() for token in run] == [i for i, h in tokens if h]


# -- sampling and data -----------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_keep_top_p(block, p, scale):
    logits = scale * draw(40, 30).detach()
    theirs = logits_process.TopPLogitsWarper(p)(None, logits)
    assert torch.equal(block("keep_top_p")(logits, p), theirs)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_keep_min_p(block, share, scale):
    logits = scale * draw(40, 30).detach()
    theirs = logits_process.MinPLogitsWarper(share)(None, logits)
    assert torch.equal(block("keep_min_p")(logits, share), theirs)


@pytest.mark.parametrize("T", [0.02, 1.0, 3.3, 100.0])
def test_source_shares(block, T):
    """What a temperature makes of a model's logits, it makes of the logs of sizes."""
    sizes = torch.tensor([3.0, 1e9, 9.5e8, 1e5], dtype=torch.double)
    theirs = logits_process.TemperatureLogitsWarper(T)(None, sizes.log()).softmax(-1)
    torch.testing.assert_close(block("source_shares")(sizes, T), theirs)


@pytest.mark.parametrize("shared", [0, 20, 50, 95, 100])
def test_minhash_jaccard(block, shared):
    """Within 4 standard deviations of the Jaccard index."""
    generator, prime, K = torch.Generator().manual_seed(shared), 2**31 - 1, 2000
    shingles = torch.randperm(10**6, generator=generator)[: 200 - shared] * 2147
    a, b = torch.randint(1, prime, (2, K), generator=generator)
    found = block("minhash_jaccard")(shingles[:100], shingles[100 - shared :], a, b)
    place = torch.arange(len(shingles))
    s = jaccard_score(place < 100, place >= 100 - shared)
    assert found == pytest.approx(s, abs=4 * math.sqrt(s * (1 - s) / K) + 1e-9)
