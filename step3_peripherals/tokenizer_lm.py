"""A small language model on one vocabulary, for so many floating-point operations.

An operation is a multiplication or an addition. A token of a model with N weights outside the
embeddings, n layers and T tokens in a row takes, forward and backward,

    6 (N + V d)  +  12 n T d        matrices, the output layer among them; attention

Vocabularies of different size get different numbers of steps for the same sum. A large one reads
fewer tokens, for its output layer is dear, and each token is more text.
"""

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import batching, engine, runs, subruns
from step1_transformer import resuming
from step3_peripherals.language_model import LanguageModel, LanguageModelConfig
from step3_peripherals.lm_objective import bits_per_byte, heldout_scores, losses
from step3_peripherals.stream import Rows
from step3_peripherals.tokenizer_study import ALGORITHMS, Facts, Text, gap_bits

SETTINGS = ("teraflops", "d_model", "n_layers", "batch_size", "learning_rate", "precision")


@dataclass
class LMConfig(engine.TrainConfig):
    """What a training depends on, beside its vocabulary and text."""

    optimizer: str = "muon"
    teraflops: float = 1.0
    d_model: int = 128
    n_layers: int = 3
    max_seq_len: int = 128


def train_all(
    config: Any,
    seeds: Iterable[int],
    folder: Path,
    accelerator,
    text: Text,
    built: Facts,
) -> tuple[dict, dict]:
    """All models of a comparison, whose vocabularies are in `folder`; what is done is kept.

    The scores of each, a list of seeds: of those on the whole text by (algorithm, size), and of
    those on a part of it by (algorithm, sampling). `built` has the facts of each vocabulary.
    Raises `cli.Interrupted`, which says how to go on with all of them.
    """
    trained, sampled = {}, {}
    gaps = gap_bits(text) if "wordpiece" in config.algorithms else 0.0
    budget = subruns.Slice(config.slice_minutes)
    for seed in seeds:  # outside, so that all can be compared early
        for name, size, sampling, options in plans(config, built):
            out = folder / "models" / "-".join(f"{name} {size} {sampling}".split())
            settings = LMConfig(
                **{name: getattr(config, name) for name in SETTINGS},
                out=str(out / f"seed-{seed}"),
                seed=seed,
                micro_batch_size=config.batch_size,
                slice_minutes=budget.left(),
            )
            algorithm = ALGORITHMS[name]
            with resuming.tells_how(folder, f"stopped at {out.name}"):
                scores = train(
                    settings,
                    accelerator,
                    algorithm.kind.load(folder / "vocabularies" / f"{name}-{size}"),
                    text,
                    options=options,
                    train_bytes=1000 * config.sampling_kilobytes if sampling else None,
                    lost_bits=built[name, size]["unknown_bits"] + gaps * algorithm.forgets_gaps,
                )
            accelerator.free_memory()
            found, key = (sampled, (name, sampling)) if sampling else (trained, (name, size))
            found.setdefault(key, []).append(scores)
            runs.say(f"{out.name}, seed {seed}: {scores['bits_per_byte']:.4f} bits a byte")
    return trained, sampled


def plans(config: Any, built: Facts) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """(algorithm, size, sampling, options of encode) of the trainings; "" is the whole text.

    Where the text has no use for a vocabulary of one of the `lm_sizes`, the largest stands for it.
    """
    largest = {name: max(size for of, size in built if of == name) for name, _ in built}
    for name, size in built:
        stands = size == largest[name] < max(config.lm_sizes, default=0)
        if size in config.lm_sizes or stands:
            yield name, size, "", {}
    size = config.sampling_size
    for name, option in (("bpe", "dropout"), ("unigram", "alpha")):
        if (name, size) in built:
            value = getattr(config, option)
            yield name, size, "plain", {}
            yield name, size, f"{option} {value:g}", {option: value}


def flops_per_token(model: LanguageModel) -> float:
    """Of the formula above."""
    config = model.config
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)  # V d among them, once
    return 6 * weights + 12 * config.n_layers * config.max_seq_len * config.d_model


def train(
    config: LMConfig,
    accelerator,
    tokenizer: Any,
    text: Text,
    *,
    options: dict[str, Any],
    train_bytes: int | None = None,
    lost_bits: float = 0.0,
) -> dict[str, Any]:
    """Train and score one model in its own run directory; its result, at once if it is there.

    The text is read over and over in passages, each time in another order and, with `options` such
    as dropout=0.1, in another segmentation, until there are tokens enough. `train_bytes` leaves the
    rest of it out. The held-out text is always segmented plainly; `lost_bits` are added to its
    score.
    """
    folder = Path(config.out)
    if (folder / "scores.json").exists():
        return resuming.read(folder / "scores.json")
    engine.seed_everything(config.seed)
    separator, width = tokenizer.vocab_size, config.d_model
    shape = dict(d_model=width, d_ff=4 * width, n_heads=width // 32, n_layers=config.n_layers)
    model = LanguageModel(
        LanguageModelConfig(vocab_size=separator + 1, max_seq_len=config.max_seq_len, **shape)
    )
    flops = flops_per_token(model)
    tokens_a_step = config.batch_size * config.max_seq_len
    config.resume = True
    config.max_steps = max(1, round(1e12 * config.teraflops / flops / tokens_a_step))
    run = runs.Run.open(config, "")

    passages = _first(text.train, train_bytes, config.seed)
    wanted = config.max_steps * tokens_a_step + 1
    tokens, n_bytes = _stream(tokenizer, passages, separator, wanted, config.seed, options)
    rows = Rows(tokens, config.max_seq_len)
    order = batching.Batches(
        rows.lengths, batch_size=config.batch_size, seed=config.seed, bucket=False
    )
    make_batch = lambda indices, epoch: rows.batch(indices)  # noqa: E731
    parts = dict(config=config, run=run, accelerator=accelerator, batches=order)
    state = engine.train(model, make_batch=make_batch, losses=losses, **parts)

    started = time.monotonic()
    heldout = [
        index for passage in text.heldout for index in (separator, *tokenizer.encode(passage))
    ]
    scored = Rows(np.array(heldout), config.max_seq_len)
    nats = heldout_scores(model, scored)["token_loss"]
    lost = lost_bits / text.n_bytes
    result = {
        "bits_per_byte": bits_per_byte(nats, scored.n_targets, text.n_bytes) + lost,
        "lost_bits_per_byte": lost,
        "tokens": state.tokens,
        "bytes": n_bytes,
        "epochs": n_bytes / sum(len(passage.encode()) for passage in passages),
        "steps": state.step,
        "teraflops": state.tokens * flops / 1e12,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_seconds": round(state.seconds, 1),
        "seconds": round(state.seconds + time.monotonic() - started, 1),
        "hardware": runs.hardware(),
    }
    runs.write_json(folder / "scores.json", result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # nothing reads the model
    return result


def _first(passages: list[str], n_bytes: int | None, seed: int) -> list[str]:
    """All passages, or as many as are `n_bytes` long, drawn at random."""
    if n_bytes is None:
        return passages
    order = np.random.default_rng((seed, 1)).permutation(len(passages))
    sizes = np.cumsum([len(passages[i].encode()) for i in order])
    return [passages[i] for i in order[: 1 + np.searchsorted(sizes, n_bytes)]]


def _stream(
    tokenizer: Any, passages: list[str], separator: int, wanted: int, seed: int, options: dict
) -> tuple[np.ndarray, int]:
    """Exactly `wanted` ids, and the bytes of text that they are, the last passage in part."""
    orders, draws = (np.random.default_rng((seed, part)) for part in (2, 3))
    options = {**options, "rng": draws} if options else {}
    ids: list[int] = []
    n_bytes = 0
    while True:
        for i in orders.permutation(len(passages)):
            new = [separator, *tokenizer.encode(passages[i], **options)]
            part = min(1.0, (wanted - len(ids)) / len(new))
            ids += new
            n_bytes += round(part * len(passages[i].encode()))
            if len(ids) >= wanted:
                return np.array(ids[:wanted]), n_bytes
