import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from common.cli import UserError
from step2_bert import checkpoint
from step2_bert.model import BertConfig, BertForPreTraining, BertForSequenceClassification

torch.set_num_threads(1)

SMALL = BertConfig(vocab_size=97, d_model=16, n_layers=2, n_heads=2, d_ff=24, max_seq_len=12)


@pytest.fixture
def saved(tmp_path):
    BertForPreTraining(SMALL).save(tmp_path)
    return tmp_path


def one_line_error(directory, model=BertForPreTraining) -> str:
    with pytest.raises(UserError) as error:
        model.load(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


# The published sizes, with both heads. `meta` allocates nothing.
@pytest.mark.parametrize(
    "size, millions",
    [("tiny", 4.4), ("mini", 11.3), ("small", 29.1), ("medium", 41.7), ("base", 110.1)],
)
def test_sizes_have_the_published_parameter_counts(size, millions):
    with torch.device("meta"):
        model = BertForPreTraining(BertConfig.named(size))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_wrong_configs_are_refused():
    with pytest.raises(ValueError, match="tiny, mini, small"):
        BertConfig.named("huge")
    with pytest.raises(ValueError, match="multiple of n_heads"):
        BertConfig(d_model=10, n_heads=3)
    with pytest.raises(ValueError, match="not auto, explicit or fused"):
        BertConfig(attention="flash")
    assert BertConfig.named("tiny", vocab_size=5).vocab_size == 5


def test_more_tokens_than_positions():
    with pytest.raises(ValueError, match="13 tokens, but the model has only 12 positions"):
        BertForPreTraining(SMALL)(torch.zeros(1, 13, dtype=torch.long))


def big_tensors(model, batch) -> list[tuple]:
    """(shape, dtype) of what autograd keeps that is as large as M x V."""
    kept = []
    floor = len(batch["masked_labels"]) * model.config.vocab_size

    def note(tensor):
        if tensor.numel() >= floor:
            kept.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = model(**batch)
    assert out.mlm_logits is None
    return kept


def test_loss_path_keeps_no_logits_but_one_bf16_buffer():
    config = BertConfig(vocab_size=5000, d_model=16, n_layers=1, n_heads=2, d_ff=24, max_seq_len=32)
    model = BertForPreTraining(config).train()
    batch = {
        "input_ids": torch.randint(5000, (16, 32)),
        "masked_positions": torch.arange(0, 512, 7),
        "masked_labels": torch.randint(5000, (74,)),
    }
    with torch.autocast("cpu", torch.bfloat16):
        assert big_tensors(model, batch) == [((74, 5000), torch.bfloat16)]


def test_bf16_training_step_is_close_to_fp32():
    torch.manual_seed(0)
    model = BertForPreTraining(SMALL).eval()
    batch = {
        "input_ids": torch.randint(97, (8, 12)),
        "masked_positions": torch.arange(0, 96, 5),
        "masked_labels": torch.randint(97, (20,)),
        "is_random_next": torch.randint(2, (8,)),
    }
    grads = []
    for bf16 in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(**batch)
            loss = out.mlm_loss_sum / 20 + out.nsp_loss_sum / 8
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.999


def test_dropout_only_in_training():
    model = BertForPreTraining(SMALL)
    ids = torch.randint(97, (2, 9))
    model.eval()
    assert torch.equal(model(ids).hidden, model(ids).hidden)
    model.train()
    assert not torch.equal(model(ids).hidden, model(ids).hidden)


def test_bf16_checkpoint_is_half_and_loads_as_fp32(tmp_path):
    model = BertForPreTraining(SMALL)
    model.save(tmp_path / "full")
    model.save(tmp_path / "half", dtype=torch.bfloat16)
    full, half = ((tmp_path / d / "model.safetensors").stat().st_size for d in ("full", "half"))
    assert half < 0.65 * full
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    for name, tensor in BertForPreTraining.load(tmp_path / "half").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())


def test_save_takes_the_tokenizer_along_and_nothing_else(saved, tmp_path):
    (saved / "vocab.txt").write_text("[PAD]\n")
    BertForPreTraining(SMALL).save(tmp_path / "next", tokenizer_dir=saved)
    names = {file.name for file in (tmp_path / "next").iterdir()}
    assert names == {"config.json", "model.safetensors", "vocab.txt"}


def test_a_full_disk_keeps_the_previous_checkpoint(saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        BertForPreTraining(SMALL).save(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert {file.name for file in saved.iterdir()} == {"config.json", "model.safetensors"}


def test_no_checkpoint_there(tmp_path):
    assert "has no config.json" in one_line_error(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    assert "has no model.safetensors" in one_line_error(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(saved, share):
    file = saved / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "truncated or damaged" in one_line_error(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "roberta"}, "another model: model_type is 'roberta'"),
        ({"hidden_act": "relu"}, "another model: hidden_act is 'relu'"),
        ({"tie_word_embeddings": False}, "another model: tie_word_embeddings"),
        ({"vocab_size": 30522}, "word_embeddings.weight has shape (97, 16)"),
        ({"num_hidden_layers": 3}, "lacks bert.encoder.layer.2"),
        ({"num_attention_heads": 5}, "not a multiple of n_heads"),
    ],
)
def test_config_that_does_not_fit(saved, change, message):
    file = saved / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert message in one_line_error(saved)


def test_config_that_is_none(saved):
    (saved / "config.json").write_text("{}")
    assert "it is no BERT config" in one_line_error(saved)
    (saved / "config.json").write_text("{broken")
    assert "is no JSON" in one_line_error(saved)
    (saved / "config.json").write_text("[]")
    assert "is no JSON object" in one_line_error(saved)


def test_half_a_head_is_an_error_but_no_head_is_fresh(saved):
    file = saved / "model.safetensors"
    state = load_file(file)
    state = {k: v for k, v in state.items() if not k.startswith("cls.seq_relationship")}
    save_file(state, file)
    assert BertForPreTraining.load(saved).fresh_parts == ("nsp",)
    del state["cls.predictions.bias"]
    save_file(state, file)
    assert "lacks cls.predictions.bias" in one_line_error(saved)


def test_parts_that_nothing_trained_are_left_out(tmp_path):
    """What is left is a BertForMaskedLM, which transformers opens without a word."""
    from transformers import AutoModelForMaskedLM

    model = BertForPreTraining(SMALL).eval()
    model.untrained_parts = ("bert.pooler", "nsp")
    model.save(tmp_path)
    assert BertForPreTraining.load(tmp_path).fresh_parts == ("bert.pooler", "nsp")
    theirs, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.randint(97, (2, 9))
    torch.testing.assert_close(theirs.eval()(ids).logits, model(ids).mlm_logits)


def test_layer_norms_under_their_first_published_names(saved):
    model = BertForPreTraining.load(saved)
    state = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in load_file(saved / "model.safetensors").items()
    }
    save_file(state, saved / "model.safetensors")
    for name, tensor in BertForPreTraining.load(saved).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_classifier_from_pretrained_is_fresh_over_the_same_encoder(saved, tmp_path):
    first = BertForSequenceClassification.from_pretrained(saved, n_classes=5)
    assert first.fresh_parts == ("classifier",)
    pretrained = BertForPreTraining.load(saved)
    for name, tensor in pretrained.bert.state_dict().items():
        assert torch.equal(tensor, first.bert.state_dict()[name])
    first.save(tmp_path / "five")
    assert BertForSequenceClassification.load(tmp_path / "five").n_classes == 5
    again = BertForSequenceClassification.from_pretrained(tmp_path / "five", n_classes=2)
    assert again(torch.randint(97, (3, 7))).shape == (3, 2)
