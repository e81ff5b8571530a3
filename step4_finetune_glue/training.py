"""One fine-tuning: its settings, its rows and model, and what one seed does with them."""

import dataclasses
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from common import batching, cli, engine, runs
from common.cli import UserError
from step1_transformer.budget import PlanFlags
from step4_finetune_glue import classifier, outcome, prediction, recipe, tasks
from step4_finetune_glue.encoding import Encoded, sample
from step4_finetune_glue.tasks import Rows, Task


@dataclass
class Config(engine.TrainConfig, PlanFlags):
    task: str = "rt"
    """CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI, or rt (film reviews)."""
    data: str = "glue"
    """Folder of the official download; glue: $GYM_DATA/glue, or the hub's nyu-mll/glue."""
    model: str = "minilm"
    """Checkpoint to start from: minilm, a folder, or a name on the hub."""
    impl: Literal["scratch", "hf"] = "scratch"
    """Our BERT, or the model of transformers (any architecture)."""
    pooling: Literal["auto", "cls", "mean"] = "auto"
    """What the head reads: BERT's pooler on [CLS], or the mean of all states; auto: the mean for a
    sentence-transformer such as minilm, whose pooler is untrained."""
    random: bool = False
    """Keep the checkpoint's shape and tokenizer but start from random weights."""
    new_head: bool = False
    """Start the head afresh even if the checkpoint has one."""
    seeds: int = 5
    """Runs, with seeds seed, seed + 1, ...; the result is their mean and standard deviation."""
    epochs: int | None = None
    """Passes over the training rows; default by their number: 8 below 5,000, 5 below 20,000, 3."""
    learning_rate: float | None = None
    """Peak learning rate; default by width: 3e-4 below 384, 1e-4 below 768, 3e-5."""
    batch_size: int = 32
    """Rows in an optimizer step."""
    micro_batch_size: int = 32
    """Rows computed at once on one process; the rest is gradient accumulation."""
    warmup_ratio: float = 0.1
    """Share of the steps spent in linear warm-up."""
    dropout: float = 0.1
    """Dropout, whatever the checkpoint was pretrained with."""
    max_seq_len: int = 128
    """Longest row in tokens; of a pair, the longer text is cut first."""
    layer_decay: float = 1.0
    """Each layer learns at this times the rate of the one above it; 1 turns it off."""
    reinit_layers: int = 0
    """Top layers, and with them the pooler, that start afresh."""
    centred_head: bool = True
    """Of a regression (STS-B): a fresh head answers the mean of the training scores at first."""
    bias_correction: bool = True
    """Adam as published; without, as in BERT's released code (to see what it does)."""
    train_limit: int | None = None
    """Train on this many rows only, the same ones for every seed."""
    predict_test: bool = False
    """Predict the test sets too, and AX after MNLI."""
    keep_models: bool = False
    """Keep each seed's model, in seed-N/model."""
    max_steps: int | None = None
    """Optimizer steps to train; default: as many as the epochs have."""
    max_minutes: float | None = None
    """Minutes to train a seed; the steps that the first one has time for are those of all."""
    eval_every: int | None = None
    """Optimizer steps between evaluations on the dev set; default: an epoch."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "epochs", "learning_rate", "train_limit"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        cli.check(self, "layer_decay", "above 0, at most 1", lambda value: 0 < value <= 1)
        cli.check(self, "reinit_layers", "0 or more", lambda value: value >= 0)
        cli.check(self, "dropout", "from 0 to below 1", lambda value: 0 <= value < 1)
        if self.optimizer != "adamw" and (self.layer_decay != 1 or not self.bias_correction):
            raise UserError("--layer-decay and --no-bias-correction are for --optimizer adamw")

    def recipe(self) -> list[str]:
        """The settings that are not the default and decide what is learned: `layer-decay 0.9`."""
        told = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in NO_RECIPE and value != field.default:
                name = field.name.replace("_", "-")
                switch = {True: name, False: f"no {name}"} if isinstance(value, bool) else {}
                told.append(switch.get(value, f"{name} {value}"))
        return told


NO_RECIPE = {  # what is the same recipe whatever they say, or named already
    *("preset", "data", "out", "seed", "resume", "tracker", "task", "model", "impl", "pooling"),
    *("random", "seeds", "micro_batch_size", "slice_minutes", "compile", "eval_every"),
    *("log_every", "save_minutes", "predict_test", "keep_models"),
    *("plan", "n_devices", "utilisation", "price"),
}


@dataclass
class Data:
    """The splits of a task: `train`, those to score and, if asked for, those to predict only."""

    train: Rows
    dev: dict[str, Rows]
    test: dict[str, Rows]

    @classmethod
    def read(cls, task: Task, config: Config) -> "Data":
        """Raises UserError as `tasks.read` does, and for a task without training rows."""
        tasks.check_trainable(task)
        train = tasks.read(task, "train", config.data)
        first, *others = task.dev_splits
        dev = {first: tasks.read(task, first, config.data)}
        dev |= cls._there(task, others, config.data)
        if not config.predict_test:
            return cls(train, dev, {})
        test = cls._there(task, task.test_splits, config.data)
        if task.name == "MNLI":
            ax = cls._there(tasks.task("AX"), ("test", "dev"), config.data)
            test |= {tasks.AX_NAMES[split]: rows for split, rows in ax.items()}
        if not test:
            tasks.read(task, task.test_splits[0], config.data)  # says how to get it
        return cls(train, dev, test)

    @staticmethod
    def _there(task: Task, splits: Iterable[str], data: str) -> dict[str, Rows]:
        """Those of `splits` that there are files for."""
        try:
            found = tasks.found(task, tuple(splits), data)
        except UserError:  # none of them
            found = ()
        return {split: tasks.read(task, split, data) for split in found}

    def told(self) -> str:
        """`Rows.told` of every split, a line each: train, dev, test."""
        return "\n".join(r.told() for r in (self.train, *self.dev.values(), *self.test.values()))


@dataclass
class Trial:
    """All that the seeds of a run share."""

    task: Task
    config: Config
    """Complete: what the flags leave open follows from the task and the model."""
    checkpoint: Path
    train: Encoded
    held: dict[str, Encoded]
    data_key: str
    low_resource: bool
    """Trained on less than the official training set."""

    @classmethod
    def of(cls, task: Task, config: Config, data: Data, checkpoint: Path, tokenizer: Tokenizer):
        """Tokenise the rows, of the training set no more than `train_limit`; complete the config.

        Raises UserError for a tokenizer without BERT's or RoBERTa's special tokens, a checkpoint
        whose width is no whole number, and a pooling that its architecture cannot have.
        """
        rows, limit = data.train, config.train_limit
        train = Encoded(tokenizer, sample(rows, limit) if limit else rows, config.max_seq_len)
        held = {
            split: Encoded(tokenizer, rows, config.max_seq_len)
            for split, rows in (data.dev | data.test).items()
        }
        steps = -(-len(train) // config.batch_size)  # an epoch
        width = classifier.width(checkpoint)
        epochs = config.epochs or recipe.epochs(len(train))
        filled = dataclasses.replace(
            config,
            epochs=epochs,
            learning_rate=config.learning_rate or recipe.learning_rate(width),
            max_steps=config.max_steps or epochs * steps,
            eval_every=config.eval_every or steps,
            pooling=classifier.pooling_of(checkpoint, config.pooling, config.impl),
        )
        part = len(train) < len(rows) or len(rows) + rows.skipped < task.train_rows
        key, low = rows.source["fingerprint"], rows.low_resource or part
        return cls(task, filled, checkpoint, train, held, key, low)

    def run(
        self,
        seed: int,
        folder: Path,
        accelerator,
        minutes: float | None,
        chosen: dict[str, Any] | None = None,
    ) -> engine.State:
        """Train one seed in `folder`, predict all splits and write them and `outcome.FILE`. One
        that diverged is scored as one answer for every row.

        `minutes` is what is left of the slice. Where {"precision", "max_steps"} are not `chosen`
        yet, it measures. Raises `cli.Interrupted` as `engine.train` does.
        """
        own = dict(seed=seed, seeds=1, out=str(folder), slice_minutes=minutes)
        own |= dict(max_minutes=None, **chosen) if chosen else {}
        config = dataclasses.replace(self.config, **own)
        main = accelerator.is_main_process
        engine.seed_everything(seed)
        model = classifier.load(
            self.checkpoint,
            self.task.n_classes,
            impl=config.impl,
            pooling=config.pooling,
            dropout=config.dropout,
            reinit_layers=config.reinit_layers,
            random=config.random,
            new_head=config.new_head,
            labels=self.task.labels,
        )
        if self.task.kind == "regression" and config.centred_head and not model.kept_head:
            recipe.centre(model, self.train.labels.mean())
        if main:
            runs.say(f"seed {seed}: {classifier.told(model)}")
        order = dict(batch_size=config.batch_size, seed=seed, drop_last=False)
        run = runs.Run.open(config, "", main=main)
        trainer = engine.Trainer(
            model,
            config=config,
            run=run,
            accelerator=accelerator,
            batches=batching.Batches(self.train.lengths, **order),
            make_batch=lambda rows, epoch: self.train.batch(rows),
            losses=prediction.losses,
            evaluate=lambda model: self.dev_scores(model, accelerator),
            build_optimizers=self.optimizers if config.optimizer == "adamw" else None,
            tokenizer=self.checkpoint,
            data_key=self.data_key,
        )
        diverged, state = "", trainer.state
        try:
            trainer.train()
        except engine.Diverged as error:  # a result like others: it is counted, and others go on
            diverged = f"{error.what}; {error.remedy}"
        accelerator.free_memory()
        logits = {s: prediction.predict(model, rows, accelerator) for s, rows in self.held.items()}
        if not main:
            return state
        if diverged:  # its weights say nothing, so it says nothing of any row
            logits = {split: np.zeros_like(found) for split, found in logits.items()}
        labels = {split: rows.labels for split, rows in self.held.items()}
        for split in logits:
            prediction.save(folder, split, logits[split], labels[split])
        facts = outcome.of_seed(self.task, logits, labels, state, run.metrics())
        facts["diverged"] = bool(diverged)
        facts["parameters"] = sum(p.numel() for p in model.parameters())
        if config.keep_models and not diverged:
            model.save(folder / "model", self.checkpoint)
        runs.write_json(folder / outcome.FILE, facts)
        shutil.rmtree(folder / "checkpoints")
        told = ", ".join(f"{name} {value:.2f}" for name, value in facts["scores"].items())
        told += f"; {diverged}" if diverged else ", collapsed" * facts["collapsed"]
        runs.say(f"seed {seed}: {told}")
        return state

    def optimizers(self, model) -> list:
        """The AdamW of the config. Raises UserError for layer decay on a model without blocks."""
        config = self.config
        return recipe.build_optimizers(
            model,
            config.learning_rate,
            layer_decay=config.layer_decay,
            bias_correction=config.bias_correction,
            weight_decay=config.weight_decay,
            betas=(0.9, config.adam_beta2),
            eps=config.adam_eps,
        )

    def dev_scores(self, model, accelerator) -> dict[str, Any]:
        """`prediction.scores` on the first dev split; all processes share the work."""
        rows = self.held[self.task.dev_splits[0]]
        return prediction.scores(
            self.task, prediction.predict(model, rows, accelerator), rows.labels
        )
