import dataclasses
import gc
import json
import subprocess

import pytest
import torch
from accelerate.state import AcceleratorState

from common import cli
from common.cli import UserError
from step2_bert.tokenizer import load_tokenizer
from step4_finetune_glue import benchmark, race, tasks
from step4_finetune_glue.encoding import Encoded
from tests.step4_finetune_glue import small


def in_this_process(config, name, seed):
    """A system measured without the start of a process, which takes longer than its steps."""
    AcceleratorState._reset_state(reset_partial_state=True)  # the Trainer's is not the engine's
    try:
        return race.measure(dataclasses.replace(config, seed=seed), name)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("drawn")
def test_systems_take_turns_and_are_scored_alike(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(benchmark, "_in_own_process", in_this_process)
    data, bert = small.glue(tmp_path / "glue"), small.bert(tmp_path / "bert")
    flags = ["--preset", "smoke", "--task", "RTE", "--data", data, "--model", bert]
    flags += ["--max-seq-len", 32, "--seeds", 2, "--out", tmp_path / "race"]
    assert small.run("benchmark", *flags) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1] == f"result: {tmp_path}/race/result.json"
    metrics = small.result(tmp_path / "race")["metrics"]
    for system in ("ours", "trainer", "trainer-tuned"):
        assert metrics[f"{system}/seconds"]["value"] > 0
        assert metrics[f"{system}/memory"]["value"] > 100
        assert 0 <= metrics[f"{system}/score"]["value"] <= 100
    assert metrics["trainer/speed"]["value"] == 1
    turns = json.loads((tmp_path / "race" / "turns.json").read_text())
    assert len(turns["ours"]) == 2 and turns["ours"][0]["rows"] == 32
    times = [[t["seconds_per_epoch"] for t in turns[name]] for name in ("trainer", "ours")]
    speed = sum(theirs / ours for theirs, ours in zip(*times, strict=True)) / 2
    assert metrics["ours/speed"]["value"] == pytest.approx(speed)
    assert next(iter(metrics)) == "ours/speed"
    precision = small.result(tmp_path / "race")["precision"]
    assert precision["trainer"] == "fp32" and precision["ours"] == precision["trainer-tuned"]
    assert (tmp_path / "race" / "curves.png").exists()


def test_a_system_gets_all_settings_a_process_and_one_gpu(monkeypatch, capfd):
    config = race.Config(task="RTE", model="notes/zoo/bert-tiny", epochs=2, learning_rate=1e-4,
                         precision="fp32", train_limit=32, out="here", resume=True)  # fmt: skip
    asked = {}

    def process(command, env, **how):
        asked.update(config=cli.parse(race.Config, benchmark.PRESETS, command[2:]), env=env)
        told = 'warm-up\n{"seconds_per_epoch": 2.0}\n'
        return subprocess.CompletedProcess(command, asked.get("code", 0), told, "a\nerror: no x\n")

    monkeypatch.setattr(benchmark.subprocess, "run", process)
    monkeypatch.setattr(benchmark.subruns, "gpus", lambda: ["4", "6"])
    assert benchmark._in_own_process(config, "ours", 3) == {"seconds_per_epoch": 2.0}
    wanted = dataclasses.replace(config, system="ours", seed=3, out="", resume=False)
    assert asked["config"] == wanted
    assert asked["env"]["CUDA_VISIBLE_DEVICES"] == "4"
    asked["code"] = 2
    with pytest.raises(UserError, match="^trainer-tuned: no x$"):
        benchmark._in_own_process(config, "trainer-tuned", 3)


def test_an_architecture_that_ours_is_not_is_told_before_the_others_train(tmp_path, capfd):
    data, bert = small.glue(tmp_path / "glue"), small.bert(tmp_path / "bert")
    raw = json.loads((bert / "config.json").read_text()) | {"model_type": "roberta"}
    (bert / "config.json").write_text(json.dumps(raw))
    given = ["--preset", "smoke", "--task", "RTE", "--data", data, "--model", bert]
    assert small.run("benchmark", *given, "--out", tmp_path / "race") == 2
    assert "is of type roberta, ours is BERT" in capfd.readouterr().err


def test_a_machine_that_only_imitates_bf16_is_not_asked_how_fast(monkeypatch):
    monkeypatch.setattr(race.optim, "multiplies_bf16", lambda device: False)
    monkeypatch.setattr(torch.utils.benchmark, "Timer", None)
    assert race.faster_precision() == "fp32"


def test_rows_of_the_trainer_are_ours_padded_to_the_maximum(tmp_path):
    data, bert = small.glue(tmp_path / "glue"), small.bert(tmp_path / "bert")
    rows = tasks.read(tasks.task("RTE"), "dev", str(data))
    encoded = Encoded(load_tokenizer(bert), rows, 24)
    padded = race.Padded(encoded, 24)
    batch = race._stack([padded[i] for i in range(len(rows))], encoded.pad_id)
    assert batch["input_ids"].shape == (11, 24)
    ours = encoded.batch(range(11))
    width = ours["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name][:, :width], ours[name].long())
    assert (batch["attention_mask"][:, width:] == 0).all()
    assert torch.equal(batch["labels"], ours["labels"])
    dynamic = race.Padded(encoded, 0)
    assert torch.equal(race._stack([dynamic[i] for i in range(11)], 0)["input_ids"],
                       ours["input_ids"])  # fmt: skip


def test_a_task_without_files(tmp_path, capfd):
    (tmp_path / "glue").mkdir()
    given = ["--preset", "smoke", "--task", "MRPC", "--data", tmp_path / "glue"]
    given += ["--out", tmp_path / "race"]
    assert small.run("benchmark", *given, "--system", "theirs") == 2
    assert "--system theirs must be one of trainer, " in capfd.readouterr().err
    assert small.run("benchmark", *given) == 2
    line = capfd.readouterr().err
    assert "MRPC has no train.tsv" in line and line.count("\n") == 1


def test_a_stopped_benchmark_takes_no_turn_twice(tmp_path, monkeypatch, capfd):
    taken = []

    def turn(config, name, seed):
        if len(taken) == 4:
            taken.append("stop")
            raise KeyboardInterrupt
        taken.append((seed, name))
        return {"seconds_per_epoch": 1.0 + seed, "scores": {"accuracy": 50.0}, "peak_mb": 9,
                "rows": 4, "collapsed": False, "precision": "fp32"}  # fmt: skip

    monkeypatch.setattr(benchmark, "_in_own_process", turn)
    data, bert = small.glue(tmp_path / "glue"), small.bert(tmp_path / "bert")
    flags = ["--task", "RTE", "--data", data, "--model", bert, "--seeds", 2]
    flags += ["--out", tmp_path / "run"]
    assert small.run("benchmark", *flags) == 130
    assert "stopped at seed 1; go on with:\npython" in capfd.readouterr().err
    gc.collect()
    assert small.run("benchmark", *flags, "--resume", "--epochs", 9) == 2
    gc.collect()
    assert small.run("benchmark", *flags, "--resume") == 0
    taken.remove("stop")
    assert taken == [(seed, name) for seed in (0, 1) for name in race.SYSTEMS]
    assert small.result(tmp_path / "run")["metrics"]["ours/seconds"]["value"] == 1.5
