import copy

import pytest
import torch
import transformers
from torch import nn

from common.cli import UserError
from step2_bert.model import BertConfig, BertForSequenceClassification
from step4_finetune_glue import recipe

SHAPE = dict(vocab_size=40, d_model=16, n_layers=3, n_heads=2, d_ff=24, max_seq_len=16)


@pytest.fixture(params=["ours", "theirs"])
def model(request):
    torch.manual_seed(0)
    ours = BertForSequenceClassification(BertConfig(**SHAPE), 2)
    return ours if request.param == "ours" else ours.to_hf()


def rates(optimizer):
    return {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_layer_decay(model):
    (optimizer,) = recipe.build_optimizers(model, 1.0, layer_decay=0.5)
    found = rates(optimizer)
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        block = recipe.BLOCK.search(name)
        wanted = 1.0 if "pooler" in name or "classifier" in name else 0.5**4
        wanted = 0.5 ** (3 - int(block[1])) if block else wanted
        assert found[parameter] == wanted, name


def test_without_layer_decay_there_are_two_groups(model):
    (optimizer,) = recipe.build_optimizers(model, 0.1, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert set(rates(optimizer).values()) == {0.1}
    for group in optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_layer_decay_needs_layers():
    with pytest.raises(UserError, match="--layer-decay 1"):
        recipe.build_optimizers(nn.Linear(2, 2), 1.0, layer_decay=0.5)


def naive_bert_adam(p, grads, rates, beta1, beta2, eps, decay):
    """As google-research/bert's optimization.py words it, one line an assignment."""
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for g, lr in zip(grads, rates, strict=True):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m / (v.sqrt() + eps) + decay * p)
    return p


def test_bert_adam_is_the_naive_one():
    torch.manual_seed(0)
    start = torch.randn(5, 3, dtype=torch.float64)
    grads = torch.randn(30, 5, 3, dtype=torch.float64) * 1e-3
    steps = torch.linspace(1e-2, 1e-4, 30).tolist()  # a schedule, as the engine sets it
    parameter = nn.Parameter(start.clone())
    optimizer = recipe.BertAdam([parameter], betas=(0.9, 0.99), eps=1e-4, weight_decay=0.1)
    for gradient, rate in zip(grads, steps, strict=True):
        parameter.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == rate
        optimizer = resumed(optimizer, parameter)
    wanted = naive_bert_adam(start, grads, steps, 0.9, 0.99, 1e-4, 0.1)
    torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-14)


def resumed(optimizer, parameter):
    """Another optimizer with this one's state, as after a resume."""
    fresh = recipe.BertAdam([parameter])
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return fresh


@pytest.mark.parametrize("t", [1, 2, 20])
def test_its_steps_are_those_of_adamw_times_what_its_docstring_says(t):
    moved = {}
    for kind in (torch.optim.AdamW, recipe.BertAdam):
        parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = kind([parameter], lr=1.0, eps=0.0, weight_decay=0.0)
        for _ in range(t):
            before = parameter.item()
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        moved[kind] = parameter.item() - before
    ratio = moved[recipe.BertAdam] / moved[torch.optim.AdamW]
    assert ratio == pytest.approx((1 - 0.9**t) / (1 - 0.999**t) ** 0.5)
    assert ratio > 3.1


@pytest.mark.parametrize("n", [0, 1, 3])
def test_reinitialised_layers(model, n):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 7
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    recipe.reinitialise(model, n, std=0.02)
    for name, value in model.state_dict().items():
        block = recipe.BLOCK.search(name)
        fresh = n > 0 and ("pooler" in name or (block and int(block[1]) >= 3 - n))
        assert torch.equal(value, before[name]) != bool(fresh), name
        if fresh and value.ndim > 1:
            assert 0.01 < value.std() < 0.03 and abs(value.mean()) < 0.01, name
        elif fresh:
            assert (value == float("orm.weight" in name or "Norm.weight" in name)).all(), name


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_centred_head_answers_the_mean_at_first(kind):
    made = getattr(transformers, f"{kind}ForSequenceClassification")
    config = made.config_class(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, num_labels=1, initializer_range=1e-6,
    )  # fmt: skip
    model = made(config).eval()
    before = copy.deepcopy(model.state_dict())
    recipe.centre(model, 2.7)
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert len(changed) == 1 and changed[0].endswith("bias")
    answers = model(torch.randint(5, 30, (4, 6))).logits
    torch.testing.assert_close(answers, torch.full((4, 1), 2.7), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="no bias: take --no-centred-head"):
        recipe.centre(nn.Linear(4, 1, bias=False), 2.7)


def test_more_layers_than_there_are(model):
    with pytest.raises(UserError, match="--reinit-layers 4: the model has 3 layers"):
        recipe.reinitialise(model, 4, 0.02)
