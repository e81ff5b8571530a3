"""compare_masking.py in this process, on few and short samples."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common import report, runs
from step2_bert import objective
from step2_bert.corpus import prepare
from step2_bert.masking import Vocabulary
from step2_bert.model import BertForPreTraining
from step2_bert.samples import Samples
from step2_bert.shards import PrepareOptions
from step2_bert.tokenizer import load_tokenizer
from step3_peripherals import bert_study, compare_masking, masking_study, masking_table, paired
from step3_peripherals.masking import Masking
from step3_peripherals.masking_table import VARIANTS, title_of
from step3_peripherals.paired import BASE
from tests import scripts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared samples of twenty documents."""
    options = PrepareOptions(
        data="sotu",
        vocab_size=600,
        max_seq_len=32,
        max_documents=20,
        heldout_fraction=0.1,
        nsp=False,
    )
    out = tmp_path_factory.mktemp("data") / "prepared"
    return prepare(options, out, progress=False, workers=1, measure=False).parent


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    file = tmp_path_factory.mktemp("labelled") / "reviews.tsv"
    rows = [("a fine and good law", 1), ("a sad and poor war", 0)]
    lines = (f"{text} of {year}\t{label}" for year in range(40) for text, label in rows)
    file.write_text("text\tlabel\n" + "\n".join(lines))
    return file


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    signal.signal(signal.SIGTERM, handler)


def call(*flags):
    """Run compare_masking.py in this process, in the directory `run`; its exit code."""
    small = ["--preset", "smoke", "--max-steps", 3, "--out", "run"]
    return scripts.call(compare_masking, *small, *flags)


def result():
    with open("run/result.json") as file:
        return json.load(file)


@pytest.mark.usefixtures("drawn")
def test_a_comparison_is_scored_and_drawn(data, reviews, tmp_path, capsys):
    flags = ["--data", data, "--downstream", reviews, "--epochs", 1, "--variants", "span"]
    assert call(*flags) == 0
    whole = result()
    names = {f"{score} {name}" for score in masking_table.SCORES for name in (BASE, "span")}
    known = {"accuracy majority_class", "accuracy bag_of_words", "mlm_loss word_frequencies"}
    assert set(whole["metrics"]) == names | known
    assert all(whole["metrics"][name]["n"] == 1 for name in names)
    (one,) = whole["scores_per_seed"]["span"]
    assert one["same_loss"] == whole["metrics"]["same_loss span"]["value"]
    assert whole["differences"]["span"]["mlm_loss"]["value"] == pytest.approx(
        whole["metrics"]["mlm_loss span"]["value"] - whole["metrics"]["mlm_loss base"]["value"]
    )
    assert whole["metrics"]["mlm_loss base"]["value"] != whole["metrics"]["mlm_loss span"]["value"]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    assert not list((tmp_path / "run").rglob("*.safetensors"))  # weights are not kept
    printed = capsys.readouterr().out
    assert "spans" in printed and printed.rstrip().endswith("result: run/result.json")


def test_a_comparison_that_is_stopped_or_extended_keeps_its_scores(data, tmp_path, monkeypatch):
    monkeypatch.setattr(masking_table, "plot", lambda *parts: None)  # seconds each
    flags = ["--data", data, "--variants", BASE]
    assert call(*flags) == 0
    whole = result()["metrics"]
    (tmp_path / "run").rename(tmp_path / "whole")
    codes = []
    while not codes or codes[-1] == 75 and len(codes) < 5:
        codes.append(call(*flags, "--slice-minutes", 1e-6, "--resume"))
    assert codes == [75, 75, 0]  # a step at a time; the last one needs no stop
    assert result()["metrics"] == whole

    # More seeds are added to those that are there
    scores = tmp_path / "run" / BASE / "seed-0" / "scores.json"
    before = scores.stat().st_mtime_ns
    assert call(*flags, "--resume", "--seeds", 2) == 0
    assert scores.stat().st_mtime_ns == before
    again = result()["metrics"]["mlm_loss base"]
    assert again["n"] == 2 and again["sd"] > 0

    # They ran where they were trained, wherever they are compared
    there = result()["hardware"]
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr(runs, "hardware", lambda: {"cores": 99})
    assert call(*flags, "--resume", "--seeds", 2) == 0
    assert result()["hardware"] == there


def test_a_slice_is_for_pretraining_and_fine_tuning_together(data, reviews, tmp_path, monkeypatch):
    left = []
    real = bert_study.engine.train

    def noted(model, *, config, **parts):
        left.append(config.slice_minutes)
        return real(model, config=config, **parts)

    monkeypatch.setattr(bert_study.engine, "train", noted)
    monkeypatch.setattr(masking_table, "plot", lambda *parts: None)
    few = tmp_path / "few.tsv"  # fewer than usually are a batch
    few.write_text("\n".join(reviews.read_text().splitlines()[:30]))
    flags = ["--data", data, "--downstream", few, "--epochs", 1, "--variants", BASE]
    assert call(*flags, "--slice-minutes", 60) == 0
    first, second = left
    assert 0 < second < first - 1e-4  # six milliseconds, and a training takes more


def test_a_run_goes_on_only_as_it_was_begun(data, capsys):
    flags = ["--data", data, "--slice-minutes", 1e-6]
    assert call(*flags) == 75
    assert "--resume" in capsys.readouterr().err
    assert call(*flags, "--resume", "--learning-rate", 0.1) == 2
    assert "was begun with --learning-rate 0.002" in capsys.readouterr().err
    assert call(*flags, "--variants", "words") == 2
    assert "no variant 'words'" in capsys.readouterr().err
    assert call(*flags, "--seeds", 0) == 2
    assert call(*flags, "--resume", "--max-minutes", 1) == 2


def test_all_masks_see_the_same_text(data):
    samples = Samples.open(data, "train")
    vocabulary = Vocabulary.of(load_tokenizer(samples.tokenizer_dir))
    rows = np.array([5, 0, 17, 3])
    theirs = samples.batch(rows, epoch=4, seed=2)
    texts = []
    for masking in VARIANTS.values():
        batch = masking_study.masked_batch(samples, rows, vocabulary, masking, seed=2, epoch=4)
        ids = batch["input_ids"].flatten()
        hidden = len(batch["masked_labels"])
        assert batch["targets"] == {"mlm": hidden}
        share = hidden / batch["tokens"]
        assert abs(share - masking.rate) < 0.06
        if masking == Masking():
            assert (batch["input_ids"] == theirs["input_ids"]).all()
            assert (batch["masked_labels"] == theirs["masked_labels"]).all()
        ids[batch["masked_positions"]] = batch["masked_labels"]
        texts.append(ids)
    assert all((text == texts[0]).all() for text in texts)


def test_all_masks_cost_the_same(data, capsys, monkeypatch):
    monkeypatch.setattr(masking_table, "plot", lambda *parts: None)
    assert call("--data", data, "--variants", "rate_60", "--max-steps", 20) == 0
    told = "equal compute: 20 steps of each, but 18 (60 %)"
    assert told in capsys.readouterr().out and told in result()["table"]["notes"]

    config = compare_masking.Config(**compare_masking.PRESETS["smoke"] | dict(data=str(data)))
    study = masking_study.MaskingStudy(config)
    model, steps, spent = BertForPreTraining(study.shape(config)), [], []
    for rate in (0.15, 0.6):
        masking = Masking(rate=rate)
        batch = masking_study.masked_batch(study.train, np.arange(32), study.vocabulary, masking)
        with FlopCounterMode(display=False) as counter:
            objective.losses(model, batch)["mlm_loss"].backward()
        steps.append(study.steps(masking, replace(config, max_steps=1000)))
        spent.append(steps[-1] * counter.get_total_flops())
    assert steps[0] == 1000 and steps[1] < 950
    assert spent[1] / spent[0] == pytest.approx(1, abs=0.03)


def test_heldout_masks_are_fixed_and_those_of_the_name(data):
    samples = Samples.open(data, "heldout")
    vocabulary = Vocabulary.of(load_tokenizer(samples.tokenizer_dir))
    rows = np.arange(4)
    for name, masking in masking_study.SCORED.items():
        drawn = [
            masking_study.masked_batch(samples, rows, vocabulary, masking, epoch=epoch)
            for epoch in (0, 1)
        ]
        assert (drawn[0]["input_ids"] == drawn[1]["input_ids"]).all()
        shown = drawn[0]["input_ids"].flatten()[drawn[0]["masked_positions"]]
        assert (shown == vocabulary.mask_id).all() == (name == "blank")
        labels = drawn[0]["masked_labels"]
        assert (shown == labels).all() == (name == "same")
        if name == "wrong":
            assert (shown != vocabulary.mask_id).all() and (shown == labels).float().mean() < 0.1


def test_differences_are_taken_seed_by_seed():
    found = {BASE: [{"accuracy": 60.0}, {"accuracy": 70.0}]}
    found["span"] = [{"accuracy": 61.0}, {"accuracy": 72.0}]
    metrics, differences = paired.summary(found, masking_table.SCORES)
    assert metrics["span"]["accuracy"]["value"] == 66.5
    assert differences["span"]["accuracy"]["value"] == 1.5
    assert differences["span"]["accuracy"]["sd"] == pytest.approx(0.5**0.5)
    assert masking_table.target(differences) == ""
    for worse, told in ((0.6, "reached"), (0.4, "missed")):
        entries = {"rate_40": {"blank_loss": {"value": -worse}}}
        assert masking_table.target(entries).startswith(f"target {told}: ")
    rows = paired.rows(metrics, differences, masking_table.SCORES, {"span": -0.25}, title_of)
    assert rows[2] == ["spans", "66.5 ± 7.8", "+1.5 ± 0.7", "-0.2"]
    lines = report.columns(rows).splitlines()
    assert lines[2].split() == ["spans", "66.5", "±", "7.8", "+1.5", "±", "0.7", "-0.2"]
    assert len(lines[0]) == len(lines[2])  # the last column ends where its head does


def test_published_differences_come_from_the_reported_numbers(tmp_path, monkeypatch):
    file = tmp_path / "numbers.csv"
    rows = [("mask-rate-15-mnli", 84.2), ("mask-rate-60-mnli", 83.2)]
    rows += [("mask-rate-15-80-10-10-mnli", 83.7), ("mask-rate-40-80-10-10-mnli", 84.3)]
    rows += [("bert-mask-80-10-10-mnli", 84.2), ("bert-mask-0-0-100-mnli", 83.6)]
    lines = [f"{name},BERT,accuracy,{value},%,Table 8" for name, value in rows]
    file.write_text("\n".join(["id,system,metric,value,unit,source_locator", *lines]))
    told = {"rate_60": -1.0, "rate_40": 0.6, "mix_0_0_100": -0.6}
    monkeypatch.setattr(report, "REPORTED", file)
    assert paired.reported(masking_table.PAPER) == told


def test_variants_are_what_they_are_called():
    for name, masking in VARIANTS.items():
        if name.startswith("mix"):
            same = 1 - masking.mask_share - masking.random_share
            shares = [100 * share for share in (masking.mask_share, same, masking.random_share)]
            assert [int(part) for part in name.split("_")[1:]] == pytest.approx(shares)
        if name.startswith("rate"):
            assert f"rate_{100 * masking.rate:.0f}" == name
