"""What the tests of every step's drills ask alike."""

import inspect

import pytest

from step0_pytorch_warmup import checker


def mistakes(checks):
    """A case for each listed mistake of each drill: the drill, and the hint that it should get."""
    return [
        pytest.param(drill, hint, id=f"{drill.name}-{number}")
        for drill in checks.DRILLS
        for number, hint in enumerate(drill.mistakes)
    ]


def same_order(module, checks):
    """The functions of `module`, as they stand in its file, are the drills of `checks`."""
    found = [f for n, f in inspect.getmembers(module, inspect.isfunction) if n != "main"]
    found.sort(key=lambda f: f.__code__.co_firstlineno)
    assert [f.__name__ for f in found] == [drill.name for drill in checks.DRILLS]


def names_differ(*steps):
    """`--mine` finds a learner's block by its name alone."""
    names = [drill.name for step in steps for drill in step.DRILLS]
    assert len(names) == len(set(names))


def empty_and_solved(drill, exercise):
    """The exercise asks for what the solution takes, and is empty; the solution is right."""
    asked = inspect.signature(exercise).parameters
    assert list(asked) == list(inspect.signature(drill.solution).parameters)
    assert checker.judge(drill, exercise) == checker.EMPTY
    assert checker.judge(drill, drill.solution) == ""
