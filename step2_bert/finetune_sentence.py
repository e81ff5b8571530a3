"""Fine-tune a BERT to classify sentences, over several seeds, beside baselines without one.

python step2_bert/finetune_sentence.py --model runs/step2_bert/pretrain-cpu/model
python step2_bert/finetune_sentence.py --model DIR --random          same shape, random weights
python step2_bert/finetune_sentence.py --model DIR --data reviews.tsv     columns: text, label
"""

import dataclasses
from dataclasses import dataclass

from common import batching, cli, data, engine, runs, subruns
from common.cli import UserError
from common.report import mean_and_sd
from common.runs import metric
from step1_transformer import resuming
from step2_bert.checkpoint import locate, pretrained
from step2_bert.classification import Encoded, baselines, losses, score, sentences
from step2_bert.model import BertForSequenceClassification
from step2_bert.tokenizer import load_tokenizer


@dataclass
class Config(engine.TrainConfig):
    model: str = ""
    """Checkpoint to start from: a Hugging Face directory with its tokenizer, or minilm; default:
    what pretrain.py made with this preset."""
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
    max_minutes: float | None = None
    """Minutes to train a seed; the steps that the first one has time for are those of all."""

    def __post_init__(self):
        super().__post_init__()
        self.model = self.model or pretrained(self.preset)
        for name in ("seeds", "epochs", "max_seq_len"):
            cli.check(self, name, "above 0", lambda value: value > 0)


PRESETS = {
    "smoke": dict(seeds=1, batch_size=16, micro_batch_size=16, max_steps=10, eval_every=10),
    "cpu": dict(batch_size=32, micro_batch_size=32, learning_rate=3e-4, warmup_ratio=0.1),
    "gpu": dict(batch_size=32, micro_batch_size=32, learning_rate=1e-4, warmup_ratio=0.1),
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
    source = data.resolve(config.data).facts()
    if main_process:
        data.record(whole.path, source)
    checkpoint = locate(config.model)
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.enable_truncation(config.max_seq_len)
    tokenizer.no_padding()
    train, test = Encoded(tokenizer, rows), Encoded(tokenizer, test_rows)
    n_classes = 1 + max(train.labels + test.labels)
    steps = config.max_steps or max(1, config.epochs * (len(rows) // config.batch_size))
    baseline = baselines(rows, test_rows)

    # Train and score once a seed
    seeds = list(range(config.seed, config.seed + config.seeds))
    scores, tokens, seconds = [], 0, 0.0
    budget = subruns.Slice(config.slice_minutes)
    # The first seed measures, if it is asked to; what it chooses is all seeds'
    chosen = dict(max_steps=steps)
    for seed in seeds:
        out = whole.path / f"seed-{seed}"
        one = dataclasses.replace(config, seed=seed, out=str(out), **chosen)
        engine.seed_everything(seed)
        model = BertForSequenceClassification.from_pretrained(
            checkpoint, n_classes, dropout=config.dropout, attention_dropout=config.dropout
        )
        if model.config.max_seq_len < config.max_seq_len:
            limit = model.config.max_seq_len
            raise UserError(f"{config.model} has {limit} positions: --max-seq-len {limit} at most")
        if model.config.vocab_size < tokenizer.get_vocab_size():
            known = f"{model.config.vocab_size:,} tokens, its tokenizer gives"
            raise UserError(f"{config.model} knows {known} {tokenizer.get_vocab_size():,}")
        if config.random:
            model = BertForSequenceClassification(model.config, n_classes)
        with resuming.tells_how(whole.path, f"stopped at seed {seed}"):
            one.slice_minutes = budget.left()
            state = engine.train(
                model,
                config=one,
                run=runs.Run.open(one, "", main=main_process),
                accelerator=accelerator,
                batches=batching.Batches(train.lengths, batch_size=config.batch_size, seed=seed),
                make_batch=lambda rows, epoch: train.batch(rows),
                losses=losses,
                evaluate=lambda model: score(model, test),
                tokenizer=checkpoint,
                data_key=source["fingerprint"],
            )
        chosen |= dict(precision=state.precision, max_steps=state.total_steps, max_minutes=None)
        accelerator.free_memory()
        scores.append(100 * score(model, test)["label_accuracy"])
        tokens, seconds = tokens + state.tokens, seconds + state.seconds
        if main_process:
            runs.say(f"seed {seed}: test accuracy {scores[-1]:.2f} %")

    metrics = {"accuracy": metric(scores, unit="%")}
    metrics |= {f"{name}_accuracy": metric(v, unit="%") for name, v in baseline.items()}
    if main_process:
        bert = f"BERT, {start} weights, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        print(f"\naccuracy on {len(test_rows):,} test sentences, %")
        print(f"  {bert:36}{mean_and_sd(metrics['accuracy'], '6.2f')}")
        print(f"  {'logistic regression on words':36}{baseline['bag_of_words']:6.2f}")
        print(f"  {'always the commonest class':36}{baseline['majority_class']:6.2f}\n")
    whole.result(
        step="step2_bert",
        script="finetune_sentence",
        system=f"BERT of {config.model.removesuffix('/model')}, {start} weights",
        preset=config.preset,
        dataset=config.data,
        source=source,
        split="test",
        metrics=metrics,
        compare_to=[],
        model={"name": config.model, "parameters": sum(p.numel() for p in model.parameters())},
        train_sentences=len(rows),
        test_sentences=len(test_rows),
        scores_per_seed=scores,
        tokens=tokens,
        seconds=round(seconds, 1),
        tokens_per_second=round(tokens / max(seconds, 1e-9)),
        seeds=seeds,
        config=cli.as_dict(config),
    )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
