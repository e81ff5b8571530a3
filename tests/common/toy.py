"""A model small enough to train in milliseconds, with dropout and two targets of unequal count.

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


PRESETS = {"cpu": dict(batch_size=64, micro_batch_size=64, max_steps=12, precision="fp32")}


class Toy(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout))
        self.word, self.pair = nn.Linear(16, 7), nn.Linear(16, 2)

    def forward(self, x):
        hidden = self.body(x)
        return self.word(hidden), self.pair(hidden.mean(1))

    def save(self, folder, tokenizer=None, state_dict=None):
        save_file(state_dict or self.state_dict(), Path(folder) / "model.safetensors")

    @classmethod
    def load(cls, folder):
        model = cls()
        state = load_file(Path(folder) / "model.safetensors")
        model.to(next(iter(state.values())).dtype).load_state_dict(state)
        return model


def data(n=640):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6, 5)), rng.integers(0, 7, (n, 6)), rng.random((n, 6)) < 0.3


def make_batch(indices, epoch):
    x, y, mask = data()
    dtype = torch.get_default_dtype()
    mask = torch.from_numpy(mask[indices])
    return {
        "x": torch.from_numpy(x[indices]).to(dtype),
        "y": torch.from_numpy(y[indices]),
        "mask": mask,
        "targets": {"word": int(mask.sum()), "pair": len(indices)},
        "tokens": mask.numel(),
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


def main(config: Config):
    if config.double:
        torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    accelerator = engine.accelerator(config)
    run = Run.open(config, "test/toy", main=accelerator.is_main_process)
    engine.seed_everything(config.seed)
    model = Toy(config.dropout)
    if config.double:
        model = model.double()
    batches = batching.Batches(np.ones(640), batch_size=config.batch_size, seed=config.seed)
    engine.train(
        model,
        config=config,
        run=run,
        accelerator=accelerator,
        batches=batches,
        make_batch=make_batch,
        losses=losses,
        evaluate=lambda m: engine.evaluate(m, [make_batch(np.arange(100), 0)], losses),
    )
    if accelerator.is_main_process:
        print(f"result: {run.path}")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
