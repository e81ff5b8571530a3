"""The BERT of `transformers` behind our model's interface, to train beside ours on equal terms."""

import shutil
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from step2_bert.model import BertConfig, BertForPreTraining, BertOutput


class HuggingFaceBert(nn.Module):
    """`transformers.BertForPreTraining` as it comes: scores everywhere, then the loss picks."""

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
        pairs = out.seq_relationship_logits.float()
        sums = {
            "mlm_loss_sum": F.cross_entropy(scores, masked_labels, reduction="sum"),
            "mlm_correct": (scores.argmax(-1) == masked_labels).sum(),
        }
        if is_random_next is not None:
            sums["nsp_loss_sum"] = F.cross_entropy(pairs, is_random_next, reduction="sum")
            sums["nsp_correct"] = (pairs.argmax(-1) == is_random_next).sum()
        hidden = out.hidden_states[-1]
        return BertOutput(hidden, self.hf.bert.pooler(hidden), pairs, **sums)

    def save(self, folder: Path, tokenizer: Path | None = None, state_dict=None) -> None:
        """Write the directory that `transformers` writes, with the tokenizer's files."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        state = state_dict or self.state_dict()
        state = {name.removeprefix("hf."): value for name, value in state.items()}
        self.hf.save_pretrained(folder, state_dict=state)
        for file in sorted(Path(tokenizer).iterdir()) if tokenizer else ():
            shutil.copy(file, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "HuggingFaceBert":
        """Open any Hugging Face BERT directory; heads it lacks are fresh."""
        return cls.of(BertForPreTraining.load(folder))


class DenseBert(BertForPreTraining):
    """Our BERT, scoring every position before the loss picks the masked ones: what is saved by not
    doing so is the first rung of the speed ladder."""

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
        out = super().forward(
            input_ids, attention_mask, token_type_ids, is_random_next=is_random_next
        )
        scores = out.mlm_logits.flatten(0, 1)
        labels = torch.full((len(scores),), -100, device=scores.device)
        labels[masked_positions] = masked_labels
        loss = F.cross_entropy(scores.float(), labels, ignore_index=-100, reduction="sum")
        correct = (scores.argmax(-1) == labels).sum()
        return out._replace(mlm_loss_sum=loss, mlm_correct=correct)

    @classmethod
    def of(cls, ours: BertForPreTraining) -> "DenseBert":
        model = cls(ours.config)
        model.load_state_dict(ours.state_dict())
        return model
