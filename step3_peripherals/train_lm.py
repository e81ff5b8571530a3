"""Train a small language model with one of the position schemes, and score it at several lengths.

    python step3_peripherals/train_lm.py --positions alibi
    python step3_peripherals/train_lm.py --data enwiki --max-documents 2000 --positions rope
    python step3_peripherals/train_lm.py --data text.txt --score-lengths 128 512

Rows have max_seq_len tokens in training. The scores are of one held-out text, all of it, cut into
rows of each length.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common import batching, cli, data, engine, runs
from common.cli import UserError
from common.runs import metric
from step3_peripherals import stream
from step3_peripherals.language_model import LanguageModel, LanguageModelConfig
from step3_peripherals.lm_objective import bits_per_byte, heldout_scores, losses


@dataclass
class Config(engine.TrainConfig):
    data: str = "sotu"
    """Text to train on: a name, a file or a folder."""
    max_documents: int | None = None
    """Read the first so many documents only."""
    heldout_every: int = 40
    """Each so-many-th document is held out."""
    vocab_size: int = 2048
    """Size of the byte-level BPE vocabulary, which is trained on the same text."""
    positions: str = "rope"
    """none, sinusoidal, learned, shaw, t5, alibi or rope."""
    max_seq_len: int = 128
    """Tokens in a row of training."""
    score_lengths: tuple[int, ...] = (128, 256, 512, 1024)
    """Tokens in a row of scoring."""
    d_model: int = 128
    """Width."""
    n_layers: int = 3
    """Layers."""
    n_heads: int = 4
    """Heads of attention."""
    d_ff: int = 512
    """Width inside the feed-forward layers."""
    dropout: float = 0.0
    """Dropout of the residual stream."""
    cache: str = "runs/step3_peripherals"
    """Where vocabularies and token streams are kept for the next run."""

    def __post_init__(self):
        super().__post_init__()
        cli.check(self, "max_seq_len", "above 0", lambda value: value > 0)
        cli.check(self, "score_lengths", "above 0", lambda lengths: all(n > 0 for n in lengths))


PRESETS = {
    "smoke": dict(
        max_steps=5, batch_size=8, micro_batch_size=8, max_documents=50, vocab_size=300,
        d_model=32, n_layers=1, d_ff=64, max_seq_len=32, score_lengths=(32, 64), precision="fp32",
    ),
    "cpu": dict(
        max_steps=400, batch_size=16, micro_batch_size=16, learning_rate=3e-3, optimizer="muon",
    ),
    "gpu": dict(
        max_steps=10_000, batch_size=128, micro_batch_size=128, learning_rate=1e-3,
        optimizer="muon", d_model=512, n_layers=6, n_heads=8, d_ff=2048,
        vocab_size=16_384, data="wikitext-103",
    ),
}  # fmt: skip


def main(config: Config) -> None:
    engine.seed_everything(config.seed)
    accelerator = engine.accelerator(config)
    main_process = accelerator.is_main_process
    name = f"step3_peripherals/lm-{config.positions}-{config.preset}"
    run = runs.Run.open(config, name, main=main_process)
    if run.finished():
        return

    # Data: a vocabulary, and two arrays of ids
    options = stream.StreamOptions(config.max_documents, config.heldout_every)
    with accelerator.main_process_first():
        tokenizer = stream.byte_level_bpe(config.data, config.vocab_size, config.cache, options)
        separator = tokenizer.token_to_id(stream.SEPARATOR)
        text = stream.prepare(config.data, tokenizer, separator, Path(config.cache), options)
    source = text.manifest["source"]
    if main_process:
        data.record(run.path, source)
    train = text.rows("train", config.max_seq_len)
    if not (n_full := train.n_targets // config.max_seq_len):
        raise UserError(
            f"{config.data}: {train.n_targets:,} tokens to train on do not fill one row of "
            f"--max-seq-len {config.max_seq_len}: give more text, or a smaller --max-seq-len"
        )
    heldout = text.rows("heldout", config.max_seq_len)

    # Model: the same weights for each scheme, as far as it has the same
    shape = {n: getattr(config, n) for n in ("d_model", "n_layers", "n_heads", "d_ff", "dropout")}
    shape |= dict(max_seq_len=config.max_seq_len, positions=config.positions)
    try:
        model = LanguageModel(LanguageModelConfig(vocab_size=text.vocab_size, **shape))
    except ValueError as error:
        raise UserError(f"no such model: {error}") from None

    state = engine.train(
        model,
        config=config,
        run=run,
        accelerator=accelerator,
        batches=batching.Batches(
            train.lengths[:n_full], batch_size=config.batch_size, seed=config.seed, bucket=False
        ),
        make_batch=lambda rows, epoch: train.batch(rows),
        losses=losses,
        evaluate=partial(heldout_scores, rows=heldout, accelerator=accelerator),
        data_key=text.manifest["key"],
    )

    # Score at each length that the scheme can read
    metrics, device, started = {}, accelerator.device.type, time.monotonic()
    n_bytes = text.n_bytes("heldout")
    for length in config.score_lengths:
        if config.positions == "learned" and length > config.max_seq_len:
            if main_process:
                runs.say(f"learned positions end at {config.max_seq_len}: no score at {length}")
            continue
        rows = text.rows("heldout", length)
        with torch.autocast(device, torch.bfloat16, enabled=state.precision == "bf16"):
            nll = heldout_scores(model, rows, accelerator)["token_loss"]
        bits = bits_per_byte(nll, rows.n_targets, n_bytes)
        metrics[f"perplexity at {length}"] = metric(math.exp(nll), higher_is_better=False)
        metrics[f"bits per byte at {length}"] = metric(bits, unit="bits", higher_is_better=False)
        if main_process:
            told = f"perplexity {math.exp(nll):9.2f}, {bits:.3f} bits a byte"
            runs.say(f"{config.positions}, rows of {length:5}: {told}")
    seconds = state.seconds + time.monotonic() - started
    speeds = [e["tokens_per_second"] for e in run.metrics() if e["event"] == "train"][1:]

    if main_process:
        model.save(run.path / "model")
        runs.write_text(run.path / "model" / "tokenizer.json", tokenizer.to_str(pretty=True))
        run.plot()
        run.result(
            step="step3_peripherals",
            script="train_lm",
            system=f"language model, {config.positions} positions",
            preset=config.preset,
            dataset=config.data,
            source=source,
            split="heldout",
            metrics=metrics,
            compare_to=[],
            model={"name": "decoder", "parameters": sum(p.numel() for p in model.parameters())},
            heldout_tokens=heldout.n_targets,
            tokens=state.tokens,
            steps=state.step,
            seconds=round(seconds, 1),
            tokens_per_second=round(float(np.median(speeds)) if speeds else 0),
            precision=state.precision,
            seeds=[config.seed],
            config=cli.as_dict(config),
        )


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
