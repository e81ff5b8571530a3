"""Score any BERT on held-out samples, beside knowing frequencies only, and let it fill in blanks.

python step2_bert/evaluate.py --model runs/step2_bert/pretrain-cpu/model --data PREPARED
python step2_bert/evaluate.py --model DIR --data PREPARED --text "The [MASK] of the people."
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common import cli, data, runs
from common.cli import UserError
from step2_bert import objective
from step2_bert.checkpoint import pretrained
from step2_bert.model import BertForPreTraining
from step2_bert.samples import Samples
from step2_bert.tokenizer import load_tokenizer


@dataclass
class Config(cli.RunConfig):
    model: str = ""
    """Checkpoint to score: a Hugging Face directory, ours or from transformers; default: what
    pretrain.py made with this preset."""
    data: str = ""
    """Directory made by prepare.py; empty: the one that pretrain.py trained the model on."""
    split: str = "heldout"
    """Split to score, whole."""
    text: tuple[str, ...] = ()
    """Sentences with [MASK] to fill in; empty: held-out samples."""
    examples: int = 3
    """Held-out samples to show filled in."""

    def __post_init__(self):
        super().__post_init__()
        self.model = self.model or pretrained(self.preset)


PRESETS = {"smoke": dict(examples=1), "cpu": {}, "gpu": {}}


def main(config: Config) -> None:
    run = runs.Run.open(config, "step2_bert/evaluate")
    if run.finished():
        return
    for text in config.text:
        if "[MASK]" not in text:
            raise UserError(f"--text {text!r} has no [MASK]; write one where a word is wanted")
    folder = config.data or pretraining_data(config.model)
    train, samples = Samples.open(folder, "train"), Samples.open(folder, config.split)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = BertForPreTraining.load(config.model).to(device)
    objective.check_fit(model, samples, config.model)
    if "mlm" in model.fresh_parts:
        raise UserError(f"{config.model} has no masked-LM head, so there is nothing to score")
    tokenizer = load_tokenizer(samples.tokenizer_dir)
    for text in config.text:
        if (length := len(tokenizer.encode(text).ids)) > model.config.max_seq_len:
            limit = f"{config.model} has {model.config.max_seq_len} positions"
            raise UserError(f"--text {text[:40]!r}... is {length} tokens, but {limit}: shorten it")
    data.record(run.path, samples.source)

    # Score the whole split; a head that nothing has trained is not in the checkpoint
    started = time.monotonic()
    has_nsp = "nsp" not in model.fresh_parts
    metrics = objective.metrics(objective.heldout_scores(model, samples, nsp=has_nsp))
    seconds = time.monotonic() - started
    baseline = objective.baseline_metrics(train, samples)
    print(objective.table(metrics, baseline, samples))

    # Fill in blanks
    shown = fill_in(model, samples, config.text, config.examples)
    runs.write_text(run.path / "samples.txt", shown)
    print("\n" + shown)

    tokens = int(samples.lengths.sum())
    run.result(
        step="step2_bert",
        script="evaluate",
        system=f"BERT of {config.model.removesuffix('/model')}",
        preset=config.preset,
        dataset=samples.source["name"],
        source=samples.source,
        split=config.split,
        metrics=metrics | {f"baseline_{name}": entry for name, entry in baseline.items()},
        compare_to=[],
        model={"name": config.model, "parameters": sum(p.numel() for p in model.parameters())},
        tokens=tokens,
        seconds=round(seconds, 2),
        tokens_per_second=round(tokens / seconds),
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


def pretraining_data(model: str) -> str:
    """The prepared directory that pretrain.py noted beside the model."""
    try:
        return json.loads((Path(model).parent / "result.json").read_text())["prepared"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"no note of what {model} was trained on: give --data, a directory made by prepare.py "
            "with the tokenizer of the checkpoint"
        ) from None


@torch.no_grad()
def fill_in(model: BertForPreTraining, samples: Samples, texts: tuple[str, ...], n: int) -> str:
    """The five likeliest tokens for the first six blanks of each of `texts`, or, without texts, of
    `n` samples from all over the split."""
    tokenizer = load_tokenizer(samples.tokenizer_dir)
    device = next(model.parameters()).device
    blanks = []  # token ids (1, T), segments (1, T) or None, {position: hidden token or None}
    for text in texts:
        ids = tokenizer.encode(text).ids
        places = [i for i, token in enumerate(ids) if token == tokenizer.token_to_id("[MASK]")]
        blanks.append((torch.tensor([ids]), None, dict.fromkeys(places)))
    for row in [] if texts else np.linspace(0, len(samples) - 1, n).astype(int):
        batch = samples.batch([row])
        hidden = [tokenizer.id_to_token(i) for i in batch["masked_labels"].tolist()]
        places = dict(zip(batch["masked_positions"].tolist(), hidden, strict=True))
        blanks.append((batch["input_ids"], batch["token_type_ids"].to(device), places))

    lines = []
    for ids, segments, places in blanks:
        scores = model(ids.to(device), token_type_ids=segments).mlm_logits[0]  # (T, V)
        lines.append(tokenizer.decode(ids[0].tolist(), skip_special_tokens=False))
        lines.append(f"  {'was':>14}    the model's guesses")
        for place, was in list(places.items())[:6]:
            best = scores[place].softmax(-1).topk(5)
            guesses = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            told = "  ".join(f"{tokenizer.id_to_token(i)} {p:.0%}" for i, p in guesses)
            lines.append(f"  {was or '?':>14}    {told}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
