"""The average of a run's last weights (section 6.1: "averaging the last 5 checkpoints").

Late in training the weights circle around a minimum; their mean lies closer to it than any of them.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common import runs


class Snapshots:
    """Weights of a run, on disk: the last `keep`, and the best by its held-out score.

    A resumed run overwrites what it takes again with the same weights, so nothing of this needs to
    be in a checkpoint.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, max(1, keep)

    def take(self, model: nn.Module, step: int, score: float) -> None:
        """Keep the model's weights at `step`; a lower score is better."""
        self.folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu() for name, value in model.named_parameters()}
        content = to_bytes(weights, metadata={"score": repr(score)})
        runs.write_bytes(self.folder / f"step-{step:08d}.safetensors", content)
        for file in set(self._all()) - {*self.last(), self.best()}:
            file.unlink()

    def last(self) -> list[Path]:
        """The newest snapshots, oldest first."""
        return self._all()[-self.keep :]

    def best(self) -> Path:
        """The snapshot of the lowest score, the earliest of equals."""
        return min(self._all(), key=_score)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))


def average(files: list[Path]) -> dict[str, Tensor]:
    """The mean of each parameter over the files, summed in float64."""
    total: dict[str, Tensor] = {}
    for file in files:
        for name, value in load_file(file).items():
            total[name] = total.get(name, 0) + value.double()
    return {name: (value / len(files)).float() for name, value in total.items()}


@torch.no_grad()
def choose(
    model: nn.Module, snapshots: Snapshots, judge: Callable[[nn.Module], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Leave the model with the average of the last snapshots, or with the best single one:
    whichever has the lower `token_nll`. Returns what `judge` says of each, by its name.
    """
    candidates = (snapshots.last(), [snapshots.best()])
    weights = {_name(files): average(files) for files in candidates}
    scores = {}
    for name in weights:
        _fill(model, weights[name])
        scores[name] = judge(model)
    _fill(model, weights[min(scores, key=lambda name: scores[name]["token_nll"])])
    return scores


def _name(files: list[Path]) -> str:
    step = int(files[-1].stem.removeprefix("step-"))
    return f"step {step:,}" if len(files) == 1 else f"average of {len(files)}"


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def _score(file: Path) -> float:
    with safe_open(file, framework="pt") as stored:
        return float(stored.metadata()["score"])
