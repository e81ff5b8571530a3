"""language_model.py and its stream: what is predicted, what is seen, what is kept."""

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import batching
from common.cli import UserError
from step1_transformer.model import Transformer
from step3_peripherals import language_model, lm_objective, stream
from step3_peripherals.language_model import IGNORED, LanguageModel, LanguageModelConfig
from step3_peripherals.positions import SCHEMES
from step3_peripherals.stream import Rows, StreamOptions

torch.set_num_threads(1)
SHAPE = dict(vocab_size=50, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=12)


def build(positions="rope", **changes):
    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig(**{**SHAPE, "positions": positions, **changes}))


def ids(B=3, T=12, seed=0):
    return torch.randint(0, 50, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positions", SCHEMES)
def test_nothing_is_seen_ahead(positions):
    model, x = build(positions).eval(), ids()
    changed = x.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("positions", SCHEMES)
def test_both_ways_to_attend_are_one(positions):
    x, found = ids(), []
    for kind in ("explicit", "fused"):
        model = build(positions, attention=kind)
        loss = model(x, x.roll(-1, 1)).loss
        found.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["alibi", "t5"])
def test_what_is_added_to_scores_keeps_the_fast_kernel(positions):
    model = build(positions, attention="fused")
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        model(ids())  # RuntimeError: no available kernel


@pytest.mark.parametrize("kind", ["explicit", "fused"])
@pytest.mark.parametrize("positions", SCHEMES)
def test_a_model_of_half_precision(positions, kind):
    model = build(positions, attention=kind)
    whole, half = model(ids()), model.to(torch.bfloat16)(ids())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, rtol=0.05, atol=0.15)


@pytest.mark.parametrize("positions", sorted(set(SCHEMES) - {"none"}))
def test_order_matters(positions):
    """With two layers it would to `none` as well; with one, the last token sees a set."""
    x = ids()
    swapped = x[:, [1, 0, *range(2, 12)]]
    model = build(positions, n_layers=1).eval()
    assert not torch.allclose(model(x)[:, -1], model(swapped)[:, -1], atol=1e-5)
    model = build("none", n_layers=1).eval()
    torch.testing.assert_close(model(x)[:, -1], model(swapped)[:, -1])


@pytest.mark.parametrize("positions", SCHEMES)
def test_what_inference_leaves_behind_does_not_stop_training(positions):
    model, x = build(positions, max_seq_len=11), ids(2, 11)
    with torch.inference_mode():
        model(x)
    model(x, x).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_loss_is_the_cross_entropy_where_it_is_asked_for():
    model, x = build(), ids()
    labels = x.roll(-1, 1)
    labels[0, 5:] = IGNORED
    logits = model(x)
    sums = model(x, labels)
    want = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(sums.loss, want)
    assert sums.correct == (logits.argmax(-1) == labels).sum()
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(loss, parameters) for loss in (sums.loss, want)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_ignored_positions_get_no_scores(monkeypatch):
    seen = []

    class Noted:
        @staticmethod
        def apply(x, *rest):
            seen.append(len(x))
            return x.sum(), None, x.sum()

    monkeypatch.setattr(language_model, "LinearCrossEntropy", Noted)
    labels = torch.full((3, 12), IGNORED)
    labels[1, 2:6] = 1
    build()(ids(), labels)
    assert seen == [4]


@pytest.mark.parametrize("positions", SCHEMES)
def test_rows_longer_than_in_training(positions):
    model, x = build(positions).eval(), ids(2, 30)
    if positions == "learned":
        with pytest.raises(ValueError, match="30 tokens, but only 12 positions"):
            model(x)
    else:
        assert model(x).isfinite().all()


@pytest.mark.parametrize("positions", SCHEMES)
def test_a_saved_model_is_the_same(positions, tmp_path):
    model = build(positions).eval()
    model.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    assert again.config == model.config
    assert torch.equal(model(ids()), again(ids()))
    with pytest.raises(UserError, match="config"):
        Transformer.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(positions="random"), "positions is 'random'"),
        (dict(norm="post"), "pre-norm"),
        (dict(d_model=15), "multiple"),
    ],
)
def test_configs_that_cannot_be(changes, told):
    with pytest.raises(ValueError, match=told):
        LanguageModelConfig(**SHAPE | changes)


# --- stream --------------------------------------------------------------------------------------


class Bytes:
    """A tokenizer of the common interface: a token a byte."""

    vocab_size = 256

    def encode(self, text):
        return list(text.encode())

    def save(self, folder):
        (folder / "vocab.json").write_text("{}")


@pytest.fixture
def corpus(tmp_path):
    """45 documents of two paragraphs, one of them not in ASCII."""
    rows = [{"text": f"Document {i}.\n\nIts text: {'é' * (i % 7)}{i * i}."} for i in range(45)]
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def documents(tokens, separator):
    """The texts between separators."""
    starts = np.flatnonzero(tokens == separator)
    return [bytes(part[1:].tolist()).decode() for part in np.split(tokens, starts)[1:]]


def test_every_document_is_in_one_split_whole(corpus, tmp_path):
    made = stream.prepare(corpus, Bytes(), 256, tmp_path / "cache", StreamOptions(heldout_every=10))
    assert made.vocab_size == 257 and made.tokens("train").dtype == np.uint16
    train, heldout = (documents(made.tokens(s), 256) for s in ("train", "heldout"))
    assert [text.split(".")[0] for text in heldout] == [f"Document {i}" for i in (9, 19, 29, 39)]
    assert len(train) == 41 and made.manifest["train"]["documents"] == 41
    for split, found in (("train", train), ("heldout", heldout)):
        assert made.n_bytes(split) == sum(len(text.encode()) for text in found)
        assert made.manifest[split]["tokens"] == len(made.tokens(split))
    assert "Its text: " in heldout[0]


def test_the_cache_knows_all_that_a_stream_depends_on(corpus, tmp_path, monkeypatch):
    cache, options = tmp_path / "cache", StreamOptions(heldout_every=10)
    first = stream.prepare(corpus, Bytes(), 256, cache, options)
    written = (first.folder / "train.bin").stat().st_mtime_ns
    assert stream.prepare(corpus, Bytes(), 256, cache, options) == first
    assert (first.folder / "train.bin").stat().st_mtime_ns == written

    class Other(Bytes):
        def save(self, folder):
            (folder / "vocab.json").write_text('{"a": 0}')

    others = [
        stream.prepare(corpus, Other(), 256, cache, options),
        stream.prepare(corpus, Bytes(), 300, cache, options),
        stream.prepare(corpus, Bytes(), 256, cache, StreamOptions(heldout_every=9)),
        stream.prepare(corpus, Bytes(), 256, cache, StreamOptions(30, 10)),
    ]
    with open(corpus, "a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    others.append(stream.prepare(corpus, Bytes(), 256, cache, options))
    assert len({made.folder for made in [first, *others]}) == 6
    assert not list(cache.glob(".*"))


def test_a_large_vocabulary_gets_wider_ids(corpus, tmp_path):
    made = stream.prepare(corpus, Bytes(), 2**16, tmp_path, StreamOptions(heldout_every=10))
    assert made.tokens("train").dtype == np.uint32 and made.tokens("train")[0] == 2**16


def test_too_few_documents(tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("A single document.\n")
    with pytest.raises(UserError, match="1 documents are too few"):
        stream.prepare(str(file), Bytes(), 256, tmp_path / "cache")
    assert not [entry for entry in (tmp_path / "cache").iterdir()]
    with pytest.raises(UserError, match="no token stream"):
        stream.Stream.open(tmp_path)
    for damaged in ("{", "{}", "[1]"):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(UserError, match=r"manifest\.json is damaged: delete the folder"):
            stream.Stream.open(tmp_path)


def test_a_vocabulary_in_the_cache_that_is_damaged(corpus, tmp_path):
    options = StreamOptions(heldout_every=10)
    stream.byte_level_bpe(corpus, 260, tmp_path / "cache", options)
    (file,) = (tmp_path / "cache").glob("bpe-*.json")
    file.write_text("{")
    with pytest.raises(UserError, match=r"bpe-.* is damaged .*: delete it"):
        stream.byte_level_bpe(corpus, 260, tmp_path / "cache", options)


def test_two_processes_make_the_same_stream(corpus, tmp_path, monkeypatch):
    """The slower one takes what the other has made."""
    options, write = StreamOptions(heldout_every=10), stream.runs.write_json

    def faster(path, value):
        monkeypatch.setattr(stream.runs, "write_json", write)
        stream.prepare(corpus, Bytes(), 256, tmp_path / "cache", options)
        write(path, value)

    monkeypatch.setattr(stream.runs, "write_json", faster)
    made = stream.prepare(corpus, Bytes(), 256, tmp_path / "cache", options)
    assert [made.folder] == list((tmp_path / "cache").iterdir())


def test_a_librarys_tokenizer(corpus, tmp_path):
    options = StreamOptions(heldout_every=10)
    tokenizer = stream.byte_level_bpe(corpus, 300, tmp_path, options)
    assert tokenizer.get_vocab_size() == 300
    separator = tokenizer.token_to_id(stream.SEPARATOR)
    made = stream.prepare(corpus, tokenizer, separator, tmp_path, options)
    assert made.vocab_size == 300
    tokens = made.tokens("heldout")
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    assert len(text.split(stream.SEPARATOR)) == 1 + 4
    assert text.startswith(f"{stream.SEPARATOR}Document 9.")
    again = stream.byte_level_bpe(corpus, 300, tmp_path, options)
    assert again.to_str() == tokenizer.to_str() and len(list(tmp_path.glob("bpe-*"))) == 1


def test_text_is_text_whatever_stands_in_it(tmp_path):
    """Half a surrogate pair, and the name of the separator."""
    file = tmp_path / "odd.jsonl"
    lines = [json.dumps({"text": f"{i} \ud800 {stream.SEPARATOR}."}) + "\n" for i in range(4)]
    file.write_text("".join(lines))
    options = StreamOptions(heldout_every=2)
    tokenizer = stream.byte_level_bpe(str(file), 257, tmp_path, options)
    separator = tokenizer.token_to_id(stream.SEPARATOR)
    made = stream.prepare(str(file), tokenizer, separator, tmp_path, options)
    ids = made.tokens("heldout")
    assert (ids == separator).sum() == 2 == made.manifest["heldout"]["documents"]
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    assert text == f"1 ? {stream.SEPARATOR}.3 ? {stream.SEPARATOR}."
    assert len(ids) - 2 == made.n_bytes("heldout") == len(text)


@pytest.mark.parametrize("T", [1, 4, 7, 20, 21, 100])
def test_rows_predict_each_token_once_at_any_length(T):
    tokens = np.arange(22, dtype=np.uint16)
    rows = Rows(tokens, T)
    batch = rows.batch(np.arange(len(rows)))
    labels, inputs = batch["labels"], batch["input_ids"]
    real = labels != IGNORED
    assert labels[real].tolist() == list(range(1, 22))
    assert torch.equal(inputs[real], labels[real] - 1)
    assert batch["targets"] == {"token": 21} and rows.lengths.sum() == 21
    assert inputs.shape == (len(rows), T)


def test_scores_are_of_the_whole_text_whatever_the_batches():
    model, rows = build().eval(), Rows(ids(1, 100)[0].numpy().astype(np.uint16), 12)
    every = rows.batch(np.arange(len(rows)))
    logits = model(every["input_ids"]).flatten(0, 1)
    want = F.cross_entropy(logits, every["labels"].flatten()).item()
    for batch_tokens in (12, 40, 8192):
        found = lm_objective.heldout_scores(model, rows, batch_tokens=batch_tokens)
        assert found["token_loss"] == pytest.approx(want, rel=1e-5)


def test_bits_per_byte():
    """256 equally likely bytes are 8 bits each, as single tokens or as pairs."""
    assert lm_objective.bits_per_byte(math.log(256), 10, 10) == pytest.approx(8)
    assert lm_objective.bits_per_byte(math.log(256**2), 5, 10) == pytest.approx(8)


def test_training_drops_the_row_that_is_not_full():
    """The batches of a run, as train_lm.py makes them, have rows of one length."""
    rows = Rows(np.zeros(100, np.uint16), 12)
    full = np.flatnonzero(rows.lengths == 12)
    order = batching.Batches(rows.lengths[full], batch_size=4, bucket=False).epoch(0)
    assert sorted(np.concatenate(order)) == list(range(8))
