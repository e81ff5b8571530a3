"""Judge a learner's functions: name what is right, hint at what is not.

A step with drills has three files: `drills.py` (the exercises, empty, and their command line),
`solutions.py`, and `checks.py`, which holds a `Drill` for each. A drill lists its usual mistakes as
small functions: an answer that computes what one of them computes gets the hint written beside it.
Where no mistake fits, the hint comes from comparing with the solution (shape, dtype, transpose,
factor, NaN, gradients, ...).

A copy of `drills.py` checks itself, wherever it lies. Exit code: 0 when all that was asked for is
right, 1 when not, 2 for a file or a name that cannot be used.
"""

import difflib
import dis
import importlib.util
import math
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor

from common.cli import UserError

SECONDS = 5.0  # a right answer takes milliseconds
EMPTY = "not written yet"


@dataclass(frozen=True)
class Drill:
    """One exercise: its solution, the inputs that an answer is judged on, and its usual mistakes.

    `cases` draws the arguments of a few calls, each under a name that a hint can quote; the first
    is the ordinary one. `mistakes` maps a hint to an answer that deserves it.
    """

    solution: Callable
    cases: Callable[[], dict[str, tuple]]
    mistakes: dict[str, Callable]
    loops: bool = False
    """May loop in Python."""
    in_place: bool = False
    """The arguments after the call are part of the answer."""

    @property
    def name(self) -> str:
        return self.solution.__name__


@dataclass
class Config:
    """The command line of every `drills.py`."""

    check: bool = False
    """Judge the answers in this file; without it, only list the drills."""
    only: str = ""
    """Judge these drills alone: names separated by commas."""


class TimeOver(BaseException):
    """An answer ran too long. No `Exception`, so that an answer's own `except` lets it pass."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeOver in the block after `seconds`. In the main thread only, as signals are."""

    def stop(signum, frame):
        raise TimeOver

    handler = signal.signal(signal.SIGALRM, stop)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, handler)


def load(path: Path) -> ModuleType:
    """The learner's file as a module. Raises UserError, with the line, when it does not import."""
    name = f"mine_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not path.is_file():
        raise UserError(f"{path}: no such Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with deadline(2 * SECONDS):
            spec.loader.exec_module(module)
    except TimeOver:
        raise UserError(f"{path} takes over {2 * SECONDS:.0f} s to import") from None
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} does not import: {_told(error, path)}") from None
    return module


def main(config: Config, file: str, drills: list[Drill]) -> None:
    """List the drills, or judge the answers in `file`; then leave with the exit code."""
    by_name = {drill.name: drill for drill in drills}
    asked = [name.strip() for name in config.only.split(",") if name.strip()] or list(by_name)
    for name in asked:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            raise UserError(f"no drill {name!r}" + (f"; is it {near[0]}?" if near else ""))
    if not config.check:
        print("\n".join(asked))
        print(f"\nWrite the bodies (a copy of {file} will do), then run it with --check.")
        return
    answers = load(Path(file))
    right = 0
    for number, name in enumerate(by_name, start=1):
        if name in asked:
            hint = judge(by_name[name], getattr(answers, name, None))
            right += not hint
            print(f"{number:3}  {name:24} {hint or 'right'}", flush=True)
    print(f"\n{right} of {len(asked)} right")
    sys.exit(right < len(asked))


def judge(drill: Drill, answer: Callable | None, seconds: float = SECONDS) -> str:
    """A hint at what is wrong with `answer`; empty when nothing is.

    `seconds` bounds each call. An answer that is right but loops in Python where the drill forbids
    it is not right.
    """
    if not callable(answer):
        return f"no function {drill.name}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cases = drill.cases()
    for number, (case, arguments) in enumerate(cases.items()):
        try:
            with deadline(seconds):
                got = _call(answer, arguments)
        except NotImplementedError:
            return EMPTY
        except TimeOver:
            return f"still running after {seconds:g} s: an endless loop?"
        except (Exception, SystemExit) as error:
            told = _told(error, Path(getattr(answer, "__code__", judge.__code__).co_filename))
            return f"{told} (case: {case})"
        hint = _compare(got, _call(drill.solution, arguments), drill.in_place)
        if hint:
            known = (h for h, wrong in drill.mistakes.items() if _same(got, wrong, arguments))
            earlier = "" if number == 0 else "right before, but "
            return next(known, f"{earlier}{hint} (case: {case})")
    if not drill.loops and _has_loop(getattr(answer, "__code__", None)):
        return "right, but it loops in Python, element by element: let tensor operations do it"
    return ""


@dataclass
class Outcome:
    """What a call left behind."""

    value: Any
    arguments: tuple
    """As they are afterwards, and the tensors that were in them before: a list may hold others."""
    gradients: list[Tensor] | None
    """Of the arguments that ask for one; None where the value passes none on."""


def _call(function: Callable, arguments: tuple) -> Outcome:
    """Call `function` with a fresh copy of the arguments."""
    given = _each(_fresh, arguments)
    after = (_each(lambda x: x, given), given)
    inputs = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    value = function(*given)
    gradients = []
    if inputs and isinstance(value, Tensor):
        if not value.requires_grad:
            return Outcome(value, after, None)
        # Weights that differ, so that no error hides in a sum
        weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).cos().view_as(value)
        found = torch.autograd.grad((value * weights).sum(), inputs, allow_unused=True)
        gradients = [
            torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)
        ]
    return Outcome(value, after, gradients)


def _fresh(x: Tensor) -> Tensor:
    """The same tensor in new memory."""
    return x.detach().clone().requires_grad_(x.requires_grad)


def _each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`function` of every tensor, in new tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _each(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_each(function, item) for item in value)
    return value


def _same(got: Outcome, wrong: Callable, arguments: tuple) -> bool:
    """Did a known mistake make what `got` holds?"""
    try:
        return not _compare(got, _call(wrong, arguments), in_place=True)
    except Exception:
        return False


def _compare(got: Outcome, want: Outcome, in_place: bool) -> str:
    """What `got` does otherwise than `want`, in words; empty if nothing."""
    if hint := difference(got.value, want.value):
        return hint
    for mine, right in zip(got.arguments, want.arguments, strict=True):
        if hint := difference(mine, right):
            return f"its arguments afterwards: {hint}" if in_place else "changes its input in place"
    if want.gradients and got.gradients is None:
        return "no gradient flows back (.detach(), .data, .item() or no_grad on the way?)"
    if hint := difference(got.gradients, want.gradients):
        return f"right values, wrong gradient: {hint}"
    return ""


def difference(got: Any, want: Any) -> str:
    """How a value differs from the right one, in words; empty if it does not."""
    if got is None and want is not None:
        return "returns None: is a `return` missing?"
    if want is None and got is not None:
        return f"{_kind(got)} where nothing is to be returned"
    if isinstance(want, Tensor):
        return _tensor_difference(got, want)
    if isinstance(want, bool | int | float):
        if not isinstance(got, bool | int | float) and getattr(got, "ndim", None) != 0:
            return f"{_kind(got)} where a number is expected"
        near = math.isclose(got, want, rel_tol=1e-5, abs_tol=1e-12)
        return "" if near else f"{got:.7g} instead of {want:.7g}"
    if isinstance(want, dict):
        if not isinstance(got, dict) or got.keys() != want.keys():
            return f"expected a dict with the keys {', '.join(map(str, want))}"
        pairs = [(f"[{key!r}]", got[key], want[key]) for key in want]
    elif isinstance(want, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(want):
            return f"{_kind(got)} where {len(want)} values are expected"
        pairs = [(f"value {i + 1}", got[i], want[i]) for i in range(len(want))]
    else:
        return "" if got is want or got == want else f"{got!r} instead of {want!r}"
    found = ((where, difference(mine, right)) for where, mine, right in pairs)
    return next((f"{where}: {hint}" for where, hint in found if hint), "")


def _tensor_difference(got: Any, want: Tensor) -> str:
    if not isinstance(got, Tensor):
        return f"{_kind(got)} where a tensor is expected"
    if _equal(got, want):
        return ""
    turned = next((p for p in _turns(got) if _equal(got.permute(p), want)), None)
    if turned:
        return f"right up to a transpose: .permute{turned}"
    if got.shape != want.shape:
        return f"shape {_shape(got)} where {_shape(want)} is expected"
    if got.dtype != want.dtype:
        return f"{_dtype(got)} where {_dtype(want)} is expected"
    if want.dtype == torch.bool:
        if _equal(~got, want):
            return "right, with True and False exchanged"
    elif want.isfinite().all() and not got.isfinite().all():
        return "NaN or infinity where the numbers are finite"
    elif want.is_floating_point() and want.isfinite().all() and want.numel() > 1:
        factor = (got * want).sum() / (want * want).sum()
        if _equal(got, factor * want):
            return f"right up to the factor {factor:.4g}"
        if _equal(got - (got - want).mean(), want):
            return f"right up to a constant, {(got - want).mean():+.4g}"
    far = (got.double() - want.double()).abs().nan_to_num(torch.inf)
    place = tuple(i.item() for i in torch.unravel_index(far.argmax(), far.shape))
    where = f"at {list(place)} " if place else ""
    return f"{where}{got[place].item():.5g} instead of {want[place].item():.5g}"


def _turns(x: Tensor) -> Iterator[tuple[int, ...]]:
    """Every other order of the dimensions, up to four of them."""
    orders = permutations(range(x.ndim)) if x.ndim <= 4 else iter(())
    next(orders, None)
    yield from orders


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, 1e-5, 1e-5, equal_nan=True)  # NaN is right nowhere, but a mistake


def _has_loop(code: CodeType | None) -> bool:
    """Is there a loop or comprehension in the compiled function, or in a function inside it?"""
    if code is None:
        return False
    jumps = any(i.opname.startswith("JUMP_BACKWARD") for i in dis.get_instructions(code))
    return jumps or any(_has_loop(c) for c in code.co_consts if isinstance(c, CodeType))


def _told(error: BaseException, path: Path) -> str:
    """The error in one line, with the line of `path` that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    where = f"line {frames[-1].lineno}: " if frames else ""
    text = " ".join(str(error).split())[:200]
    return f"{where}{type(error).__name__}" + (f": {text}" if text else "")


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a tensor {_shape(value)}" if isinstance(value, Tensor) else type(value).__name__


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
