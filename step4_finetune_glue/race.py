"""One fine-tuning under the clock: ours, or `transformers.Trainer` as its run_glue script does it.

All get the same rows, cut to the same tokens, the same checkpoint, batch size, learning rate,
epochs and dropout, and are scored by the same code in fp32. Tokenising, loading, saving and scoring
are off the clock.
"""

import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.utils.benchmark

from common import cli, engine, optim
from common.cli import UserError
from step4_finetune_glue import classifier, outcome, prediction, tasks, training
from step4_finetune_glue.encoding import Encoded
from step4_finetune_glue.heads import HuggingFaceClassifier

NEVER = 10**9


@dataclass
class Config(cli.RunConfig):
    task: str = "rt"
    """Task, as finetune.py takes it."""
    data: str = "glue"
    """Where its files are, as finetune.py takes it."""
    model: str = "minilm"
    """Checkpoint, as finetune.py takes it; a BERT."""
    train_limit: int | None = None
    """Train on this many rows only, the same ones for all."""
    epochs: int = 3
    """Passes over the training rows."""
    batch_size: int = 32
    """Rows in an optimizer step."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    max_seq_len: int = 128
    """Longest row in tokens; run_glue pads every row to it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of ours and of the tuned Trainer; auto: bf16 where this machine is faster so."""
    seeds: int = 2
    """Times that the systems take turns, with seeds seed, seed + 1, ..."""
    system: str = ""
    """Run this one system in this process and print its JSON (used by the benchmark itself)."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("train_limit", "epochs", "batch_size", "learning_rate", "seeds"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        cli.check(self, "system", f"one of {', '.join(SYSTEMS)}", lambda v: not v or v in SYSTEMS)


def measure(config: Config, system: str) -> dict[str, Any]:
    """Seconds an epoch, dev scores, and the peak memory (MB) of this process."""
    task = tasks.task(config.task)
    names = ("task", "data", "model", "train_limit", "epochs", "batch_size", "max_seq_len")
    same = {name: getattr(config, name) for name in (*names, "learning_rate", "seed")}
    with tempfile.TemporaryDirectory() as folder:
        settings = training.Config(
            **same,
            micro_batch_size=config.batch_size,
            pooling="cls",  # what transformers' BERT reads
            precision=config.precision,
            eval_every=NEVER,
            save_minutes=NEVER,
            out=folder,
        )
        checkpoint = classifier.find(config.model)
        tokenizer = classifier.tokenizer_of(checkpoint, config.max_seq_len)
        rows = training.Data.read(task, settings)
        trial = training.Trial.of(task, settings, rows, checkpoint, tokenizer)
        found = SYSTEMS[system](trial, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    found["precision"] = "fp32" if system == "trainer" else settings.precision
    found["seconds_per_epoch"] = found.pop("seconds") / config.epochs
    return found | {"peak_mb": round(peak), "rows": len(trial.train)}


def faster_precision() -> str:
    """bf16 where this machine multiplies matrices faster with it; many CPUs only imitate it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not optim.multiplies_bf16(device):
        return "fp32"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(1024, 1024, device=device).to(dtype)
        timer = torch.utils.benchmark.Timer("matrix @ matrix", globals={"matrix": matrix})
        seconds[dtype] = timer.blocked_autorange(min_run_time=0.2).median
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    return "bf16" if gain > engine.WORTH_ROUNDING else "fp32"


def _ours(trial: training.Trial, folder: Path) -> dict[str, Any]:
    trial.run(trial.config.seed, folder, engine.accelerator(trial.config), None)
    (facts,) = outcome.read([folder])
    if facts["diverged"]:  # after a part of the epochs that its seconds would be divided by
        raise UserError(f"training diverged; {engine.Diverged.remedy}")
    return {name: facts[name] for name in ("seconds", "scores", "collapsed")}


def _run_glue(trial: training.Trial, folder: Path) -> dict[str, Any]:
    """Rows padded to the maximum, fp32."""
    return _trainer(trial, folder, width=trial.config.max_seq_len)


def _tuned(trial: training.Trial, folder: Path) -> dict[str, Any]:
    """What a few flags of the Trainer give: rows of a length together, and bf16 as ours has it."""
    bf16 = trial.config.precision == "bf16"
    return _trainer(trial, folder, bf16=bf16, train_sampling_strategy="group_by_length")


def _trainer(trial: training.Trial, folder: Path, width: int = 0, **flags) -> dict[str, Any]:
    import transformers

    config, task = trial.config, trial.task
    engine.seed_everything(config.seed)
    model = classifier.load(trial.checkpoint, task.n_classes, impl="hf").hf
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=config.seed,
        **flags,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=Padded(trial.train, width),
        data_collator=lambda rows: _stack(rows, trial.train.pad_id),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    took = trainer.train().metrics["train_runtime"]
    scored = HuggingFaceClassifier(model)
    held = {s: rows for s, rows in trial.held.items() if s in task.dev_splits}
    logits = {split: prediction.predict(scored, rows) for split, rows in held.items()}
    labels = {split: rows.labels for split, rows in held.items()}
    facts = outcome.of_seed(task, logits, labels, engine.State())
    return {"seconds": took, "scores": facts["scores"], "collapsed": facts["collapsed"]}


class Padded(torch.utils.data.Dataset):
    """Rows as the Trainer takes them, each padded to `width` (0: not at all)."""

    def __init__(self, rows: Encoded, width: int):
        self.rows, self.width = rows, width

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.rows.batch([index])
        length = batch["input_ids"].shape[1]
        row = {"labels": batch["labels"][0], "input_ids": batch["input_ids"][0]}
        row |= {name: batch[name][0].long() for name in ("attention_mask", "token_type_ids")}
        if length < self.width:
            for name, value in (("input_ids", self.rows.pad_id), ("attention_mask", 0),
                                ("token_type_ids", 0)):  # fmt: skip
                pad = (0, self.width - length)
                row[name] = torch.nn.functional.pad(row[name], pad, value=value)
        return row


def _stack(rows: list[dict], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows of any length as one batch, padded to the longest."""
    batch = {"labels": torch.stack([row["labels"] for row in rows])}
    for name, pad in (("input_ids", pad_id), ("attention_mask", 0), ("token_type_ids", 0)):
        columns = [row[name] for row in rows]
        batch[name] = torch.nn.utils.rnn.pad_sequence(columns, True, pad)
    return batch


SYSTEMS = {"trainer": _run_glue, "trainer-tuned": _tuned, "ours": _ours}
