"""Two processes that share a batch are one process: gradients summed, counts summed, one division.

    python step0_pytorch_warmup/data_parallel.py
    python step0_pytorch_warmup/data_parallel.py --processes 3 --batch-size 50

Each process holds the whole model and a part of every batch (`gloo`, the CPU's way of talking). The
training on digits is run four times from the same weights: by one process; by several, with
`all_reduce` by hand; by several, with DistributedDataParallel, its average made exact; and with the
average as it comes, which is wrong where the parts differ in size. Batches are odd on purpose.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from common import cli
from common.runs import metric
from step0_pytorch_warmup import digits, mlp
from step0_pytorch_warmup.lesson import finish, start

WAYS = ("by hand", "DDP", "DDP, mean of means")
LARGEST_DIFFERENCE = 1e-6
Split = tuple[Tensor, Tensor]  # images (N, 64), labels (N,)


@dataclass
class Config(cli.RunConfig):
    processes: int = 2
    """Processes that share each batch."""
    batch_size: int = 33
    """Digits in a step, over all processes."""
    steps: int = 40
    """Optimizer steps."""
    learning_rate: float = 0.3
    """Of plain SGD."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "processes", "2 or more", lambda value: value >= 2)
        cli.check(self, "steps", "1 or more", lambda value: value >= 1)
        enough = f"{self.processes} or more, a digit for each process"
        cli.check(self, "batch_size", enough, lambda value: value >= self.processes)


PRESETS = {"smoke": dict(steps=3), "cpu": {}}


def main(config: Config) -> None:
    run = start(config, "data_parallel")
    if run.finished():
        return
    started = time.monotonic()
    torch.set_num_threads(1)
    data = mlp.tensors(digits.load()[0])
    one = train(config, data, "one process")
    with tempfile.TemporaryDirectory() as folder:
        # Spawned, not forked: a fork would inherit torch's threads in the middle of their work.
        torch.multiprocessing.spawn(worker, (config, data, folder), config.processes)
        found = {way: load_file(Path(folder) / way) for way in WAYS}
    parts = torch.arange(config.batch_size).tensor_split(config.processes)
    shares = " + ".join(str(len(part)) for part in parts)
    print(f"{config.steps} steps of {shares} digits; how far weights are from one process's:")
    metrics = {}
    for way, weights in found.items():
        errors = [(weights[name] - value).abs().max() for name, value in one.items()]
        error = torch.stack(errors).max().item()  # Python's max would lose a NaN
        print(f"  {config.processes} processes, {way:20} {error:.1e}")
        metrics[way.replace(",", "").replace(" ", "_")] = metric(error, higher_is_better=False)
        if way != WAYS[-1] and not error <= LARGEST_DIFFERENCE:
            print(f"  that is more than {LARGEST_DIFFERENCE:.0e}: not the same training")
    finish(
        run, config, started, script="data_parallel", system="MLP, SGD", dataset="digits",
        split="train", metrics=metrics, parameters=sum(value.numel() for value in one.values()),
    )  # fmt: skip


def worker(rank: int, config: Config, data: Split, folder: str) -> None:
    """One of the processes: train in every way; the first one saves the weights."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=config.processes)
    for way in WAYS:
        weights = train(config, data, way, rank)
        if rank == 0:
            save_file(weights, Path(folder) / way)
    dist.barrier()
    dist.destroy_process_group()


def train(config: Config, data: Split, way: str, rank: int = 0) -> dict[str, Tensor]:
    """The weights after `config.steps` steps, as process `rank` holds them."""
    torch.manual_seed(config.seed)
    model = mlp.MLP()  # the same in every process, for the seed is
    images, labels = data
    wrapped = DistributedDataParallel(model) if way.startswith("DDP") else model
    optimizer = torch.optim.SGD(model.parameters(), config.learning_rate)
    epochs = -(-config.steps * config.batch_size // len(labels))
    batches = mlp.batches(len(labels), config.batch_size, epochs + 1, config.seed)
    for _, batch in zip(range(config.steps), batches, strict=False):
        mine = batch if way == "one process" else batch.tensor_split(config.processes)[rank]
        loss = F.cross_entropy(wrapped(images[mine]), labels[mine], reduction="sum")
        optimizer.zero_grad()
        if way == "one process":
            (loss / len(batch)).backward()
        elif way == "by hand":
            loss.backward()
            divide_over_all(model, len(mine))
        elif way == "DDP":
            # DDP divides the sum of gradients by the number of processes: undo that
            (loss * config.processes / len(batch)).backward()
        else:
            (loss / len(mine)).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def divide_over_all(model: nn.Module, count: int) -> None:
    """Turn each process's gradient of a sum over `count` digits into that of the common mean."""
    total = torch.tensor(float(count))
    dist.all_reduce(total)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= total


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
