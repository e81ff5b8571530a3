"""Rows of a task as token ids: tokenised once, cut into batches without needless pads."""

from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer

from common import engine
from step2_bert.tokenizer import special_ids
from step4_finetune_glue.tasks import Rows

AT_ONCE = 10_000  # rows that are in memory as the tokenizer's own, large objects
LONGEST = 1_000  # characters of a text, for each token of a row, that the tokenizer gets to see


class Encoded:
    """Token ids of rows, end to end in one array: [CLS] A [SEP], or [CLS] A [SEP] B [SEP].

    A row longer than `max_seq_len` is cut; in a pair the longer text loses first, as in BERT.
    `token_type_ids` are those of the tokenizer: 1 on B for BERT, 0 everywhere for RoBERTa.
    """

    def __init__(self, tokenizer: Tokenizer, rows: Rows, max_seq_len: int):
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_seq_len, strategy="longest_first")
        first, second = (
            texts and [text[: LONGEST * max_seq_len] for text in texts]
            for texts in (rows.first, rows.second)
        )
        texts = first if second is None else list(zip(first, second, strict=True))
        ids, types, lengths = [], [], []
        for start in range(0, len(texts), AT_ONCE):
            for row in tokenizer.encode_batch_fast(texts[start : start + AT_ONCE]):
                ids.append(np.array(row.ids, np.int32))
                types.append(np.array(row.type_ids, np.uint8))
                lengths.append(len(row.ids))
        self.ids, self.types = np.concatenate(ids), np.concatenate(types)
        self.lengths = np.array(lengths)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.pad_id = special_ids(tokenizer)["[PAD]"]
        self.labels = rows.labels

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> engine.Batch:
        """input_ids, token_type_ids, attention_mask, all (B, T), T the longest of `rows`; labels
        (B,), int64 classes or float32 scores, where there are any."""
        lengths = self.lengths[rows, None]  # (B, 1)
        column = np.arange(lengths.max())
        real = column < lengths
        at = np.where(real, self.starts[rows, None] + column, 0)
        batch = {
            "input_ids": torch.from_numpy(np.where(real, self.ids[at], self.pad_id)),
            "token_type_ids": torch.from_numpy(np.where(real, self.types[at], 0)),
            "attention_mask": torch.from_numpy(real),
            "targets": {"label": len(rows)},
            "tokens": int(lengths.sum()),
        }
        batch |= {name: batch[name].long() for name in ("input_ids", "token_type_ids")}
        if self.labels is not None:
            labels = torch.from_numpy(self.labels[rows])
            batch["labels"] = labels.float() if labels.is_floating_point() else labels
        return batch


def sample(rows: Rows, n: int) -> Rows:
    """`n` of the rows (all, if there are no more), in their order and the same ones every time."""
    kept = np.sort(np.random.default_rng(0).permutation(len(rows))[:n])
    texts = {
        side: values and [values[i] for i in kept]
        for side, values in (("first", rows.first), ("second", rows.second))
    }
    labels = None if rows.labels is None else rows.labels[kept]
    return replace(rows, labels=labels, ids=[rows.ids[i] for i in kept], **texts)
