"""The thirty drills: solutions pass, every listed mistake is caught, and gets its own hint."""

import inspect

import pytest
import torch

from step0_pytorch_warmup import checker, checks, drills, solutions
from tests import drilling


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def functions(module):
    """Public functions defined in a module, in the order of its text."""
    found = [f for n, f in inspect.getmembers(module, inspect.isfunction) if n[0] != "_"]
    here = [f for f in found if f.__module__ == module.__name__ and f.__name__ != "main"]
    return sorted(here, key=lambda f: f.__code__.co_firstlineno)


def test_exercises_solutions_and_checks_are_the_same_thirty_in_order():
    names = [drill.name for drill in checks.DRILLS]
    assert len(set(names)) == 30
    assert [f.__name__ for f in functions(drills)] == names
    assert [f.__name__ for f in functions(solutions)] == names


@pytest.mark.parametrize("drill", checks.DRILLS, ids=lambda drill: drill.name)
def test_the_exercise_is_empty_and_the_solution_right(drill):
    exercise = getattr(drills, drill.name)
    assert "->" in exercise.__doc__ or drill.in_place
    drilling.empty_and_solved(drill, exercise)


@pytest.mark.parametrize(("drill", "hint"), drilling.mistakes(checks))
def test_a_usual_mistake_gets_its_hint(drill, hint):
    assert checker.judge(drill, drill.mistakes[hint]) == hint
