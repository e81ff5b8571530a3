"""Rivals behind our model's interface: the BERT of `transformers`, and ours without its tricks."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from step1_transformer.checkpoint import copy_tokenizer
from step2_bert.checkpoint import without
from step2_bert.model import BertConfig, BertForPreTraining, BertOutput, next_sentence_sums


class HuggingFaceBert(nn.Module):
    """`transformers.BertForPreTraining` as it comes: scores everywhere, then the loss picks."""

    untrained_parts: tuple[str, ...] = ()  # as in `HuggingFaceFormat`

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.hf = BertForPreTraining(config).to_hf()

    @classmethod
    def of(cls, ours: BertForPreTraining) -> "HuggingFaceBert":
        """The same weights in the other implementation."""
        model = cls(ours.config)
        model.hf = ours.to_hf()
        return model

    @property
    def token_embedding(self) -> nn.Parameter:
        return self.hf.get_input_embeddings().weight

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        *,
        masked_positions: torch.Tensor,
        masked_labels: torch.Tensor,
        is_random_next: torch.Tensor | None = None,
    ) -> BertOutput:
        """The loss path of `BertForPreTraining.forward`; shapes as there."""
        out = self.hf(input_ids, attention_mask, token_type_ids, output_hidden_states=True)
        scores = out.prediction_logits.flatten(0, 1)[masked_positions].float()
        pairs = out.seq_relationship_logits
        sums = next_sentence_sums(pairs, is_random_next) | {
            "mlm_loss_sum": F.cross_entropy(scores, masked_labels, reduction="sum"),
            "mlm_correct": (scores.argmax(-1) == masked_labels).sum(),
        }
        hidden = out.hidden_states[-1]
        return BertOutput(hidden, self.hf.bert.pooler(hidden), pairs, **sums)

    def save(self, folder: Path, tokenizer: Path | None = None) -> None:
        """Write the directory that `transformers` writes, with the tokenizer's files."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        state = without(self.untrained_parts, self.hf.state_dict())
        self.hf.save_pretrained(folder, state_dict=state)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "HuggingFaceBert":
        """Open any Hugging Face BERT directory; heads it lacks are fresh."""
        return cls.of(BertForPreTraining.load(folder))


class MaskedBert(BertForPreTraining):
    """Our BERT with the loss written the plain way: scores of the masked positions, then
    `F.cross_entropy`."""

    everywhere = False

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        *,
        masked_positions: torch.Tensor,
        masked_labels: torch.Tensor,
        is_random_next: torch.Tensor | None = None,
    ) -> BertOutput:
        """The loss path of `BertForPreTraining.forward`; shapes as there."""
        hidden, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        flat, embedding = hidden.flatten(0, 1), self.token_embedding
        if self.everywhere:
            scores = self.mlm(flat, embedding).float()
            labels = torch.full((len(scores),), -100, device=scores.device)
            labels[masked_positions] = masked_labels
        else:
            scores, labels = self.mlm(flat[masked_positions], embedding).float(), masked_labels
        pairs = self.nsp(pooled)
        sums = next_sentence_sums(pairs, is_random_next) | {
            "mlm_loss_sum": F.cross_entropy(scores, labels, ignore_index=-100, reduction="sum"),
            "mlm_correct": (scores.argmax(-1) == labels).sum(),
        }
        return BertOutput(hidden, pooled, pairs, **sums)

    @classmethod
    def of(cls, ours: BertForPreTraining) -> "MaskedBert":
        """The same weights under this loss."""
        model = cls(ours.config)
        model.load_state_dict(ours.state_dict())
        return model


class DenseBert(MaskedBert):
    """The same, but scoring every position, of which the loss then ignores 85 %."""

    everywhere = True
