"""Keep a pretrained BERT: bf16 weights, tokenizer and a model card, as a Hugging Face directory.

    python step2_bert/export.py --run runs/step2_bert/pretrain-cpu --out notes/zoo/bert-tiny

The card is written from the run's own result.json: what it was trained on, for how long, with which
command, and what it scores. Nothing in it is typed by hand.
"""

import json
import re
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
    """Runs that this one went on from, in order, to be told in the card; they may be unfinished, or
    directories that this script wrote."""
    scores: str = ""
    """Run of evaluate.py with this model, whose scores the card shows, where the run's own are of
    masks that nobody else uses; default: the run's own."""


def main(config: Config) -> None:
    if not config.out:
        raise UserError("--out: say where to write the model")
    stages = [line for run in (*config.before, config.run) for line in told(Path(run))]
    out, last = Path(config.out), Path(config.run) / "model"
    result = read(Path(config.scores or config.run) / "result.json")
    scored = result["model"]["name"] if config.scores else str(last)
    if Path(scored) != last:
        raise UserError(f"--scores {config.scores} is of {scored}, not of {last}")
    model = BertForPreTraining.load(last)
    model.save(out, last, dtype=torch.bfloat16)
    write_text(out / "README.md", card(out.name, model, stages, result))
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{size:.1f} MB, card: {out / 'README.md'}\nresult: {out}")


def read(path: Path) -> dict:
    """A JSON file of a run; UserError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} cannot be read: give a run of pretrain.py") from None


def told(run: Path) -> list[str]:
    """The lines of the card on what a run did, or on all that an exported model went through.

    Raises UserError for a README.md that this script did not write.
    """
    file = run / "README.md"
    if not file.is_file():
        return [stage(run)]
    _, _, told = file.read_text(encoding="utf-8").partition("## Training\n")
    if not (lines := re.findall(r"(?m)^\d+\. (.+)$", told.partition("## Scores")[0])):
        raise UserError(f"{file} has no list of trainings: give runs of pretrain.py")
    return lines


def stage(run: Path) -> str:
    """A line on what a run did: from its result, or from its last checkpoint if it was stopped."""
    if (run / "result.json").exists():
        r = read(run / "result.json")
        return (
            f"`{r['command']}`: {r['tokens']:,} tokens of {r['dataset']} in "
            f"{duration(r['seconds'])} on {hardware(r['hardware'])}, commit {r['commit']}"
        )
    newest = max(run.glob("checkpoints/step-*"), default=run)
    state, config = read(newest / "trainer" / "state.json"), read(run / "config.json")
    names = ("data", "size", "nsp", "optimizer", "learning_rate", "batch_size", "max_steps", "seed")
    settings = ", ".join(f"{name} {config[name]}" for name in names)
    return (
        f"pretrain.py with {settings}, stopped at step {state['step']:,}: "
        f"{state['tokens']:,} tokens in {duration(state['seconds'])}"
    )


def card(name: str, model: BertForPreTraining, stages: list[str], last: dict) -> str:
    """The model card, in Markdown with the hub's front matter."""
    c = model.config
    parameters = sum(p.numel() for p in model.parameters())
    scores = "\n".join(
        f"| {label(metric, entry)} | {mean_and_sd(entry)} |"
        for metric, entry in last["metrics"].items()
    )
    numbered = "\n".join(f"{i}. {line}" for i, line in enumerate(stages, start=1))
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

{numbered}

## Scores

On the {last["split"]} split of {last["dataset"]}, before rounding to bf16, by `{last["command"]}`:

| metric | value |
| --- | --- |
{scores}

The training text is Wikipedia under CC BY-SA 3.0 where the data above is `enwiki` or `wikipedia`.
Do not use it to decide anything about people: it knows little and repeats what it read.
"""


if __name__ == "__main__":
    cli.run(main, Config, {})
