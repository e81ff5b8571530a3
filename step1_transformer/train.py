"""Train a Transformer to translate ("Attention is all you need", arXiv:1706.03762).

python step1_transformer/train.py                              King James to basic English, minutes
python step1_transformer/train.py --preset smoke               first of all: can it copy digits?
python step1_transformer/train.py --data multi30k --source de --target en --out runs/de-en
python step1_transformer/train.py --data a.de,a.en             two aligned files; or a .tsv
accelerate launch --num_processes 8 step1_transformer/train.py --preset paper   [--plan h100]
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from common import batching, cli, data, engine, runs
from step1_transformer import averaging, corpus, objective
from step1_transformer.budget import PlanFlags, print_plan
from step1_transformer.corpus import Corpus, PrepareOptions
from step1_transformer.model import Transformer, TransformerConfig


@dataclass
class Config(engine.TrainConfig, PlanFlags):
    data: str = "kjv-bbe"
    """multi30k, wmt14, kjv-bbe, kjv-web, copy; a folder, a .tsv, two files a.de,b.en; prepared."""
    source: str = ""
    """Language to translate from; empty: the data's usual one."""
    target: str = ""
    """Language to translate to; empty: the data's usual one."""
    size: Literal["tiny", "small", "base", "big"] = "small"
    """Shape of the model; base and big are the paper's."""
    d_model: int | None = None
    """Width of the residual stream; default: the size's, as for the next three."""
    n_heads: int | None = None
    """Attention heads."""
    n_layers: int | None = None
    """Layers of the encoder, and of the decoder."""
    d_ff: int | None = None
    """Width inside the feed-forward layers."""
    norm: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum, as in the paper, or before each sublayer."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """Position encoding."""
    dropout: float = 0.1
    """Dropout of residuals, attention weights and feed-forward layers."""
    label_smoothing: float = 0.1
    """Share of the target probability that is spread over the vocabulary."""
    vocab_size: int = 8192
    """Size of the joint byte-level BPE vocabulary, where the data is prepared here."""
    max_seq_len: int = 256
    """Longest sentence, in tokens, and positions of the model."""
    truncate: bool = False
    """Cut longer sentences instead of refusing them, where the data is prepared here."""
    skip_bad_lines: bool = False
    """Leave out pairs with an empty side instead of refusing them."""
    unaligned: bool = False
    """Take sides whose sentence lengths have nothing to do with each other, too."""
    max_tokens: int = 4096
    """Tokens in an optimizer step: sentences times the longest of them; --batch-size has no say."""
    micro_batch_size: int = 1024
    """Sentences computed at once on one process; the rest is gradient accumulation."""
    average: int = 5
    """Snapshots to average at the end, one from each of the last evaluations; 0: none."""
    patience: int | None = None
    """Evaluations without a better held-out likelihood after which training stops."""
    adam_beta2: float = 0.98
    """How slowly AdamW forgets squared gradients (section 5.3)."""
    adam_eps: float = 1e-9
    """What AdamW adds to the root of squared gradients (section 5.3)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    schedule: Literal["linear", "cosine", "inverse_sqrt", "wsd", "constant"] = "inverse_sqrt"
    """Shape of the learning rate after warm-up; the paper's is inverse_sqrt."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("d_model", "n_heads", "n_layers", "d_ff", "max_tokens", "patience"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        for name in ("dropout", "label_smoothing"):
            cli.check(self, name, "at least 0 and below 1", lambda value: 0 <= value < 1)
        cli.check(self, "average", "0 or more", lambda value: value >= 0)


# The paper's rate (Eq. 3) peaks at d_model^-0.5 warmup_steps^-0.5.
PAPER = dict(data="wmt14", vocab_size=37_000, max_tokens=25_000, micro_batch_size=512,
             eval_every=1000, truncate=True, skip_bad_lines=True)  # fmt: skip
PRESETS = {
    "smoke": dict(data="copy", size="tiny", n_layers=1, vocab_size=300, max_tokens=512,
                  max_steps=500, schedule="linear", warmup_ratio=0.1, learning_rate=2e-3,
                  dropout=0.0, label_smoothing=0.0, eval_every=100, average=0, precision="fp32"),
    "cpu": dict(max_minutes=8.0, norm="pre", d_ff=512, vocab_size=4096, max_tokens=2048,
                schedule="linear", warmup_ratio=0.05, learning_rate=2e-3),
    "gpu": dict(max_minutes=20.0, schedule="linear", warmup_ratio=0.1, max_tokens=16_384),
    "paper": PAPER | dict(size="base", max_steps=100_000, warmup_ratio=0.04,
                          learning_rate=512**-0.5 * 4000**-0.5),
    "paper-big": PAPER | dict(size="big", max_steps=300_000, warmup_ratio=4 / 300, dropout=0.3,
                              learning_rate=1024**-0.5 * 4000**-0.5, average=20),
}  # fmt: skip


def main(config: Config) -> None:
    if config.plan:
        return print_plan(config, shape(config, config))
    main_process = (accelerator := engine.accelerator(config)).is_main_process
    run = runs.Run.open(config, f"step1_transformer/train-{config.preset}", main=main_process)
    if run.finished():
        return

    # Data
    with accelerator.main_process_first():
        folder = corpus.prepared(PrepareOptions.of(config), Path("runs/step1_transformer"))
    train, dev, test = (Corpus.open(folder, split) for split in ("train", "dev", "test"))
    if main_process:
        data.record(run.path, train.source | {"languages": train.languages}, "data_source")

    # Model
    engine.seed_everything(config.seed)
    model = Transformer(shape(config, train))

    # Train, keeping the weights of each evaluation
    snapshots = averaging.Snapshots(run.path / "snapshots", keep=config.average)

    def score(model: Transformer) -> dict[str, float]:
        scores = objective.heldout_scores(model, dev, accelerator)
        if main_process and trainer.state.step:
            snapshots.take(model, trainer.state.step, scores["token_nll"])
        return scores

    trainer = engine.Trainer(
        model,
        config=config,
        run=run,
        accelerator=accelerator,
        batches=batching.Batches(train.lengths, max_tokens=config.max_tokens, seed=config.seed),
        make_batch=lambda rows, epoch: train.batch(rows),
        losses=partial(objective.losses, label_smoothing=config.label_smoothing),
        evaluate=score,
        stop=partial(objective.no_better, patience=config.patience),
        tokenizer=train.tokenizer_dir,
        data_key=train.manifest["key"],
    )
    state = trainer.train()
    accelerator.wait_for_everyone()

    # Average the last weights; keep them, or the best of all, whichever dev likes better; in fp32
    judge = partial(objective.heldout_scores, corpus=dev, accelerator=accelerator)
    dev_scores = averaging.choose(model, snapshots, judge)
    chosen = min(dev_scores, key=lambda name: dev_scores[name]["token_nll"])
    test_scores = objective.heldout_scores(model, test, accelerator)

    if main_process:
        model.save(run.path / "model", train.tokenizer_dir)
        rows = {f"dev, {name}": objective.metrics(dev_scores[name]) for name in dev_scores}
        print(f"\n{objective.table(rows | {'test': objective.metrics(test_scores)})}\n")
        print(f"model:  {run.path}/model ({chosen})\ncurves: {run.plot()}")
        metrics = objective.metrics(test_scores) | objective.metrics(dev_scores[chosen], "dev_")
        if train.source["name"] == "copy":
            metrics["exact"] = runs.metric(100 * objective.exact(model, test), unit="%")
            print(f"copied without a mistake: {metrics['exact']['value']:.1f} %")
        run.result(
            step="step1_transformer",
            script="train",
            system=f"Transformer-{config.size}",
            preset=config.preset,
            dataset=f"{train.source['name']} {train.languages}",
            source=train.source,
            split="test",
            metrics=metrics,
            dev={name: scores["token_nll"] for name, scores in dev_scores.items()},
            chosen=chosen,
            compare_to=[],
            model={"name": config.size, "parameters": sum(p.numel() for p in model.parameters())},
            tokens=state.tokens,
            steps=state.step,
            seconds=round(state.seconds, 1),
            tokens_per_second=round(state.tokens / state.seconds),
            precision=state.precision,
            prepared=str(folder),
            seeds=[config.seed],
            config=cli.as_dict(config),
        )


def shape(config: Config, data: Corpus | Config) -> TransformerConfig:
    """The size's shape with what the flags say otherwise, for the data's vocabulary and length."""
    named = ("d_model", "n_heads", "d_ff", "norm", "positions", "dropout")
    parts = {name: getattr(config, name) for name in named}
    parts |= {f"n_{side}_layers": config.n_layers for side in ("encoder", "decoder")}
    parts |= dict(attention_dropout=config.dropout, ff_dropout=config.dropout)
    parts = {name: value for name, value in parts.items() if value is not None}
    parts |= dict(vocab_size=data.vocab_size, max_seq_len=data.max_seq_len)
    try:
        return TransformerConfig.named(config.size, **parts)
    except ValueError as error:
        raise cli.UserError(f"no such model: {error}") from None


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
