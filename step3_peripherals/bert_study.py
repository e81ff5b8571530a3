"""Ways to pretrain, each tried by small BERTs: scored on text that all share, and by fine-tuning.

A `Study` holds what all trainings have in common. What differs is for its kinds to say: the batches
(`batches_of`), the exam on held-out text (`heldout_scores`), and for how many `steps`, if not all
train for the same.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from common import batching, cli, data, engine, runs, subruns
from step1_transformer import resuming
from step2_bert import classification, corpus, objective
from step2_bert.masking import Vocabulary
from step2_bert.model import BertConfig, BertForPreTraining, BertForSequenceClassification
from step2_bert.samples import Samples
from step2_bert.tokenizer import load_tokenizer


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
        cli.check(self, "tuning_rate", "0 or more", lambda value: value >= 0)


class Study:
    """What all trainings share: the text, the labelled sentences, the processes."""

    nsp = False  # whether the text is prepared as pairs

    def __init__(self, config: StudyConfig):
        if config.downstream:  # before the work of preparing, in case they are not there
            rows = classification.sentences(config.downstream)
        folder = prepared(config, self.nsp)
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

    def batches_of(self, way: Any, config: StudyConfig) -> dict[str, Any]:
        """What `engine.train` needs to pretrain this way: batches, make_batch, data_key."""
        raise NotImplementedError

    def heldout_scores(self, model: nn.Module, way: Any) -> dict[str, float]:
        """Scores on held-out text, by name."""
        raise NotImplementedError

    def steps(self, way: Any, config: StudyConfig) -> int:
        """Optimizer steps of a training in this way."""
        return config.max_steps

    def shape(self, config: StudyConfig) -> BertConfig:
        """Of all models."""
        shape = dict(vocab_size=self.train.vocab_size, max_seq_len=self.train.max_seq_len)
        return BertConfig.named(config.size, **shape, dropout=0.0, attention_dropout=0.0)

    def start(self, model: BertForPreTraining) -> None:
        """Change the weights with which every model begins; they are random."""

    def has_question(self, way: Any) -> bool:
        """Whether it trains the head that is asked about pairs."""
        return False

    def scores(self, config: StudyConfig, way: Any) -> dict:
        """Train in this way in the run directory `config.out`, or go on where that was stopped.

        Returns {"scores": {name: value}, "tokens", "pretraining_seconds", "seconds", "hardware"},
        which the directory keeps in place of the weights; "seconds" are those of scoring and
        fine-tuning too. Raises `cli.Interrupted` with a checkpoint written.
        """
        folder, budget = Path(config.out), subruns.Slice(config.slice_minutes)
        config = replace(config, max_steps=self.steps(way, config))
        engine.seed_everything(config.seed)
        model = BertForPreTraining(self.shape(config))
        model.untrained_parts = () if self.has_question(way) else ("bert.pooler", "nsp")
        self.parameters = sum(p.numel() for p in model.parameters())
        if (folder / "scores.json").exists():
            return resuming.read(folder / "scores.json")
        self.start(model)
        state = self._engine(
            model, config=config, losses=objective.losses, **self.batches_of(way, config)
        )
        begun = time.monotonic()
        scores = self.heldout_scores(model, way)
        seconds = state.seconds + time.monotonic() - begun
        if config.downstream:
            model.save(folder / "model", self.train.tokenizer_dir)
            scores["accuracy"], more = self._finetune(replace(config, slice_minutes=budget.left()))
            seconds += more
        kept = {"scores": scores, "tokens": state.tokens, "seconds": round(seconds, 1)}
        kept |= {"pretraining_seconds": state.seconds, "hardware": runs.hardware()}
        runs.write_json(folder / "scores.json", kept)
        for done in ("checkpoints", "model", "downstream"):
            shutil.rmtree(folder / done, ignore_errors=True)
        return kept

    def _finetune(self, config: StudyConfig) -> tuple[float, float]:
        """Accuracy in % on the test sentences after fine-tuning the model in the run directory; and
        the seconds of that."""
        start = Path(config.out) / "model"
        n_classes = 1 + max(self.tuning.labels + self.test.labels)
        dropout = dict(dropout=0.1, attention_dropout=0.1)
        engine.seed_everything(config.seed)
        model = BertForSequenceClassification.from_pretrained(start, n_classes, **dropout)
        n_rows = len(self.tuning.labels)
        size = min(32, n_rows)
        settings = dict(batch_size=size, micro_batch_size=size, optimizer="adamw", warmup_ratio=0.1)
        settings |= dict(learning_rate=config.tuning_rate, out=str(start.parent / "downstream"))
        settings["max_steps"] = config.epochs * (n_rows // size)
        order = dict(batch_size=size, seed=config.seed)
        state = self._engine(
            model,
            config=replace(config, **settings),
            batches=batching.Batches(self.tuning.lengths, **order),
            make_batch=lambda rows, epoch: self.tuning.batch(rows),
            losses=classification.losses,
            data_key=self.labelled,
        )
        return 100 * classification.score(model, self.test)["label_accuracy"], state.seconds

    def _engine(self, model: nn.Module, *, config: StudyConfig, **parts) -> engine.State:
        parts |= dict(accelerator=self.accelerator, tokenizer=self.train.tokenizer_dir)
        run = runs.Run.open(config, "")
        state = engine.train(model, config=config, run=run, **parts)
        self.accelerator.free_memory()
        return state


def train_all(
    run: runs.Run, config: Any, study: Study, ways: dict[str, Any]
) -> tuple[dict[str, list[dict[str, float]]], list[dict]]:
    """Every way with every seed, in folders of their own; what was done is not done again.

    Seeds are outside, so that all ways can be compared when time is up early. Returns the scores of
    each way, a dict a seed, and what `Study.scores` says of each training. Raises
    `cli.Interrupted` that tells how to go on.
    """
    found, trained = {name: [] for name in ways}, []
    budget = subruns.Slice(config.slice_minutes)
    for seed in range(config.seed, config.seed + config.seeds):
        for name, way in ways.items():
            folder = run.path / name / f"seed-{seed}"
            settings = dict(seed=seed, seeds=1, variants=(name,), out=str(folder), resume=True)
            one = replace(config, **settings, slice_minutes=budget.left())
            with resuming.tells_how(run.path, f"stopped in {folder}"):
                kept = study.scores(one, way)
            found[name].append(kept["scores"])
            trained.append(kept)
            told = ", ".join(f"{score} {value:.3f}" for score, value in kept["scores"].items())
            runs.say(f"{name} seed {seed}: {told}")
    return found, trained


def effort(trained: Sequence[dict]) -> dict[str, float]:
    """Tokens, seconds and tokens a second of all trainings, as a result states them."""
    parts = ("tokens", "seconds", "pretraining_seconds")
    tokens, seconds, pretraining = (sum(one[part] for one in trained) for part in parts)
    speed = round(tokens / max(pretraining, 1e-9))
    return {"tokens": tokens, "seconds": round(seconds, 1), "tokens_per_second": speed}


def prepared(config: StudyConfig, nsp: bool) -> Path:
    """The directory `--data` names, prepared first unless it is one already."""
    folder = Path(config.data)
    if (folder / "manifest.json").exists():
        return folder
    options = corpus.PrepareOptions(
        data=config.data,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
        nsp=nsp,
        heldout_fraction=0.02,
        max_documents=60 if config.preset == "smoke" else None,
    )
    key = corpus.key_of(options, data.resolve(config.data))
    folder = Path("runs/step3_peripherals") / f"prepared-{folder.stem}-{key[:8]}"
    return corpus.prepare(options, folder, measure=False).parent
