"""The drills of step 1: solutions pass, every listed mistake is caught, and gets its own hint."""

import pytest
import sacrebleu
import torch

from step0_pytorch_warmup import checker
from step0_pytorch_warmup import checks as step0_checks
from step1_transformer import checks, drills, solutions
from tests import drilling


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
