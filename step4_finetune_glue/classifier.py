"""From a checkpoint to a model to fine-tune: our BERT, or any encoder of `transformers`."""

import logging
import re
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import nn

from common import data
from common.cli import UserError
from step1_transformer.checkpoint import read
from step1_transformer.resuming import json_object
from step2_bert import checkpoint
from step2_bert.model import BertForSequenceClassification
from step2_bert.tokenizer import load_tokenizer
from step4_finetune_glue.heads import HuggingFaceClassifier, MeanPooledBert, transformers_auto
from step4_finetune_glue.recipe import reinitialise

HEADS = ("classifier.weight", "classifier.out_proj.weight")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
DROPOUTS = (  # as the architectures call it; None stands for another of them
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"),
    *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout"),
)
MEAN = ("bert", "distilbert")  # of transformers: their head ends in a layer that any vector suits
WANTED = ("*.safetensors", "*.json", "*.txt")  # nothing that would have to be unpickled
SPARE = 1024  # embeddings beyond the vocabulary that a checkpoint may have, to round its size


def find(model: str) -> Path:
    """The folder of a checkpoint: `minilm`, a folder, or a name on the hub, downloaded once.

    Raises UserError, with what to do, when it is none of them or the hub cannot be reached.
    """
    if model == "minilm" or Path(model).is_dir():
        return checkpoint.locate(model)
    if not HUB_NAME.fullmatch(model):
        raise UserError(f"--model {model}: no such folder (minilm, a folder, or a name on the hub)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(WANTED)))
    except Exception as error:  # the library has no common ancestor for what can go wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--model {model} is no folder and cannot be had from the hub ({reason}); "
            "offline, give minilm or a folder with config.json, model.safetensors and tokenizer"
        ) from None


def read_config(folder: Path) -> dict:
    """The checkpoint's config.json; UserError if it has none, or one that is no object."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no checkpoint: it has no config.json")
    return _object(folder / "config.json")


def _object(path: Path) -> dict:
    try:
        return json_object(path)
    except ValueError as error:
        raise UserError(f"{path} is no configuration ({error})") from None


def whole_number(folder: Path, name: str, default: int | None = None) -> int:
    """A field of the checkpoint's config.json; UserError if it is anything else."""
    found = read_config(folder).get(name, default)
    if not isinstance(found, int):
        raise UserError(f"{folder}/config.json: {name} must be a whole number, not {found!r}")
    return found


def width(folder: Path) -> int:
    """Of the checkpoint's states; DistilBERT calls it `dim`."""
    name = "dim" if "dim" in read_config(folder) else "hidden_size"
    return whole_number(folder, name, 768)


def facts(folder: Path, pooling: str, impl: str) -> dict[str, str]:
    """What a run states about its checkpoint: `fingerprint`, and what the head reads."""
    return fingerprint(folder) | {"pooling": pooling_of(folder, pooling, impl)}


def fingerprint(folder: Path) -> dict[str, str]:
    """sha256 over all of a checkpoint that decides what is trained: weights, shape, tokenizer."""
    names = (
        "*.safetensors",
        "config.json",
        "tokenizer*.json",
        "vocab.txt",
        "1_Pooling/config.json",
    )
    files = tuple(sorted(file for name in names for file in folder.glob(name)))
    return {"fingerprint": data.Source(folder.name, "path", files).fingerprint()}


def tokenizer_of(folder: Path, max_seq_len: int) -> Tokenizer:
    """The checkpoint's tokenizer, once it and `max_seq_len` are known to fit the model.

    Raises UserError when its vocabulary is larger than the model's, or so much smaller that it must
    be another's, and when the model has fewer positions than `max_seq_len`.
    """
    raw, tokenizer = read_config(folder), load_tokenizer(folder)
    known, given = whole_number(folder, "vocab_size"), tokenizer.get_vocab_size()
    if not given <= known <= given + SPARE:
        raise UserError(
            f"{folder}: the model knows {known:,} tokens, its tokenizer {given:,}: they do not "
            "belong together; put the model's own tokenizer files there"
        )
    if tokenizer.num_special_tokens_to_add(False) < 2:
        raise UserError(
            f"{folder}: its tokenizer puts no [CLS] before a text and no [SEP] behind it; put the "
            "model's own tokenizer.json there"
        )
    # RoBERTa counts positions from pad_token_id + 1 on
    roberta = "roberta" in str(raw.get("model_type"))
    offset = whole_number(folder, "pad_token_id", 1) + 1 if roberta else 0
    limit = whole_number(folder, "max_position_embeddings", max_seq_len + offset) - offset
    if max_seq_len > limit:
        raise UserError(f"{folder} has {limit} positions: --max-seq-len {limit} at most")
    if max_seq_len < 8:
        raise UserError(f"--max-seq-len {max_seq_len}: give at least 8")
    return tokenizer


def pooling_of(folder: Path, pooling: str, impl: str) -> str:
    """What `auto` means for a checkpoint: the mean if it is a sentence-transformer, or was
    fine-tuned so. Raises UserError for a mean where the architecture's head needs [CLS]."""
    raw = read_config(folder)
    able = impl == "scratch" or raw.get("model_type") in MEAN
    if pooling == "mean" and not able:
        raise UserError(f"--pooling mean is for {' and '.join(MEAN)}, whose head ends in one layer")
    if pooling != "auto":
        return pooling
    sentences = folder / "1_Pooling" / "config.json"  # of a sentence-transformer
    mean = raw.get("pooling") == "mean"
    if sentences.is_file():
        mean |= bool(_object(sentences).get("pooling_mode_mean_tokens"))
    return "mean" if mean and able else "cls"


def saved_outputs(folder: Path) -> int | None:
    """Outputs of the head that the checkpoint already has, if it has one.

    Raises UserError for a model.safetensors that is truncated or damaged.
    """
    weights = folder / "model.safetensors"
    try:
        with safe_open(weights, "pt") as file:
            head = next((name for name in HEADS if name in file.keys()), None)  # noqa: SIM118
            return file.get_slice(head).get_shape()[0] if head else None
    except FileNotFoundError:  # in several files: of those no head is known
        return None
    except SafetensorError as error:
        raise UserError(f"{weights} is truncated or damaged ({error})") from None


def load(
    folder: Path,
    n_outputs: int,
    *,
    impl: Literal["scratch", "hf"] = "scratch",
    pooling: Literal["cls", "mean"] = "cls",
    dropout: float = 0.1,
    reinit_layers: int = 0,
    random: bool = False,
    new_head: bool = False,
    labels: tuple[str, ...] = (),
) -> nn.Module:
    """The checkpoint's encoder under a head of `n_outputs`, one for regression.

    A head that the checkpoint has is kept, unless `new_head`. `random` keeps only its shape.
    Everything fresh is drawn from torch's generator, so that a seed decides it.
    Raises UserError for a head of another size, with the `labels` in another order, or that read
    other states than it would now, and for another architecture than BERT for ours.
    """
    raw, had = read_config(folder), saved_outputs(folder)
    kind = raw.get("model_type", "bert")
    if impl == "scratch" and kind != "bert":
        raise UserError(f"{folder} is of type {kind}, ours is BERT: --impl hf fine-tunes it")
    if had not in (None, n_outputs) and not (new_head or random):
        raise UserError(
            f"{folder} has a head of {had} output{'s' * (had > 1)}, this task wants {n_outputs}: "
            "--new-head keeps its encoder and starts the head afresh"
        )
    new_head = new_head or random or had != n_outputs
    if not new_head:
        _check_head(folder, raw, labels, pooling)
    if impl == "hf":
        model = _load_hf(folder, n_outputs, pooling, dropout, random, new_head, labels)
    else:
        model = _load_ours(folder, n_outputs, pooling, dropout, random, new_head, labels)
    reinitialise(model, reinit_layers, raw.get("initializer_range", 0.02))
    model.kept_head = not new_head
    return model.train()


def told(model: nn.Module) -> str:
    """What the head reads, whether it is the checkpoint's, and what else that did not have."""
    read = "the mean of all states" if getattr(model, "mean", False) else "[CLS]"
    if isinstance(model, HuggingFaceClassifier) and model.hf.config.model_type not in MEAN:
        read = "what its architecture does"
    fresh = getattr(model, "fresh_parts", ())
    kept = "; it is the checkpoint's own (--new-head starts afresh)" * model.kept_head
    return f"the head reads {read}{kept}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")


def _check_head(folder: Path, raw: dict, labels: tuple[str, ...], pooling: str) -> None:
    """That a head which is kept reads what it was trained on, and names the classes as we do."""
    trained = raw.get("pooling", "cls")
    if pooling != trained:
        raise UserError(
            f"the head of {folder} reads {trained} pooling, not {pooling}: "
            "leave --pooling as it is by default, or start it afresh with --new-head"
        )
    names = raw.get("id2label") or {}
    if not isinstance(names, dict):
        raise UserError(f"{folder}/config.json: id2label must be an object, not {names!r}")
    named = [str(name).lower() for _, name in sorted(names.items())]
    if sorted(named) == sorted(labels) and named != list(labels):
        raise UserError(
            f"the head of {folder} has its classes in the order {', '.join(named)}, the task "
            f"{', '.join(labels)}: --new-head keeps its encoder and starts the head afresh"
        )


def _load_ours(folder, n_outputs, pooling, dropout, random, new_head, labels) -> nn.Module:
    raw, state = read(folder)
    raw |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    raw["id2label"] = dict.fromkeys(range(n_outputs))
    if new_head:
        state = checkpoint.without(("classifier",), state)
    made = MeanPooledBert if pooling == "mean" else BertForSequenceClassification
    checkpoint.log.setLevel(logging.ERROR)  # that the head is fresh is what fine-tuning is
    model = made.build(raw, state, str(folder))
    model = made(model.config, n_outputs) if random else model
    model.label_names = labels if len(labels) == n_outputs else ()
    return model


def _load_hf(folder, n_outputs, pooling, dropout, random, new_head, labels) -> nn.Module:
    auto = transformers_auto()
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, num_labels=n_outputs)
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)
        config.pooling = pooling
        if len(labels) == n_outputs:
            config.id2label = dict(enumerate(labels))
            config.label2id = {name: i for i, name in enumerate(labels)}
        if random:
            return HuggingFaceClassifier(auto.from_config(config).float())
        # A head of another size is replaced, and anything else that does not fit refused below
        changes = {"ignore_mismatched_sizes": True, "dtype": torch.float32, "use_safetensors": True}
        model, found = auto.from_pretrained(
            folder, config=config, output_loading_info=True, **changes
        )
    except Exception as error:  # the library has no common ancestor for what can go wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"transformers cannot open {folder} ({reason})") from None
    fresh = _fresh(folder, model, found)
    if not new_head and any(part in fresh for part in ("classifier", "score")):
        why = "a weight of its head is not there, or has another shape than config.json asks for"
        raise UserError(f"{folder}: {why}: --new-head starts the head afresh")
    if new_head:
        for part in getattr(model, "classifier", nn.Module()).modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=getattr(config, "initializer_range", 0.02))
                nn.init.zeros_(part.bias)
        fresh |= {"classifier"}
    model = HuggingFaceClassifier(model)
    model.fresh_parts = tuple(sorted(fresh))
    return model


def _fresh(folder: Path, model: nn.Module, found: dict) -> set[str]:
    """The parts of a transformers model that the checkpoint does not have: head and pooler may be
    among them. Raises UserError if a piece of the encoder is, or has another shape there."""
    encoder = f"{model.base_model_prefix}."

    def inside(names: set[str]) -> str:
        pieces = (n for n in names if n.startswith(encoder) and ".pooler." not in n)
        return min(pieces, default="")

    missing, other = set(found["missing_keys"]), {name for name, *_ in found["mismatched_keys"]}
    if piece := inside(missing):
        raise UserError(f"{folder} lacks {piece}: it is incomplete or of another architecture")
    if piece := inside(other):
        why = "has another shape than config.json asks for: they do not belong together"
        raise UserError(f"{folder}: {piece} {why}")
    return {name.removeprefix(encoder).partition(".")[0] for name in missing | other}
