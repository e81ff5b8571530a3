"""finetune.py as a user runs it, on a few rows: good input, and bad."""

import dataclasses
import gc
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from common import cli, engine
from common.cli import UserError
from step2_bert.model import BertForSequenceClassification
from step4_finetune_glue import classifier, metrics, outcome, prediction, scoring, tasks
from tests.step4_finetune_glue import small

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["--seeds", 1, "--epochs", 2, "--batch-size", 16, "--precision", "fp32"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    handler = signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return small.glue(tmp_path_factory.mktemp("data") / "glue")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return small.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def flags(glue, bert, tmp_path):
    return ["--data", glue, "--model", bert, "--out", tmp_path / "run"]


@pytest.fixture
def fails(capfd):
    """Run with flags that must end with code 2 and one line; that line."""

    def check(*given):
        capfd.readouterr()
        assert small.run("finetune", *given) == 2
        gc.collect()
        line = capfd.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1, line
        return line

    return check


def predictions(folder, split="dev", seed=0):
    return np.load(folder / f"seed-{seed}" / f"predictions-{split}.npz")


@pytest.mark.parametrize("impl", ["scratch", "hf"])
@pytest.mark.parametrize("name", ["RTE", "STS-B", "SST-2", "MNLI"])
def test_a_task_is_trained_scored_and_predicted(name, impl, glue, flags, tmp_path, capfd):
    given = [*flags, *TRAIN, "--task", name, "--impl", impl, "--predict-test"]
    if name == "MNLI":  # predicts AX too
        shutil.copytree(glue, tmp_path / "glue")
        (tmp_path / "glue" / "AX").mkdir()
        ax = "index\tsentence1\tsentence2\n0\tthe film\ta law\n"
        (tmp_path / "glue" / "AX" / "diagnostic.tsv").write_text(ax)
        given += ["--data", tmp_path / "glue"]
    assert small.run("finetune", *given) == 0
    task, out = tasks.task(name), tmp_path / "run"
    assert capfd.readouterr().out.splitlines()[-1] == f"result: {out}/result.json"
    result = small.result(out)
    split = task.dev_splits[0]
    found, rows = predictions(out, split), tasks.read(task, split, str(glue))
    assert found["logits"].shape == (11, task.n_classes) and found["logits"].dtype == np.float32
    assert (found["labels"] == rows.labels).all()
    test = predictions(out, task.test_splits[0])
    assert test["logits"].shape == (11, task.n_classes) and "labels" not in test
    wanted = metrics.score(task, metrics.predictions(task, found["logits"]), found["labels"])
    assert list(result["metrics"]) == list(task.metrics)
    for metric, value in wanted.items():
        assert result["metrics"][metric]["value"] == pytest.approx(value)
        assert result["scores_per_seed"][metric] == [pytest.approx(value)]
    assert result["dataset"] == f"glue/{name}" and result["train_rows"] == 40
    assert len(result["seconds_per_seed"]) == 1 and result["config"]["max_steps"] == 6
    assert not (out / "seed-0" / "checkpoints").exists()
    if name == "MNLI":
        assert predictions(out, "AX")["logits"].shape == (1, 3)
        assert list(result["dev_rows"]) == ["dev_matched"]


def test_both_dev_sets_are_scored_where_there_are_both(glue, flags, tmp_path):
    shutil.copytree(glue / "MNLI", tmp_path / "glue" / "MNLI")
    rows = (glue / "MNLI" / "dev_matched.tsv").read_text().splitlines()[:8]
    (tmp_path / "glue" / "MNLI" / "dev_mismatched.tsv").write_text("\n".join(rows) + "\n")
    given = [*flags, *TRAIN, "--task", "mnli", "--data", tmp_path / "glue"]
    assert small.run("finetune", *given) == 0
    result = small.result(tmp_path / "run")
    assert list(result["metrics"]) == ["accuracy", "mismatched_accuracy"]
    assert result["dev_rows"] == {"dev_matched": 11, "dev_mismatched": 7}


def test_what_can_be_learned_is_learned(flags, glue, tmp_path):
    """Sentences with one word are good, with another bad; both heads see it."""
    for split, n in (("train", 200), ("dev", 50)):
        lines = [f"{text} {('bad', 'good')[i % 2]}\t{i % 2}" for i, text in
                 enumerate(t.replace("good", "").replace("bad", "")
                           for t in small.sentences(n, n))]  # fmt: skip
        (tmp_path / "glue" / "SST-2").mkdir(parents=True, exist_ok=True)
        text = "\n".join(["sentence\tlabel", *lines]) + "\n"
        (tmp_path / "glue" / "SST-2" / f"{split}.tsv").write_text(text)
    more = ["--data", tmp_path / "glue", "--task", "SST-2", "--learning-rate", "1e-2"]
    for pooling in ("cls", "mean"):
        out = ["--out", tmp_path / pooling, "--pooling", pooling, "--seeds", 1, "--epochs", 8]
        assert small.run("finetune", *flags, *more, *out, "--dropout", 0) == 0
        assert small.result(tmp_path / pooling)["metrics"]["accuracy"]["value"] == 100
        assert small.result(tmp_path / pooling)["collapsed"] == 0


def test_a_seed_changes_the_head_and_the_run_and_nothing_else_does(flags, tmp_path):
    more = [*TRAIN, "--task", "RTE", "--max-steps", 2, "--keep-models"]
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        given = [*flags, *more, "--seed", seed, "--out", tmp_path / name]
        assert small.run("finetune", *given) == 0
    a, b, c = (load_file(tmp_path / n / f"seed-{s}" / "model" / "model.safetensors")
               for n, s in (("a", 3), ("b", 3), ("c", 4)))  # fmt: skip
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["classifier.weight"], c["classifier.weight"])
    assert (a["classifier.weight"] - c["classifier.weight"]).std() > 0.01  # other draws
    folder = tmp_path / "a" / "seed-3" / "model"
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(loaded).__name__ == "BertForSequenceClassification"
    assert transformers.AutoTokenizer.from_pretrained(folder)("the film")["input_ids"]


@pytest.mark.parametrize("impl", ["scratch", "hf"])
def test_a_stopped_run_goes_on_where_it_was(impl, flags, tmp_path, capfd):
    more = [*TRAIN, "--task", "RTE", "--impl", impl, "--seeds", 2, "--layer-decay", 0.9]
    more += ["--epochs", 1]
    more += ["--reinit-layers", 1, "--no-bias-correction"]
    assert small.run("finetune", *flags, *more, "--out", tmp_path / "whole") == 0
    stopped = [*flags, *more, "--slice-minutes", 1e-6, "--resume"]
    codes = [small.run("finetune", *stopped, "--seeds", 1)]  # more are wanted while one is begun
    gc.collect()
    while len(codes) < 20 and codes[-1:] != [0]:
        codes.append(small.run("finetune", *stopped))
        gc.collect()
    assert codes[-1] == 0 and set(codes[:-1]) == {75} and len(codes) >= 4
    assert "go on with:\npython step4_finetune_glue/finetune.py" in capfd.readouterr().err
    for seed in (0, 1):
        whole, parts = (predictions(tmp_path / name, seed=seed) for name in ("whole", "run"))
        assert (whole["logits"] == parts["logits"]).all()
    scores = [small.result(tmp_path / name)["scores_per_seed"] for name in ("whole", "run")]
    assert scores[0] == scores[1]
    assert small.run("finetune", *flags, *more, "--resume") == 0  # complete: nothing is done
    assert small.run("finetune", *flags, *more) == 2


def test_two_processes_equal_one(bert, tmp_path):
    """With a last batch of one row, which leaves a process none, and three batches to predict."""
    flags = ["--data", small.glue(tmp_path / "glue", train=33, dev=300), "--model", bert]
    more = [*TRAIN, "--task", "STS-B", "--dropout", "0", "--pooling", "mean", "--seeds", 2]
    assert small.run("finetune", *flags, *more, "--out", tmp_path / "one") == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = ROOT / "step4_finetune_glue" / "finetune.py"
    given = [*launch, script, *flags, *more, "--out", tmp_path / "two"]
    done = subprocess.run(list(map(str, given)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    assert done.stdout.splitlines()[-1] == f"result: {tmp_path}/two/result.json"
    for seed in (0, 1):
        one, two = (predictions(tmp_path / name, seed=seed) for name in ("one", "two"))
        np.testing.assert_allclose(one["logits"], two["logits"], atol=1e-5)
        assert (one["labels"] == two["labels"]).all()


def test_random_weights_are_another_start(flags, tmp_path):
    for name, more in (("trained", []), ("random", ["--random"])):
        given = [*flags, *TRAIN, "--task", "RTE", "--max-steps", 1, "--learning-rate", 1e-9]
        given += ["--keep-models", "--out", tmp_path / name, *more]
        assert small.run("finetune", *given) == 0
    trained, random = (
        BertForSequenceClassification.load(tmp_path / name / "seed-0" / "model")
        for name in ("trained", "random")
    )
    start = classifier.load(Path(flags[3]), 2)
    same = [
        torch.allclose(model.bert.layers[0].feed_forward.up.weight,
                       start.bert.layers[0].feed_forward.up.weight, atol=1e-6)
        for model in (trained, random)
    ]  # fmt: skip
    assert same == [True, False]
    assert "random weights" in small.result(tmp_path / "random")["system"]


def test_minilm_reads_the_mean_unless_told_otherwise(tmp_path):
    minilm = classifier.find("minilm")
    assert classifier.pooling_of(minilm, "auto", "scratch") == "mean"
    assert classifier.pooling_of(minilm, "auto", "hf") == "mean"
    assert classifier.pooling_of(minilm, "cls", "scratch") == "cls"
    # Other sentence-transformers read [CLS], and say so
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "config.json").write_text((minilm / "config.json").read_text())
    for mode, wanted in (("cls_token", "cls"), ("mean_tokens", "mean")):
        told = json.dumps({f"pooling_mode_{mode}": True})
        (tmp_path / "1_Pooling" / "config.json").write_text(told)
        assert classifier.pooling_of(tmp_path, "auto", "scratch") == wanted
    # Why: no optimizer ever touched its pooler
    pooler = classifier.load(minilm, 2).bert.pooler
    assert (pooler.bias == 0).all() and f"{pooler.weight.std():.3f}" == "0.009"
    noise = torch.randn(pooler.weight.shape, generator=torch.Generator().manual_seed(0))
    found, random = map(torch.linalg.svdvals, (pooler.weight / pooler.weight.std(), noise))
    assert (found - random).abs().max() < 0.03 * random.max()


def test_a_collapsed_seed_is_counted(flags, tmp_path):
    given = [*flags, *TRAIN, "--task", "RTE", "--learning-rate", 1e-9, "--dropout", 0]
    assert small.run("finetune", *given, "--seeds", 2) == 0
    result = small.result(tmp_path / "run")
    said = [predictions(tmp_path / "run", seed=s)["logits"].argmax(1) for s in (0, 1)]
    assert result["collapsed"] == sum(len(set(each.tolist())) == 1 for each in said) > 0


def test_collapse_in_an_outcome():
    logits, state = np.tile([[1.0, 0.0]], (4, 1)), engine.State(seconds=0.04)
    labels = {"dev": np.array([0, 1, 1, 1])}
    facts = outcome.of_seed(tasks.task("RTE"), {"dev": logits}, labels, state)
    assert facts["collapsed"] and facts["scores"] == {"accuracy": 25.0}
    last = {"event": "train", "step": 9, "train/label_loss": 0.1, "train/label_accuracy": 0.97}
    events = [{"event": "eval", "heldout/label_loss": 3.0}, {"event": "train"}, last]
    trained = outcome.of_seed(tasks.task("RTE"), {"dev": logits}, labels, state, events)
    assert outcome.over_seeds([trained])["last_steps"] == {"loss": [0.1], "accuracy": [0.97]}
    assert facts["seconds"] == 0.04  # a short run's are not 0, by which the benchmark would divide
    together = outcome.over_seeds([facts, facts | {"collapsed": False, "scores": {"accuracy": 75}}])
    assert together["collapsed"] == 1
    assert together["metrics"]["accuracy"]["value"] == 50
    assert together["metrics"]["accuracy"]["sd"] == pytest.approx(50 / 2**0.5)
    assert "1 of 2 seeds collapsed" in outcome.told(together)
    mean = together["metrics"]["accuracy"]["value"]
    assert outcome.target(together, mean).startswith("target reached: accuracy")
    assert outcome.target(together, mean + 0.1).startswith("target missed: accuracy")
    broken = {"dev": np.where(np.arange(2) < 1, np.nan, logits)}
    with pytest.raises(UserError, match="RTE, dev: a logit is not a finite number"):
        outcome.of_seed(tasks.task("RTE"), broken, labels, state)


def test_what_the_first_seed_chose_by_measuring_holds_for_all(flags, tmp_path, monkeypatch):
    given = [*flags, "--task", "RTE", "--epochs", 20, "--batch-size", 16, "--max-minutes", 2]
    measured, planned = [], []
    plan = engine.Trainer._plan

    def measuring(trainer, precision):
        measured.append((trainer.config.seed, precision))
        return {"fp32": 20.0, "bf16": 10.0}[precision]

    def planning(trainer):
        plan(trainer)
        planned.append((trainer.config.max_minutes, trainer.state.precision))

    monkeypatch.setattr(engine.Trainer, "_measure", measuring)
    monkeypatch.setattr(engine.Trainer, "_plan", planning)
    monkeypatch.setattr(engine.optim, "multiplies_bf16", lambda device: True)
    assert small.run("finetune", *given, "--seeds", 2) == 0
    assert measured == [(0, "fp32"), (0, "bf16")]
    assert planned == [(2.0, "bf16"), (None, "bf16")]
    found = small.result(tmp_path / "run")
    assert found["precision"] == "bf16" and found["config"]["max_steps"] == 11  # in two minutes
    # A seed that is added does as they did, and one that is done anew
    (tmp_path / "run" / "seed-0" / "scores.json").unlink()
    assert small.run("finetune", *given, "--seeds", 3, "--resume") == 0
    assert len(measured) == 2 and planned[2:] == [(None, "bf16")] * 2
    assert small.result(tmp_path / "run")["metrics"]["accuracy"]["n"] == 3


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["scratch", "hf"])
def test_a_head_of_another_size(impl, flags, tmp_path, fails):
    given = [*flags, *TRAIN, "--impl", impl, "--max-steps", 1]
    more = ["--task", "MNLI", "--keep-models", "--out", tmp_path / "mnli"]
    assert small.run("finetune", *given, *more) == 0
    three = tmp_path / "mnli" / "seed-0" / "model"
    line = fails(*given, "--task", "RTE", "--model", three)
    assert "a head of 3 outputs, this task wants 2: --new-head" in line
    more = ["--task", "RTE", "--model", three, "--new-head", "--out", tmp_path / "new"]
    assert small.run("finetune", *given, *more) == 0
    # One of the right size is kept
    head = classifier.load(three, 3, impl=impl, dropout=0.0).state_dict()
    name = next(name for name in head if name.endswith("classifier.weight"))
    assert torch.equal(head[name], load_file(three / "model.safetensors")["classifier.weight"])
    head = classifier.load(three, 3, impl=impl, new_head=True).state_dict()
    assert not torch.equal(head[name], load_file(three / "model.safetensors")["classifier.weight"])


@pytest.mark.parametrize(
    ("content", "told"),
    [("[]", "an object was expected"), ('{"vocab_size": null}', "not None"), ("{", "config.json")],
)
def test_a_broken_configuration(content, told, flags, bert, tmp_path, fails):
    shutil.copytree(bert, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text(content)
    assert told in fails(*flags, "--task", "RTE", "--model", tmp_path / "broken")


def test_a_tokenizer_of_another_checkpoint(flags, bert, tmp_path, fails):
    for name, vocab_size, told in (("small", 40, "knows 40 tokens"), ("large", 5000, "5,000")):
        small.bert(tmp_path / name, vocab_size=vocab_size)
        line = fails(*flags, "--task", "RTE", "--model", tmp_path / name)
        assert told in line and "do not belong together" in line


def test_missing_models(flags, bert, tmp_path, fails, monkeypatch):
    assert "no such folder" in fails(*flags, "--task", "RTE", "--model", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in fails(*flags, "--task", "RTE", "--model", tmp_path / "empty")
    shutil.copytree(bert, tmp_path / "hollow")
    (tmp_path / "hollow" / "model.safetensors").unlink()
    line = fails(*flags, "--task", "RTE", "--model", tmp_path / "hollow")
    assert "no model.safetensors" in line

    def offline(*args, **kwargs):
        raise ConnectionError("no way out\nto the world")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    line = fails(*flags, "--task", "RTE", "--model", "owner/name")
    assert "owner/name is no folder and cannot be had from the hub (no way out)" in line
    assert "offline, give minilm or a folder" in line


def test_a_hub_name_is_downloaded_without_anything_pickled(bert, monkeypatch):
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert classifier.find("owner/name") == bert
    assert asked == {"owner/name": ["*.safetensors", "*.json", "*.txt"]}


def test_another_architecture_wants_transformers(flags, bert, tmp_path, fails):
    config = transformers.DistilBertConfig(
        vocab_size=classifier.read_config(bert)["vocab_size"], dim=16, n_layers=2, n_heads=2,
        hidden_dim=24, max_position_embeddings=128,
    )  # fmt: skip
    folder = tmp_path / "distilbert"
    shutil.copytree(bert, folder)
    transformers.DistilBertModel(config).save_pretrained(folder)
    given = [*flags, *TRAIN, "--task", "RTE", "--model", folder]
    assert "of type distilbert, ours is BERT: --impl hf" in fails(*given)
    given += ["--impl", "hf"]
    more = ["--layer-decay", 0.9, "--reinit-layers", 1, "--out", tmp_path / "hf"]
    assert small.run("finetune", *given, *more) == 0
    more = ["--pooling", "mean", "--keep-models", "--out", tmp_path / "mean"]
    assert small.run("finetune", *given, *more) == 0
    saved = tmp_path / "mean" / "seed-0" / "model"
    assert classifier.pooling_of(saved, "auto", "hf") == "mean"
    start, ended = (classifier.load(f, 2, impl="hf", pooling="mean") for f in (folder, saved))
    assert not start.kept_head and ended.kept_head
    learned = {n for n, p in start.named_parameters() if p.requires_grad}
    assert "hf.pre_classifier.weight" not in learned and "hf.classifier.weight" in learned


def test_a_roberta_that_is_incomplete_is_refused(flags, bert, tmp_path, fails):
    config = transformers.RobertaConfig(
        vocab_size=classifier.read_config(bert)["vocab_size"], hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=24, max_position_embeddings=140,
    )  # fmt: skip
    folder = tmp_path / "roberta"
    shutil.copytree(bert, folder)
    transformers.RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    given = [*flags, *TRAIN, "--task", "RTE", "--model", folder, "--impl", "hf"]
    assert "--pooling mean is for bert and distilbert" in fails(*given, "--pooling", "mean")
    model = classifier.load(folder, 2, impl="hf")
    assert classifier.told(model) == "the head reads what its architecture does; fresh: classifier"
    weights = folder / "model.safetensors"
    whole = {name: value.clone() for name, value in load_file(weights).items()}
    save_file({k: v for k, v in whole.items() if ".layer.1." not in k}, weights)
    assert "lacks roberta.encoder.layer.1." in fails(*given)
    weights.unlink()
    torch.save(whole, folder / "pytorch_model.bin")  # which could hold any program
    assert "transformers cannot open" in fails(*given)


@pytest.mark.parametrize("impl", ["scratch", "hf"])
def test_weights_that_are_damaged(impl, flags, bert, tmp_path, fails):
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    given = [*flags, "--task", "RTE", "--model", folder, "--impl", impl]
    weights = folder / "model.safetensors"
    whole = {name: value.clone() for name, value in load_file(weights).items()}  # off the file
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "truncated or damaged" in fails(*given)
    save_file({"other": torch.zeros(1)}, weights)
    assert "lacks" in fails(*given)
    save_file({k: v for k, v in whole.items() if ".layer.1." not in k}, weights)
    assert "lacks bert.encoder.layer.1." in fails(*given)
    save_file(whole, weights)
    raw = classifier.read_config(folder)
    (folder / "config.json").write_text(json.dumps(raw | {"hidden_size": 32}))
    assert "do not belong together" in fails(*given)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_position_embeddings": None}, "max_position_embeddings must be a whole number"),
        ({"hidden_size": "16"}, "hidden_size must be a whole number, not '16'"),
        ({"vocab_size": [1]}, "vocab_size must be a whole number"),
        ({"model_type": "bort"}, "transformers cannot open"),
        ({"num_attention_heads": "2"}, "transformers cannot open"),
    ],
)
def test_configurations_that_are_damaged(change, told, flags, bert, tmp_path, fails):
    shutil.copytree(bert, tmp_path / "bert")
    raw = classifier.read_config(bert) | change
    (tmp_path / "bert" / "config.json").write_text(json.dumps(raw))
    given = [*flags, "--task", "RTE", "--model", tmp_path / "bert", "--impl", "hf"]
    assert told in fails(*given)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"num_attention_heads": "2"},
            "num_attention_heads must be a whole number above 0, not '2'",
        ),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0, not 0"),
        ({"type_vocab_size": None}, "type_vocab_size must be a whole number above 0, not None"),
        (
            {"initializer_range": -1},
            "initializer_range must be a number of at least 0 and below 1, not -1",
        ),
        (
            {"layer_norm_eps": "x"},
            "layer_norm_eps must be a number of at least 0 and below 1, not 'x'",
        ),
        ({"pad_token_id": 5000}, "pad_token_id must be null or the number of a token, not 5000"),
        ({"model_type": None}, "type None, ours is BERT"),
    ],
)
def test_configurations_that_are_no_bert(change, told, flags, bert, tmp_path, fails):
    shutil.copytree(bert, tmp_path / "bert")
    raw = classifier.read_config(bert) | change
    (tmp_path / "bert" / "config.json").write_text(json.dumps(raw))
    assert told in fails(*flags, "--task", "RTE", "--model", tmp_path / "bert")


@pytest.mark.parametrize("impl", ["scratch", "hf"])
def test_a_head_that_lacks_a_weight_is_not_replaced_unasked(impl, flags, bert, tmp_path, fails):
    folder = tmp_path / "rte"
    classifier.load(bert, 2).save(folder, bert)
    weights = load_file(folder / "model.safetensors")
    given = [*flags, "--task", "RTE", "--model", folder, "--impl", impl]
    for change in ({"classifier.weight": torch.zeros(2, 8)}, {"classifier.bias": None}):
        kept = {name: value for name, value in (weights | change).items() if value is not None}
        save_file(kept, folder / "model.safetensors")
        assert "classifier" in fails(*given) if impl == "scratch" else "--new-head" in fails(*given)


def test_a_run_goes_on_with_the_tokenizer_that_it_began_with(flags, bert, tmp_path, fails):
    shutil.copytree(bert, tmp_path / "bert")
    given = [*flags, *TRAIN, "--task", "RTE", "--max-steps", 1, "--model", tmp_path / "bert"]
    assert small.run("finetune", *given) == 0
    file = tmp_path / "bert" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    line = fails(*given, "--seeds", 2, "--resume")
    assert "another checkpoint" in line


def test_a_seed_that_diverges_is_counted_and_others_go_on(flags, tmp_path, monkeypatch, capfd):
    real, models = prediction.losses, []

    def poisoned(model, batch):
        models.append(model)
        parts = real(model, batch)
        if model is models[0]:
            parts["label_loss"] = parts["label_loss"] * float("nan")
        return parts

    monkeypatch.setattr(prediction, "losses", poisoned)
    given = [*flags, *TRAIN, "--max-steps", 1, "--task", "RTE", "--seeds", 2]
    assert small.run("finetune", *given) == 0
    result = small.result(tmp_path / "run")
    assert result["diverged"] == 1 <= result["collapsed"]
    logits = [predictions(tmp_path / "run", seed=seed)["logits"] for seed in (0, 1)]
    assert (logits[0] == 0).all() and (logits[1] != 0).all()
    out = capfd.readouterr().out
    assert re.search(r"diverged at step 1 \(loss nan.*\); try a lower --learning-rate", out)
    assert "seeds collapsed (1 diverged)" in out
    assert "NaN" not in (tmp_path / "run" / "result.json").read_text()


def test_a_home_that_is_nobodys(bert, tmp_path, fails):
    line = fails("--task", "RTE", "--data", "~nobody-here/glue", "--out", tmp_path / "run")
    assert "~nobody-here/glue: no such folder" in line


def test_a_tokenizer_that_is_neither_cased_nor_uncased(flags, bert, tmp_path, fails):
    shutil.copytree(bert, tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"do_lower_case": "x"}')
    line = fails(*flags, "--task", "RTE", "--model", tmp_path / "bert")
    assert "do_lower_case is 'x', not true or false" in line


@pytest.mark.parametrize("content", ['{"do_lower_case": tr', "[1]"])
def test_a_damaged_configuration_of_a_tokenizer(content, flags, bert, tmp_path, fails):
    shutil.copytree(bert, tmp_path / "bert")
    file = tmp_path / "bert" / "tokenizer_config.json"
    file.write_text(content)
    line = fails(*flags, "--task", "RTE", "--model", tmp_path / "bert")
    assert f"{file} is damaged: it holds no JSON object" in line


def test_classes_that_are_not_named_by_number(bert, tmp_path):
    folder = tmp_path / "rte"
    classifier.load(bert, 2).save(folder, bert)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"id2label": ["a", "b"]}))
    with pytest.raises(UserError, match=r"config\.json: id2label must be an object, not \['a'"):
        classifier.load(folder, 2)


def test_a_tokenizer_without_cls_and_sep(flags, bert, tmp_path, fails):
    shutil.copytree(bert, tmp_path / "bert")
    file = tmp_path / "bert" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    assert "puts no [CLS] before a text" in fails(
        *flags, "--task", "RTE", "--model", tmp_path / "bert"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--task", "IMDB"], "unknown task 'IMDB'; tasks are: CoLA"),
        (["--task", "AX"], "--task MNLI --predict-test"),
        (["--task", "CoLA"], "CoLA has no train.tsv"),
        (["--epochs", 0], "--epochs 0 must be above 0"),
        (["--seeds", 0], "--seeds 0"),
        (["--max-seq-len", 129], "has 128 positions: --max-seq-len 128 at most"),
        (["--max-seq-len", 3], "at least 8"),
        (["--layer-decay", 0], "--layer-decay 0"),
        (["--reinit-layers", 3], "the model has 2 layers"),
        (["--train-limit", 0], "--train-limit 0"),
        (["--optimizer", "muon", "--layer-decay", 0.9], "are for --optimizer adamw"),
    ],
)
def test_flags_that_cannot_be(given, told, flags, fails):
    assert told in fails(*flags, "--task", "RTE", *given)


def test_a_dev_set_without_labels(flags, glue, tmp_path, fails):
    shutil.copytree(glue / "RTE", tmp_path / "glue" / "RTE")
    dev = tmp_path / "glue" / "RTE" / "dev.tsv"
    bare = [line.rsplit("\t", 1)[0] for line in dev.read_text().splitlines()]
    dev.write_text("\n".join(bare) + "\n")
    line = fails(*flags, "--task", "RTE", "--data", tmp_path / "glue")
    assert "no column 'label' for RTE dev" in line


def test_the_preset_of_a_laptop_needs_no_files():
    from step4_finetune_glue import finetune

    config = cli.parse(finetune.Config, finetune.PRESETS, ["--preset", "cpu"])
    assert (config.task, config.model) == ("rt", "minilm")
    json.dumps(cli.as_dict(config))
    rows = tasks.read(tasks.task(config.task), "train", config.data)
    assert len(rows) == 6884


# --- what a run says of itself --------------------------------------------------------------------


def test_a_plan_says_what_it_costs_and_starts_nothing(tmp_path, capfd, monkeypatch, fails):
    """BERT-base has 85 M weights in matrices of its layers: 6 FLOPs a token each, and attention."""
    monkeypatch.chdir(tmp_path)
    assert small.run("finetune", "--preset", "paper", "--plan", "h100") == 0
    told = capfd.readouterr().out
    steps = 3 * -(-392_702 // 32)
    assert f"MNLI, bert-base-uncased: 109.5 M parameters, 5 seeds of {steps:,} steps" in told
    tokens = 5 * steps * 32 * 128
    flops = float(re.search(r"([\d.e+]+) FLOPs", told)[1])
    assert flops == pytest.approx(tokens * (6 * 85.05e6 + 12 * 12 * 768 * 128), rel=5e-3)
    assert all(word in told for word in ("GB", "hours", "cost"))
    assert small.run("finetune", "--plan", "t4", "--task", "RTE", "--train-limit", 100) == 0
    assert "RTE, minilm: 22.7 M parameters, 3 seeds of 12 steps" in capfd.readouterr().out
    assert "AX has nothing to train on" in fails("--plan", "h100", "--task", "AX")
    assert "known: t4," in fails("--plan", "abacus")
    assert "--n-devices 0 must be above 0" in fails("--plan", "t4", "--n-devices", 0)
    assert "--utilisation 0.0 must be above" in fails("--plan", "t4", "--utilisation", 0)
    assert not list(tmp_path.iterdir())


def test_two_recipes_have_two_names_and_one_recipe_has_one_for_every_task(flags, tmp_path):
    named = {}
    for name, more in {
        "plain": ["--task", "RTE"],
        "other-task": ["--task", "SST-2"],
        "decay": ["--task", "RTE", "--layer-decay", 0.9, "--no-bias-correction"],
    }.items():
        given = [*flags, "--seeds", 1, "--max-steps", 1, *more, "--out", tmp_path / name]
        assert small.run("finetune", *given) == 0
        named[name] = small.result(tmp_path / name)["system"]
    assert named["plain"] == named["other-task"] != named["decay"]
    assert "layer-decay 0.9, no bias-correction" in named["decay"]
    assert "pretrained weights, cls pooling, " in named["decay"]


def test_a_part_of_the_training_set_is_low_resource_and_said_to_be(
    flags, tmp_path, capfd, monkeypatch
):
    given = [*flags, "--task", "RTE", "--max-steps", 1, "--seeds", 1, "--out", tmp_path / "cut"]
    assert small.run("finetune", *given) == 0  # a file of 40 rows, of the official 2,490
    assert small.result(tmp_path / "cut")["low_resource"]
    assert "RTE train: 40 rows, of the 2,490 official ones" in capfd.readouterr().out
    rte = dataclasses.replace(tasks.TASKS["RTE"], train_rows=40)
    monkeypatch.setitem(tasks.TASKS, "RTE", rte)
    for limit, low in ((20, True), (40, False), (99, False)):
        given = ["--task", "RTE", "--train-limit", limit, "--max-steps", 1, "--seeds", 1]
        out = tmp_path / str(limit)
        assert small.run("finetune", *flags, *given, "--out", out) == 0
        assert small.result(out)["low_resource"] == low
        assert scoring.Finetuned.open(out).low_resource == low
        assert ("training on 20 of them, drawn at random" in capfd.readouterr().out) == low


def test_a_run_goes_on_only_as_it_began(flags, glue, bert, tmp_path, fails):
    """Seed 0 has ended; with another recipe seed 1 must not be averaged with it."""
    given = ["--task", "RTE", "--max-steps", 1, "--data", tmp_path / "glue"]
    shutil.copytree(glue, tmp_path / "glue")
    assert small.run("finetune", *flags, *given, "--seeds", 1) == 0
    (tmp_path / "run" / "result.json").unlink()
    gc.collect()
    line = fails(*flags, *given, "--seeds", 2, "--resume", "--layer-decay", 0.5)
    assert "was begun with --layer-decay 1.0: go on so, or choose another --out" in line
    train = tmp_path / "glue" / "RTE" / "train.tsv"
    whole = train.read_text()
    train.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    line = fails(*flags, *given, "--seeds", 2, "--resume")
    assert "was begun with other data" in line
    train.write_text(whole)
    dev = tmp_path / "glue" / "RTE" / "dev.tsv"
    whole = dev.read_text()
    dev.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    assert "was begun with other data" in fails(*flags, *given, "--seeds", 2, "--resume")
    dev.write_text(whole)
    weights = bert / "model.safetensors"
    whole = weights.read_bytes()
    save_file({k: v + 1 for k, v in load_file(weights).items()}, weights)
    assert "was begun with another checkpoint" in fails(*flags, *given, "--seeds", 2, "--resume")
    weights.write_bytes(whole)
    assert small.run("finetune", *flags, *given, "--seeds", 2, "--resume") == 0
    assert small.result(tmp_path / "run")["seeds"] == [0, 1]

    # Ended, it takes more seeds and nothing else
    gc.collect()
    assert "was begun with --task RTE" in fails(*flags, *given, "--resume", "--task", "SST-2")
    gc.collect()
    assert small.run("finetune", *flags, *given, "--seeds", 3, "--resume") == 0
    assert small.result(tmp_path / "run")["seeds"] == [0, 1, 2]
    (tmp_path / "run" / "seed-1" / "scores.json").write_text("{")
    gc.collect()
    assert "seed-1/scores.json is damaged" in fails(*flags, *given, "--seeds", 4, "--resume")


def test_a_head_on_the_mean_is_never_put_on_cls(flags, tmp_path, fails):
    given = [*flags, *TRAIN, "--task", "RTE", "--max-steps", 1]
    more = ["--pooling", "mean", "--keep-models", "--out", tmp_path / "mean"]
    assert small.run("finetune", *given, *more) == 0
    saved = tmp_path / "mean" / "seed-0" / "model"
    assert classifier.pooling_of(saved, "auto", "scratch") == "mean"
    assert isinstance(classifier.load(saved, 2, pooling="mean"), classifier.MeanPooledBert)
    line = fails(*given, "--model", saved, "--pooling", "cls")
    assert "reads mean pooling, not cls" in line
    assert classifier.load(saved, 2, impl="hf", pooling="mean").kept_head
    assert classifier.load(saved, 2, impl="hf", new_head=True).mean is False


def test_a_head_with_its_classes_in_another_order_is_not_kept(bert, tmp_path):
    BertForSequenceClassification.from_pretrained(bert, 3).save(tmp_path, bert)
    path = tmp_path / "config.json"
    theirs = json.loads(path.read_text())
    theirs["id2label"] = {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}
    path.write_text(json.dumps(theirs))
    with pytest.raises(cli.UserError, match="in the order contradiction, neutral, entailment"):
        classifier.load(tmp_path, 3, labels=tasks.NLI)
    theirs["id2label"] = {"0": "entailment", "1": "neutral", "2": "contradiction"}
    path.write_text(json.dumps(theirs))
    kept = classifier.load(tmp_path, 3, labels=tasks.NLI)
    assert kept.kept_head and "it is the checkpoint's own" in classifier.told(kept)


@pytest.mark.parametrize("impl", ["scratch", "hf"])
def test_a_saved_head_names_its_classes(bert, tmp_path, impl):
    """So that whoever opens it elsewhere is told "neutral", not "LABEL_1"."""
    model = classifier.load(bert, 3, impl=impl, labels=tasks.NLI)
    model.save(tmp_path / "mnli", bert)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "mnli")
    assert theirs.id2label == dict(enumerate(tasks.NLI))
    assert theirs.label2id["contradiction"] == tasks.NLI.index("contradiction")
    assert classifier.load(tmp_path / "mnli", 3, impl=impl, labels=tasks.NLI).kept_head
    score = classifier.load(bert, 1, impl=impl, labels=tasks.task("STS-B").labels)
    score.save(tmp_path / "sts-b", bert)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "sts-b").num_labels == 1


def test_only_a_fresh_head_of_a_regression_is_centred(flags, glue, tmp_path):
    """A rate of nearly nothing leaves every bias where it began."""
    still = [*TRAIN, "--max-steps", 1, "--learning-rate", 1e-12, "--keep-models"]
    mean = tasks.read(tasks.task("STS-B"), "train", str(glue)).labels.mean()
    plain = tmp_path / "plain" / "seed-0" / "model"
    for name, more, bias in (
        ("first", [], mean),
        ("plain", ["--no-centred-head"], 0),
        ("kept", ["--model", plain], 0),
        ("classes", ["--task", "RTE"], 0),
    ):
        given = [*flags, *still, "--task", "STS-B", *more, "--out", tmp_path / name]
        assert small.run("finetune", *given) == 0
        saved = load_file(tmp_path / name / "seed-0" / "model" / "model.safetensors")
        assert saved["classifier.bias"].numpy() == pytest.approx(bias, abs=1e-6)
    assert "no centred-head" in small.result(tmp_path / "plain")["system"]


def test_dropout_is_what_was_asked_for_in_every_architecture(bert, tmp_path):
    """Off, two passes in training mode agree; on, they do not, and in eval mode they do."""
    shape = dict(vocab_size=50, num_labels=2)
    distil = transformers.DistilBertConfig(
        dim=16, n_layers=1, n_heads=2, hidden_dim=24, seq_classif_dropout=0.5, **shape
    )
    albert = transformers.AlbertConfig(
        hidden_size=16, embedding_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, classifier_dropout_prob=0.5, **shape,
    )  # fmt: skip
    transformers.DistilBertForSequenceClassification(distil).save_pretrained(tmp_path / "distil")
    transformers.AlbertForSequenceClassification(albert).save_pretrained(tmp_path / "albert")
    ids = torch.arange(5, 25).reshape(2, 10)
    for folder, impl in (
        (bert, "scratch"),
        (bert, "hf"),
        (tmp_path / "distil", "hf"),
        (tmp_path / "albert", "hf"),
    ):
        for rate in (0.0, 0.4):
            model = classifier.load(folder, 2, impl=impl, dropout=rate)
            assert torch.equal(model(ids), model(ids)) == (rate == 0), (folder, impl, rate)
            model.eval()
            assert torch.equal(model(ids), model(ids))


def test_ax_is_predicted_where_mnli_has_no_test_set(glue, flags, tmp_path, fails):
    shutil.copytree(glue / "MNLI", tmp_path / "glue" / "MNLI")
    (tmp_path / "glue" / "MNLI" / "test_matched.tsv").unlink()
    given = [*flags, *TRAIN, "--task", "MNLI", "--data", tmp_path / "glue", "--predict-test"]
    assert "no test_matched.tsv" in fails(*given)
    (tmp_path / "glue" / "AX").mkdir()
    ax = "index\tsentence1\tsentence2\n0\tthe film\ta law\n"
    (tmp_path / "glue" / "AX" / "diagnostic.tsv").write_text(ax)
    assert small.run("finetune", *given, "--max-steps", 1, "--out", tmp_path / "ax") == 0
    assert predictions(tmp_path / "ax", "AX")["logits"].shape == (1, 3)


def test_ax_is_scored_where_its_labels_are(glue, flags, tmp_path, capfd):
    shutil.copytree(glue, tmp_path / "glue")
    rows = "the film\ta law\tneutral\na road\ta road\tentailment\nlaw\tnot law\tcontradiction\n"
    (tmp_path / "glue" / "AX").mkdir()
    full = tmp_path / "glue" / "AX" / "diagnostic-full.tsv"
    full.write_text(f"Premise\tHypothesis\tLabel\n{rows}")
    given = [*flags, *TRAIN, "--task", "MNLI", "--data", tmp_path / "glue", "--predict-test"]
    assert small.run("finetune", *given, "--max-steps", 1) == 0
    found = predictions(tmp_path / "run", "AX-dev")
    assert found["logits"].shape == (3, 3) and found["labels"].tolist() == [1, 0, 2]
    capfd.readouterr()
    given = ["--runs", tmp_path / "run", "--out", tmp_path / "scored"]
    assert small.run("evaluate", *given) == 0
    (one,) = (tmp_path / "scored").glob("*-mnli/result.json")
    wanted = 100 * metrics.matthews(found["logits"].argmax(1), found["labels"])
    assert small.result(one.parent)["metrics"]["AX_matthews"]["value"] == pytest.approx(wanted)
    assert f"  AX matthews         {wanted:6.2f}" in capfd.readouterr().out


def test_the_first_dev_set_must_be_there(glue, flags, tmp_path, fails):
    shutil.copytree(glue / "MNLI", tmp_path / "glue" / "MNLI")
    dev = tmp_path / "glue" / "MNLI" / "dev_matched.tsv"
    dev.rename(dev.with_name("dev_mismatched.tsv"))
    assert "no dev_matched.tsv" in fails(*flags, "--task", "MNLI", "--data", tmp_path / "glue")
