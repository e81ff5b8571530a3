"""Show that how a step is computed changes nothing: accumulation, processes, and kill -9.

    python step2_bert/exactness.py

Trains the same small BERT several times with pretrain.py and compares the weights: one batch of 64,
4 x 16, a ragged 3 x (22, 21, 21), two processes, and a run that is killed at random moments and
resumed each time. All but the last in fp32 without dropout; the last with dropout, and in bf16
where the machine multiplies in it. It fails when a weight differs by more than 1e-6 there, or at
all here.
"""

import random
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from common import cli, optim, runs, subruns
from common.cli import UserError
from common.runs import metric
from step1_transformer import resuming

LARGEST_DIFFERENCE = 1e-6
SCRIPTS = Path(__file__).resolve().parent


@dataclass
class Config(cli.RunConfig):
    steps: int = 8
    """Optimizer steps of each training."""
    kills: int = 3
    """Times that kill -9 meets the last training."""


PRESETS = {"smoke": dict(steps=3, kills=1), "cpu": {}}


def main(config: Config) -> None:
    run = runs.Run.open(config, "step2_bert/exactness")
    if run.finished():
        return
    with resuming.tells_how(run.path):
        prove(config, run)


def prove(config: Config, run: runs.Run) -> None:
    """Train in all ways, compare, and write the result; UserError when there is a difference."""
    started = time.monotonic()
    prepared = run.path / "prepared"
    subruns.call(SCRIPTS / "prepare.py", "--preset", "smoke", "--out", prepared, quiet=True)
    flags = ["--preset", "smoke", "--data", prepared, "--size", "tiny", "--max-steps", config.steps,
             "--batch-size", 64, "--log-every", 1, "--seed", config.seed]  # fmt: skip
    exact = [*flags, "--precision", "fp32", "--dropout", 0]
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2)

    whole = train(run, "1 x 64", [*exact, "--micro-batch-size", 64])
    others = {
        "4 x 16": train(run, "4 x 16", [*exact, "--micro-batch-size", 16]),
        "22 + 21 + 21": train(run, "ragged", [*exact, "--micro-batch-size", 23]),
        "2 processes x 2 x 16": train(run, "two", [*exact, "--micro-batch-size", 16], launch),
    }
    metrics = {}
    print(f"largest difference of any weight after {config.steps} steps from one batch of 64:")
    for name, weights in others.items():
        error = max((weights[key] - value).abs().max().item() for key, value in whole.items())
        print(f"  {name:24} {error:.1e}")
        metrics[name.replace(" ", "_")] = metric(error, higher_is_better=False)
        if not error <= LARGEST_DIFFERENCE:
            raise UserError(f"{name}: weights differ by {error:.1e} from those of one batch of 64")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if optim.multiplies_bf16(device) else "fp32"
    long = [*flags, "--precision", precision, "--micro-batch-size", 16, "--save-minutes", 0]
    long += ["--max-steps", 10 * config.steps]
    calm = train(run, "calm", long)
    kills = killed(run.path / "killed", long, config.kills)
    again = train(run, "killed", long)
    same = all(again[key].equal(value) for key, value in calm.items())
    print(f"after {kills} kill -9: weights {'identical, bit for bit' if same else 'DIFFER'}")
    if not same or not kills:
        told = "kill -9 changed the result" if kills else "the end came before any kill -9"
        raise UserError(f"{told}; choose another --out to try again")
    metrics["bit_identical_after_kill"] = metric(float(same), n=kills)
    run.result(
        step="step2_bert",
        script="exactness",
        system="engine, BERT-tiny",
        preset=config.preset,
        dataset="sotu",
        split="train",
        metrics=metrics,
        compare_to=[],
        model={"name": "tiny", "parameters": sum(v.numel() for v in whole.values())},
        tokens=None,
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=None,
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


def train(run: runs.Run, name: str, flags: list, launch: tuple = ()) -> dict:
    """The weights after training with these flags, which goes on where it was interrupted."""
    folder = run.path / name.replace(" ", "")
    flags = ["--out", folder, "--resume", *flags]
    subruns.call(SCRIPTS / "pretrain.py", *flags, launch=launch, quiet=True)
    return load_file(folder / "model" / "model.safetensors")


def killed(folder: Path, flags: list, kills: int) -> int:
    """Start the training, kill it at a random moment after it has got somewhere; `kills` times."""
    done = 0
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier proof that was interrupted
    for _ in range(kills):
        command = subruns.command_of(SCRIPTS / "pretrain.py", "--out", folder, "--resume", *flags)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = checkpoints(folder)
        while process.poll() is None and checkpoints(folder) == before:
            time.sleep(0.01)
        time.sleep(random.random())
        done += process.poll() is None
        process.kill()
        process.wait()
    return done


def checkpoints(folder: Path) -> set[Path]:
    return set(folder.glob("checkpoints/step-*"))


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
