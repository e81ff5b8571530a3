import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.cli import UserError
from step2_bert import objective
from step2_bert.corpus import prepare
from step2_bert.model import BertConfig, BertForPreTraining
from step2_bert.samples import Samples
from step2_bert.shards import PrepareOptions


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    torch.set_num_threads(1)
    options = PrepareOptions(
        data="sotu", vocab_size=600, max_seq_len=32, max_documents=20, heldout_fraction=0.1
    )
    out = tmp_path_factory.mktemp("objective")
    folder = prepare(options, out, progress=False, workers=1, measure=False).parent
    return Samples.open(folder, "train"), Samples.open(folder, "heldout")


@pytest.fixture(scope="module")
def model(splits):
    torch.manual_seed(0)
    config = BertConfig.named("tiny", vocab_size=splits[0].vocab_size, max_seq_len=32)
    return BertForPreTraining(config).eval()


def test_the_sums_are_those_of_the_whole_scores(splits, model):
    batch = splits[0].batch(np.arange(8))
    sums = objective.losses(model, batch)
    out = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    scores = out.mlm_logits.flatten(0, 1)[batch["masked_positions"]]
    cross_entropy = torch.nn.functional.cross_entropy
    mlm = cross_entropy(scores, batch["masked_labels"], reduction="sum")
    nsp = cross_entropy(out.nsp_logits, batch["is_random_next"], reduction="sum")
    assert sums["mlm_loss"].item() == pytest.approx(mlm.item(), rel=1e-5)
    assert sums["nsp_loss"].item() == pytest.approx(nsp.item(), rel=1e-5)
    assert sums["mlm_accuracy"] == (scores.argmax(-1) == batch["masked_labels"]).sum()


def test_without_pairs_there_is_one_task(splits, model):
    batch = objective.batch_of(splits[0], np.arange(8), nsp=False)
    assert set(objective.losses(model, batch)) == {"mlm_loss", "mlm_accuracy"}
    scores = objective.heldout_scores(model, splits[1], nsp=False)
    assert set(scores) == {"mlm_loss", "mlm_accuracy"}
    assert list(objective.metrics(scores)) == ["mlm_loss", "mlm_perplexity", "mlm_accuracy"]


def test_heldout_scores_are_means_over_all_samples(splits, model):
    heldout = splits[1]
    batch = heldout.batch(np.arange(len(heldout)))
    with torch.no_grad():
        sums = objective.losses(model, batch)
    wanted = {name: float(v) / batch["targets"][name[:3]] for name, v in sums.items()}
    assert objective.heldout_scores(model, heldout) == pytest.approx(wanted, rel=1e-5)


def test_processes_share_the_heldout_split(splits, model, monkeypatch):
    """More processes than batches: together they have every sample once, one of them has none."""
    heldout, shares = splits[1], []

    def evaluate(model, batches, losses, accelerator):
        shares.append([batch["targets"]["nsp"] for batch in batches])

    monkeypatch.setattr(objective.engine, "evaluate", evaluate)
    n_batches = math.ceil(len(heldout) / 128)
    for rank in range(n_batches + 1):
        process = SimpleNamespace(process_index=rank, num_processes=n_batches + 1)
        objective.heldout_scores(model, heldout, process)
    assert sum(map(sum, shares)) == len(heldout) and [] in shares


def test_metrics_are_in_nats_and_per_cent():
    named = objective.metrics({"mlm_loss": 2.0, "mlm_accuracy": 0.25, "nsp_accuracy": 0.5})
    assert {name: (entry["value"], entry["unit"]) for name, entry in named.items()} == {
        "mlm_loss": (2.0, "nats"),
        "mlm_perplexity": (math.exp(2.0), ""),
        "mlm_accuracy": (25.0, "%"),
        "nsp_accuracy": (50.0, "%"),
    }
    better = {name: entry["higher_is_better"] for name, entry in named.items()}
    assert [name for name in better if not better[name]] == ["mlm_loss", "mlm_perplexity"]


def test_static_masks_are_not_counted_as_text(splits):
    heldout = splits[1]
    batch = heldout.batch(np.arange(len(heldout)))
    ids = batch["input_ids"].flatten()
    ids[batch["masked_positions"]] = batch["masked_labels"]
    counts = np.bincount(ids, minlength=heldout.vocab_size)
    counts[:5] = 0
    assert heldout.static and (heldout.token_counts() == counts).all()


def test_the_baseline_is_a_model_that_has_only_biases(splits):
    """All weights zero but the output bias, which is the logarithm of the word counts."""
    train, heldout = splits
    config = BertConfig.named("tiny", vocab_size=train.vocab_size, max_seq_len=32)
    model = BertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.mlm.bias.copy_(torch.from_numpy(train.token_counts() + 1.0).log())
    ours = objective.metrics(objective.heldout_scores(model, heldout, nsp=False))
    baseline = objective.baseline_metrics(train, heldout)
    for name, entry in ours.items():
        assert baseline[name]["value"] == pytest.approx(entry["value"], rel=1e-4)
    assert 50 <= baseline["nsp_accuracy"]["value"] <= 100
    table = objective.table(baseline, baseline, heldout)
    assert len({len(line) for line in table.splitlines()[:-1]}) == 1  # aligned


@pytest.mark.parametrize(
    ("shape", "told"),
    [({"vocab_size": 601}, "vocabulary of 601 tokens"), ({"max_seq_len": 31}, "31 positions")],
)
def test_a_model_that_does_not_fit_the_samples(splits, model, shape, told):
    objective.check_fit(model, splits[0], "here")
    fitting = dict(vocab_size=splits[0].vocab_size, max_seq_len=32)
    other = SimpleNamespace(config=BertConfig.named("tiny", **{**fitting, **shape}))
    with pytest.raises(UserError, match=f"here has .*{told}"):
        objective.check_fit(other, splits[0], "here")
