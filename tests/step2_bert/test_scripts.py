"""Every script as a user runs it, on a few documents: good input, and bad."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from common import cli, runs, subruns
from step2_bert import (
    benchmark,
    checkpoint,
    clock,
    counting,
    data_fractions,
    exactness,
    parity,
    pretrain,
)
from step2_bert import prepare as prepare_script
from step2_bert.corpus import prepare
from step2_bert.model import BertConfig, BertForPreTraining
from step2_bert.samples import Samples
from step2_bert.shards import PrepareOptions
from tests import scripts

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = PrepareOptions(
    data="sotu", vocab_size=600, max_seq_len=32, max_documents=20, heldout_fraction=0.1
)
SMALL = ["--preset", "smoke", "--max-steps", "4", "--precision", "fp32", "--eval-every", "2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    handler = signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGTERM, handler)


def call(script, *flags):
    """Run `step2_bert/<script>.py` in this process; its exit code."""
    module = importlib.import_module(f"step2_bert.{script}")
    return scripts.call(module, *flags, config_class=vars(module).get("Config", clock.Config))


@pytest.fixture
def fails(capfd):
    """Call a script that must end with code 2 and one line; that line."""

    def check(script, *flags):
        capfd.readouterr()
        assert call(script, *flags) == 2
        line = capfd.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1, line
        return line

    return check


def result(folder):
    return json.loads((folder / "result.json").read_text())


def weights(folder):
    state = load_file(folder / "model" / "model.safetensors")
    return torch.cat([state[name].flatten() for name in sorted(state)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared samples of twenty documents."""
    out = tmp_path_factory.mktemp("data") / "prepared"
    return prepare(OPTIONS, out, progress=False, workers=1, measure=False).parent


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The directory of a finished pretraining run."""
    out = tmp_path_factory.mktemp("runs") / "pretrain"
    assert call("pretrain", *SMALL, "--data", data, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Labelled sentences in two columns."""
    file = tmp_path_factory.mktemp("labelled") / "reviews.tsv"
    rows = [("a fine and good law", 1), ("a sad and poor war", 0)]
    lines = (f"{text} of {year}\t{label}" for year in range(40) for text, label in rows)
    file.write_text("text\tlabel\n" + "\n".join(lines))
    return file


# -- pretrain --------------------------------------------------------------------------------


def test_pretraining_leaves_a_model_curves_and_a_result(trained):
    found = result(trained)
    assert list(found["metrics"]) == ["mlm_loss", "mlm_perplexity", "mlm_accuracy", "nsp_accuracy"]
    assert (found["source"]["name"], found["source"]["kind"]) == ("sotu", "embedded")
    config = json.loads((trained / "config.json").read_text())
    assert config["source"] == found["source"] and len(found["source"]["fingerprint"]) == 64
    assert (trained / "curves.png").exists()
    events = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "eval"] == [0, 2, 4]
    names = {name for event in events for name in event if "/" in name}
    sums = ("mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy")
    assert names == {f"{split}/{name}" for split in ("train", "heldout") for name in sums}


def test_transformers_opens_the_model(trained):
    from transformers import AutoModelForPreTraining, AutoTokenizer

    theirs = AutoModelForPreTraining.from_pretrained(trained / "model").eval()
    ids = AutoTokenizer.from_pretrained(trained / "model")("the law", return_tensors="pt")
    ours = BertForPreTraining.load(trained / "model")
    with torch.no_grad():
        difference = theirs(**ids).prediction_logits - ours(ids["input_ids"]).mlm_logits
    assert difference.abs().max() < 1e-5


def test_a_finished_run_says_where_its_result_is_and_ends(trained, data, capfd):
    before = (trained / "metrics.jsonl").read_text()
    assert call("pretrain", *SMALL, "--data", data, "--out", trained, "--resume") == 0
    out = capfd.readouterr().out.splitlines()
    assert out == [f"{trained} is complete", f"result: {trained}/result.json"]
    assert (trained / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("impl", ["scratch", "hf"])
def test_slices_and_a_full_disk_change_nothing(data, tmp_path, impl, capfd, monkeypatch):
    flags = [*SMALL, "--data", data, "--impl", impl, "--no-nsp", "--fraction", "0.5"]
    assert call("pretrain", *flags, "--out", tmp_path / "whole") == 0
    assert list(result(tmp_path / "whole")["metrics"])[-1] == "mlm_accuracy"
    flags += ["--out", tmp_path / "sliced", "--resume"]
    assert call("pretrain", *flags, "--slice-minutes", "1e-9") == 75
    assert "--resume" in capfd.readouterr().err
    saved = max(tmp_path.glob("sliced/checkpoints/step-*"))
    if impl == "scratch":

        def full(path, content):
            path.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_bytes", full)
            assert call("pretrain", *flags) == 2
        told = capfd.readouterr().err
        assert "No space left" in told and f"{saved} is complete" in told
    assert call("pretrain", *flags) == 0
    assert torch.equal(weights(tmp_path / "sliced"), weights(tmp_path / "whole"))
    # The second task was not trained: its head is not in the checkpoint, and is not scored.
    flags = ["--preset", "smoke", "--model", tmp_path / "whole" / "model"]
    assert call("evaluate", *flags, "--out", tmp_path / "scores") == 0
    assert "nsp_accuracy" not in result(tmp_path / "scores")["metrics"]


def test_two_processes_equal_one(data, tmp_path):
    flags = [*SMALL, "--data", data, "--dropout", "0", "--embeddings", "counted"]
    assert call("pretrain", *flags, "--out", tmp_path / "one") == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(ROOT / "step2_bert/pretrain.py")
    done = subprocess.run(
        [*launch, script, *map(str, flags), "--out", str(tmp_path / "two")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    assert done.stdout.splitlines()[-1] == f"result: {tmp_path}/two/result.json"
    assert (weights(tmp_path / "two") - weights(tmp_path / "one")).abs().max() < 1e-5
    losses = [result(tmp_path / name)["metrics"]["mlm_loss"]["value"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_another_run_may_start_from_the_weights(trained, data, tmp_path):
    flags = [*SMALL, "--data", data, "--init-from", trained / "model", "--dropout", "0.25"]
    assert call("pretrain", *flags, "--learning-rate", "0", "--out", tmp_path / "run") == 0
    assert torch.equal(weights(tmp_path / "run"), weights(trained))
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.25


@pytest.mark.parametrize("impl", ["scratch", "hf"])
def test_embeddings_can_start_from_counting(data, tmp_path, impl, monkeypatch):
    monkeypatch.setattr(runs.Run, "plot", lambda run: None)  # seconds
    flags = [*SMALL, "--data", data, "--impl", impl, "--embeddings", "counted"]
    assert call("pretrain", *flags, "--learning-rate", "0", "--out", tmp_path / "still") == 0
    assert call("pretrain", *flags, "--out", tmp_path / "moved") == 0
    samples = Samples.open(data)
    vectors = counting.token_vectors(samples, np.arange(len(samples)), 128)
    still, moved = (
        BertForPreTraining.load(tmp_path / name / "model").token_embedding.detach().numpy()
        for name in ("still", "moved")
    )
    assert np.array_equal(still, vectors) and not np.array_equal(moved, vectors)


def test_the_share_of_masks_can_be_another_in_training(data, tmp_path, capfd):
    samples = Samples.open(data)
    assert samples.masking_of(None) == samples.masking
    batches = [samples.batch(np.arange(8), masking=samples.masking_of(p)) for p in (0.15, 0.4)]
    few, many = (batch["targets"]["mlm"] / batch["tokens"] for batch in batches)
    assert few == pytest.approx(0.15, abs=0.02) and many == pytest.approx(0.4, abs=0.02)
    flags = [*SMALL, "--max-steps", "1", "--mask-probability", "0.4"]
    assert call("pretrain", *flags, "--data", data, "--out", tmp_path / "more") == 0
    assert "masks: 40% of a training sample\n" in capfd.readouterr().out
    assert call("pretrain", *flags[:-2], "--data", data, "--out", tmp_path / "as-prepared") == 0
    assert not torch.equal(weights(tmp_path / "more"), weights(tmp_path / "as-prepared"))
    static = dataclasses.replace(OPTIONS, dynamic_masking=False)
    folder = prepare(static, tmp_path / "static", progress=False, workers=1, measure=False).parent
    assert call("pretrain", *flags, "--data", folder, "--out", tmp_path / "drawn") == 0
    assert "masks: 15% of a training sample (static)\n" in capfd.readouterr().out


def test_text_is_prepared_on_the_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "law",
        "war",
        "peace",
        "people",
        "union",
        "senate",
        "treaty",
        "nation",
        "army",
        "court",
    ]
    text = "\n\n".join(
        "\n".join(" ".join(words[(i * j + k) % 10] for k in range(9)) + "." for j in range(1, 30))
        for i in range(1, 12)
    )
    (tmp_path / "text.txt").write_text(text)
    flags = ["--data", "text.txt", "--vocab-size", "60", "--max-seq-len", "32"]
    assert call("pretrain", *SMALL, *flags, "--batch-size", "4") == 0
    found = result(tmp_path / "runs/step2_bert/pretrain-smoke")
    assert found["dataset"] == "text.txt" and Path(found["prepared"], "manifest.json").exists()
    # Other text, or other options, go elsewhere.
    config = pretrain.Config(preset="smoke", data="text.txt", vocab_size=60, max_seq_len=32)
    folders = {str(pretrain.prepared_data(config)), found["prepared"]}
    folders.add(str(pretrain.prepared_data(dataclasses.replace(config, max_seq_len=24))))
    (tmp_path / "text.txt").write_text(text.replace("law", "war"))
    folders.add(str(pretrain.prepared_data(config)))
    assert len(folders) == 3  # the first two are the same


def test_several_processes_want_prepared_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = pretrain.Config(preset="smoke", data="sotu")
    with pytest.raises(cli.UserError, match=r"prepare\.py --data sotu --out \S+; then --data"):
        pretrain.prepared_data(config, n_processes=2)


@pytest.mark.parametrize("preset", ["cpu", "gpu", "paper", "paper-10m"])
def test_a_plan_starts_nothing(preset, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("pretrain", "--preset", preset, "--plan", "h100") == 0
    told = capfd.readouterr().out
    assert all(word in told for word in ("parameters", "FLOPs", "GB", "hours", "cost"))
    assert not list(tmp_path.iterdir())


def test_the_plan_of_bert_base(capfd):
    """110 M parameters; 6 FLOPs for each of those in matrices and token are 6 * 85 M * 29.5 G."""
    assert call("pretrain", "--preset", "paper", "--plan", "h100") == 0
    told = capfd.readouterr().out
    assert "110.1 M parameters, 1,000,000 steps" in told
    assert "900,000 steps at length 128: 29.5 G tokens, 1.61e+19 FLOPs" in told
    assert "100,000 steps at length 512: 13.1 G tokens" in told
    first, second = (line.split() for line in told.replace("\\\n", "").splitlines()[-2:])
    first, second = first[1:], second[4:]  # python; accelerate launch --num_processes 8
    assert first[0].endswith("prepare.py") and second[0].endswith("pretrain.py")
    options = cli.parse(prepare_script.Config, prepare_script.PRESETS, first[1:])
    assert (options.max_seq_len, options.max_predictions) == (512, 77)
    here = cli.parse(pretrain.Config, pretrain.PRESETS, ["--preset", "paper"])
    then = cli.parse(pretrain.Config, pretrain.PRESETS, second[1:])
    assert (here.max_steps, here.min_lr_ratio, then.max_steps) == (900_000, 0.1, 100_000)
    assert (then.learning_rate, then.warmup_ratio, then.min_lr_ratio) == (1e-5, 0, 0)
    assert round(here.warmup_ratio * here.max_steps) == 10_000
    assert options.vocab == then.init_from and options.out == then.data


def test_the_plan_of_a_prepared_text_goes_on_with_the_text(data, capfd):
    flags = ["--preset", "paper", "--plan", "h100", "--n-devices", "8", "--out", "runs/x"]
    assert call("pretrain", *flags, "--data", data) == 0
    told = capfd.readouterr().out
    assert "steps at length 32:" in told
    first, second = (line.split() for line in told.replace("\\\n", "").splitlines()[-2:])
    assert first[first.index("--data") + 1] == "sotu"
    assert first[first.index("--vocab") + 1] == "runs/x/model"
    assert second[:4] == ["accelerate", "launch", "--num_processes", "8"]
    assert second[second.index("--data") + 1] == first[first.index("--out") + 1]
    assert second[second.index("--out") + 1] == "runs/x-512"


def test_a_plan_for_an_unknown_device_prints_only_that(fails, capfd):
    assert "known: t4," in fails("pretrain", "--plan", "abacus")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed(tracker, data, tmp_path, fails, monkeypatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    flags = ["--data", data, "--out", tmp_path / "run", "--tracker", tracker]
    assert f"pip install {tracker}" in fails("pretrain", *SMALL, *flags)


# -- evaluate --------------------------------------------------------------------------------


def test_evaluation_repeats_the_score_of_pretraining(trained, tmp_path, capfd):
    """Without --data, on what the model was trained on."""
    flags = ["--preset", "smoke", "--model", trained / "model", "--out", tmp_path / "run"]
    assert call("evaluate", *flags) == 0
    found = result(tmp_path / "run")["metrics"]
    for name, entry in result(trained)["metrics"].items():
        assert found[name]["value"] == pytest.approx(entry["value"], rel=1e-5)
        assert f"baseline_{name}" in found
    out = capfd.readouterr().out
    assert (tmp_path / "run" / "samples.txt").read_text() in out
    assert out.splitlines()[-1] == f"result: {tmp_path}/run/result.json"


def test_evaluation_of_a_checkpoint_of_transformers(trained, data, tmp_path, capfd):
    BertForPreTraining.load(trained / "model").to_hf().save_pretrained(tmp_path / "theirs")
    flags = ["--model", tmp_path / "theirs", "--data", data, "--out", tmp_path / "run"]
    text = ("The [MASK] of the people.", "We want [MASK] and [MASK].")
    assert call("evaluate", "--preset", "smoke", *flags, "--text", *text) == 0
    found, ours = result(tmp_path / "run")["metrics"], result(trained)["metrics"]
    assert found["mlm_loss"]["value"] == pytest.approx(ours["mlm_loss"]["value"], rel=1e-5)
    assert capfd.readouterr().out.count(" ?    ") == 3  # a line for each blank


# -- finetune --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(), ("--random",)])
def test_fine_tuning_on_a_file_of_two_columns(trained, reviews, tmp_path, start, capfd):
    flags = ["--preset", "smoke", "--model", trained / "model", "--data", reviews, *start]
    assert call("finetune_sentence", *flags, "--seeds", "2", "--out", tmp_path / "run") == 0
    found = result(tmp_path / "run")
    assert (found["train_sentences"], found["test_sentences"]) == (72, 8)
    assert found["metrics"]["accuracy"]["n"] == 2 and found["seeds"] == [0, 1]
    assert found["metrics"]["bag_of_words_accuracy"]["value"] == 100
    assert "8 test sentences" in capfd.readouterr().out
    assert found["source"]["kind"] == "path" and found["source"]["name"] == str(reviews)


def test_fine_tuning_goes_on_as_a_whole(trained, reviews, tmp_path, capfd):
    """A slice is over all seeds, and the command that goes on is that of all seeds."""
    flags = ["--preset", "smoke", "--model", trained / "model", "--data", reviews, "--resume"]
    flags += ["--seeds", "2", "--max-steps", "2", "--precision", "fp32"]
    assert call("finetune_sentence", *flags, "--out", tmp_path / "whole") == 0
    sliced = [*flags, "--out", tmp_path / "run", "--slice-minutes", "1e-9"]
    codes = []
    while not codes or codes[-1] == 75:
        capfd.readouterr()
        codes.append(call("finetune_sentence", *sliced))
        if codes[-1] == 75:
            told = capfd.readouterr().err
            assert "--resume" in told and f"--out {tmp_path}/run " in told and "/seed-" not in told
    assert set(codes[:-1]) == {75} and codes[-1] == 0
    scores = [result(tmp_path / name)["metrics"]["accuracy"] for name in ("whole", "run")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("text", ["x", "one word each"])
def test_fine_tuning_on_texts_that_share_no_word(text, trained, tmp_path):
    words = [f"{text} q{i}z" if text != "x" else f"w{i}" for i in range(40)]
    rows = "".join(f"{word}\t{i % 2}\n" for i, word in enumerate(words))
    (tmp_path / "rows.tsv").write_text(rows)
    flags = ["--preset", "smoke", "--model", trained / "model", "--data", tmp_path / "rows.tsv"]
    assert call("finetune_sentence", *flags, "--max-steps", "1", "--out", tmp_path / "run") == 0
    found = result(tmp_path / "run")["metrics"]
    if text == "x":
        assert found["bag_of_words_accuracy"] == found["majority_class_accuracy"]


def test_fine_tuning_on_rt(trained, tmp_path):
    flags = ["--preset", "smoke", "--model", trained / "model", "--max-steps", "2"]
    assert call("finetune_sentence", *flags, "--out", tmp_path / "run") == 0
    found = result(tmp_path / "run")
    assert found["test_sentences"] == 833
    assert 70 < found["metrics"]["bag_of_words_accuracy"]["value"] < 85


# -- data_fractions, benchmark ---------------------------------------------------------------


@pytest.mark.usefixtures("drawn")
def test_data_fractions(data, reviews, tmp_path, monkeypatch, capfd):
    def start(script, folder, budget, **flags):
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in flags.items()]
        assert call(Path(script).stem, "--out", folder, "--resume", *flags) == 0
        return result(folder)

    monkeypatch.setattr(data_fractions, "start", start)
    monkeypatch.setattr(runs.Run, "plot", lambda run: None)  # of each training: seconds
    flags = ["--preset", "smoke", "--data", data, "--max-steps", "2", "--batch-size", "16"]
    flags += ["--downstream", reviews, "--out", tmp_path / "run"]
    assert call("data_fractions", *flags) == 0
    found = result(tmp_path / "run")["metrics"]
    assert len(found) == 4 * 4 and "mlm_loss_equal_steps_50%" in found
    assert found["accuracy_equal_steps_100%"] == found["accuracy_equal_epochs_100%"]
    for name in ("curves.png", "curves-equal-steps.png", "curves-equal-epochs.png"):
        assert (tmp_path / "run" / name).exists()


def started(folder):
    """Whether a training has made a step there."""
    file = folder / "metrics.jsonl"
    return file.exists() and '"train/mlm_loss"' in file.read_text()


@pytest.mark.timeout(300)
def test_a_signal_reaches_the_run_inside(data, tmp_path):
    """Sent to the script alone; the run inside saves, and the script tells how to go on."""
    script = [sys.executable, str(ROOT / "step2_bert/data_fractions.py"), "--preset", "smoke"]
    flags = ["--data", str(data), "--max-steps", "100000", "--out", str(tmp_path / "run")]
    options = dict(cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    outer = subprocess.Popen([*script, *flags], stderr=subprocess.PIPE, text=True, **options)
    inner = tmp_path / "run" / "steps-0.5"
    try:
        until = time.monotonic() + 60
        while not started(inner) and outer.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        outer.send_signal(signal.SIGINT)
        told = outer.communicate(timeout=60)[1]
    finally:
        outer.kill()
    assert outer.returncode == 128 + signal.SIGINT, told
    assert max(inner.glob("checkpoints/step-*")).name > "step-00000000"
    assert told.splitlines()[-1].endswith(f"--out {tmp_path}/run --resume")


# -- proofs ----------------------------------------------------------------------------------


def test_parity(tmp_path, fails, monkeypatch):
    flags = ["--preset", "smoke", "--shapes", "1", "--sizes", "tiny"]
    assert call("parity", *flags, "--out", tmp_path / "run") == 0
    assert result(tmp_path / "run")["metrics"]["largest_score_difference"]["value"] < 1e-5
    monkeypatch.setattr(parity, "gradient_difference", lambda ours, theirs: 2e-5)
    line = fails("parity", *flags, "--out", tmp_path / "wrong")
    assert "largest gradient difference 2.0e-05 is above 1e-05" in line
    assert not (tmp_path / "wrong" / "result.json").exists()


@pytest.fixture
def here(monkeypatch, data):
    """The trainings of exactness.py, on prepared data, in this process; their flags."""
    flags_seen = []

    def in_this_process(script, *flags, launch=(), quiet=False):
        if script.name == "pretrain.py":
            flags_seen.append(list(map(str, flags)))
            assert call("pretrain", *flags, "--data", data, "--eval-every", 1000) == 0

    monkeypatch.setattr(runs.Run, "plot", lambda run: None)  # a second each
    monkeypatch.setattr(subruns, "call", in_this_process)
    monkeypatch.setattr(exactness, "killed", lambda folder, flags, kills: kills)
    return flags_seen


def test_exactness(here, tmp_path, fails, monkeypatch):
    flags = ["--preset", "smoke", "--steps", "1"]
    assert call("exactness", *flags, "--out", tmp_path / "run") == 0
    found = result(tmp_path / "run")["metrics"]
    assert found["22_+_21_+_21"]["value"] < 1e-6 and found["bit_identical_after_kill"]["value"] == 1
    # Interrupted before its result, it goes on; and nothing killed proves nothing.
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr(exactness, "killed", lambda folder, flags, kills: 0)
    line = fails("exactness", *flags, "--out", tmp_path / "run", "--resume")
    assert "before any kill -9" in line and len(here) == 2 * 6

    def train(run, name, flags, launch=()):
        return {"weight": torch.tensor([1.0 + 2e-6 * (name == "ragged")])}

    monkeypatch.setattr(exactness, "train", train)
    assert "22 + 21 + 21: weights differ by" in fails("exactness", "--out", tmp_path / "wrong")


def test_exactness_kills(data, tmp_path):
    flags = [*SMALL, "--data", data, "--max-steps", "100000", "--save-minutes", "0"]
    assert exactness.killed(tmp_path / "run", flags, 1) == 1
    assert exactness.checkpoints(tmp_path / "run")


def measure(data, system):
    config = clock.Config(data=str(data), steps=4, batch_size=8, dropout=0.0)
    return clock.measure(config, system)


def test_the_systems_of_the_benchmark_learn_the_same(data):
    """Same weights, batches, masks and learning rates: the same losses, step by step."""
    theirs = measure(data, clock.SYSTEMS["trainer-fp32"])
    fp32 = measure(data, clock.System(precision="fp32"))
    bf16 = measure(data, clock.SYSTEMS["ours"])
    assert len(theirs["losses"]) == 4 and max(theirs["losses"]) - min(theirs["losses"]) > 0.1
    assert fp32["tokens"] == theirs["tokens"]
    assert fp32["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    assert bf16["losses"] == pytest.approx(theirs["losses"], abs=2e-2)


@pytest.mark.parametrize("ladder", [False, True])
def test_benchmark(data, tmp_path, ladder, monkeypatch, capfd):
    def here(config, name):
        AcceleratorState._reset_state(True)  # the Trainer before it left its precision there
        return clock.measure(config, systems[name])

    systems = clock.LADDER if ladder else clock.SYSTEMS
    monkeypatch.setattr(clock, "WARM", 1)  # the loss of the second step is behind an update
    monkeypatch.setattr(benchmark, "_in_own_process", here)
    flags = ["--preset", "smoke", "--data", data, "--batch-size", "8", "--dropout", "0"]
    flags += ["--steps", "1", "--out", tmp_path / "run"] + ["--ladder"] * ladder
    assert call("benchmark", *flags) == 0
    found = result(tmp_path / "run")["metrics"]
    kinds = {"ratio", "tokens_per_second", "last_loss", "peak_memory"}
    assert {name.split("/")[1] for name in found} - {"mfu"} == kinds
    known = sum(name.endswith("/mfu") for name in found)  # on a GPU whose peak is known
    assert found["trainer_fp32/ratio"]["value"] == 1 and len(found) - known == 4 * len(systems)
    told = re.findall(r" MB +([\d.]+)", capfd.readouterr().out)
    assert [row[0] for row in result(tmp_path / "run")["table"]["rows"]] == ["", *systems]
    kept = [entry["value"] for name, entry in found.items() if name.endswith("/last_loss")]
    for losses in (kept, list(map(float, told))):
        assert len(losses) == len(systems) and max(losses) - min(losses) < 2e-2


def test_utilisation_is_what_the_model_needs_of_the_peak(data, monkeypatch):
    samples = Samples.open(data)
    with torch.device("meta"):
        base = BertForPreTraining(BertConfig.named("base"))
    row = {"tokens_per_second": 1e6}
    assert benchmark.utilisation(base, samples, row) is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    layers, attention = 6 * 85_054_464, 12 * 12 * 768 * 32  # samples of up to 32 tokens
    head = 6 * 0.15 * 768 * (30522 + 768)
    wanted = 1e6 * (layers + attention + head) / 989e12
    assert benchmark.utilisation(base, samples, row) == pytest.approx(wanted)
    for name in ("Some GPU", "NVIDIA T400"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert benchmark.utilisation(base, samples, row) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    assert benchmark.utilisation(base, samples, row) == pytest.approx(wanted * 989 / 165)


def test_the_benchmark_times_the_way_to_a_loss(data):
    config = clock.Config(data=str(data), batch_size=8, target_loss=100.0)
    assert clock.measure(config, clock.SYSTEMS["ours"])["seconds_to_target"] == 0
    assert clock.measure(config, clock.SYSTEMS["trainer-fp32"])["seconds_to_target"] > 0


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.txt", b"\n \n", "no text"),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', "bad.jsonl:2: not JSON"),
        ("bare.jsonl", b'{"words": "fine"}\n', "bare.jsonl:1: no `text`"),
        ("latin.txt", "caf\xe9 au lait".encode("latin-1"), "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used(name, content, told, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    line = fails("pretrain", "--preset", "smoke", "--data", name)
    assert told in line and name in line
    # The mended command may be typed at once: nothing was begun.
    assert "already holds a run" not in fails("pretrain", "--preset", "smoke", "--data", name)


@pytest.mark.parametrize(("name", "told"), [("gone.txt", "no such file"), ("sotv", "known: ")])
def test_data_that_is_not_there(name, told, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GYM_DATA", raising=False)
    assert told in fails("pretrain", "--preset", "smoke", "--data", name)


def test_a_directory_with_a_run_in_it(trained, data, fails):
    line = fails("pretrain", *SMALL, "--data", data, "--out", trained)
    assert "already holds a run; continue it with --resume" in line


def test_more_samples_in_a_batch_than_there_are(data, tmp_path, fails):
    flags = ["--data", data, "--out", tmp_path / "run", "--batch-size", "100000"]
    assert "do not fill one batch" in fails("pretrain", *SMALL, *flags)


@pytest.fixture
def broken(trained, tmp_path):
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(trained / "model", tmp_path / "broken"))


@pytest.mark.parametrize("script", ["pretrain", "evaluate", "finetune_sentence"])
def test_a_checkpoint_that_is_none(script, broken, data, reviews, tmp_path, fails):
    flags = {
        "pretrain": ["--data", data, "--init-from", broken],
        "evaluate": ["--data", data, "--model", broken],
        "finetune_sentence": ["--data", reviews, "--model", broken],
    }[script]
    flags += ["--preset", "smoke", "--out", tmp_path / "run"]
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:1000])
    assert "truncated or damaged" in fails(script, *flags)
    (broken / "model.safetensors").write_bytes(whole)
    (broken / "config.json").write_text('{"model_type": "gpt2", "n_embd": 8}')
    assert "another model: model_type is 'gpt2'" in fails(script, *flags)
    (broken / "config.json").unlink()
    assert "no config.json" in fails(script, *flags)
    shutil.rmtree(broken)
    assert str(broken) in fails(script, *flags)


@pytest.mark.parametrize(("script", "flag"), [("pretrain", "--init-from"), ("evaluate", "--model")])
@pytest.mark.parametrize(
    ("shape", "told"), [({"max_seq_len": 16}, "16 positions"), ({"vocab_size": 700}, "vocabulary")]
)
def test_a_checkpoint_that_does_not_fit(script, flag, shape, told, data, tmp_path, fails):
    fitting = {"vocab_size": Samples.open(data).vocab_size, "max_seq_len": 32}
    BertForPreTraining(BertConfig.named("tiny", **{**fitting, **shape})).save(tmp_path / "model")
    flags = ["--preset", "smoke", "--data", data, "--out", tmp_path / "run"]
    assert told in fails(script, *flags, flag, tmp_path / "model")


def test_sentences_longer_than_the_model(data, reviews, tmp_path, fails):
    config = BertConfig.named("tiny", vocab_size=Samples.open(data).vocab_size, max_seq_len=16)
    BertForPreTraining(config).save(tmp_path / "model", data / "tokenizer")
    flags = ["--preset", "smoke", "--model", tmp_path / "model", "--data", reviews]
    line = fails("finetune_sentence", *flags, "--out", tmp_path / "run")
    assert "--max-seq-len 16 at most" in line


def test_a_text_without_a_blank(trained, tmp_path, fails, capfd):
    flags = ["--preset", "smoke", "--model", trained / "model", "--out", tmp_path / "run"]
    assert "no [MASK]" in fails("evaluate", *flags, "--text", "The [MASK].", "The law.")
    assert capfd.readouterr().out == ""


def test_a_text_longer_than_the_model(data, tmp_path, fails):
    config = BertConfig.named("tiny", vocab_size=Samples.open(data).vocab_size, max_seq_len=32)
    BertForPreTraining(config).save(tmp_path / "model")
    flags = ["--preset", "smoke", "--model", tmp_path / "model", "--data", data]
    line = fails("evaluate", *flags, "--out", tmp_path / "run", "--text", "[MASK] law" * 40)
    assert "has 32 positions: shorten it" in line


def test_a_checkpoint_without_a_masked_lm_head(trained, data, tmp_path, fails):
    from transformers import AutoModel

    AutoModel.from_pretrained(trained / "model").save_pretrained(tmp_path / "encoder")
    flags = ["--preset", "smoke", "--model", tmp_path / "encoder", "--data", data]
    assert "no masked-LM head" in fails("evaluate", *flags, "--out", tmp_path / "run")


def test_a_tokenizer_larger_than_the_checkpoint(data, reviews, tmp_path, fails):
    config = BertConfig.named("tiny", vocab_size=50, max_seq_len=128)
    BertForPreTraining(config).save(tmp_path / "model", data / "tokenizer")
    flags = ["--preset", "smoke", "--model", tmp_path / "model", "--data", reviews]
    line = fails("finetune_sentence", *flags, "--out", tmp_path / "run")
    assert "knows 50 tokens, its tokenizer gives 600" in line


@pytest.mark.parametrize("name", ["epochs", "seeds"])
def test_none_of_what_there_must_be_one_of(name, trained, reviews, tmp_path, fails):
    flags = ["--preset", "smoke", "--model", trained / "model", "--data", reviews]
    flags += [f"--{name}", "0", "--out", tmp_path / "run"]
    assert f"--{name} 0 must be above 0" in fails("finetune_sentence", *flags)


def test_evaluation_of_a_model_whose_data_nobody_noted(broken, tmp_path, fails):
    assert "give --data" in fails("evaluate", "--model", broken, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("good law\tyes\nbad war\tno\n", "integer label"),
        ("good law\t1\nbad war\t-1\n", "labels are 0, 1, 2"),
        ("good law\t1\n", "at least two"),
        ("good law\t1\nfine law\t1\n", "all training rows have the label 1"),
        ("text\ttext2\tlabel\na law\ta war\t1\na war\ta law\t0\n", "one text"),
    ],
)
def test_labels_that_cannot_be_learnt(rows, told, trained, tmp_path, fails):
    (tmp_path / "rows.tsv").write_text(rows)
    flags = ["--preset", "smoke", "--model", trained / "model", "--data", tmp_path / "rows.tsv"]
    assert told in fails("finetune_sentence", *flags, "--out", tmp_path / "run")


@pytest.mark.parametrize("script", ["benchmark", "data_fractions", "evaluate"])
def test_a_directory_that_was_not_prepared(script, trained, tmp_path, fails):
    flags = ["--preset", "smoke", "--data", tmp_path, "--out", tmp_path / "run"]
    assert "prepare.py" in fails(script, *flags)


# -- export ----------------------------------------------------------------------------------


def test_a_kept_model_is_bf16_with_a_card_of_its_runs(data, trained, tmp_path, fails, capfd):
    assert (
        call("evaluate", "--model", trained / "model", "--data", data, "--out", tmp_path / "e") == 0
    )
    flags = ["--run", trained, "--before", trained, "--out", tmp_path / "kept"]
    assert call("export", *flags) == 0
    own = (tmp_path / "kept" / "README.md").read_text()
    assert own.count(f"`{result(trained)['command']}`: ") == 2
    assert f"| {result(trained)['metrics']['mlm_loss']['value']:.3f} |" in own
    assert "baseline" not in own
    assert call("export", *flags, "--scores", tmp_path / "e") == 0
    card = (tmp_path / "kept" / "README.md").read_text()
    assert result(tmp_path / "e")["command"] in card and "| baseline MLM loss (nats) ↓ |" in card
    # One that goes on from an exported model tells what that one went through, in its place
    again = ["--run", trained, "--before", tmp_path / "kept", "--out", tmp_path / "kept"]
    assert call("export", *again) == 0
    longer = (tmp_path / "kept" / "README.md").read_text()
    assert longer.count(f"`{result(trained)['command']}`: ") == 3 and "\n3. `" in longer
    kept = load_file(tmp_path / "kept" / "model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.bfloat16}
    assert torch.equal(
        BertForPreTraining.load(tmp_path / "kept").nsp.weight,
        BertForPreTraining.load(trained / "model").nsp.weight.bfloat16().float(),
    )
    assert (
        call("evaluate", "--model", tmp_path / "kept", "--data", data, "--out", tmp_path / "f") == 0
    )
    line = fails("export", *flags, "--scores", tmp_path / "f")
    assert "is of" in line
    assert "cannot be read" in fails("export", "--run", tmp_path, "--out", tmp_path / "x")
