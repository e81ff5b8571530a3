"""Small things to fine-tune: a folder laid out like GLUE, and checkpoints of random weights."""

import importlib
import json
from pathlib import Path

import numpy as np
import torch

from step2_bert.model import BertConfig, BertForPreTraining
from step2_bert.tokenizer import train_wordpiece
from tests import scripts

TEXT = "the film law road man saw built good bad long red old new by with and but not a"
WORDS = TEXT.split()
LABELS = {  # task: columns, labels
    "RTE": (("index", "sentence1", "sentence2", "label"), ("entailment", "not_entailment")),
    "STS-B": (("index", "sentence1", "sentence2", "score"), ("0.5", "2.25", "4.75")),
    "SST-2": (("sentence", "label"), ("0", "1")),
    "MNLI": (("index", "sentence1", "sentence2", "gold_label"),
             ("entailment", "neutral", "contradiction")),
}  # fmt: skip


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(n)]


def glue(folder: Path, train: int = 40, dev: int = 11) -> Path:
    """A GLUE folder: RTE, STS-B, SST-2 and MNLI, without MNLI's dev_mismatched."""
    for task, (columns, labels) in LABELS.items():
        (folder / task).mkdir(parents=True)
        held = "dev_matched" if task == "MNLI" else "dev"
        for split, n in (("train", train), (held, dev), (held.replace("dev", "test"), dev)):
            texts = zip(sentences(n, n), sentences(n, n + 1), strict=True)
            lines = ["\t".join(columns)]
            for i, pair in enumerate(texts):
                cells = {
                    "index": i,
                    "sentence1": pair[0],
                    "sentence2": pair[1],
                    "sentence": pair[0],
                }
                cells |= {columns[-1]: labels[i % len(labels)]}
                lines.append("\t".join(str(cells[name]) for name in columns))
            (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def bert(folder: Path, **changes) -> Path:
    """A random BERT with a vocabulary of its own, as a checkpoint."""
    tokenizer = train_wordpiece(sentences(200), 120, out_dir=folder)
    shape = dict(d_model=16, n_layers=2, n_heads=2, d_ff=24, max_seq_len=128)
    torch.manual_seed(0)
    config = BertConfig(**{"vocab_size": tokenizer.get_vocab_size(), **shape, **changes})
    BertForPreTraining(config).save(folder)
    return folder


def run(script: str, *flags) -> int:
    """Run `step4_finetune_glue/<script>.py` in this process; its exit code."""
    module = importlib.import_module(f"step4_finetune_glue.{script}")
    config_class = vars(module).get("Config") or module.race.Config
    return scripts.call(module, *flags, config_class=config_class)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())
