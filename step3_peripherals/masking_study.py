"""One mask, tried: what a BERT trains on with it, and the exam that all masks share."""

from typing import Any

import numpy as np
import torch
from torch import nn

from common import batching, engine
from step2_bert import objective
from step2_bert.budget import flops_per_token
from step2_bert.masking import Vocabulary
from step2_bert.model import BertForPreTraining
from step2_bert.samples import Samples
from step3_peripherals.bert_study import Study, StudyConfig
from step3_peripherals.masking import Masking, mask

# Held-out text is scored with these, whatever a model was trained with: what stands in the place of
# a token is [MASK], another token, the token itself, or as in BERT's training
SCORED = {
    "blank": Masking(mask_share=1, random_share=0, static=True),
    "wrong": Masking(mask_share=0, random_share=1, static=True),
    "same": Masking(mask_share=0, random_share=0, static=True),
    "mlm": Masking(static=True),
}


class MaskingStudy(Study):
    """All masks hide parts of the same batches, and all trainings cost the same."""

    def steps(self, way: Masking, config: StudyConfig) -> int:
        """`config.max_steps` at the usual rate, else as many as take the same compute: the output
        layer is paid for at hidden tokens alone, so a step that hides more of them costs more."""
        with torch.device("meta"):  # shapes without memory
            model = BertForPreTraining(self.shape(config))
        usual, cost = (
            flops_per_token(model, self.train.max_seq_len, masking.rate)
            for masking in (Masking(), way)
        )
        return max(1, round(config.max_steps * usual / cost))

    def batches_of(self, way: Masking, config: StudyConfig) -> dict[str, Any]:
        def make_batch(rows, epoch):
            drawing = dict(seed=config.seed, epoch=epoch)
            return masked_batch(self.train, rows, self.vocabulary, way, **drawing)

        order = dict(batch_size=config.batch_size, seed=config.seed)
        return {
            "batches": batching.Batches(self.train.lengths, **order),
            "make_batch": make_batch,
            "data_key": f"{self.train.manifest['key']} {way}",
        }

    def heldout_scores(self, model: nn.Module, way: Masking) -> dict[str, float]:
        """Loss (nats) and accuracy (%) on all held-out samples, masked in all ways of `SCORED`."""
        found, lengths = {}, self.heldout.lengths
        order = batching.Batches(lengths, batch_size=128, shuffle=False, drop_last=False)
        for name, masking in SCORED.items():
            drawn = (self.vocabulary, masking)
            batches = (masked_batch(self.heldout, rows, *drawn) for rows in order.epoch(0))
            means = engine.evaluate(model, batches, objective.losses)
            found[f"{name}_loss"] = means["mlm_loss"]
            found[f"{name}_accuracy"] = 100 * means["mlm_accuracy"]
        return found


def masked_batch(
    samples: Samples,
    rows: np.ndarray,
    vocabulary: Vocabulary,
    masking: Masking,
    *,
    seed: int = 0,
    epoch: int = 0,
) -> engine.Batch:
    """The batch that `Samples.batch` makes of `rows` (B,), masked anew by `masking`: others are its
    input_ids (B, T), masked_positions (M,) and masked_labels (M,)."""
    batch = samples.batch(rows)
    ids = batch["input_ids"].numpy()
    ids.reshape(-1)[batch["masked_positions"]] = batch["masked_labels"]  # the text as it was
    lengths = samples.lengths[rows].astype(np.int64)
    positions, labels = mask(ids, lengths, rows, vocabulary, masking, seed=seed, epoch=epoch)
    masked = {"masked_positions": positions, "masked_labels": labels}
    batch |= {name: torch.from_numpy(values) for name, values in masked.items()}
    return batch | {"targets": {"mlm": len(labels)}}
