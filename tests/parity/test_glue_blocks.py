"""The drills of step 4 against libraries: our blocks and the solutions, or a learner's.

A learner's are those of `pytest --mine FILE`. What a block takes and gives is written in its drill,
step4_finetune_glue/drills.py.
"""

import statistics
from functools import partial

import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
from transformers.trainer_pt_utils import get_length_grouped_indices

STEP = "step4_finetune_glue"  # whose drills these are
torch.set_num_threads(1)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_()


# -- metrics ---------------------------------------------------------------------------------


def pairs(values, dtype):
    """Two tensors (N,) of one length."""
    rows = st.lists(st.tuples(values, values), min_size=2, max_size=40)
    return rows.map(lambda rows: torch.tensor(rows, dtype=dtype).unbind(1))


binary = pairs(st.integers(0, 1), torch.long)
scores = pairs(st.integers(-9, 9).map(lambda i: i / 4), torch.double)  # many ties


@settings(max_examples=30)
@given(binary)
def test_accuracy_and_f1(block, pair):
    said, truth = pair
    accuracy, f1 = block("accuracy_and_f1")(said, truth)
    assert accuracy == pytest.approx(sklearn.metrics.accuracy_score(truth, said))
    assert f1 == pytest.approx(sklearn.metrics.f1_score(truth, said, zero_division=0))


@settings(max_examples=30)
@given(binary)
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_matthews_correlation(block, pair):
    said, truth = pair
    theirs = sklearn.metrics.matthews_corrcoef(truth, said)
    assert block("matthews_correlation")(said, truth) == pytest.approx(theirs, abs=1e-9)


def test_matthews_correlation_of_many_rows(block):
    generator = torch.Generator().manual_seed(0)
    truth, noise = torch.randint(2, (2, 300_000), generator=generator)
    said = torch.where(torch.arange(300_000) % 3 == 0, noise, truth)
    theirs = sklearn.metrics.matthews_corrcoef(truth, said)
    assert block("matthews_correlation")(said, truth) == pytest.approx(theirs)


def check_correlation(ours, theirs, x, y):
    if x.min() < x.max() and y.min() < y.max():
        assert ours(x, y) == pytest.approx(theirs(x, y)[0], abs=1e-9)
    else:
        assert ours(x, y) == 0


@settings(max_examples=30)
@given(scores)
def test_pearson_correlation(block, pair):
    check_correlation(block("pearson_correlation"), scipy.stats.pearsonr, *pair)


@settings(max_examples=30)
@given(scores)
def test_spearman_correlation(block, pair):
    check_correlation(block("spearman_correlation"), scipy.stats.spearmanr, *pair)


@settings(max_examples=30)
@given(scores)
def test_ranks_with_ties(block, pair):
    assert block("ranks_with_ties")(pair[0]).tolist() == scipy.stats.rankdata(pair[0]).tolist()


# -- inputs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair_tokenizer():
    """A tokenizer of the library whose tokens are numbers, 101 is [CLS] and 102 is [SEP]."""
    tokens = {str(i): i for i in range(101)} | {"[CLS]": 101, "[SEP]": 102}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    return tokenizer


@settings(max_examples=80)
@given(a=st.integers(1, 12), b=st.integers(1, 12), max_seq_len=st.integers(5, 30))
def test_encode_pair(block, pair_tokenizer, a, b, max_seq_len):
    first, second = list(range(a)), list(range(50, 50 + b))
    pair_tokenizer.enable_truncation(max_seq_len, strategy="longest_first")
    theirs = pair_tokenizer.encode(*(" ".join(map(str, text)) for text in (first, second)))
    ours = block("encode_pair")(first, second, 101, 102, max_seq_len)
    assert ours == (theirs.ids, theirs.type_ids)


@pytest.mark.parametrize(("batch_size", "pool_batches"), [(4, 2), (3, 4), (8, 50)])
def test_length_buckets(block, batch_size, pool_batches):
    """The Trainer's, which shuffles first, goes from long to short, and starts with the longest."""
    n, generator = 2 * batch_size * pool_batches, partial(torch.Generator().manual_seed, 0)
    order = torch.randperm(n, generator=generator()).tolist()
    lengths = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    longest = lengths.argmax()  # is in their first pool from the start
    lengths[longest], lengths[order[0]] = lengths[order[0]].item(), lengths.max()
    lengths = lengths.tolist()
    theirs = get_length_grouped_indices(lengths, batch_size, pool_batches, generator())
    ours = block("length_buckets")([lengths[row] for row in order], batch_size, pool_batches)
    assert {len(batch) for batch in ours} == {batch_size}
    for start in range(0, len(ours), pool_batches):
        pool = [order[row] for batch in ours[start : start + pool_batches] for row in batch]
        assert pool[::-1] == theirs[start * batch_size :][: len(pool)]


@pytest.mark.parametrize("pad_id", [0, 3])
def test_pad_batch(block, pad_id):
    rows = [torch.arange(1, n + 1) for n in (4, 1, 7)]
    tokens = {"[UNK]": 9, "[PAD]": pad_id, "[CLS]": 10, "[SEP]": 11, "[MASK]": 12}
    library = BertTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece(tokens)))
    theirs = library.pad({"input_ids": [row.tolist() for row in rows]}, return_tensors="pt")
    ids, mask = block("pad_batch")(rows, pad_id)
    assert torch.equal(ids, theirs["input_ids"])
    assert mask.dtype == torch.bool and torch.equal(mask, theirs["attention_mask"].bool())


# -- learning --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [1, 2, 12])
def test_layer_rates(block, n_layers):
    """Of transformers' BERT, whose modules say where a parameter is."""
    shape = dict(hidden_size=4, num_attention_heads=1, intermediate_size=4, vocab_size=9)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=n_layers, **shape))
    bert = model.bert
    modules = [bert.embeddings, *bert.encoder.layer, nn_of(bert.pooler, model.classifier)]
    wanted = {
        id(parameter): 1e-3 * 0.8 ** (n_layers + 1 - k)
        for k, module in enumerate(modules)
        for parameter in module.parameters()
    }
    names = dict(model.named_parameters())
    found = block("layer_rates")(list(names), n_layers, 1e-3, 0.8)
    assert found == pytest.approx({name: wanted[id(p)] for name, p in names.items()})


def nn_of(*modules):
    return torch.nn.ModuleList(modules)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_bert_adam_step(block, weight_decay):
    """torch's AdamW, given in each step a rate and an eps that undo its correction of the bias."""
    rate, (beta1, beta2), eps = 0.03, (0.9, 0.99), 1e-3
    weight = draw(9).detach()
    theirs = weight.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], betas=(beta1, beta2))
    mean, square = torch.zeros(2, 9)
    for step in range(1, 8):
        gradient = draw(9, seed=step).detach()
        root = (1 - beta2**step) ** 0.5
        share = (1 - beta1**step) / root
        optimizer.param_groups[0].update(
            lr=rate * share, eps=eps / root, weight_decay=weight_decay / share
        )
        theirs.grad = gradient.clone()
        optimizer.step()
        block("bert_adam_step")(
            weight, gradient, mean, square, rate, (beta1, beta2), eps, weight_decay
        )
        torch.testing.assert_close(weight, theirs.detach())


def test_sentence_vectors(block):
    """Sentence by sentence, without pads."""
    hidden, lengths = draw(4, 6, 8), [6, 1, 3, 5]
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    rows = [hidden[i, :n].mean(0) for i, n in enumerate(lengths)]
    theirs = F.normalize(torch.stack(rows), dim=-1)
    ours, weights = block("sentence_vectors")(hidden, mask), draw(4, 8, seed=1).detach()
    torch.testing.assert_close(ours, theirs)
    found, want = (torch.autograd.grad((y * weights).sum(), hidden)[0] for y in (ours, theirs))
    torch.testing.assert_close(found, want)


@settings(max_examples=40)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.data())
def test_summary_of_seeds(block, found, data):
    rows = st.lists(st.integers(0, 2), min_size=3, max_size=3)
    said = data.draw(st.lists(rows, min_size=len(found), max_size=len(found)))
    mean, sd, collapsed = block("summary_of_seeds")(
        torch.tensor(found, dtype=torch.double), torch.tensor(said)
    )
    assert mean == pytest.approx(statistics.mean(found))
    assert sd == pytest.approx(statistics.stdev(found), abs=1e-9)
    assert collapsed == sum(len(set(row)) == 1 for row in said)
