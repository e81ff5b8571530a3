"""Fine-tune a BERT to classify sentences, over several seeds, beside baselines without one.

python step2_bert/finetune_sentence.py --model runs/step2_bert/pretrain-cpu/model
python step2_bert/finetune_sentence.py --model DIR --random          same shape, random weights
python step2_bert/finetune_sentence.py --model DIR --data reviews.tsv     columns: text, label
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from common import batching, cli, data, engine, runs
from common.cli import UserError
from common.runs import metric
from step2_bert.model import BertForSequenceClassification
from step2_bert.tokenizer import load_tokenizer


@dataclass
class Config(engine.TrainConfig):
    model: str = "runs/step2_bert/pretrain-cpu/model"
    """Checkpoint to start from: a Hugging Face directory with its tokenizer."""
    data: str = "rt"
    """Labelled sentences: rt; a file with columns text and label, a tenth of which is kept for the
    test; or a folder with a train and a test file."""
    random: bool = False
    """Keep the checkpoint's shape and tokenizer but start from random weights."""
    seeds: int = 3
    """Runs, with seeds seed, seed + 1, ...; the result is their mean and standard deviation."""
    epochs: int = 4
    """Passes over the training sentences."""
    dropout: float = 0.1
    """Dropout of hidden states and attention, whatever the checkpoint was pretrained with."""
    max_seq_len: int = 128
    """Longest sentence in tokens; longer ones are cut."""


PRESETS = {
    "smoke": dict(seeds=1, batch_size=16, micro_batch_size=16, max_steps=10, eval_every=10),
    "cpu": dict(batch_size=32, micro_batch_size=32, learning_rate=3e-4, warmup=0.1),
    "gpu": dict(batch_size=32, micro_batch_size=32, learning_rate=1e-4, warmup=0.1),
}


def main(config: Config) -> None:
    start = "random" if config.random else "pretrained"
    accelerator = engine.accelerator(config)
    main_process = accelerator.is_main_process
    name = f"step2_bert/finetune-{start}-{config.preset}"
    whole = runs.Run.open(config, name, main=main_process)
    if whole.finished():
        return

    # Data: tokenised once; and what can be had without a BERT
    rows, test_rows = sentences(config.data)
    tokenizer = load_tokenizer(config.model)
    tokenizer.enable_truncation(config.max_seq_len)
    tokenizer.no_padding()
    train, test = Encoded(tokenizer, rows), Encoded(tokenizer, test_rows)
    n_classes = 1 + max(train.labels + test.labels)
    steps = config.max_steps or config.epochs * (len(rows) // config.batch_size)
    baseline = baselines(rows, test_rows)

    # Train and score once a seed
    seeds = list(range(config.seed, config.seed + config.seeds))
    scores, tokens, seconds = [], 0, 0.0
    for seed in seeds:
        out = whole.path / f"seed-{seed}"
        one = dataclasses.replace(config, seed=seed, max_steps=steps, out=str(out))
        engine.seed_everything(seed)
        model = BertForSequenceClassification.from_pretrained(
            config.model, n_classes, dropout=config.dropout, attention_dropout=config.dropout
        )
        if model.config.max_seq_len < config.max_seq_len:
            limit = model.config.max_seq_len
            raise UserError(f"{config.model} has {limit} positions: --max-seq-len {limit} at most")
        if config.random:
            model = BertForSequenceClassification(model.config, n_classes)
        state = engine.train(
            model,
            config=one,
            run=runs.Run.open(one, "", main=main_process),
            accelerator=accelerator,
            batches=batching.Batches(train.lengths, batch_size=config.batch_size, seed=seed),
            make_batch=lambda rows, epoch: train.batch(rows),
            losses=losses,
            evaluate=lambda model: score(model, test),
            tokenizer=Path(config.model),
        )
        accelerator.free_memory()
        scores.append(100 * score(model, test)["label_accuracy"])
        tokens, seconds = tokens + state.tokens, seconds + state.seconds
        if main_process:
            runs.say(f"seed {seed}: test accuracy {scores[-1]:.2f} %")

    sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    metrics = {"accuracy": metric(float(np.mean(scores)), sd=sd, n=len(scores), unit="%")}
    metrics |= {f"{name}_accuracy": metric(v, unit="%") for name, v in baseline.items()}
    if main_process:
        bert = f"BERT, {start} weights, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        spread = f" ± {sd:.2f}" if sd is not None else ""
        print(f"\naccuracy on {len(test_rows):,} test sentences, %")
        print(f"  {bert:36}{np.mean(scores):6.2f}{spread}")
        print(f"  {'logistic regression on words':36}{baseline['bag_of_words']:6.2f}")
        print(f"  {'always the commonest class':36}{baseline['majority_class']:6.2f}\n")
    whole.result(
        step="step2_bert",
        script="finetune_sentence",
        system=f"BERT of {config.model.removesuffix('/model')}, {start} weights",
        preset=config.preset,
        dataset=config.data,
        split="test",
        metrics=metrics,
        compare_to=[],
        model={"name": config.model, "parameters": sum(p.numel() for p in model.parameters())},
        train_sentences=len(rows),
        test_sentences=len(test_rows),
        tokens=tokens,
        seconds=round(seconds, 1),
        tokens_per_second=round(tokens / max(seconds, 1e-9)),
        seeds=seeds,
        config=cli.as_dict(config),
    )


def sentences(name: str) -> tuple[list[tuple], list[tuple]]:
    """Rows (text, label) to train on and to test on. Raises UserError for other rows."""
    if Path(name).is_file():  # always the same tenth of it is kept for the test
        rows = data.labelled(name)
        order = np.random.default_rng(0).permutation(len(rows)).tolist()
        held = max(1, len(rows) // 10)
        train, test = [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]
    else:
        train, test = data.labelled(name, "train"), data.labelled(name, "test")
    for text, *_, label in train + test:
        if label < 0:
            raise UserError(f"{name}: labels are 0, 1, 2, ..., not {label} as that of {text!r}")
    if len({len(row) for row in train + test} - {2}) or not train:
        raise UserError(f"{name}: wants rows of one text and a label, at least two of them")
    return train, test


class Encoded:
    """Tokenised sentences, ready to be cut into batches of near-equal length."""

    def __init__(self, tokenizer, rows: list[tuple[str, int]]):
        self.ids = [e.ids for e in tokenizer.encode_batch([text for text, _ in rows])]
        self.labels = [label for _, label in rows]
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.pad_id = tokenizer.token_to_id("[PAD]")

    def batch(self, rows: np.ndarray) -> engine.Batch:
        """input_ids (B, T), attention_mask (B, T), labels (B,), T the longest of the rows."""
        width = int(self.lengths[rows].max())
        ids = np.full((len(rows), width), self.pad_id)
        for i, row in enumerate(rows):
            ids[i, : self.lengths[row]] = self.ids[row]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(np.arange(width) < self.lengths[rows, None]),
            "labels": torch.tensor([self.labels[row] for row in rows]),
            "targets": {"label": len(rows)},
            "tokens": int(self.lengths[rows].sum()),
        }


def losses(model: torch.nn.Module, batch: engine.Batch) -> dict[str, torch.Tensor]:
    """Summed cross-entropy and hits over a batch."""
    logits = model(batch["input_ids"], batch["attention_mask"]).float()
    return {
        "label_loss": F.cross_entropy(logits, batch["labels"], reduction="sum"),
        "label_accuracy": (logits.argmax(-1) == batch["labels"]).sum(),
    }


def score(model: torch.nn.Module, test: Encoded) -> dict[str, float]:
    """Mean loss and accuracy over all of `test`."""
    order = batching.Batches(test.lengths, batch_size=128, shuffle=False, drop_last=False)
    return engine.evaluate(model, (test.batch(rows) for rows in order.epoch(0)), losses)


def baselines(train: list[tuple[str, int]], test: list[tuple[str, int]]) -> dict[str, float]:
    """Test accuracy in % of the commonest class and of logistic regression on word counts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    (texts, labels), (test_texts, truth) = zip(*train, strict=True), zip(*test, strict=True)
    common = Counter(labels).most_common(1)[0][0]
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=10))
    return {
        "majority_class": 100 * float(np.mean(np.array(truth) == common)),
        "bag_of_words": 100 * words.fit(texts, labels).score(test_texts, truth),
    }


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
