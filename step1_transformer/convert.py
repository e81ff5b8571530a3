"""Our blocks from PyTorch's own: the names of weights, and what else its modules say.

Everything is copied, nothing shared. A module with a part that ours lacks is refused.
"""

import re
from typing import Any, TypeVar

import torch
from torch import nn

Ours = TypeVar("Ours", bound=nn.Module)

IN_EVERY_LAYER = (  # PyTorch's name, ours
    ("in_proj_", "qkv."),
    ("out_proj.", "out."),
    ("self_attn.", "self_attention.sublayer."),
    ("multihead_attn.", "cross_attention.sublayer."),
    ("linear1.", "feed_forward.sublayer.up."),
    ("linear2.", "feed_forward.sublayer.down."),
    ("norm1.", "self_attention.norm."),
)
IN_ENCODER_LAYER = (*IN_EVERY_LAYER, ("norm2.", "feed_forward.norm."))
IN_DECODER_LAYER = (
    *IN_EVERY_LAYER,
    ("norm2.", "cross_attention.norm."),
    ("norm3.", "feed_forward.norm."),
)


def our_names(theirs: nn.Module) -> dict[str, str]:
    """What each parameter of a PyTorch module is called in our module of the same kind."""
    names = {name: name for name, _ in theirs.named_parameters()}
    for name in names:
        layer = re.match(r"(.*\blayers\.\d+\.)?", name)[0]
        pairs = IN_DECODER_LAYER if f"{layer}norm3.weight" in names else IN_ENCODER_LAYER
        for torch_name, our_name in pairs:
            names[name] = names[name].replace(torch_name, our_name)
    return names


@torch.no_grad()
def copy_from_torch(theirs: nn.Module, ours: Ours) -> Ours:
    """`ours` with the weights, device, precision and mode of the same kind of PyTorch module.

    Raises ValueError when the two have not the same parts.
    """
    names, parameters = our_names(theirs), dict(theirs.named_parameters())
    state = {names[name]: value for name, value in parameters.items()}
    if other := state.keys() ^ dict(ours.named_parameters()).keys():
        raise ValueError(f"{type(theirs).__name__} is built otherwise than ours: {min(other)}")
    ours.to(next(iter(state.values()))).load_state_dict(state)
    return ours.train(theirs.training)


def attention_fields(module: nn.MultiheadAttention) -> dict[str, Any]:
    """The arguments of our MultiHeadAttention. Raises ValueError where ours cannot follow."""
    if module.bias_k is not None or module.add_zero_attn:
        raise ValueError("nn.MultiheadAttention has added keys (add_bias_kv, add_zero_attn)")
    return {"d_model": module.embed_dim, "n_heads": module.num_heads, "dropout": module.dropout}


def layer_fields(layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> dict[str, Any]:
    """The fields of our LayerConfig."""
    return {
        "d_model": layer.self_attn.embed_dim,
        "n_heads": layer.self_attn.num_heads,
        "d_ff": layer.linear1.out_features,
        "dropout": layer.dropout1.p,
        "attention_dropout": layer.self_attn.dropout,
        "ff_dropout": layer.dropout.p,
        "norm": "pre" if layer.norm_first else "post",
        "activation": getattr(layer.activation, "__name__", repr(layer.activation)),
        "layer_norm_eps": layer.norm1.eps,
    }
