import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest

from common import cli

SCRIPT = '''
"""A script in miniature.

python script.py --steps 1    once
python script.py --steps 2    twice
"""
import sys, time
from dataclasses import dataclass
from common import cli

@dataclass
class Config(cli.RunConfig):
    steps: int = 7
    """Steps to take."""
    nsp: bool = True
    """Next sentence prediction."""

def main(config):
    if config.data == "user error":
        raise cli.UserError("no such thing;\\n  try another")
    if config.data == "missing file":
        open("/nowhere/at/all")
    if config.data == "slice":
        raise cli.Interrupted(0, "the slice is over")
    if config.data == "wait":
        print("ready", flush=True)
        time.sleep(60)
    print(config.preset, config.steps, config.nsp, config.resume)

cli.run(main, Config, {"smoke": {"steps": 1}, "cpu": {"steps": 2}})
'''
PRESETS = {"smoke": {"steps": 1}, "cpu": {"steps": 2}}


@dataclass
class Config(cli.RunConfig):
    steps: int = 7
    """Steps to take."""
    nsp: bool = True
    """Next sentence prediction."""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(script, *flags, **env):
    return subprocess.run(
        [sys.executable, str(script), "--preset", "cpu", *flags],  # or each would import torch
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_a_flag_beats_the_preset_and_the_preset_beats_the_default():
    assert cli.parse(Config, PRESETS, ["--preset", "smoke"]).steps == 1
    assert cli.parse(Config, PRESETS, ["--preset=smoke", "--steps", "5"]).steps == 5
    assert cli.parse(Config, PRESETS, ["--preset", "smoke"]).preset == "smoke"


def test_the_preset_follows_the_hardware(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cli.default_preset({"smoke": {}, "cpu": {}, "gpu": {}}) == "gpu"
    assert cli.default_preset({"smoke": {}, "cpu": {}}) == "cpu"
    assert cli.default_preset({"smoke": {}, "paper": {}}) == "smoke"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.default_preset({"smoke": {}, "cpu": {}, "gpu": {}}) == "cpu"
    assert cli.default_preset({"smoke": {}, "gpu": {}}) == "smoke"


def test_a_script_without_presets():
    @dataclass
    class Plain:
        width: int = 3

    assert cli.parse(Plain, {}, ["--width", "4"]) == Plain(width=4)
    with pytest.raises(cli.UserError, match="--preset"):
        cli.parse(Plain, {}, ["--preset", "cpu"])


def test_a_true_switch_has_a_no_flag_and_a_false_one_a_plain_flag():
    config = cli.parse(Config, PRESETS, ["--no-nsp", "--resume"])
    assert (config.nsp, config.resume) == (False, True)
    assert cli.parse(Config, PRESETS, []).nsp is True
    with pytest.raises(cli.UserError, match="--no-resume"):
        cli.parse(Config, PRESETS, ["--no-resume"])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--stepz", "3"], "--stepz"),
        (["stray"], "stray"),
        (["--steps", "many"], "--steps"),
        (["--steps"], "--steps"),
        (["--tracker", "paper"], "paper"),
        (["--preset", "huge"], "huge"),
        (["--preset"], "smoke, cpu"),
        (["--seed", "-1"], "--seed -1 must be 0 or more"),
    ],
)
def test_a_wrong_flag_is_named_in_one_line(flags, named, capfd):
    with pytest.raises(cli.UserError) as error:
        cli.parse(Config, PRESETS, flags)
    assert named in str(error.value)
    assert "\n" not in str(error.value) and "│" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_wrong_flag_leaves_with_code_2(script):
    done = run(script, "--stepz", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("user error", "error: no such thing; try another\n"),
        ("missing file", "error: /nowhere/at/all: No such file or directory\n"),
    ],
)
def test_an_error_is_one_line_and_code_2(script, data, line):
    done = run(script, "--data", data)
    assert (done.returncode, done.stderr) == (2, line)


def test_the_end_of_a_slice_has_a_code_of_its_own(script):
    done = run(script, "--data", "slice")
    assert (done.returncode, done.stderr) == (75, "the slice is over\n")


@pytest.mark.parametrize("data", ["user error", "missing file"])
def test_gym_debug_shows_the_traceback(script, data):
    done = run(script, "--data", data, GYM_DEBUG="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_with_its_code_and_one_line(script, signum, code):
    command = [sys.executable, str(script), "--preset", "cpu", "--data", "wait"]
    heard = partial(signal.signal, signum, signal.SIG_DFL)  # which a shell's background job ignores
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, preexec_fn=heard, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        _, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert told.count("\n") == 1 and "Traceback" not in told


def test_help_explains_every_flag_and_leaves_with_code_0(script):
    done = run(script, "--help")
    assert done.returncode == 0
    for told in ("A script in miniature.", "--steps", "Steps to take.", "--seed", "--no-nsp"):
        assert told in done.stdout
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "python script.py --steps 1    once" in lines, "examples keep their lines"


def test_the_command_to_resume_is_what_was_typed_and_the_missing_flags(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(sys, "argv", ["step2_bert/pretrain.py", "--data", "two words"])
    assert cli.command() == "python step2_bert/pretrain.py --data 'two words'"
    assert cli.resume_command("runs/a") == cli.command() + " --out runs/a --resume"
    monkeypatch.setattr(sys, "argv", ["x.py", "--out", "runs/b", "--resume"])
    assert cli.resume_command("runs/b") == "python x.py --out runs/b --resume"
    monkeypatch.setattr(sys, "argv", ["x.py", "--data", "a--out/b--resume"])
    assert cli.resume_command("c") == "python x.py --data a--out/b--resume --out c --resume"
    monkeypatch.setattr(sys, "argv", ["x.py", "--out=runs/b", "--resume"])
    assert cli.resume_command("runs/b") == "python x.py --out=runs/b --resume"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert cli.command().startswith("torchrun --nproc-per-node 8 x.py")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert cli.command().startswith("accelerate launch --num_processes 8 x.py")
