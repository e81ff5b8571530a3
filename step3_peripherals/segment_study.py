"""One input format, tried: what a BERT trains on in it, and the exam that all formats share.

A step has the same number of tokens in every format, however short its inputs are: what differs is
how far apart two tokens that see each other may stand, and what the pair is asked.
"""

from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from common import batching, data, engine
from common.cli import UserError
from step2_bert import corpus, counting, objective
from step2_bert.masking import MaskingOptions, Vocabulary
from step2_bert.model import BertForPreTraining
from step2_bert.shards import PrepareOptions, encode
from step2_bert.tokenizer import load_tokenizer
from step3_peripherals.bert_study import Study, StudyConfig
from step3_peripherals.masking import Masking, mask
from step3_peripherals.paired import BASE
from step3_peripherals.segments import Formats, Negatives, Samples, Text


@dataclass(frozen=True)
class Format:
    title: str
    inputs: Literal["segment_pairs", "sentence_pairs", "full_sentences", "doc_sentences"]
    question: Negatives | None
    """What the pair is asked, if anything; the pairs are those of the question."""

    def of(self, text: Text, formats: Formats) -> Samples:
        make = getattr(formats, self.inputs)
        if self.inputs.endswith("pairs"):
            return make(text, self.question or "nsp")
        return make(text)


FORMATS = {  # the first four are RoBERTa's table 2; SOP is ALBERT's
    BASE: Format("segment pairs, NSP", "segment_pairs", "nsp"),
    "sentence_pairs": Format("sentence pairs, NSP", "sentence_pairs", "nsp"),
    "full_sentences": Format("full sentences", "full_sentences", None),
    "doc_sentences": Format("doc sentences", "doc_sentences", None),
    "segment_pairs_sop": Format("segment pairs, SOP", "segment_pairs", "sop"),
    "segment_pairs_mlm": Format("segment pairs, no question", "segment_pairs", None),
}
EXAMS = {"long": FORMATS["doc_sentences"], "short": FORMATS["sentence_pairs"]}
EXAM = Masking(static=True)  # 15 %, 80/10/10, whatever a model was trained with


class SegmentStudy(Study):
    """All formats cut the same sentences."""

    nsp = True

    def __init__(self, config: StudyConfig, rate: float):
        super().__init__(config)
        self.masking = Masking(rate=rate)
        tokenizer = load_tokenizer(self.train.tokenizer_dir)
        self.pad_id = self.train.manifest["pad_token_id"]
        ids = (self.train.manifest[f"{name}_token_id"] for name in ("cls", "sep"))
        self.formats = Formats(self.train.max_seq_len, *ids)
        self.texts = _texts(self.train.manifest, tokenizer)
        self.samples = cache(lambda way, split: way.of(self.texts[split], self.formats))
        self.vectors = cache(
            partial(counting.token_vectors, self.train, np.arange(len(self.train)))
        )

    def start(self, model: BertForPreTraining) -> None:
        """Let token embeddings be those of counted neighbours, the same for all formats.

        From random ones, models that are asked about pairs are still at the unigram frequencies
        when the others have left them, and nothing else would be compared.
        """
        with torch.no_grad():
            vectors = self.vectors(model.config.d_model)
            model.token_embedding.copy_(torch.from_numpy(vectors))

    def has_question(self, way: Format) -> bool:
        return way.question is not None

    def batches_of(self, way: Format, config: StudyConfig) -> dict[str, Any]:
        samples = self.samples(way, "train")

        def make_batch(rows, epoch):
            drawing = dict(seed=config.seed, epoch=epoch)
            return self._batch(samples, rows, way.question, self.masking, **drawing)

        room = config.batch_size * self.train.max_seq_len
        return {
            "batches": batching.Batches(samples.lengths, max_tokens=room, seed=config.seed),
            "make_batch": make_batch,
            "data_key": f"{self.train.manifest['key']} {way} {self.masking}",
        }

    def heldout_scores(self, model: nn.Module, way: Format) -> dict[str, float]:
        """MLM loss (nats) on both `EXAMS`; and how many pairs of its own kind it answers (%)."""
        found = {}
        for name, exam in EXAMS.items():
            means = self._evaluate(model, self.samples(exam, "heldout"), None)
            found[f"{name}_loss"] = means["mlm_loss"]
        if way.question:
            means = self._evaluate(model, self.samples(way, "heldout"), way.question)
            found["pair_accuracy"] = 100 * means["nsp_accuracy"]
        return found

    def _evaluate(self, model: nn.Module, samples: Samples, question: str | None) -> dict:
        order = batching.Batches(samples.lengths, max_tokens=1 << 14, shuffle=False)
        drawn = (question, EXAM)
        batches = (self._batch(samples, rows, *drawn) for rows in order.epoch(0))
        return engine.evaluate(model, batches, objective.losses)

    def _batch(self, samples: Samples, rows: np.ndarray, question, masking, **drawing) -> dict:
        return masked_batch(
            samples, rows, self.vocabulary, masking, question, pad_id=self.pad_id, **drawing
        )


def masked_batch(
    samples: Samples,
    rows: np.ndarray,
    vocabulary: Vocabulary,
    masking: Masking,
    question: str | None = None,
    *,
    pad_id: int = 0,
    seed: int = 0,
    epoch: int = 0,
) -> engine.Batch:
    """The samples `rows` (B,), masked, in rows as long as the longest of them, T tokens, as
    `step2_bert.samples.Samples.batch` lays them out: input_ids and token_type_ids (B, T) int64,
    attention_mask (B, T) bool or None, masked_positions and masked_labels (M,). Without a
    `question` no pair is asked."""
    lengths = samples.offsets[rows + 1] - samples.offsets[rows]
    column = np.arange(lengths.max())
    present = column < lengths[:, None]
    place = np.where(present, samples.offsets[rows, None] + column, 0)
    ids = np.where(present, samples.tokens[place], pad_id).astype(np.int64)
    types = np.where(present, samples.segment_ids[place], 0).astype(np.int64)
    positions, labels = mask(ids, lengths, rows, vocabulary, masking, seed=seed, epoch=epoch)
    asked = samples.labels[rows] if question else np.zeros(len(rows))
    arrays = {
        "input_ids": ids,
        "token_type_ids": types,
        "masked_positions": positions,
        "masked_labels": labels,
        "is_random_next": asked.astype(np.int64),
    }
    return {name: torch.from_numpy(values) for name, values in arrays.items()} | {
        "attention_mask": None if present.all() else torch.from_numpy(present),
        "targets": {"mlm": len(labels), "nsp": len(rows) if question else 0},
        "tokens": int(lengths.sum()),
    }


def _texts(manifest: dict, tokenizer) -> dict[str, Text]:
    """The sentences of the documents that step 2 trains on and holds out, as tokens.

    Raises UserError if the text is no longer what was prepared.
    """
    source = data.resolve(manifest["source"]["name"])
    if source.fingerprint() != manifest["source"]["fingerprint"]:
        raise UserError(f"{source.name} is no longer the text that was prepared: prepare it again")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[SEP]" in the text is text
    options = manifest["options"]
    options = PrepareOptions(**options | {"masking": MaskingOptions(**options["masking"])})
    found = corpus.documents(source, options)
    texts = {}
    for split, counts in manifest["splits"].items():
        documents = list(islice(found, counts["documents"]))
        tokens, sentences, starts, _ = encode(documents, tokenizer)
        texts[split] = Text(tokens, np.array(sentences), np.array(starts))
    return texts
