"""The drills of step 1: solutions pass, every listed mistake is caught, and gets its own hint."""

import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
import torch

from step0_pytorch_warmup import checker
from step0_pytorch_warmup import checks as step0_checks
from step1_transformer import checks, drills, solutions
from tests import drilling

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("module", [drills, solutions])
def test_exercises_solutions_and_checks_have_the_same_order(module):
    drilling.same_order(module, checks)


def test_a_name_means_one_drill_in_the_whole_gym():
    drilling.names_differ(step0_checks, checks)


@pytest.mark.parametrize("drill", checks.DRILLS, ids=lambda drill: drill.name)
def test_the_exercise_is_empty_and_the_solution_right(drill):
    drilling.empty_and_solved(drill, getattr(drills, drill.name))


@pytest.mark.parametrize(("drill", "hint"), drilling.mistakes(checks))
def test_a_usual_mistake_gets_its_hint(drill, hint):
    assert checker.judge(drill, drill.mistakes[hint]) == hint


def test_bleu_is_sacrebleus():
    """Of words that are already split."""
    pairs = [(checks.SHORT, checks.LONG), (checks.MADE, checks.READ), (checks.CAT, checks.LONG)]
    hypotheses, references = map(list, zip(*pairs, strict=True))
    texts, truths = ([" ".join(words) for words in side] for side in (hypotheses, references))
    known = sacrebleu.corpus_bleu(
        texts, [truths], tokenize="none", smooth_method="none", force=True
    )
    assert solutions.bleu(hypotheses, references) == pytest.approx(known.score)


MIXED = """
from step1_transformer import solutions
from step1_transformer.solutions import beam_search, label_smoothing
def scaled_dot_product(q, k, v, mask):
    raise NotImplementedError
def layer_norm(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias
"""


def parity(mine):
    """Outcome of each block's tests with a learner's file: {(block, passed|failed|skipped)}."""
    command = [sys.executable, "-m", "pytest", "tests/parity/test_blocks.py", "-rA", "-p",
               "no:cacheprovider", "--mine", str(mine)]  # fmt: skip
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    found = set()
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED"):
            found.add((rest.split("::test_")[1].split("[")[0].split()[0], word.lower()))
    return found, text


def test_parity_judges_the_learners_blocks(tmp_path):
    mine = tmp_path / "my_drills.py"
    mine.write_text(MIXED)
    found, text = parity(mine)
    assert found == {
        ("beam_search", "passed"),
        ("label_smoothing", "passed"),
        ("layer_norm", "failed"),
    }, text
    assert "scaled_dot_product is not written yet" in text
    assert "no sinusoidal_positions in" in text


def test_the_solutions_pass_parity():
    found, text = parity(ROOT / "step1_transformer/solutions.py")
    assert {outcome for _, outcome in found} == {"passed"} and "SKIPPED" not in text, text
    assert len(found) >= 8
