"""BERT from scratch: Devlin et al. 2018, arXiv:1810.04805 ("the paper"), on the encoder of
"Attention is all you need", Vaswani et al. 2017, arXiv:1706.03762.

Attention, dropout and the loss are step 1's. What BERT adds is here, from top to bottom: config,
embeddings, layer, encoder, the two pretraining heads, the two models. Letters in shapes: B
sequences, T tokens, d = d_model, h heads, V = vocab_size, M masked positions in the whole batch.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step1_transformer.attention import KINDS, MultiHeadAttention
from step1_transformer.layers import Dropout
from step1_transformer.loss import LinearCrossEntropy
from step2_bert.checkpoint import HuggingFaceClassifierFormat, HuggingFaceFormat

SIZES = {  # name: (n_layers, d_model, n_heads); base and large: section 3, the others: 1908.08962
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
Size = Literal["tiny", "mini", "small", "medium", "base", "large"]


@dataclass
class BertConfig:
    vocab_size: int = 30522
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_ff: int = 3072
    max_seq_len: int = 512
    n_segments: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    initializer_range: float = 0.02
    attention: str = "auto"  # "explicit", "fused" (PyTorch's kernel), or whichever is faster

    def __post_init__(self):
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.attention not in KINDS:
            raise ValueError(f"attention is {self.attention!r}, not auto, explicit or fused")

    @classmethod
    def named(cls, size: str, **overrides) -> "BertConfig":
        """The config of a published size: tiny, mini, small, medium, base or large."""
        if size not in SIZES:
            raise ValueError(f"unknown BERT size {size!r}; known: {', '.join(SIZES)}")
        n_layers, d_model, n_heads = SIZES[size]
        shape = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "d_ff": 4 * d_model}
        return cls(**{**shape, **overrides})


class Embeddings(nn.Module):
    """Token + segment + position (figure 2 of the paper), then LayerNorm and dropout."""

    def __init__(self, config: BertConfig):
        super().__init__()
        d = config.d_model
        self.token = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        self.segment = nn.Embedding(config.n_segments, d)
        self.position = nn.Embedding(config.max_seq_len, d)
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None
    ) -> Tensor:
        T, limit = input_ids.shape[1], self.position.num_embeddings
        if position_ids is None and limit < T:
            raise ValueError(f"a sequence of {T} tokens, but the model has only {limit} positions")
        # Positions 0..T-1 are a slice: its gradient is a sum, far cheaper than a scatter.
        position = self.position.weight[:T] if position_ids is None else self.position(position_ids)
        segment = self.segment.weight[0] if token_type_ids is None else self.segment(token_type_ids)
        x = self.norm(self.token(input_ids) + segment + position)
        return self.dropout(x)  # (B, T, d)


class FeedForward(nn.Module):
    """FFN(x) = GELU(x W1 + b1) W2 + b2 (1706.03762, equation 2, with GELU for ReLU)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Layer(nn.Module):
    """Post-norm: x <- LayerNorm(x + Dropout(sublayer(x))) (1706.03762, section 3.1), twice."""

    def __init__(self, config: BertConfig):
        super().__init__()
        parts = (config.d_model, config.n_heads, config.attention_dropout, config.attention)
        self.attention = MultiHeadAttention(*parts)
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Bert(nn.Module):
    """The encoder: embeddings and n_layers of Layer."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.pooler = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden (B, T, d) and pooled (B, d), from token and segment ids, both (B, T).

        attention_mask is True (or 1) where a token may look: (B, T) for padding, the same for every
        query, or (B, T, T), query by key, to keep documents that share a row apart.
        """
        mask = attention_mask
        if mask is not None:
            mask = mask.bool()[:, None] if mask.dim() == 3 else mask.bool()[:, None, None]
            # (B, 1, T or 1, T): one for all heads
        x = self.embeddings(input_ids, token_type_ids, position_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


class MaskedLMHead(nn.Module):
    """Hidden states to vocabulary scores. The decoder's matrix is the token embedding's (tied)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def transform(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(self.transform(hidden), embedding, self.bias)  # (..., d) -> (..., V)


class BertOutput(NamedTuple):
    hidden: Tensor  # (B, T, d)
    pooled: Tensor  # (B, d)
    nsp_logits: Tensor  # (B, 2): 0 = B follows A, 1 = B is random
    mlm_logits: Tensor | None = None  # (B, T, V)
    mlm_loss_sum: Tensor | None = None
    mlm_correct: Tensor | None = None
    nsp_loss_sum: Tensor | None = None
    nsp_correct: Tensor | None = None


def init_weights(module: nn.Module, std: float) -> None:
    """Normal(0, std) matrices and zero biases, as in the paper's released code."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
            elif part.padding_idx is not None:
                nn.init.zeros_(part.weight[part.padding_idx])


def next_sentence_sums(logits: Tensor, is_random_next: Tensor | None) -> dict[str, Tensor]:
    """Summed loss and hits of scores (B, 2), as fields of BertOutput; none without labels (B,)."""
    if is_random_next is None:
        return {}
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, is_random_next, reduction="sum")
    return {"nsp_loss_sum": loss, "nsp_correct": (logits.argmax(-1) == is_random_next).sum()}


class BertForPreTraining(HuggingFaceFormat, nn.Module):
    """BERT with both pretraining tasks: masked language model and next sentence prediction."""

    config_class = BertConfig

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = Bert(config)
        self.mlm = MaskedLMHead(config)
        self.nsp = nn.Linear(config.d_model, 2)
        init_weights(self, config.initializer_range)

    @property
    def token_embedding(self) -> nn.Parameter:
        """(V, d): the input's table, and the output's."""
        return self.bert.embeddings.token.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        masked_labels: Tensor | None = None,
        is_random_next: Tensor | None = None,
    ) -> BertOutput:
        """Scores at every position, or the loss path, which never builds (B, T, V).

        masked_positions (M,), flat indices into B*T, and masked_labels (M,) ask for the summed
        masked-LM loss and the hits there; is_random_next (B,), 0 or 1, for those of the second
        task. The attention mask is described at `Bert`.
        """
        hidden, pooled = self.bert(input_ids, attention_mask, token_type_ids, position_ids)
        out = BertOutput(hidden, pooled, self.nsp(pooled))
        embedding = self.token_embedding
        if masked_positions is None:
            out = out._replace(mlm_logits=self.mlm(hidden, embedding))
        else:
            masked = self.mlm.transform(hidden.flatten(0, 1)[masked_positions])  # (M, d)
            parts = (masked, embedding, self.mlm.bias, masked_labels)
            loss, _, hits = LinearCrossEntropy.apply(*parts, 0.0)  # no label smoothing
            out = out._replace(mlm_loss_sum=loss, mlm_correct=hits)
        return out._replace(**next_sentence_sums(out.nsp_logits, is_random_next))


class BertForSequenceClassification(HuggingFaceClassifierFormat, nn.Module):
    """BERT with one linear layer on the pooled [CLS] state (section 4.1 of the paper)."""

    config_class = BertConfig

    def __init__(self, config: BertConfig, n_classes: int = 2):
        super().__init__()
        self.config, self.n_classes = config, n_classes
        self.bert = Bert(config)
        self.dropout = Dropout(config.dropout)
        self.classifier = nn.Linear(config.d_model, n_classes)
        init_weights(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return self.classifier(self.dropout(pooled))  # (B, n_classes)
