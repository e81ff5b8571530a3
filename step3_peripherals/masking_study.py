"""One mask, tried: a BERT pretrained with it, scored on held-out text and by fine-tuning."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from common import batching, cli, data, engine, runs, subruns
from step2_bert import classification, corpus, objective
from step2_bert.masking import Vocabulary
from step2_bert.model import BertConfig, BertForPreTraining, BertForSequenceClassification
from step2_bert.samples import Samples
from step2_bert.tokenizer import load_tokenizer
from step3_peripherals.masking import Masking, mask


@dataclass
class StudyConfig(engine.TrainConfig):
    data: str = "sotu+imdb"
    """A directory made by step 2's prepare.py; or a name, file or folder, prepared first."""
    size: Literal["tiny", "mini", "small"] = "tiny"
    """Shape of the model."""
    vocab_size: int = 8192
    """Size of the WordPiece vocabulary, where data is prepared here."""
    max_seq_len: int = 128
    """Longest sample in tokens, where data is prepared here."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products, the same for all."""
    downstream: str = "rt"
    """Labelled sentences to fine-tune on; empty: none."""
    epochs: int = 2
    """Passes over them."""
    tuning_rate: float = 3e-4
    """Peak learning rate of fine-tuning."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "epochs", "above 0", lambda value: value > 0)


# Held-out text is scored with these, whatever a model was trained with
SCORED = {"mlm": Masking(static=True), "blank": Masking(mask_share=1, random_share=0, static=True)}


class Study:
    """What all trainings share: the text, the labelled sentences, the processes."""

    def __init__(self, config: StudyConfig):
        if config.downstream:  # before the work of preparing, in case they are not there
            rows = classification.sentences(config.downstream)
        folder = prepared(config)
        self.accelerator = engine.accelerator(config)
        self.train, self.heldout = Samples.open(folder, "train"), Samples.open(folder, "heldout")
        tokenizer = load_tokenizer(self.train.tokenizer_dir)
        self.vocabulary = Vocabulary.of(tokenizer)
        self.baseline: dict[str, float] = {}
        self.parameters = 0
        if config.downstream:
            self.labelled = data.resolve(config.downstream).facts()["fingerprint"]
            self.baseline = classification.baselines(*rows)
            tokenizer.enable_truncation(self.train.max_seq_len)
            tokenizer.no_padding()
            self.tuning, self.test = (classification.Encoded(tokenizer, part) for part in rows)

    def scores(self, config: StudyConfig, masking: Masking) -> dict:
        """Train with `masking` in the run directory `config.out`, or go on where that was stopped.

        Returns {"scores": {name: value}, "tokens", "seconds", "hardware"}, which the directory
        keeps in place of the weights. Raises `cli.Interrupted` with a checkpoint written.
        """
        folder, budget = Path(config.out), subruns.Slice(config.slice_minutes)
        shape = dict(vocab_size=self.train.vocab_size, max_seq_len=self.train.max_seq_len)
        shape = BertConfig.named(config.size, **shape, dropout=0.0, attention_dropout=0.0)
        engine.seed_everything(config.seed)
        model = BertForPreTraining(shape)
        self.parameters = sum(p.numel() for p in model.parameters())
        if (folder / "scores.json").exists():
            return json.loads((folder / "scores.json").read_text())
        state = self._pretrain(model, config, masking)
        scores = self._heldout_scores(model)
        if config.downstream:
            model.save(folder / "model", self.train.tokenizer_dir)
            scores["accuracy"] = self._finetune(replace(config, slice_minutes=budget.left()))
        kept = {"scores": scores, "tokens": state.tokens, "seconds": round(state.seconds, 1)}
        kept["hardware"] = runs.hardware()
        runs.write_json(folder / "scores.json", kept)
        for done in ("checkpoints", "model", "downstream"):
            shutil.rmtree(folder / done, ignore_errors=True)
        return kept

    def _pretrain(self, model: nn.Module, config: StudyConfig, masking: Masking) -> engine.State:
        model.untrained_parts = ("bert.pooler", "nsp")
        order = dict(batch_size=config.batch_size, seed=config.seed)

        def make_batch(rows, epoch):
            drawing = dict(seed=config.seed, epoch=epoch)
            return masked_batch(self.train, rows, self.vocabulary, masking, **drawing)

        return self._engine(
            model,
            config=config,
            batches=batching.Batches(self.train.lengths, **order),
            make_batch=make_batch,
            losses=objective.losses,
            data_key=f"{self.train.manifest['key']} {masking}",
        )

    def _heldout_scores(self, model: nn.Module) -> dict[str, float]:
        """Loss (nats) and accuracy (%) on all held-out samples, masked in both ways of `SCORED`."""
        found, lengths = {}, self.heldout.lengths
        order = batching.Batches(lengths, batch_size=128, shuffle=False, drop_last=False)
        for name, masking in SCORED.items():
            drawn = (self.vocabulary, masking)
            batches = (masked_batch(self.heldout, rows, *drawn) for rows in order.epoch(0))
            means = engine.evaluate(model, batches, objective.losses)
            found[f"{name}_loss"] = means["mlm_loss"]
            found[f"{name}_accuracy"] = 100 * means["mlm_accuracy"]
        return found

    def _finetune(self, config: StudyConfig) -> float:
        """Accuracy in % on the test sentences after fine-tuning the model in the run directory."""
        start = Path(config.out) / "model"
        n_classes = 1 + max(self.tuning.labels + self.test.labels)
        dropout = dict(dropout=0.1, attention_dropout=0.1)
        engine.seed_everything(config.seed)
        model = BertForSequenceClassification.from_pretrained(start, n_classes, **dropout)
        settings = dict(batch_size=32, micro_batch_size=32, optimizer="adamw", warmup_ratio=0.1)
        settings |= dict(learning_rate=config.tuning_rate, out=str(start.parent / "downstream"))
        settings["max_steps"] = max(1, config.epochs * (len(self.tuning.labels) // 32))
        order = dict(batch_size=32, seed=config.seed)
        self._engine(
            model,
            config=replace(config, **settings),
            batches=batching.Batches(self.tuning.lengths, **order),
            make_batch=lambda rows, epoch: self.tuning.batch(rows),
            losses=classification.losses,
            data_key=self.labelled,
        )
        return 100 * classification.score(model, self.test)["label_accuracy"]

    def _engine(self, model: nn.Module, *, config: StudyConfig, **parts) -> engine.State:
        parts |= dict(accelerator=self.accelerator, tokenizer=self.train.tokenizer_dir)
        run = runs.Run.open(config, "")
        state = engine.train(model, config=config, run=run, **parts)
        self.accelerator.free_memory()
        return state


def masked_batch(
    samples: Samples,
    rows: np.ndarray,
    vocabulary: Vocabulary,
    masking: Masking,
    *,
    seed: int = 0,
    epoch: int = 0,
) -> engine.Batch:
    """The batch that `Samples.batch` makes of `rows`, masked anew by `masking`."""
    batch = samples.batch(rows)
    ids = batch["input_ids"].numpy()
    ids.reshape(-1)[batch["masked_positions"]] = batch["masked_labels"]  # the text as it was
    lengths = samples.lengths[rows].astype(np.int64)
    positions, labels = mask(ids, lengths, rows, vocabulary, masking, seed=seed, epoch=epoch)
    masked = {"masked_positions": positions, "masked_labels": labels}
    batch |= {name: torch.from_numpy(values) for name, values in masked.items()}
    return batch | {"targets": {"mlm": len(labels)}}


def prepared(config: StudyConfig) -> Path:
    """The directory `--data` names, prepared first unless it is one already."""
    folder = Path(config.data)
    if (folder / "manifest.json").exists():
        return folder
    options = corpus.PrepareOptions(
        data=config.data,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
        nsp=False,
        heldout_fraction=0.02,
        max_documents=60 if config.preset == "smoke" else None,
    )
    key = corpus.key_of(options, data.resolve(config.data))
    folder = Path("runs/step3_peripherals") / f"prepared-{folder.stem}-{key[:8]}"
    return corpus.prepare(options, folder, measure=False).parent
