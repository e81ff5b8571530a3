"""The drills of step 4: solutions pass, every listed mistake is caught, and gets its own hint."""

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
from tests import drilling

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("module", [drills, solutions])
def test_exercises_solutions_and_checks_have_the_same_order(module):
    drilling.same_order(module, checks)


def test_a_name_means_one_drill_in_the_whole_gym():
    drilling.names_differ(step0_checks, step1_checks, step3_checks, checks)


@pytest.mark.parametrize("drill", checks.DRILLS, ids=lambda drill: drill.name)
def test_the_exercise_is_empty_and_the_solution_right(drill):
    drilling.empty_and_solved(drill, getattr(drills, drill.name))


@pytest.mark.parametrize(("drill", "hint"), drilling.mistakes(checks))
def test_a_usual_mistake_gets_its_hint(drill, hint):
    assert checker.judge(drill, drill.mistakes[hint]) == hint


MIXED = """
from step1_transformer.solutions import beam_search, label_smoothing
from step3_peripherals import solutions
from step3_peripherals.solutions import encode_bpe, t5_buckets
from step4_finetune_glue.solutions import layer_rates
def scaled_dot_product(q, k, v, mask):
    raise NotImplementedError
def layer_norm(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias
def rope(x, base):
    return -solutions.rope(x, base)
def encode_pair(first, second, cls_id, sep_id, max_seq_len):
    raise NotImplementedError
"""


def test_parity_judges_the_learners_blocks(tmp_path):
    """Those of all steps in one run, as importing the libraries takes longest."""
    mine = tmp_path / "my_drills.py"
    mine.write_text(MIXED)
    files = [f"tests/parity/test_{name}blocks.py" for name in ("", "peripheral_", "glue_")]
    some = "beam_search or label_smoothing or scaled_dot_product or layer_norm or sinusoidal"
    some += " or encode_bpe or t5_buckets or layer_rates or rope or encode_pair or skew"
    options = ("-rA", "-p", "no:cacheprovider", "--mine", mine, "-k", some)
    command = [sys.executable, "-m", "pytest", *files, *options]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    found = set(re.findall(r"^(PASSED|FAILED) .*::test_(\w+)", text, re.M))
    passed = ("beam_search", "label_smoothing", "encode_bpe", "t5_buckets", "layer_rates")
    failed = ("layer_norm", "rope")
    outcomes = {("PASSED", name) for name in passed} | {("FAILED", name) for name in failed}
    assert found == outcomes, text
    for name in ("scaled_dot_product", "encode_pair"):
        assert f"{name} is not written yet" in text
    for name in ("sinusoidal_positions", "skew"):
        assert f"no {name} in" in text
