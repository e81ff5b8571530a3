"""Pretrain BERT: masked language model and next sentence prediction (arXiv:1810.04805).

python step2_bert/pretrain.py                                  a tiny BERT, minutes on 2 cores
python step2_bert/pretrain.py --data PREPARED --size mini      on data from prepare.py
python step2_bert/pretrain.py --preset gpu --data wikipedia --vocab-size 30522 --dropout 0
                                                               a mini BERT on text from the hub
python step2_bert/pretrain.py --preset paper --plan h100       what BERT-base would cost
accelerate launch --num_processes 8 step2_bert/pretrain.py --preset paper --data PREPARED
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common import batching, cli, data, engine, runs
from common.cli import UserError
from step1_transformer.budget import PlanFlags
from step2_bert import corpus, objective
from step2_bert.baseline import HuggingFaceBert
from step2_bert.budget import print_plan
from step2_bert.model import BertConfig, BertForPreTraining, Size
from step2_bert.samples import Samples


@dataclass
class Config(engine.TrainConfig, PlanFlags):
    data: str = "sotu+imdb"
    """A directory made by prepare.py; or a name, file or folder, which is then prepared first."""
    size: Size = "tiny"
    """Shape of the model; with 30,522 tokens tiny has 4 M parameters, mini 11 M, small 29 M,
    medium 42 M, base 110 M, large 335 M."""
    impl: Literal["scratch", "hf"] = "scratch"
    """Our BERT, or the one of transformers."""
    nsp: bool = True
    """Train next sentence prediction too; --no-nsp is the masked language model alone."""
    init_from: str = ""
    """Start from the weights of this Hugging Face directory instead of random ones."""
    embeddings: Literal["random", "counted"] = "random"
    """Where the embeddings of a new model start: random, or word vectors by counting neighbours."""
    mask_probability: float | None = None
    """Share of the tokens to predict in training; default, and for static masks: as prepared."""
    dropout: float = 0.1
    """Dropout of hidden states and attention; 0 is better where every sample is seen few times."""
    max_seq_len: int = 128
    """Longest sample in tokens, where the data is prepared here."""
    vocab_size: int = 8192
    """Size of the WordPiece vocabulary, where it is trained here."""
    fraction: float = 1.0
    """Share of the training samples to use."""
    long_share: float = 0.0
    """Share of all steps that the plan leaves to a second run, at length 512."""


PRESETS = {
    "smoke": dict(data="sotu", max_steps=20, batch_size=32, micro_batch_size=32, vocab_size=1024,
                  log_every=5),
    "cpu": dict(max_minutes=5.0, batch_size=32, micro_batch_size=32, optimizer="muon",
                learning_rate=2e-3, muon_learning_rate=0.01, dropout=0.0, mask_probability=0.4,
                embeddings="counted"),
    "gpu": dict(size="mini", max_minutes=24.0, batch_size=256, micro_batch_size=256,
                learning_rate=1e-3, dropout=0.1),
    # 900,000 of the paper's 1,000,000 steps; --plan prints how to do the rest, at length 512
    "paper": dict(size="base", data="wikipedia", vocab_size=30522, max_steps=900_000,
                  batch_size=256, micro_batch_size=32, learning_rate=1e-4, warmup_ratio=1 / 90,
                  min_lr_ratio=0.1, long_share=0.1),
    "paper-10m": dict(size="base", data="wikipedia", vocab_size=30522, batch_size=256,
                      max_steps=10_000_000 // 256, micro_batch_size=32, learning_rate=1e-4),
}  # fmt: skip


def main(config: Config) -> None:
    if config.plan:
        return print_plan(config)
    cli.check(config, "mask_probability", "above 0 and below 1", lambda share: 0 < share < 1)
    accelerator = engine.accelerator(config)
    main_process = accelerator.is_main_process
    run = runs.Run.open(config, f"step2_bert/pretrain-{config.preset}", main=main_process)
    if run.finished():
        return

    # Data: prepared samples, whose masks are drawn anew in every epoch; held-out masks are fixed
    folder = prepared_data(config, accelerator.num_processes)
    train, heldout = Samples.open(folder, "train"), Samples.open(folder, "heldout")
    chosen = train.fraction(config.fraction, config.seed)
    masking = train.masking_of(config.mask_probability)
    if main_process:
        data.record(run.path, train.source)
        static = " (static)" * train.static
        runs.say(f"masks: {masking.probability:.0%} of a training sample{static}")
    lengths = train.lengths[chosen]
    batches = batching.Batches(lengths, batch_size=config.batch_size, seed=config.seed)

    def make_batch(rows, epoch):
        drawing = dict(epoch=epoch, seed=config.seed, masking=masking)
        return objective.batch_of(train, chosen[rows], nsp=config.nsp, **drawing)

    def score(model):
        return objective.heldout_scores(model, heldout, accelerator, nsp=config.nsp)

    # Model
    engine.seed_everything(config.seed)
    kind = BertForPreTraining if config.impl == "scratch" else HuggingFaceBert
    dropout = dict(dropout=config.dropout, attention_dropout=config.dropout)
    if config.init_from:
        start = kind.load(config.init_from)
        objective.check_fit(start, train, config.init_from)
        model = kind(replace(start.config, **dropout))
        model.load_state_dict(start.state_dict())
    else:
        shape = dict(vocab_size=train.vocab_size, max_seq_len=max(512, train.max_seq_len))
        model = kind(BertConfig.named(config.size, **shape, **dropout))
        if config.embeddings == "counted" and main_process and not run.checkpoints():
            from step2_bert import counting  # scikit-learn, which a GPU's image may lack

            # DDP hands them to the other processes
            counting.fill(model.token_embedding, train, chosen)
    if not config.nsp:
        model.untrained_parts = ("bert.pooler", "nsp")

    # Train
    state = engine.train(
        model,
        config=config,
        run=run,
        accelerator=accelerator,
        batches=batches,
        make_batch=make_batch,
        losses=objective.losses,
        evaluate=score,
        tokenizer=train.tokenizer_dir,
        data_key=train.manifest["key"],
    )

    # Evaluate on the whole held-out split, in fp32, and save
    metrics = objective.metrics(score(model))
    if main_process:
        model.save(run.path / "model", train.tokenizer_dir)
        baseline = objective.baseline_metrics(train, heldout)
        print(f"\n{objective.table(metrics, baseline, heldout)}\n")
        print(f"model:  {run.path}/model\ncurves: {run.plot()}")
        name = f"BERT from {config.init_from}" if config.init_from else f"BERT-{config.size}"
        run.result(
            step="step2_bert",
            script="pretrain",
            system=name if config.impl == "scratch" else f"{name} of transformers",
            preset=config.preset,
            dataset=train.source["name"],
            source=train.source,
            split="heldout",
            metrics=metrics,
            compare_to=[],
            model={"name": name, "parameters": sum(p.numel() for p in model.parameters())},
            tokens=state.tokens,
            seconds=round(state.seconds, 1),
            tokens_per_second=round(state.tokens / state.seconds),
            precision=state.precision,
            prepared=str(folder),
            seeds=[config.seed],
            config=cli.as_dict(config),
        )


def prepared_data(config: Config, n_processes: int = 1) -> Path:
    """The directory `--data` names, prepared first unless it is one already.

    Raises UserError when that is left to one of `n_processes`, for which the others would wait in
    vain.
    """
    folder = Path(config.data)
    if (folder / "manifest.json").exists():
        return folder
    options = corpus.PrepareOptions(
        data=config.data,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
        nsp=config.nsp,
        heldout_fraction=0.02,
        max_documents=60 if config.preset == "smoke" else None,
    )
    key = corpus.key_of(options, data.resolve(config.data))
    folder = Path("runs/step2_bert") / f"prepared-{folder.stem}-{key[:8]}"
    if n_processes > 1 and not (folder / "manifest.json").exists():
        first = f"python step2_bert/prepare.py --data {config.data} --out {folder.parent}/prepared"
        raise UserError(
            f"several processes need prepared data: {first}; then --data {folder.parent}/prepared"
        )
    return corpus.prepare(options, folder).parent


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
