"""Keep a pretrained BERT: bf16 weights, tokenizer and a model card, as a Hugging Face directory.

    python step2_bert/export.py --run runs/step2_bert/pretrain-cpu --out notes/zoo/bert-tiny

The card is written from the run's own result.json: what it was trained on, for how long, with which
command, and what it scores. Nothing in it is typed by hand.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from common import cli
from common.cli import UserError
from common.report import duration, hardware, label, mean_and_sd
from common.runs import write_text
from step2_bert.model import BertForPreTraining


@dataclass
class Config:
    run: str = "runs/step2_bert/pretrain-cpu"
    """Finished run of pretrain.py."""
    out: str = ""
    """Directory to write."""
    before: tuple[str, ...] = ()
    """Runs that this one went on from, in order, to be told in the card."""


def main(config: Config) -> None:
    if not config.out:
        raise UserError("--out: say where to write the model")
    folders = [Path(run) for run in (*config.before, config.run)]
    results = [read_result(folder) for folder in folders]
    out, last = Path(config.out), folders[-1] / "model"
    model = BertForPreTraining.load(last)
    model.save(out, last, dtype=torch.bfloat16)
    write_text(out / "README.md", card(out.name, model, results))
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{size:.1f} MB, card: {out / 'README.md'}\nresult: {out}")


def read_result(folder: Path) -> dict:
    """The result of a finished run; UserError where there is none."""
    path = folder / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} cannot be read: give a finished run of pretrain.py") from None


def card(name: str, model: BertForPreTraining, results: list[dict]) -> str:
    """The model card, in Markdown with the hub's front matter."""
    c, last = model.config, results[-1]
    parameters = sum(p.numel() for p in model.parameters())
    scores = "\n".join(
        f"| {label(metric, entry)} | {mean_and_sd(entry)} |"
        for metric, entry in last["metrics"].items()
    )
    stages = "\n".join(
        f"{i}. `{r['command']}`: {r['tokens']:,} tokens of {r['dataset']} in "
        f"{duration(r['seconds'])} on {hardware(r['hardware'])}, commit {r['commit']}"
        for i, r in enumerate(results, start=1)
    )
    return f"""---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
---
# {name}

A small BERT from Foundation Model Gym, step 2: {parameters:,} parameters in bf16, {c.n_layers}
layers, width {c.d_model}, {c.n_heads} heads, {c.vocab_size:,} tokens, {c.max_seq_len} positions.
It is a teaching model: trained for a small part of what the published ones had.

Open it with `transformers.AutoModelForPreTraining.from_pretrained(...)`, or here with
`BertForPreTraining.load(...)`; its tokenizer is in the same directory.

## Training

{stages}

## Scores

On the {last["split"]} split of {last["dataset"]}, before rounding to bf16:

| metric | value |
| --- | --- |
{scores}

The training text is Wikipedia under CC BY-SA 3.0 where the data above is `enwiki` or `wikipedia`.
Do not use it to decide anything about people: it knows little and repeats what it read.
"""


if __name__ == "__main__":
    cli.run(main, Config, {})
