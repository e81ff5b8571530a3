"""`pytest --mine my_drills.py`: the parity tests judge a learner's blocks in place of ours."""

import functools
import gc
import importlib
import os
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


@pytest.fixture(scope="module", autouse=True)
def libraries_are_not_searched():
    """tests/scripts.py collects garbage after each script, and through all that was imported by
    then that takes half a second: what is alive before a module's tests is left out."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def drawn():
    """For a test that looks at a figure."""


@pytest.fixture(autouse=True)
def drawn_only_to_be_seen(request, monkeypatch):
    """To render a figure takes a second: one that the test does not look at is an empty file."""
    if "drawn" in request.fixturenames:
        return

    def savefig(self, file, **options):
        if isinstance(file, str | os.PathLike):
            Path(file).write_bytes(b"")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    monkeypatch.setattr("matplotlib.figure.Figure.tight_layout", lambda self, **options: None)


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


def pytest_generate_tests(metafunc):
    """In a module that names the STEP of its drills, the solutions are judged too."""
    if hasattr(metafunc.module, "STEP"):
        whose = ["mine"] if metafunc.config.getoption("--mine") else ["ours", "solution"]
        metafunc.parametrize("block", whose, indirect=True, scope="module")


@pytest.fixture(scope="module")
def block(request, adapted):
    """`block(name)`: the block of a drill of the module's STEP, as `adapted` finds it, or the
    solution's."""
    step = request.module.STEP
    if request.param == "solution":
        return functools.partial(getattr, importlib.import_module(f"{step}.solutions"))
    return functools.partial(adapted, step)


def or_skip(function):
    @functools.wraps(function)
    def call(*arguments):
        try:
            return function(*arguments)
        except NotImplementedError:
            pytest.skip(f"{function.__name__} is not written yet")

    return call
