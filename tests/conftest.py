"""`pytest --mine my_drills.py`: the parity tests judge a learner's blocks in place of ours."""

import functools
import importlib
from pathlib import Path

import pytest
from hypothesis import settings

from common.cli import UserError
from step0_pytorch_warmup import checker

pytest.register_assert_rewrite("tests.drilling")
# A stall of the machine is no failure, and a failure is the same one tomorrow.
settings.register_profile("gym", deadline=None, derandomize=True)
settings.load_profile("gym")


def pytest_addoption(parser):
    told = "judge the functions in this copy of a step's drills.py instead of the gym's own blocks"
    parser.addoption("--mine", type=Path, metavar="FILE", help=told)


@pytest.fixture(scope="session")
def adapted(pytestconfig):
    """`adapted(step, name)`: the block of that drill, ours (from tests/<step>/adapters.py) or,
    with `--mine FILE`, the learner's. A test skips where the learner has not written it yet.
    """
    path = pytestconfig.getoption("--mine")
    try:
        mine = path and checker.load(path)
    except UserError as error:
        pytest.exit(f"--mine {error}", pytest.ExitCode.USAGE_ERROR)

    def block(step, name):
        if mine is None:
            return getattr(importlib.import_module(f"tests.{step}.adapters"), name)
        function = getattr(mine, name, None)
        return or_skip(function) if function else pytest.skip(f"no {name} in {path}")

    return block


def or_skip(function):
    @functools.wraps(function)
    def call(*arguments):
        try:
            return function(*arguments)
        except NotImplementedError:
            pytest.skip(f"{function.__name__} is not written yet")

    return call
