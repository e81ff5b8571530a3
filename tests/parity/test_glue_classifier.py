"""Our classifier against transformers': same checkpoint, same batch, same scores and gradients."""

import itertools

import numpy as np
import pytest
import torch

from step2_bert.checkpoint import hf_names
from step2_bert.tokenizer import load_tokenizer
from step4_finetune_glue import classifier, prediction
from step4_finetune_glue.encoding import Encoded
from step4_finetune_glue.tasks import Rows, task
from tests.step4_finetune_glue import small

torch.set_num_threads(1)
TASKS = {1: "STS-B", 2: "RTE", 3: "MNLI"}


def batch(folder, n_labels):
    """Pairs of odd lengths, most of them padded."""
    first, second = small.sentences(5, 1), small.sentences(5, 2)
    second[2] += " by a man with a long red road" * 4  # cut
    labels = np.array([0.5, 2, 3.25, 5, 1]) if n_labels == 1 else np.arange(5) % n_labels
    parts = dict(labels=labels, ids=list(range(5)), low_resource=False, split="dev")
    rows = Rows(task=task(TASKS[n_labels]), first=first, second=second, **parts)
    made = Encoded(load_tokenizer(folder), rows, 24).batch(np.arange(5))
    assert not made["attention_mask"].all() and made["token_type_ids"].any()
    return made


@pytest.mark.parametrize(
    ("name", "n_labels", "train"),
    [*itertools.product(["random"], [1, 2, 3], [True, False]), ("minilm", 2, True)],
)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_logits_losses_and_every_gradient(tmp_path, name, n_labels, train, pooling):
    start = classifier.find(name) if name == "minilm" else small.bert(tmp_path / "bert")
    torch.manual_seed(n_labels)
    ours = classifier.load(start, n_labels, pooling=pooling, dropout=0.0)
    torch.nn.init.normal_(ours.bert.pooler.weight, std=0.1)  # or it hides what is under it
    ours.save(tmp_path / "head", start)
    assert classifier.pooling_of(tmp_path / "head", "auto", "hf") == pooling
    settings = dict(impl="hf", pooling=pooling, dropout=0.0)
    theirs = classifier.load(tmp_path / "head", n_labels, **settings)
    reads = {classifier.told(model).split(";")[0] for model in (ours, theirs)}
    assert len(reads) == 1 and ("mean" in reads.pop()) == (pooling == "mean")
    ours.train(train), theirs.train(train)
    made = batch(start, n_labels)

    got, want = prediction.call(ours, made), prediction.call(theirs, made)
    assert got.shape == (5, n_labels)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    sums = {model: prediction.losses(model, made)["label_loss"] for model in (ours, theirs)}
    if pooling == "cls":  # transformers knows no other loss
        inner = theirs.hf(
            input_ids=made["input_ids"],
            attention_mask=made["attention_mask"].long(),
            token_type_ids=made["token_type_ids"],
            labels=made["labels"],
        )
        torch.testing.assert_close(sums[ours] / 5, inner.loss, rtol=1e-5, atol=1e-6)
    for loss in sums.values():
        loss.backward()
    names = dict(theirs.hf.named_parameters())
    for name, parameter in ours.named_parameters():
        learns = pooling == "cls" or "pooler" not in name
        assert all(names[n].requires_grad == learns for n in hf_names(name))
        if not learns:
            assert parameter.grad is None
            continue
        wanted = torch.cat([names[hf_name].grad for hf_name in hf_names(name)])
        scale = max(1e-3, float(wanted.abs().max()))
        torch.testing.assert_close(parameter.grad / scale, wanted / scale, rtol=0, atol=2e-5)


def test_under_no_grad_in_a_mixed_batch_as_alone(tmp_path):
    """Padding changes nothing, for either head and either implementation."""
    start = small.bert(tmp_path / "bert")
    made = batch(start, 2)
    for settings in (
        {"pooling": "mean"},
        {"pooling": "cls"},
        {"impl": "hf"},
        {"impl": "hf", "pooling": "mean"},
    ):
        torch.manual_seed(0)
        model = classifier.load(start, 2, **settings).eval()
        with torch.no_grad():
            together = prediction.call(model, made)
            for i in range(5):
                n = int(made["attention_mask"][i].sum())
                names = ("input_ids", "attention_mask", "token_type_ids")
                one = {name: made[name][i : i + 1, :n] for name in names}
                torch.testing.assert_close(prediction.call(model, one)[0], together[i])


def test_mean_pooling_is_the_mean_that_the_sentence_transformer_was_trained_on(tmp_path):
    start = classifier.find("minilm")
    model = classifier.load(start, 2, pooling="mean").eval()
    made = batch(start, 2)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        hidden, _ = model.bert(*(made[name] for name in names))
        mask = made["attention_mask"]
        mean = torch.stack([row[keep].mean(0) for row, keep in zip(hidden, mask, strict=True)])
        wanted = model.classifier(mean)
    torch.testing.assert_close(prediction.call(model, made), wanted, rtol=1e-5, atol=1e-5)
