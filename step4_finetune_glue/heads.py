"""What stands on an encoder: one linear layer, for a class or a score.

Where the head looks. BERT's own reads the pooler, a dense layer and tanh on the state of [CLS].
A sentence-transformer such as MiniLM was trained on the mean of all states: its pooler is as it was
initialised (biases exactly 0, no direction stands out), so there the head reads that mean.
"""

import inspect
from pathlib import Path

import torch
from torch import Tensor, nn

from step1_transformer.checkpoint import copy_tokenizer
from step2_bert.model import BertForSequenceClassification


def mean_of(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mean (B, d) of the states `hidden` (B, T, d) of all real tokens."""
    if attention_mask is None:
        return hidden.mean(1)
    weights = attention_mask.to(hidden.dtype)[..., None]  # (B, T, 1)
    return (hidden * weights).sum(1) / weights.sum(1)


class MeanPooledBert(BertForSequenceClassification):
    """BERT with one linear layer on the mean of the states of all real tokens; no pooler."""

    mean = True

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
        """input_ids, attention_mask and token_type_ids (B, T) -> logits (B, C)."""
        hidden, _ = self.bert(input_ids, attention_mask, token_type_ids)  # (B, T, d)
        return self.classifier(self.dropout(mean_of(hidden, attention_mask)))  # (B, n_classes)


class HuggingFaceClassifier(nn.Module):
    """A transformers model for sequence classification, called, saved and loaded as ours are.

    Where its config says `pooling: mean`, the last layer of its head reads the mean of all states.
    """

    def __init__(self, hf_model: nn.Module):
        super().__init__()
        self.hf = hf_model
        self.segments = "token_type_ids" in inspect.signature(hf_model.forward).parameters
        self.mean = getattr(hf_model.config, "pooling", "cls") == "mean"
        if self.mean:  # what stands between the states and that layer gets no gradient
            pooler = getattr(hf_model.base_model, "pooler", None)  # DistilBERT has the other
            for part in filter(None, (pooler, getattr(hf_model, "pre_classifier", None))):
                part.requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids, attention_mask and token_type_ids (B, T) -> logits (B, C)."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        given |= {"token_type_ids": token_type_ids} if self.segments else {}
        if not self.mean:
            return self.hf(**given).logits
        hidden = self.hf.base_model(**given).last_hidden_state  # (B, T, d)
        return self.hf.classifier(self.hf.dropout(mean_of(hidden, attention_mask)))

    def save(self, folder: str | Path, tokenizer: str | Path | None = None) -> None:
        """Write the model as transformers does, with the files of the folder `tokenizer`."""
        self.hf.save_pretrained(folder)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "HuggingFaceClassifier":
        """What `save` wrote, in fp32, whatever it was saved in."""
        return cls(transformers_auto().from_pretrained(folder, dtype=torch.float32))


def transformers_auto():
    """`AutoModelForSequenceClassification`, which tells of no fresh heads and draws no bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForSequenceClassification
