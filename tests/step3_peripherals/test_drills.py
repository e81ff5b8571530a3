"""The drills of step 3: solutions pass, every listed mistake is caught, and gets its own hint."""

import inspect

import pytest
import torch

from step0_pytorch_warmup import checker
from step0_pytorch_warmup import checks as step0_checks
from step1_transformer import checks as step1_checks
from step3_peripherals import checks, drills, solutions

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
    steps = step0_checks, step1_checks, checks
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
