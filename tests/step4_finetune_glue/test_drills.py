"""The drills of step 4: solutions pass, every listed mistake is caught, and gets its own hint."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from step0_pytorch_warmup import checker
from step0_pytorch_warmup import checks as step0_checks
from step1_transformer import checks as step1_checks
from step3_peripherals import checks as step3_checks
from step4_finetune_glue import checks, drills, solutions

ROOT = Path(__file__).resolve().parents[2]
MISTAKES = [
    pytest.param(drill, hint, id=f"{drill.name}-{number}")
    for drill in checks.DRILLS
    for number, hint in enumerate(drill.mistakes)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("module", [drills, solutions])
def test_exercises_solutions_and_checks_have_the_same_order(module):
    found = [f for n, f in inspect.getmembers(module, inspect.isfunction) if n != "main"]
    found.sort(key=lambda f: f.__code__.co_firstlineno)
    assert [f.__name__ for f in found] == [drill.name for drill in checks.DRILLS]


def test_a_name_means_one_drill_in_the_whole_gym():
    """`--mine` finds a learner's block by its name alone."""
    steps = step0_checks, step1_checks, step3_checks, checks
    names = [drill.name for step in steps for drill in step.DRILLS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("drill", checks.DRILLS, ids=lambda drill: drill.name)
def test_the_exercise_is_empty_and_the_solution_right(drill):
    exercise = getattr(drills, drill.name)
    asked = inspect.signature(exercise).parameters
    assert list(asked) == list(inspect.signature(drill.solution).parameters)
    assert checker.judge(drill, exercise) == checker.EMPTY
    assert checker.judge(drill, drill.solution) == ""


@pytest.mark.parametrize(("drill", "hint"), MISTAKES)
def test_a_usual_mistake_gets_its_hint(drill, hint):
    assert checker.judge(drill, drill.mistakes[hint]) == hint


MIXED = """
from step3_peripherals import solutions
from step3_peripherals.solutions import encode_bpe, t5_buckets
from step4_finetune_glue.solutions import layer_rates
def rope(x, base):
    return -solutions.rope(x, base)
def encode_pair(first, second, cls_id, sep_id, max_seq_len):
    raise NotImplementedError
"""


def test_parity_judges_the_learners_blocks(tmp_path):
    """Those of steps 3 and 4 in one run, as importing the libraries takes longest."""
    mine = tmp_path / "my_drills.py"
    mine.write_text(MIXED)
    files = [f"tests/parity/test_{name}_blocks.py" for name in ("peripheral", "glue")]
    some = "encode_bpe or t5_buckets or layer_rates or rope or encode_pair or skew"
    options = ("-rA", "-p", "no:cacheprovider", "--mine", mine, "-k", some)
    command = [sys.executable, "-m", "pytest", *files, *options]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    found = set(re.findall(r"^(PASSED|FAILED) .*::test_(\w+)", text, re.M))
    passed = {("PASSED", name) for name in ("encode_bpe", "t5_buckets", "layer_rates")}
    assert found == {*passed, ("FAILED", "rope")}, text
    assert "encode_pair is not written yet" in text and "no skew in" in text
