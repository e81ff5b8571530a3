"""A model small enough to train in milliseconds, with dropout and two targets of unequal count.

Rows have different lengths, and the last batch of an epoch is smaller and odd.

Run as a script it trains under `accelerate launch` too: `python toy.py --out DIR ...`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from common import batching, cli, engine
from common.runs import Run


@dataclass
class Config(engine.TrainConfig):
    dropout: float = 0.0
    double: bool = True
    stop_at: int = 1000  # evaluations


PRESETS = {"cpu": dict(batch_size=64, micro_batch_size=64, max_steps=12, precision="fp32")}


class Toy(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout))
        self.word, self.pair = nn.Linear(16, 7), nn.Linear(16, 2)

    def forward(self, x):
        hidden = self.layers(x)
        return self.word(hidden), self.pair(hidden.mean(1))

    def save(self, folder, tokenizer=None):
        save_file(self.state_dict(), Path(folder) / "model.safetensors")

    @classmethod
    def load(cls, folder):
        model = cls()
        state = load_file(Path(folder) / "model.safetensors")
        model.to(next(iter(state.values())).dtype).load_state_dict(state)
        return model


def data(n=619):
    rng = np.random.default_rng(0)
    x, y, mask = rng.normal(size=(n, 6, 5)), rng.integers(0, 7, (n, 6)), rng.random((n, 6)) < 0.3
    lengths = rng.integers(2, 7, n)
    return x, y, mask & (np.arange(6) < lengths[:, None]), lengths


def make_batch(indices, epoch):
    x, y, mask, lengths = (torch.from_numpy(part[indices]) for part in data())
    return {
        "x": x.to(torch.get_default_dtype()),
        "y": y,
        "mask": mask,
        "targets": {"word": int(mask.sum()), "pair": len(indices)},
        "tokens": int(lengths.sum()),
    }


def losses(model, batch):
    words, pair = model(batch["x"])
    words, y = words[batch["mask"]], batch["y"]
    cross_entropy = nn.functional.cross_entropy
    return {
        "word_loss": cross_entropy(words, y[batch["mask"]], reduction="sum"),
        "word_accuracy": (words.argmax(-1) == y[batch["mask"]]).sum(),
        "pair_loss": cross_entropy(pair, y[:, 0] % 2, reduction="sum"),
    }


def main(config: Config, data_key: str = ""):
    if config.double:
        torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    accelerator = engine.accelerator(config)
    run = Run.open(config, "test/toy", main=accelerator.is_main_process)
    engine.seed_everything(config.seed)
    model = Toy(config.dropout)
    if config.double:
        model = model.double()
    order = dict(batch_size=config.batch_size, seed=config.seed, drop_last=False)
    state = engine.train(
        model,
        config=config,
        run=run,
        accelerator=accelerator,
        batches=batching.Batches(data()[3], **order),
        make_batch=make_batch,
        losses=losses,
        evaluate=lambda m: engine.evaluate(m, [make_batch(np.arange(100), 0)], losses),
        stop=lambda evaluations: len(evaluations) >= config.stop_at,
        data_key=data_key,
    )
    if accelerator.is_main_process:
        print(f"result: {run.path}")
    return state


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
