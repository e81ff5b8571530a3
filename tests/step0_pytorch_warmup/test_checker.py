"""The judge of the drills: what it lets pass, what it says, and its command line."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common import cli
from common.cli import UserError
from step0_pytorch_warmup import checker, checks, drills
from step0_pytorch_warmup.checker import Drill, judge

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def double(x):
    return 2 * x


DOUBLE = Drill(
    double,
    lambda: {
        "a matrix": (torch.arange(6.0).view(2, 3).requires_grad_(),),
        "large": (torch.full((2, 2), 1e30),),
    },
    {"this adds 2": lambda x: x + 2},
)


def in_place(x):
    return x.detach().mul_(2) + 0 * x


def row_by_row(x):
    return torch.stack([2 * row for row in x])


def endless(x):
    while True:
        try:
            time.sleep(0.001)
        except Exception:  # what an endless loop of a learner might well do
            continue


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x: x + 2, "this adds 2"),
        (lambda x: None, "returns None: is a `return` missing? (case: a matrix)"),
        (lambda x: [x, x], "a list of 2 where a tensor is expected (case: a matrix)"),
        (lambda x: 2 * x.T, "right up to a transpose: .permute(1, 0) (case: a matrix)"),
        (lambda x: 2 * x[:1], "shape (1, 3) where (2, 3) is expected (case: a matrix)"),
        (lambda x: 2 * x.double(), "float64 where float32 is expected (case: a matrix)"),
        (lambda x: 6 * x, "right up to the factor 3 (case: a matrix)"),
        (lambda x: 2 * x - 1, "right up to a constant, -1 (case: a matrix)"),
        (lambda x: x**2, "at [1, 2] 25 instead of 10 (case: a matrix)"),
        (lambda x: 2 * x / 0, "NaN or infinity where the numbers are finite (case: a matrix)"),
        (
            lambda x: 2 * x * (x * 1e20 - x * 1e20 + 1),
            "right before, but NaN or infinity where the numbers are finite (case: large)",
        ),
        (in_place, "changes its input in place (case: a matrix)"),
        (
            lambda x: 2 * x.detach(),
            "no gradient flows back (.detach(), .data, .item() or no_grad on the way?) "
            "(case: a matrix)",
        ),
        (
            lambda x: x.detach() + x,
            "right values, wrong gradient: value 1: right up to the factor 0.5 (case: a matrix)",
        ),
        (row_by_row, "right, but it loops in Python, element by element: let tensor operations"),
        (endless, "still running after 0.3 s: an endless loop?"),
        (drills.one_hot, "TypeError: one_hot() missing 1 required"),
        (None, "no function double"),
        (3, "no function double"),
    ],
)  # fmt: skip
def test_hints(answer, hint):
    assert judge(DOUBLE, answer, seconds=0.3).startswith(hint)


def asks_for_a_gradient(x):
    x.requires_grad_()
    return x + x


@pytest.mark.parametrize("answer", [double, lambda x: x + x, asks_for_a_gradient])
def test_a_right_answer(answer):
    assert judge(DOUBLE, answer) == ""


def test_an_error_names_its_line():
    def broken(x):
        return x @ x

    def leaves(x):
        sys.exit(3)

    for answer, error in (broken, "RuntimeError: mat1 and mat2"), (leaves, "SystemExit: 3"):
        line = answer.__code__.co_firstlineno + 1
        assert judge(DOUBLE, answer).startswith(f"line {line}: {error}")


def test_loops_are_allowed_where_the_drill_says_so():
    assert judge(Drill(double, DOUBLE.cases, {}, loops=True), row_by_row) == ""


def test_arguments_count_where_the_drill_works_in_place():
    drill = Drill(torch.Tensor.neg_, lambda: {"a vector": (torch.ones(3),)}, {}, in_place=True)
    assert judge(drill, lambda x: x.mul_(-1)) == ""
    told = judge(drill, lambda x: -x)
    assert told == "its arguments afterwards: value 1: right up to the factor -1 (case: a vector)"


@pytest.mark.parametrize(
    ("got", "want", "hint"),
    [
        (1, 1.0, ""),
        (torch.tensor(0.5), 0.5, ""),
        (torch.ones(2), 0.5, "a tensor (2,) where a number is expected"),
        (0.25, 0.5, "0.25 instead of 0.5"),
        ([1, 2], (1, 2), ""),
        ((1, 3), (1, 2), "value 2: 3 instead of 2"),
        ({"a": 1}, {"b": 1}, "expected a dict with the keys b"),
        ({"a": 1}, {"a": 2}, "['a']: 1 instead of 2"),
        ("cat", "dog", "'cat' instead of 'dog'"),
        (1.1e-9, 1e-9, "1.1e-09 instead of 1e-09"),
        (torch.ones(2), None, "a tensor (2,) where nothing is to be returned"),
        (torch.tensor([True]), torch.tensor([False]), "right, with True and False exchanged"),
    ],
)
def test_difference(got, want, hint):
    assert checker.difference(got, want) == hint


def test_the_deadline_gives_an_outer_alarm_back():
    with pytest.raises(checker.TimeOver):
        with checker.deadline(0.2):
            with checker.deadline(0.05), pytest.raises(checker.TimeOver):
                time.sleep(1)
            time.sleep(1)


def check(path, *flags):
    """Exit code and output of a drills file that is run as a script."""
    command = [sys.executable, str(path), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_copy_checks_itself(tmp_path):
    mine = tmp_path / "my_drills.py"
    shutil.copy(ROOT / "step0_pytorch_warmup/drills.py", mine)
    text = mine.read_text()
    empty = text[text.index("def one_hot") : text.index("def pick")]
    mine.write_text(text.replace(empty, "from step0_pytorch_warmup.solutions import one_hot\n"))
    code, out, _ = check(mine, "--check", "--only", "one_hot,pick")
    assert code == 1 and "one_hot                  right" in out and "not written yet" in out
    assert "1 of 2 right" in out


def run(tmp_path, text, **flags):
    """Exit code of the checker for a file with this text."""
    mine = tmp_path / "mine.py"
    mine.write_text(text)
    with pytest.raises(SystemExit) as stop:
        checker.main(checker.Config(**flags), str(mine), checks.DRILLS)
    return stop.value.code


def test_exit_codes(tmp_path, capsys):
    text = "from step0_pytorch_warmup.solutions import *"
    assert run(tmp_path, text, check=True) == 0
    assert "30 of 30 right" in capsys.readouterr().out
    assert run(tmp_path, "", check=True, only="pad") == 1
    assert "no function pad" in capsys.readouterr().out


def test_without_check_it_lists_the_drills(capsys):
    checker.main(checker.Config(only="pad, pick"), "drills.py", checks.DRILLS)
    assert capsys.readouterr().out.startswith("pad\npick\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def pad(:\n", "line 1: invalid syntax"),
        ("x = 1\ny = 1 / 0\n", "does not import: line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "does not import: line 2: SystemExit: 3"),
        ("while True: pass\n", "takes over 0 s to import"),
    ],
)
def test_a_file_that_does_not_import(tmp_path, monkeypatch, text, told):
    monkeypatch.setattr(checker, "SECONDS", 0.1)
    mine = tmp_path / "mine.py"
    mine.write_text(text)
    with pytest.raises(UserError, match=told):
        checker.load(mine)


def test_bad_command_lines(tmp_path):
    with pytest.raises(UserError, match="no such Python file"):
        checker.load(tmp_path / "absent.py")
    with pytest.raises(UserError, match="no drill 'one-hot'; is it one_hot?"):
        checker.main(checker.Config(only="one-hot"), "drills.py", checks.DRILLS)
    with pytest.raises(UserError, match="Unrecognized options: --chekc"):
        cli.parse(checker.Config, {}, ["--chekc"])
