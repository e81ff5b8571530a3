"""One system's training steps under the clock: our engine, or `transformers.Trainer`.

Both get the same weights, the same batches in the same order with the same masks, the same learning
rates and optimizer. The Trainer's rows are padded to the maximum, as its scripts do it.
"""

import contextlib
import resource
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common import batching, cli, engine, optim, runs
from step1_transformer import attention, layers
from step2_bert import objective
from step2_bert.baseline import DenseBert, HuggingFaceBert, MaskedBert
from step2_bert.model import BertConfig, BertForPreTraining, Size
from step2_bert.samples import Samples

WARM = 4  # steps before the clock starts


@dataclass(frozen=True)
class System:
    """What is timed. The fields after `model` are the tricks that the ladder adds one by one."""

    model: type[nn.Module] | None = BertForPreTraining  # None: transformers.Trainer
    precision: str = "bf16"
    attention: str = "auto"  # explicit on a CPU, fused on a GPU
    own_dropout: bool = True
    buckets: bool = True
    keep_memory: bool = True


SYSTEMS = {
    "trainer-fp32": System(None, "fp32"),
    "trainer-bf16": System(None, "bf16"),
    "ours": System(),
}
LADDER = {
    "trainer-fp32": System(None, "fp32"),
    "transformers model, our loop": System(HuggingFaceBert, "fp32", "auto", True, False, False),
    "our model, all positions": System(DenseBert, "fp32", "fused", False, False, False),
    "+ masked positions only": System(MaskedBert, "fp32", "fused", False, False, False),
    "+ bf16": System(MaskedBert, "bf16", "fused", False, False, False),
    "+ loss in one with its product": System(
        BertForPreTraining, "bf16", "fused", False, False, False
    ),
    "+ attention written out": System(BertForPreTraining, "bf16", "auto", False, False, False),
    "+ 16-bit dropout": System(BertForPreTraining, "bf16", "auto", True, False, False),
    "+ length buckets": System(keep_memory=False),
    "+ freed memory kept (= ours)": System(),
}


@dataclass
class Config(cli.RunConfig):
    data: str = ""
    """Directory made by prepare.py."""
    size: Size = "tiny"
    """Shape of the model."""
    batch_size: int = 32
    """Samples in a step."""
    learning_rate: float = 1e-3
    """Peak learning rate, linear warm-up over a tenth of the steps, linear decay."""
    dropout: float = 0.1
    """Dropout of all systems; with 0 their losses agree step by step."""
    steps: int = 20
    """Timed steps of each system in each round."""
    rounds: int = 3
    """Times that the systems take turns."""
    ladder: bool = False
    """Measure each trick on top of the one before instead."""
    target_loss: float | None = None
    """Train until the held-out MLM loss falls to this instead, and time that."""
    system: str = ""
    """Run this one system in this process and print its JSON (used by the benchmark itself)."""


def measure(config: Config, system: System) -> dict[str, Any]:
    """Train one system: per-step seconds, tokens and losses, and the process's peak memory (MB)."""
    samples = Samples.open(config.data, "train")
    to_target = config.target_loss is not None
    total = 100_000 if to_target else WARM + config.steps
    with tempfile.TemporaryDirectory() as folder:
        train = engine.TrainConfig(
            batch_size=config.batch_size,
            micro_batch_size=config.batch_size,
            max_steps=total,
            learning_rate=config.learning_rate,
            warmup_ratio=0.001 if to_target else 0.1,
            schedule="constant" if to_target else "linear",
            seed=config.seed,
            log_every=1,
            eval_every=25,
            save_minutes=1e9,
            out=folder,
            precision=system.precision,
        )
        watch = Watch(config.target_loss, Samples.open(config.data, "heldout"))
        order = batching.Batches(samples.lengths, batch_size=config.batch_size, seed=config.seed)
        model = initial(config, samples, system.attention)
        drop = attention.drop if system.own_dropout else F.dropout
        keep = engine.keep_memory if system.keep_memory else (lambda: None)
        with (
            patch.object(attention, "drop", drop),
            patch.object(layers, "drop", drop),
            patch.object(engine, "keep_memory", keep),
        ):
            if system.model is None:
                steps = _trainer(model, train, samples, order, watch)
            else:
                model = model if system.model is BertForPreTraining else system.model.of(model)
                steps = _ours(model, train, samples, order, system.buckets, watch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    skip = 0 if to_target else WARM
    return {
        **{name: values[skip:] for name, values in steps.items()},
        "seconds_to_target": watch.reached,
        "peak_mb": round(peak),
    }


def initial(config: Config, samples: Samples, attention: str = "auto") -> BertForPreTraining:
    """The weights that all systems start from."""
    engine.seed_everything(config.seed)
    shape = dict(vocab_size=samples.vocab_size, max_seq_len=max(512, samples.max_seq_len))
    dropout = dict(dropout=config.dropout, attention_dropout=config.dropout)
    return BertForPreTraining(
        BertConfig.named(config.size, attention=attention, **shape, **dropout)
    )


class Watch:
    """Sees when the held-out loss reaches the target; its own time is off the clock."""

    def __init__(self, target: float | None, heldout: Samples):
        self.target, self.heldout, self.reached = target, heldout, None

    def sees(self, model: torch.nn.Module, seconds: float) -> bool:
        # The engine evaluates in the precision that it trains in; here all are scored in fp32.
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            loss = objective.heldout_scores(model, self.heldout)["mlm_loss"]
        if loss <= self.target:
            self.reached = seconds
        return self.reached is not None


class _Reached(Exception):
    pass


def _ours(model, train, samples, order, buckets, watch) -> dict[str, list]:
    """`engine.train` as every script uses it; without `buckets`, rows are padded to the maximum."""
    run = runs.Run.open(train, "")

    def make_batch(rows, epoch):
        batch = samples.batch(rows, epoch=epoch)
        return batch if buckets else pad(batch, samples.max_seq_len)

    def evaluate(model):
        if watch.sees(model, sum(_steps(run)["seconds"])):
            raise _Reached
        return {}

    with contextlib.suppress(_Reached):
        engine.train(
            model,
            config=train,
            run=run,
            accelerator=engine.accelerator(train),
            batches=order,
            make_batch=make_batch,
            losses=objective.losses,
            evaluate=evaluate if watch.target else None,
        )
    return _steps(run)


def _steps(run: runs.Run) -> dict[str, list]:
    """Tokens, seconds and loss of each step, from the run's own log."""
    events = [event for event in run.metrics() if event["event"] == "train"]
    tokens = np.diff([0, *(event["tokens"] for event in events)]).tolist()
    rates = [event["tokens_per_second"] for event in events]
    return {
        "tokens": tokens,
        "seconds": [n / rate for n, rate in zip(tokens, rates, strict=True)],
        "losses": [e["train/mlm_loss"] + e.get("train/nsp_loss", 0) for e in events],
    }


def _trainer(model, train, samples, order, watch) -> dict[str, list]:
    """`transformers.Trainer` as it comes, on rows padded to the maximum, in our order."""
    import transformers

    plan = [(epoch, rows) for epoch, _, rows in islice(order.starting_at(0, 0), train.max_steps)]
    steps = {"tokens": [], "seconds": [], "losses": []}

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.begun = time.monotonic()

        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            steps["seconds"].append(time.monotonic() - self.begun)
            _, rows = plan[state.global_step - 1]
            steps["tokens"].append(int(samples.lengths[rows].sum()))
            if watch.target and state.global_step % train.eval_every == 0:
                ours = BertForPreTraining.from_hf(trainer.model).to(trainer.model.device)
                control.should_training_stop = watch.sees(ours, sum(steps["seconds"]))

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                steps["losses"].append(float(logs["loss"]))

    class Trainer(transformers.Trainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            warmup_steps = round(train.warmup_ratio * train.max_steps)
            share = optim.schedule(train.schedule, warmup_steps, train.max_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)
            return self.lr_scheduler

    arguments = transformers.TrainingArguments(
        output_dir=train.out,
        per_device_train_batch_size=train.batch_size,
        max_steps=train.max_steps,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        adam_epsilon=1e-6,
        bf16=train.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        train_sampling_strategy="sequential",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=train.seed,
    )
    rows = Padded(samples, plan)
    trainer = Trainer(model.to_hf(), arguments, train_dataset=rows, callbacks=[Clock()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return steps


class Padded(torch.utils.data.Dataset):
    """Samples as `transformers` scripts feed them: padded rows, labels -100 where not masked."""

    def __init__(self, samples: Samples, plan: list[tuple[int, np.ndarray]]):
        self.samples = samples
        self.rows = [(epoch, row) for epoch, rows in plan for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        epoch, row = self.rows[item]
        batch = pad(self.samples.batch([row], epoch=epoch), self.samples.max_seq_len)
        labels = torch.full((self.samples.max_seq_len,), -100)
        labels[batch["masked_positions"]] = batch["masked_labels"]
        return {
            "input_ids": batch["input_ids"][0],
            "attention_mask": batch["attention_mask"][0].long(),
            "token_type_ids": batch["token_type_ids"][0],
            "labels": labels,
            "next_sentence_label": batch["is_random_next"][0],
        }


def pad(batch: engine.Batch, width: int) -> engine.Batch:
    """The batch with rows padded to `width` tokens."""
    rows, T = batch["input_ids"].shape
    mask = batch["attention_mask"]
    if mask is None:
        mask = torch.ones(rows, T, dtype=torch.bool)
    row, column = batch["masked_positions"] // T, batch["masked_positions"] % T
    widen = torch.nn.functional.pad
    return {
        **batch,
        "input_ids": widen(batch["input_ids"], (0, width - T)),
        "token_type_ids": widen(batch["token_type_ids"], (0, width - T)),
        "attention_mask": widen(mask, (0, width - T)),
        "masked_positions": row * width + column,
    }
