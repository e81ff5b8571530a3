"""The benchmark's two models are the same, its clock is fair, and the script says who won."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from step1_transformer import benchmark, decoding, race, races, rivals
from step1_transformer.race import Race
from step1_transformer.rivals import OURS, THEIRS
from step1_transformer.tokenizer import BOS, PAD
from tests import scripts

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    handler = signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("benchmark"))
    yield Path.cwd()
    os.chdir(before)


def call(*flags):
    return scripts.call(benchmark, "--preset", "smoke", *flags)


@pytest.fixture(scope="module")
def found(place):
    assert call("--out", "found") == 0
    return place / "found"


def twins(dropout=0.0):
    torch.manual_seed(0)
    return rivals.twins(50, 32, 2, 20, dropout=dropout, device=CPU)


@pytest.mark.parametrize("ragged", [False, True])
def test_both_have_the_same_scores_losses_and_steps(ragged):
    models, batch = twins(), rivals.random_batch(5, 9, 50, ragged=ragged)
    real = batch["positions"]
    scores = [m.eval()(*rivals.inputs(batch)).flatten(0, 1)[real] for m in models.values()]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)
    steps = [rivals.trainer(model, nullcontext) for model in models.values()]
    for _ in range(3):
        torch.testing.assert_close(*(step(batch) for step in steps), atol=1e-5, rtol=0)
    stacks = models[THEIRS].transformer.decoder, models[OURS].decoder
    for theirs, ours in zip(*(stack.layers for stack in stacks), strict=True):
        torch.testing.assert_close(
            theirs.linear1.weight, ours.feed_forward.sublayer.up.weight, atol=1e-5, rtol=0
        )


def test_the_rival_has_one_matrix_for_embedding_and_output():
    theirs = twins()[THEIRS]
    assert theirs.output.weight is theirs.embedding.weight


def test_a_step_is_one_of_the_optimizer():
    """Forward, the mean loss, backward, the gradient's norm cut to 1, AdamW."""
    model, batch = twins()[THEIRS], rivals.random_batch(3, 5, 50, ragged=True)
    same = twins()[THEIRS]
    optimizer = torch.optim.AdamW(same.parameters(), lr=1e-4)
    scores = same(*rivals.inputs(batch)).flatten(0, 1)[batch["positions"]]
    loss = nn.functional.cross_entropy(scores, batch["labels"], label_smoothing=0.1)
    loss.backward()
    nn.utils.clip_grad_norm_(same.parameters(), 1.0)
    optimizer.step()
    assert rivals.trainer(model, nullcontext)(batch).item() == pytest.approx(loss.item(), rel=1e-6)
    for ours, wanted in zip(model.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)


def test_dropout_is_on_in_training_only():
    batch = rivals.random_batch(4, 8, 50)
    for model in twins(dropout=0.5).values():
        step = rivals.trainer(model, nullcontext)
        assert model.training and step(batch) != step(batch)
        once, again = (model.eval()(*rivals.inputs(batch)) for _ in range(2))
        assert torch.equal(once, again)


def test_a_ragged_batch_is_laid_out_like_the_corpus():
    torch.manual_seed(0)
    batch = rivals.random_batch(6, 7, 50, ragged=True)
    mask, decoder = batch["attention_mask"], batch["decoder_input_ids"]
    assert torch.equal(batch["input_ids"] != PAD, mask) and not mask.all()
    rows = batch["label_rows"].view(6, 7)
    real = rows != PAD
    assert torch.equal(rows[real], batch["labels"]) and batch["targets"]["token"] == real.sum()
    assert torch.equal(real.flatten().nonzero().flatten(), batch["positions"])
    assert (decoder[:, 0] == BOS).all()
    assert torch.equal(decoder[:, 1:][real[:, 1:]], rows[:, :-1][real[:, 1:]])


def test_all_ways_of_decoding_write_the_same_tokens_to_the_end():
    theirs, ours = (model.eval() for model in twins().values())
    ids = rivals.random_batch(3, 10, 50)["input_ids"]
    wanted = rivals.recompute(theirs, ids, 12)
    assert wanted.shape == (3, 12)
    assert torch.equal(rivals.recompute(ours, ids, 12), wanted)
    assert decoding.greedy(ours, ids, max_len=12) == wanted.tolist()


def test_a_race_between_other_models_is_refused(found, monkeypatch):
    def tampered(*args, **kwargs):
        models = twins_of(*args, **kwargs)
        with torch.no_grad():
            models[OURS].decoder.layers[0].feed_forward.sublayer.up.weight.mul_(1.01)
        return models

    twins_of = rivals.twins
    monkeypatch.setattr(rivals, "twins", tampered)
    assert call("--out", "tampered") == 2


def test_systems_take_turns_and_change_who_is_first(monkeypatch):
    called, now = [], [0.0]

    def system(name, seconds):
        called.append(name)
        now[0] += seconds

    monkeypatch.setattr(race.time, "perf_counter", lambda: now[0])
    systems = {"a": lambda: system("a", 2.0), "b": lambda: system("b", 0.5)}
    seconds = race.take_turns(systems, 3, 1.0, CPU)
    assert seconds == {"a": [2.0] * 3, "b": [0.5] * 3}
    warm = ["a"] * 2 + ["b"] * 2
    assert called == warm + ["b", "b", "a"] + ["a", "b", "b"] + ["b", "b", "a"]


def test_a_ratio_is_the_median_of_the_rounds():
    seconds = {THEIRS: [2.0, 9.0, 4.0], OURS: [1.0, 1.0, 1.0]}
    lap = Race("decoding", 32, 8, "fp32", 100, seconds)
    assert lap.ratios() == [2.0, 9.0, 4.0] and lap.ratio() == 4.0
    assert lap.rate(OURS) == 100.0 and lap.milliseconds(THEIRS) == 4000.0
    line = race.table([lap]).splitlines()[-1]
    assert "4.00x" in line and "(2.00-9.00)" in line


def test_the_script_tells_and_keeps_every_race(found, capsys):
    result = json.loads((found / "result.json").read_text())
    kept = json.loads((found / "rounds.json").read_text())
    smoke = benchmark.PRESETS["smoke"]
    sizes = 2 * len(smoke["widths"]) * len(smoke["lengths"])
    kinds = [lap["what"] for lap in kept]
    assert kinds.count("forward") == kinds.count("training step") == sizes
    assert kinds.count("real lengths") == 2
    assert kinds.count("decoding") == 2 * sum(w <= smoke["width"] for w in smoke["widths"])
    assert all(len(s) == smoke["rounds"] for lap in kept for s in lap["seconds"].values())
    for what in benchmark.GOALS:
        for precision in ("fp32", "bf16"):
            group = [lap for lap in kept if (lap["what"], lap["precision"]) == (what, precision)]
            name = f"{what.replace(' ', '_')}/{precision}/least_ratio"
            assert result["metrics"][name]["value"] == min(Race(**lap).ratio() for lap in group)
    assert max(result["largest_difference"].values()) < races.LARGEST_DIFFERENCE["bf16"]
    assert result["dataset"].startswith("copy digits-copy")
    assert (found / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--widths", "33"], "--widths: give multiples of 32"),
        (["--width", "0"], "--width: give multiples of 32"),
        (["--lengths", "0"], "--lengths (0,) must be above 0"),
        (["--rounds", "0"], "--rounds 0 must be above 0"),
        (["--data", "nowhere"], "unknown data 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(place, capfd, monkeypatch, flags, told):
    monkeypatch.delenv("GYM_DATA", raising=False)
    languages = ["--source", "a", "--target", "b"] if "nowhere" in flags else []
    assert call(*flags, *languages, "--out", "bad", "--resume") == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and told in lines[-1]
