"""Our blocks in the form of the drills of step 4, so that one test judges ours or a learner's."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from common.batching import Batches
from step4_finetune_glue import metrics, outcome, recipe
from step4_finetune_glue.encoding import Encoded
from step4_finetune_glue.heads import MeanPooledBert


def accuracy_and_f1(predictions, labels):
    both = predictions.numpy(), labels.numpy()
    return metrics.accuracy(*both), metrics.f1(*both)


def matthews_correlation(predictions, labels):
    return metrics.matthews(predictions.numpy(), labels.numpy())


def pearson_correlation(x, y):
    return metrics.pearson(x.numpy(), y.numpy())


def ranks_with_ties(x):
    return torch.from_numpy(metrics.ranks(x.numpy()))


def spearman_correlation(x, y):
    return metrics.spearman(x.numpy(), y.numpy())


def _encoded(texts, vocabulary, max_seq_len, cls_id=None, sep_id=None):
    """Texts (or pairs of them) of tokens, encoded; a token is written as its id."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if cls_id is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", cls_id), ("[SEP]", sep_id)],
        )
    sides = [[" ".join(map(str, text)) for text in side] for side in texts]
    rows = SimpleNamespace(first=sides[0], second=(sides[1:] or [None])[0], labels=None)
    return Encoded(tokenizer, rows, max_seq_len)


def encode_pair(first, second, cls_id, sep_id, max_seq_len):
    vocabulary = {str(i): i for i in (*first, *second)}
    special = {"[CLS]": cls_id, "[SEP]": sep_id, "[UNK]": -1, "[PAD]": -2, "[MASK]": -3}
    free = (i for i in range(10**6) if i not in {*first, *second, cls_id, sep_id})
    vocabulary |= {token: i if i >= 0 else next(free) for token, i in special.items()}
    encoded = _encoded([[first], [second]], vocabulary, max_seq_len, cls_id, sep_id)
    return encoded.ids.tolist(), encoded.types.tolist()


def length_buckets(lengths, batch_size, pool_batches):
    with mock.patch("common.batching.POOL", pool_batches):
        batches = Batches(lengths, batch_size=batch_size, shuffle=False, drop_last=False).epoch(0)
    return [batch.tolist() for batch in batches]


def pad_batch(rows, pad_id):
    """`Encoded.batch` of rows that are encoded already."""
    encoded = Encoded.__new__(Encoded)
    encoded.ids, encoded.pad_id, encoded.labels = torch.cat(rows).numpy(), pad_id, None
    encoded.types = np.zeros(len(encoded.ids), np.uint8)
    encoded.lengths = np.array([len(row) for row in rows])
    encoded.starts = np.cumsum(encoded.lengths) - encoded.lengths
    batch = encoded.batch(np.arange(len(rows)))
    return batch["input_ids"], batch["attention_mask"]


def layer_rates(names, n_layers, rate, decay):
    """Of the groups in which a model with these parameters is optimized."""
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in names}
    if not any(f".{n_layers - 1}." in name for name in names):
        parameters[f"encoder.layer.{n_layers - 1}.weight"] = nn.Parameter(torch.zeros(1))
    model = SimpleNamespace(named_parameters=lambda: list(parameters.items()))
    (optimizer,) = recipe.build_optimizers(model, rate, layer_decay=decay)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rates[id(parameters[name])] for name in names}


def bert_adam_step(weight, gradient, mean, square, learning_rate, betas, eps, weight_decay):
    parameter = nn.Parameter(weight)
    parameter.grad = gradient
    options = {"lr": learning_rate, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    optimizer = recipe.BertAdam([parameter], **options)
    optimizer.state[parameter] = {
        "step": torch.tensor(0.0), "exp_avg": mean, "exp_avg_sq": square
    }  # fmt: skip
    optimizer.step()


def sentence_vectors(hidden, attention_mask):
    """The mean that MeanPooledBert's head reads."""
    model = MeanPooledBert.__new__(MeanPooledBert)
    nn.Module.__init__(model)
    model.bert, model.dropout = lambda *inputs: (hidden, None), nn.Identity()
    model.classifier = nn.Identity()
    mean = model(attention_mask, attention_mask)
    return nn.functional.normalize(mean, dim=-1)


def summary_of_seeds(scores, predictions):
    found = [
        {
            "scores": {"accuracy": score},
            "collapsed": metrics.collapsed(row.numpy()),
            "seconds": 1.0,
            "tokens": 1,
            "precision": "fp32",
            "training": {},
            "peak_mb": 1,
        }
        for score, row in zip(scores.tolist(), predictions, strict=True)
    ]
    summary = outcome.over_seeds(found)
    accuracy = summary["metrics"]["accuracy"]
    return accuracy["value"], accuracy["sd"], summary["collapsed"]
