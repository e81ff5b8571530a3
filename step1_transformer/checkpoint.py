"""A Transformer as a directory: config.json, model.safetensors, and the tokenizer's files.

A model as the paper has it (post-norm, sinusoidal positions) is written as Hugging Face's Marian,
which is the same model: `transformers.AutoModelForSeq2SeqLM` opens it, and we open the published
Marian translators. Any other is written under our own names. Nothing is ever unpickled.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from common import cli, runs
from common.cli import UserError

OWN_TYPE = "gym_transformer"
MARIAN_FIELDS = {  # ours: theirs, where several, all the same
    "vocab_size": ("vocab_size", "decoder_vocab_size"),
    "d_model": ("d_model",),
    "n_heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "n_encoder_layers": ("encoder_layers",),
    "n_decoder_layers": ("decoder_layers",),
    "d_ff": ("encoder_ffn_dim", "decoder_ffn_dim"),
    "max_seq_len": ("max_position_embeddings",),
    "dropout": ("dropout",),
    "attention_dropout": ("attention_dropout",),
    "ff_dropout": ("activation_dropout",),
    "activation": ("activation_function",),
    "scale_embedding": ("scale_embedding",),
    "pad_token_id": ("pad_token_id",),
    "bos_token_id": ("decoder_start_token_id",),
    "eos_token_id": ("eos_token_id",),
}
MARIAN = {  # what a Marian is by construction, in our words
    "norm": "post",
    "final_norm": False,
    "positions": "sinusoidal",
    "layer_norm_eps": 1e-5,
}
MARIAN_FIXED = {  # and in theirs, of those that ours can be
    "model_type": "marian",
    "is_encoder_decoder": True,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
}
MARIAN_NAMES = (  # ours, theirs
    ("encoder.layers", "model.encoder.layers"),
    ("decoder.layers", "model.decoder.layers"),
    ("self_attention.sublayer", "self_attn"),
    ("cross_attention.sublayer", "encoder_attn"),
    ("self_attention.norm", "self_attn_layer_norm"),
    ("cross_attention.norm", "encoder_attn_layer_norm"),
    ("feed_forward.norm", "final_layer_norm"),
    ("feed_forward.sublayer.up", "fc1"),
    ("feed_forward.sublayer.down", "fc2"),
    (".out.", ".out_proj."),
    ("embedding.token.weight", "model.shared.weight"),
    ("embedding.bias", "final_logits_bias"),
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
)


def default_model() -> str:
    """Where train.py leaves its model by default on this machine."""
    return f"runs/step1_transformer/train-{cli.default_preset(('cpu', 'gpu'))}/model"


def check_there(model: str) -> None:
    """Raises UserError unless there is something at `model`: no training has made it yet."""
    if not Path(model).exists():
        made = "python step1_transformer/train.py makes one"
        raise UserError(f"{model} is no checkpoint: there is nothing; {made}")


def marian_names(name: str) -> list[str]:
    """The Marian parameters that make up our parameter `name` (three for Q, K and V)."""
    for ours, theirs in MARIAN_NAMES:
        name = name.replace(ours, theirs)
    if ".qkv." in name:
        return [name.replace(".qkv.", f".{part}_proj.") for part in "qkv"]
    return [name]


def residual_axis(name: str) -> int | None:
    """Which axis of our parameter `name` is the residual stream's d; None if it has none."""
    if name.endswith((".qkv.weight", ".up.weight", "token.weight")):
        return 1
    return 0 if any(part in name for part in (".out.", ".down.", ".norm.")) else None


def in_halves(d: int) -> Tensor:
    """Where the paper's dimension 0, 1, 2, ... of d is found by Marian's dimension: its sinusoids
    are not sine, cosine, sine, cosine, ... but all sines, then all cosines."""
    return torch.cat((torch.arange(0, d, 2), torch.arange(1, d, 2)))


def to_marian(named: dict[str, Tensor], d: int) -> dict[str, Tensor]:
    """Our parameters, or their gradients, under Marian's names and in its order of dimensions."""
    state, order = {}, in_halves(d)
    for name, value in named.items():
        value, axis, names = value.detach().cpu(), residual_axis(name), marian_names(name)
        if axis is not None:
            value = value.index_select(axis, order)
        for marian_name, piece in zip(names, value.chunk(len(names)), strict=True):
            state[marian_name] = piece.contiguous()
        if name == "embedding.bias":
            state[names[0]] = value[None]  # (1, V)
    return state


def from_marian(names: Iterable[str], state: dict[str, Tensor], d: int) -> dict[str, Tensor]:
    """Those of our parameters `names` that a Marian's state has, in our order of dimensions."""
    ours, order = {}, in_halves(d).argsort()
    for name in names:
        pieces = marian_names(name)
        if not all(piece in state for piece in pieces):
            continue
        value, axis = torch.cat([state[piece] for piece in pieces]), residual_axis(name)
        if axis is not None and value.shape[axis] == d:
            value = value.index_select(axis, order)
        ours[name] = value.squeeze(0) if name == "embedding.bias" else value
    return ours


def marian_config(config: Any) -> dict[str, Any]:
    """What Marian's config.json says of ours; ValueError if a Marian cannot be that."""
    for field, value in MARIAN.items():
        if getattr(config, field) != value:
            raise ValueError(f"no Marian has {field} {getattr(config, field)!r}")
    fields = {n: getattr(config, ours) for ours, names in MARIAN_FIELDS.items() for n in names}
    return MARIAN_FIXED | fields | {"forced_eos_token_id": config.eos_token_id}


def config_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Our config's fields from either kind of config.json; UserError if it is of another model."""
    kind = raw.get("model_type")
    if kind == OWN_TYPE:
        return {k: v for k, v in raw.items() if k not in ("model_type", "architectures", "dtype")}
    if kind != "marian":
        raise UserError(f"checkpoint of another model: model_type is {kind!r}, not 'marian'")
    for key, value in MARIAN_FIXED.items():
        if raw.get(key, value) != value:
            raise UserError(f"a Marian that ours cannot be: {key} is {raw[key]!r}, not {value!r}")
    fields = {}
    for ours, names in MARIAN_FIELDS.items():
        values = {raw[n] for n in names if raw.get(n) is not None}
        if len(values) != 1:
            told = "differ" if values else "missing"
            raise UserError(f"a Marian that ours cannot be: {' and '.join(names)} {told}")
        fields[ours] = values.pop()
    return fields | MARIAN


@torch.no_grad()
def fill(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy weights under our names into the model; UserError if one is missing or does not fit."""
    for name, parameter in model.named_parameters():
        if name not in state:
            raise UserError(f"the checkpoint lacks {name}: it is incomplete or of another model")
        if state[name].shape != parameter.shape:
            raise UserError(
                f"{name} has shape {tuple(state[name].shape)}, but config.json asks for "
                f"{tuple(parameter.shape)}: weights and config do not belong together"
            )
        parameter.copy_(state[name])


def read(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The contents of config.json and model.safetensors; UserError if either is unusable."""
    directory = Path(directory)
    config, weights = directory / "config.json", directory / "model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise UserError(f"{directory} is no checkpoint: it has no {file.name}")
    try:
        raw = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config} is no JSON ({error})") from error
    if not isinstance(raw, dict):
        raise UserError(f"{config} is no JSON object")
    try:
        return raw, load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights} is truncated or damaged ({error})") from error


def copy_tokenizer(source: str | Path, directory: str | Path) -> None:
    """Put the tokenizer files of `source` into `directory`."""
    for name in TOKENIZER_FILES:
        if (file := Path(source) / name).is_file():
            runs.write_bytes(Path(directory) / name, file.read_bytes())


class CheckpointFormat:
    """Saving and loading for a model with a `config` of class `config_class`."""

    config_class: type

    @classmethod
    def build(cls, raw: dict[str, Any], state: dict[str, Tensor], source: str, **changes):
        """The model that a config.json and weights describe, in eval mode and fp32."""
        fields, is_marian = config_fields(raw), raw["model_type"] == "marian"
        if is_marian:
            fields["output_bias"] = "final_logits_bias" in state
        try:
            model = cls(cls.config_class(**fields | changes))
        except (TypeError, ValueError) as error:
            raise UserError(f"the config of {source}: {error}") from error
        if is_marian:
            names = dict(model.named_parameters())
            state = from_marian(names, state, model.config.d_model)
        fill(model, state)
        return model.eval()

    @classmethod
    def from_hf(cls, hf_model: nn.Module, **changes):
        """Our copy of a transformers MarianMTModel; UserError if it is one that ours cannot be.

        `changes` are config fields to set otherwise, such as dropout.
        """
        state = hf_model.state_dict()
        if not state["final_logits_bias"].any():
            del state["final_logits_bias"]
        model = cls.build(hf_model.config.to_dict(), state, type(hf_model).__name__, **changes)
        return model.train(hf_model.training)

    def marian_state(self) -> dict[str, Tensor]:
        """Our weights as Marian's."""
        return to_marian(dict(self.named_parameters()), self.config.d_model)

    def to_hf(self) -> nn.Module:
        """A transformers MarianMTModel with copies of our weights; ValueError if none can be."""
        import transformers

        config = transformers.MarianConfig(**marian_config(self.config))
        hf_model = transformers.MarianMTModel(config)
        hf_model.load_state_dict(self.marian_state(), strict=False)
        hf_model.tie_weights()
        return hf_model.train(self.training)

    def save(self, directory: str | Path, tokenizer: str | Path | None = None) -> None:
        """Write the checkpoint, with the tokenizer's files from the folder `tokenizer`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            raw = marian_config(self.config) | {"architectures": ["MarianMTModel"]}
            state = self.marian_state()
        except ValueError:
            raw = {"model_type": OWN_TYPE, **dataclasses.asdict(self.config)}
            state = {n: p.detach().cpu().contiguous() for n, p in self.named_parameters()}
        raw["dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
        weights = to_bytes(state, metadata={"format": "pt"})
        runs.write_bytes(directory / "model.safetensors", weights)
        runs.write_json(directory / "config.json", raw)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, directory)

    @classmethod
    def load(cls, directory: str | Path, **changes):
        """The model in a directory, in eval mode and fp32; `changes` as in `from_hf`.

        Raises UserError when the directory has no checkpoint, or a truncated or foreign one.
        """
        raw, state = read(directory)
        return cls.build(raw, state, str(directory), **changes)
