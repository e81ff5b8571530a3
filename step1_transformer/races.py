"""The races of the benchmark, and the proof that they are fair."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from common import cli, engine
from common.batching import Batches
from common.cli import UserError
from step1_transformer import decoding, rivals
from step1_transformer.corpus import Corpus
from step1_transformer.race import Race, take_turns
from step1_transformer.rivals import OURS, THEIRS

# Largest difference of scores, whose standard deviation is 1, and of losses (nats)
LARGEST_DIFFERENCE = {"fp32": 1e-4, "bf16": 0.2}
LEAST_SAME_TOKENS = {"fp32": 0.99, "bf16": 0.0}  # a rounding can turn the rest of a sentence


@dataclass
class Config(cli.RunConfig):
    data: str = "kjv-bbe"
    """Where real sentences come from: all that train.py takes, or a prepared directory."""
    source: str = ""
    """Language to translate from; empty: the data's usual one."""
    target: str = ""
    """Language to translate to; empty: the data's usual one."""
    widths: tuple[int, ...] = (128, 256, 512)
    """d_model of the forward pass and the training step; of decoding, those up to `width`."""
    lengths: tuple[int, ...] = (16, 64, 128)
    """Tokens of their rows, on both sides."""
    width: int = 256
    """d_model on real lengths."""
    layers: int = 2
    """Layers of the encoder, and of the decoder."""
    vocab_size: int = 8192
    """Size of the joint vocabulary."""
    dropout: float = 0.1
    """Dropout of all systems."""
    batch_tokens: int = 1024
    """Target tokens in a batch; on real lengths the mean, padding not counted."""
    batches: int = 8
    """Batches of real sentences."""
    sentences: int = 16
    """Sentences that are decoded together."""
    new_tokens: int = 128
    """Tokens that decoding reads and writes for each."""
    precision: Literal["fp32", "bf16", "both"] = "both"
    """Precision of all systems; bf16 is autocast, in decoding also of the weights."""
    rounds: int = 4
    """Times that the systems take turns."""
    seconds: float = 0.2
    """Length of a turn (s); no call is cut short."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("layers", "batch_tokens", "batches", "sentences", "new_tokens", "rounds"):
            cli.check(self, name, "above 0", lambda value: value > 0)
        cli.check(self, "seconds", "above 0", lambda value: value > 0)
        cli.check(self, "dropout", "at least 0 and below 1", lambda value: 0 <= value < 1)
        cli.check(self, "lengths", "above 0", lambda each: each and min(each) > 0)
        for name, widths in (("widths", self.widths), ("width", (self.width,))):
            if not widths or any(d < 2 or d % rivals.heads(d) for d in widths):
                raise UserError(f"--{name}: give multiples of 32")


@dataclass
class Races:
    """Each method runs one race of the systems in `config`, on the device."""

    config: Config
    train: Corpus
    device: torch.device

    def difference(self, width: int, precision: str) -> float:
        """The largest of any score, and of the losses of three training steps, without dropout;
        the rows are padded. Raises UserError if it is too large for a race to mean anything."""
        models, autocast = self._twins(width, dropout=0.0), self._autocast(precision)
        batch = rivals.random_batch(
            8, max(self.config.lengths), self.config.vocab_size, ragged=True
        )
        batch = engine.to_device(batch, self.device)
        scores, losses = [], []
        for model in models.values():
            with torch.no_grad(), autocast():
                found = model.eval()(*rivals.inputs(batch))
            scores.append(found.flatten(0, 1)[batch["positions"]].float())
            step = rivals.trainer(model, autocast)
            losses.append(torch.stack([step(batch) for _ in range(3)]).float())
        largest = max((a - b).abs().max().item() for a, b in (scores, losses))
        if not largest <= LARGEST_DIFFERENCE[precision]:
            raise UserError(f"width {width}, {precision}: scores or losses differ by {largest:.1e}")
        return largest

    def forward(self, width: int, length: int, precision: str) -> Race:
        """Scores of all tokens, in evaluation, without a graph."""
        batch, autocast = self._rectangle(length), self._autocast(precision)

        @torch.no_grad()
        def call(model):
            with autocast():
                return model(*rivals.inputs(batch))

        models = self._twins(width)
        systems = {name: partial(call, model.eval()) for name, model in models.items()}
        return self._race("forward", width, length, precision, batch["targets"]["token"], systems)

    def training(self, width: int, length: int, precision: str) -> Race:
        """Steps of the optimizer, on rows of one length."""
        batch, autocast = self._rectangle(length), self._autocast(precision)
        models = self._twins(width)
        systems = {n: partial(rivals.trainer(m, autocast), batch) for n, m in models.items()}
        tokens = batch["targets"]["token"]
        return self._race("training step", width, length, precision, tokens, systems)

    def real_lengths(self, precision: str) -> Race:
        """Steps of the optimizer on the same real sentences, as many in a batch, shuffled or in
        length buckets; each system on both, to see what comes from where."""
        config, train = self.config, self.train
        mean = float(train.target_lengths.mean())
        rows = max(1, round(config.batch_tokens / mean))
        order = dict(batch_size=rows, seed=config.seed, drop_last=False)
        shuffled = Batches(train.lengths, bucket=False, **order).epoch(0)[: config.batches]
        sentences = np.concatenate(shuffled)
        bucketed = [sentences[i] for i in Batches(train.lengths[sentences], **order).epoch(0)]
        models = self._twins(config.width, train.vocab_size)
        steps = {n: rivals.trainer(m, self._autocast(precision)) for n, m in models.items()}

        def epoch(name, batches):
            for batch in batches:
                steps[name](batch)

        collated = [[self._collate(rows) for rows in batches] for batches in (shuffled, bucketed)]
        systems = {
            THEIRS: partial(epoch, THEIRS, collated[0]),
            f"{THEIRS}, buckets": partial(epoch, THEIRS, collated[1]),
            f"{OURS}, shuffled": partial(epoch, OURS, collated[0]),
            OURS: partial(epoch, OURS, collated[1]),
        }
        tokens = int(train.target_lengths[sentences].sum())
        cells = [sum(b["decoder_input_ids"].numel() for b in batches) for batches in collated]
        padding = [f"{1 - tokens / n:.0%}" for n in cells]
        race = self._race("real lengths", config.width, round(mean), precision, tokens, systems)
        race.note = f"padding of the target: shuffled {padding[0]}, in buckets {padding[1]}"
        return race

    def decoding(self, width: int, precision: str) -> Race:
        """Greedy decoding of one length: the prefix computed anew for each token, or kept.

        In bf16 the weights are too: in inference mode autocast would convert them for each token.
        """
        config, new = self.config, self.config.new_tokens
        ids = self._rectangle(new, config.sentences)["input_ids"]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        theirs, ours = (model.eval().to(dtype) for model in self._twins(width).values())

        def call(decode, model):
            return torch.as_tensor(decode(model, ids, max_len=new), device=self.device)

        systems = {
            THEIRS: partial(call, rivals.recompute, theirs),
            f"{OURS}, without a cache": partial(call, rivals.recompute, ours),
            OURS: partial(call, decoding.greedy, ours),
        }
        wanted, *others = (decode() for decode in systems.values())
        same = min((tokens == wanted).float().mean().item() for tokens in others)
        if same < LEAST_SAME_TOKENS[precision]:
            raise UserError(f"decoding, {precision}: only {same:.1%} of the tokens are the same")
        race = self._race("decoding", width, new, precision, wanted.numel(), systems)
        race.note = f"the same tokens from all: {same:.1%}"
        return race

    def _twins(self, width: int, vocab_size: int = 0, dropout: float | None = None) -> dict:
        config = self.config
        longest = max(*config.lengths, config.new_tokens + 1, int(self.train.lengths.max()))
        engine.seed_everything(config.seed)
        shape = (vocab_size or config.vocab_size, width, config.layers, longest)
        dropout = config.dropout if dropout is None else dropout
        return rivals.twins(*shape, dropout=dropout, device=self.device)

    def _rectangle(self, length: int, rows: int = 0) -> engine.Batch:
        rows = rows or max(1, self.config.batch_tokens // length)
        batch = rivals.random_batch(rows, length, self.config.vocab_size)
        return engine.to_device(batch, self.device)

    def _collate(self, rows: np.ndarray) -> engine.Batch:
        return engine.to_device(rivals.with_label_rows(self.train.batch(rows)), self.device)

    def _autocast(self, precision: str) -> Callable[[], AbstractContextManager]:
        bf16 = precision == "bf16"
        return partial(torch.autocast, self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def _race(self, what: str, width: int, length: int, precision: str, tokens: int, systems):
        turns = take_turns(systems, self.config.rounds, self.config.seconds, self.device)
        return Race(what, width, length, precision, tokens, turns)
