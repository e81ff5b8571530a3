"""Any checkpoint under a classification or regression head: our BERT, or one of `transformers`.

Where the head looks. BERT's own reads the pooler, a dense layer and tanh on the state of [CLS].
A sentence-transformer such as MiniLM was trained on the mean of all states: its pooler is as it was
initialised (biases exactly 0, no direction stands out), so there the head reads that mean.
"""

import inspect
import json
import logging
import re
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from common.cli import UserError
from step1_transformer.checkpoint import copy_tokenizer, read
from step2_bert import checkpoint
from step2_bert.model import BertForSequenceClassification
from step2_bert.tokenizer import load_tokenizer
from step4_finetune_glue.recipe import reinitialise

HEADS = ("classifier.weight", "classifier.out_proj.weight")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
DROPOUTS = (  # as the architectures call it; None stands for another of them
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"),
    *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout"),
)
WANTED = ("*.safetensors", "*.json", "*.txt")  # nothing that would have to be unpickled
SPARE = 1024  # embeddings beyond the vocabulary that a checkpoint may have, to round its size


class MeanPooledBert(BertForSequenceClassification):
    """BERT with one linear layer on the mean of the states of all real tokens; no pooler."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bert.pooler.requires_grad_(False)

    def hf_config(self) -> dict:
        return super().hf_config() | {"pooling": "mean"}  # or its head would be put on [CLS]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        hidden, _ = self.bert(input_ids, attention_mask, token_type_ids)  # (B, T, d)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = mask.to(hidden.dtype)[..., None]  # (B, T, 1)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return self.classifier(self.dropout(mean))  # (B, n_classes)


class HuggingFaceClassifier(nn.Module):
    """A transformers model for sequence classification, called, saved and loaded as ours are."""

    def __init__(self, hf_model: nn.Module):
        super().__init__()
        self.hf = hf_model
        self.segments = "token_type_ids" in inspect.signature(hf_model.forward).parameters

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        more = {"token_type_ids": token_type_ids} if self.segments else {}
        return self.hf(input_ids=input_ids, attention_mask=attention_mask, **more).logits

    def save(self, folder: str | Path, tokenizer: str | Path | None = None) -> None:
        self.hf.save_pretrained(folder)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "HuggingFaceClassifier":
        return cls(_transformers().from_pretrained(folder, dtype=torch.float32))


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
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("an object was expected")
        return found
    except FileNotFoundError:
        raise UserError(f"{folder} is no checkpoint: it has no config.json") from None
    except ValueError as error:
        raise UserError(f"{folder}/config.json is no configuration ({error})") from None


def tokenizer_of(folder: Path, max_seq_len: int) -> Tokenizer:
    """The checkpoint's tokenizer, once it and `max_seq_len` are known to fit the model.

    Raises UserError when its vocabulary is larger than the model's, or so much smaller that it must
    be another's, and when the model has fewer positions than `max_seq_len`.
    """
    raw, tokenizer = read_config(folder), load_tokenizer(folder)
    known, given = raw.get("vocab_size"), tokenizer.get_vocab_size()
    if not isinstance(known, int):
        raise UserError(f"{folder}/config.json: vocab_size must be a whole number, not {known!r}")
    if not given <= known <= given + SPARE:
        raise UserError(
            f"{folder}: the model knows {known:,} tokens, its tokenizer {given:,}: they do not "
            "belong together; put the model's own tokenizer files there"
        )
    # RoBERTa counts positions from pad_token_id + 1 on
    offset = raw.get("pad_token_id", 1) + 1 if "roberta" in raw.get("model_type", "") else 0
    limit = raw.get("max_position_embeddings", max_seq_len + offset) - offset
    if max_seq_len > limit:
        raise UserError(f"{folder} has {limit} positions: --max-seq-len {limit} at most")
    if max_seq_len < 8:
        raise UserError(f"--max-seq-len {max_seq_len}: give at least 8")
    return tokenizer


def pooling_of(folder: Path, pooling: str, impl: str) -> str:
    """What `auto` means for a checkpoint: the mean if it is a sentence-transformer, or was
    fine-tuned so."""
    if pooling == "mean" and impl == "hf":
        raise UserError("--pooling mean is for --impl scratch; transformers' models read [CLS]")
    if pooling != "auto":
        return pooling
    mean = (folder / "modules.json").is_file() or read_config(folder).get("pooling") == "mean"
    return "mean" if impl == "scratch" and mean else "cls"


def saved_outputs(folder: Path) -> int | None:
    """Outputs of the head that the checkpoint already has, if it has one."""
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
        model = _load_hf(folder, n_outputs, dropout, random, new_head)
    else:
        model = _load_ours(folder, n_outputs, pooling, dropout, random, new_head)
    reinitialise(model, reinit_layers, raw.get("initializer_range", 0.02))
    model.kept_head = not new_head
    return model.train()


def told(model: nn.Module) -> str:
    """What the head reads, whether it is the checkpoint's, and what else that did not have."""
    read = "the mean of all states" if isinstance(model, MeanPooledBert) else "[CLS]"
    fresh = getattr(model, "fresh_parts", ())
    kept = "; it is the checkpoint's own (--new-head starts afresh)" * model.kept_head
    return f"the head reads {read}{kept}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")


def _check_head(folder: Path, raw: dict, labels: tuple[str, ...], pooling: str) -> None:
    """That a head which is kept reads what it was trained on, and names the classes as we do."""
    trained = raw.get("pooling", "cls")
    if pooling != trained:
        raise UserError(
            f"the head of {folder} reads {trained} pooling, not {pooling}: leave --pooling and "
            "--impl as they are by default, or start it afresh with --new-head"
        )
    named = [str(name).lower() for _, name in sorted((raw.get("id2label") or {}).items())]
    if sorted(named) == sorted(labels) and named != list(labels):
        raise UserError(
            f"the head of {folder} has its classes in the order {', '.join(named)}, the task "
            f"{', '.join(labels)}: --new-head keeps its encoder and starts the head afresh"
        )


def _load_ours(folder, n_outputs, pooling, dropout, random, new_head) -> nn.Module:
    raw, state = read(folder)
    raw |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    raw["id2label"] = dict.fromkeys(range(n_outputs))
    if new_head:
        state = checkpoint.without(("classifier",), state)
    made = MeanPooledBert if pooling == "mean" else BertForSequenceClassification
    checkpoint.log.setLevel(logging.ERROR)  # that the head is fresh is what fine-tuning is
    model = made.build(raw, state, str(folder))
    return made(model.config, n_outputs) if random else model


def _load_hf(folder, n_outputs, dropout, random, new_head) -> nn.Module:
    auto = _transformers()
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, num_labels=n_outputs)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    if random:
        return HuggingFaceClassifier(auto.from_config(config).float())
    changes = {"ignore_mismatched_sizes": True, "dtype": torch.float32}
    try:
        model = auto.from_pretrained(folder, config=config, **changes)
    except (OSError, ValueError) as error:
        raise UserError(
            f"transformers cannot open {folder} ({str(error).splitlines()[0]})"
        ) from None
    if new_head:
        for part in getattr(model, "classifier", nn.Module()).modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=getattr(config, "initializer_range", 0.02))
                nn.init.zeros_(part.bias)
    return HuggingFaceClassifier(model)


def _transformers():
    """`AutoModelForSequenceClassification`, which tells of no fresh heads and draws no bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForSequenceClassification
