"""Greedy and beam search against definitions that are slower and plainer, and transformers."""

import pytest
import torch

from step1_transformer import decoding
from step1_transformer.model import Transformer, TransformerConfig


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(vocab_size=23, steps=100, seed=0, **overrides):
    """A small model that has begun to learn an ambiguous task: to leave out some of the tokens.

    An untrained one would write the same token again and again.
    """
    torch.manual_seed(seed)
    shape = dict(d_model=16, n_heads=2, n_encoder_layers=1, n_decoder_layers=2, d_ff=32)
    config = TransformerConfig(vocab_size=vocab_size, **(shape | {"max_seq_len": 64} | overrides))
    model = Transformer(config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(steps):
        ids, mask = sources(32, vocab_size, seed=step)
        kept = mask & (torch.rand(ids.shape) < 0.7)
        order = kept.int().sort(dim=1, descending=True, stable=True).indices
        labels = torch.where(kept, ids, config.eos_token_id).gather(1, order)
        labels = torch.nn.functional.pad(labels, (0, 1), value=config.eos_token_id)
        inputs = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=config.bos_token_id)
        present = torch.arange(labels.shape[1]) <= kept.sum(1, keepdim=True)
        scores = model(ids, inputs, mask)[present]
        torch.nn.functional.cross_entropy(scores, labels[present]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.double().eval()


@pytest.fixture(scope="module")
def model():
    return make()


def sources(n=6, vocab_size=23, seed=0, longest=9):
    """Padded ids (n, S) of sentences of different lengths, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (n,), generator=generator)
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    ids = torch.randint(4, vocab_size, mask.shape, generator=generator)
    return torch.where(mask, ids, 0), mask


@torch.no_grad()
def log_p(model, ids, mask, written):
    """log P of every next token (V,) after `written`, computed without a cache."""
    start = torch.tensor([[model.config.bos_token_id, *written]])
    return model(ids[None], start, mask[None])[0, -1].log_softmax(-1)


def plain_greedy(model, ids, mask, limit):
    written = []
    while len(written) < limit:
        token = int(log_p(model, ids, mask, written).argmax())
        if token == model.config.eos_token_id:
            break
        written.append(token)
    return written


def exhaustive(model, ids, mask, limit, alpha):
    """The best of all finished sequences, those cut at `limit` included."""
    eos, found = model.config.eos_token_id, []

    def grow(written, total):
        if written and (written[-1] == eos or len(written) == limit):
            found.append((total / ((5 + len(written)) / 6) ** alpha, written))
            return
        for token, more in enumerate(log_p(model, ids, mask, written).tolist()):
            grow([*written, token], total + more)

    grow([], 0.0)
    best = max(found)[1]
    return best[: best.index(eos)] if eos in best else best


def test_greedy_is_the_argmax_recomputed_without_a_cache(model):
    ids, mask = sources(12, seed=1000)
    found = decoding.greedy(model, ids, mask, max_len=20)
    assert found == [plain_greedy(model, *row, 20) for row in zip(ids, mask, strict=True)]
    assert len({len(row) for row in found}) > 3, "sentences should leave the batch one by one"


def test_a_beam_of_one_is_greedy(model):
    """With alpha 0; otherwise a longer sentence may win over the one that greedy stops at."""
    ids, mask = sources(12, seed=1000)
    found = decoding.beam(model, ids, mask, beam_size=1, length_penalty=0, max_len=20)
    assert found == decoding.greedy(model, ids, mask, max_len=20)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(seed, alpha):
    V, limit = 5, 4
    model, (ids, mask) = make(V, 0, seed), sources(4, V, seed, longest=5)
    found = decoding.beam(model, ids, mask, beam_size=V**limit, length_penalty=alpha, max_len=limit)
    rows = zip(ids, mask, strict=True)
    assert found == [exhaustive(model, *row, limit, alpha) for row in rows]


def plain_beam(model, ids, mask, limit, k, alpha):
    """Beam search on lists that never stops early: up to the limit, however hopeless."""
    eos, live, finished = model.config.eos_token_id, [(0.0, [])], []
    for length in range(1, limit + 1):
        grown = [
            (total + more, [*written, token])
            for total, written in live
            for token, more in enumerate(log_p(model, ids, mask, written).tolist())
        ]
        best = sorted(grown, reverse=True)[: 2 * k]
        for total, written in best[:k]:
            if written[-1] == eos or length == limit:
                finished.append((total / ((5 + length) / 6) ** alpha, written))
        live = [each for each in best if each[1][-1] != eos][:k]
    best = max(finished)[1]
    return best[: best.index(eos)] if eos in best else best


@pytest.mark.parametrize("beam_size, alpha", [(2, 0.0), (2, 2.0), (3, 0.6)])
def test_stopping_early_changes_no_answer(model, beam_size, alpha):
    ids, mask = sources(20, seed=1001)
    found = decoding.beam(model, ids, mask, beam_size=beam_size, length_penalty=alpha, max_len=10)
    rows = zip(ids, mask, strict=True)
    assert found == [plain_beam(model, *row, 10, beam_size, alpha) for row in rows]


def test_it_does_stop_early(model, monkeypatch):
    """A model sure of </s> needs few of the 40 steps that it may take."""
    calls, eos = [], model.config.eos_token_id

    def only_eos(hidden):
        calls.append(1)
        return 30.0 * torch.eye(model.config.vocab_size)[eos].expand(len(hidden), -1)

    monkeypatch.setattr(model, "logits", only_eos)
    ids, mask = sources()
    assert decoding.beam(model, ids, mask, max_len=40) == [[]] * len(ids)
    assert len(calls) < 5


@pytest.mark.parametrize("search", [decoding.greedy, decoding.beam])
def test_the_rest_of_the_batch_changes_nothing(model, search):
    ids, mask = sources(8, seed=1002)
    together = search(model, ids, mask)
    lengths = mask.sum(1)
    assert together == [search(model, ids[i : i + 1, : lengths[i]])[0] for i in range(len(ids))]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    assert search(model, ids[order], mask[order]) == [together[i] for i in order]


@pytest.mark.parametrize("search", [decoding.greedy, decoding.beam])
def test_the_length_is_the_sources_and_fifty_within_the_positions(search):
    ids, mask = sources()
    for positions, limits in ((128, mask.sum(1) + 50), (30, torch.full((len(ids),), 30))):
        model = make(steps=0, max_seq_len=positions, output_bias=True)
        with torch.no_grad():
            model.embedding.bias[model.config.eos_token_id] = -1e9
        assert [len(row) for row in search(model, ids, mask)] == limits.tolist()


def test_the_length_penalty_of_wu_et_al(model):
    assert decoding.length_penalty_of(1, 0.6) == 1
    assert decoding.length_penalty_of(7, 0.5) == pytest.approx(2**0.5)
    ids, mask = sources(48, seed=1003)
    lengths = [
        sum(map(len, decoding.beam(model, ids, mask, length_penalty=alpha, max_len=20)))
        for alpha in (0.0, 2.0, 4.0)
    ]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_transformers_finds_the_same(model, beam_size):
    """Without a length penalty: theirs, |Y|^alpha, is another. "never" is its exact search."""
    ids, mask = sources(12, seed=1004)
    theirs = model.to_hf().double().eval()
    theirs.generation_config.bad_words_ids = None
    theirs.generation_config.forced_eos_token_id = None
    rows = theirs.generate(
        input_ids=ids, attention_mask=mask.long(), num_beams=beam_size, do_sample=False,
        max_new_tokens=20, length_penalty=0.0, early_stopping="never" if beam_size > 1 else None,
    )  # fmt: skip
    theirs = decoding._until_eos(rows[:, 1:], model.config.eos_token_id)
    if beam_size == 1:
        ours = decoding.greedy(model, ids, mask, max_len=20)
    else:
        ours = decoding.beam(model, ids, mask, beam_size=beam_size, length_penalty=0, max_len=20)
    assert ours == theirs and any(ours)


@pytest.mark.parametrize("options", [{"beam_size": 0}, {"length_penalty": -0.1}])
def test_impossible_options(model, options):
    with pytest.raises(ValueError, match="must be"):
        decoding.beam(model, *sources(), **options)
