"""Prepare pretraining data: raw text -> documents -> sentences -> tokens -> MLM/NSP samples.

Writes binary shards for training and readable JSON lines into --out. A run that was killed goes on
where it was; a run that changes nothing returns at once.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common import cli
from step1_transformer import resuming
from step2_bert.corpus import PrepareOptions, prepare
from step2_bert.masking import MaskingOptions
from step2_bert.samples import Samples

PRESETS = {
    "smoke": {"data": "sotu", "vocab_size": 1024, "max_seq_len": 64, "max_documents": 20},
    "cpu": {"heldout_fraction": 0.02},
    "gpu": {"heldout_fraction": 0.02, "duplication": 5},
    "paper": {
        "data": "wikipedia",
        "vocab_size": 30522,
        "duplication": 10,
        "dynamic_masking": False,
    },
}


@dataclass
class Config(cli.RunConfig):
    data: str = "sotu+imdb"
    """Data to read: a known name, a file, or a folder."""
    vocab: str | None = None
    """Tokenizer directory, tokenizer.json or vocab.txt; without it WordPiece is trained."""
    vocab_size: int = 8192
    """Size of a trained vocabulary, in tokens."""
    lowercase: bool = True
    """Lower-case the text, for a trained vocabulary."""
    max_seq_len: int = 128
    """Longest sample, in tokens; the paper trains at 128, then at 512."""
    nsp: bool = True
    """Sentence pairs for next sentence prediction; else one stretch of a document a sample."""
    duplication: int = 1
    """Times to go over the text, each with other pairs."""
    dynamic_masking: bool = True
    """Draw new training masks in each epoch; else once, here. Held-out masks are always fixed."""
    whole_word_masking: bool = False
    """Mask all pieces of a word together."""
    mask_probability: float = 0.15
    """Share of the tokens to predict."""
    max_predictions: int | None = None
    """Most predictions in a sample; default: the paper's 20 up to length 128, 77 at 512; more if
    a higher --mask-probability asks for it."""
    short_probability: float = 0.1
    """Share of samples that are shorter than --max-seq-len on purpose."""
    heldout_fraction: float = 0.01
    """Share of the documents, from the end, to hold out."""
    max_documents: int | None = None
    """Stop after so many documents."""
    exclude_title: tuple[str, ...] = ()
    """Leave out documents with these titles (first paragraphs)."""
    skip_bad_lines: bool = False
    """Leave out, and count, rows that are no JSON or have no text."""
    jsonl_samples: int = 1000
    """Samples of each split to write as JSON lines; -1: all."""
    workers: int | None = None
    """Processes; by default one for each core. The result does not depend on it."""


def main(config: Config) -> None:
    options = PrepareOptions(
        data=config.data,
        vocab=config.vocab,
        vocab_size=config.vocab_size,
        lowercase=config.lowercase,
        max_seq_len=config.max_seq_len,
        nsp=config.nsp,
        short_probability=config.short_probability,
        duplication=config.duplication,
        dynamic_masking=config.dynamic_masking,
        masking=MaskingOptions(
            probability=config.mask_probability,
            max_predictions=config.max_predictions,
            whole_word=config.whole_word_masking,
        ),
        heldout_fraction=config.heldout_fraction,
        max_documents=config.max_documents,
        exclude_titles=config.exclude_title,
        skip_bad_lines=config.skip_bad_lines,
        jsonl_samples=config.jsonl_samples,
        seed=config.seed,
    )
    out = Path(config.out or f"runs/step2_bert/prepare-{config.preset}")
    with resuming.tells_how(out, "stopped"):
        manifest_file = prepare(options, out, workers=config.workers)
    summarize(json.loads(manifest_file.read_text(encoding="utf-8")))
    show(Samples.open(out, "heldout" if config.heldout_fraction else "train"))
    print(f"result: {manifest_file}")


def summarize(manifest: dict) -> None:
    """Print what each stage of the pipeline gave."""
    source, splits = manifest["source"], manifest["splits"]
    print(f"data: {source['name']} ({source['kind']}), sha256 {source['fingerprint'][:12]}")
    print(f"{'':14}" + "".join(f"{split:>14}" for split in splits))
    for stage in ("documents", "sentences", "text_tokens", "samples", "tokens"):
        counts = "".join(f"{split[stage]:>14,}" for split in splits.values())
        print(f"{stage.replace('_', ' '):14}{counts}")
    if manifest["options"]["skip_bad_lines"]:
        print(f"bad lines left out: {manifest['skipped_lines']}")
    if manifest["options"]["exclude_titles"]:
        print(f"documents left out by title: {manifest['excluded_documents']}")
    print(
        f"throughput: {manifest['tokens_per_second']:,} tokens/s, all stages; tokenizers' own "
        f"encode_batch {manifest['library_tokens_per_second']:,}; "
        f"ratio {manifest['throughput_ratio']:.2f}"
    )


def show(samples: Samples) -> None:
    """Print the first sample as a reader sees it: what is to be predicted follows in <>."""
    [sample] = samples.readable([0])
    tokens = sample["tokens"]
    targets = zip(sample["masked_lm_positions"], sample["masked_lm_labels"], strict=True)
    for position, truth in targets:
        tokens[position] += f"<{truth}>"
    print(f"a sample ({'random' if sample['is_random_next'] else 'true'} next):", *tokens)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
