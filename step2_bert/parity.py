"""Hold our BERT against the one of `transformers`: same weights, same scores, same gradients.

    python step2_bert/parity.py                    odd random shapes, tiny to base, real weights

For each shape it prints the largest difference of any score (absolute) and of any gradient
(relative to the largest entry of that gradient), in fp32, with padding and segments, in train mode
without dropout, in eval, and in eval under no_grad. It fails above 1e-5.
"""

import random
import time
from dataclasses import dataclass

import torch
from torch import nn

from common import cli, runs
from common.cli import UserError
from common.runs import metric
from step2_bert.checkpoint import hf_names, locate
from step2_bert.model import BertConfig, BertForPreTraining
from step2_bert.tokenizer import load_tokenizer

LARGEST_DIFFERENCE = 1e-5
SENTENCES = (
    "A gym is where one trains.",
    "What is learned on paper stays shallow; to know a thing, do it.",
    "Équations, naïve café, 100 %!",
)


@dataclass
class Config(cli.RunConfig):
    shapes: int = 20
    """Random odd shapes to compare."""
    sizes: tuple[str, ...] = ("tiny", "mini", "base")
    """Published sizes to compare as well."""


PRESETS = {"smoke": dict(shapes=3, sizes=("tiny",)), "cpu": {}, "gpu": {}}


def main(config: Config) -> None:
    run = runs.Run.open(config, "step2_bert/parity")
    if run.finished():
        return
    rng, started = random.Random(config.seed), time.monotonic()
    shapes = [(f"odd {i}", odd_shape(rng)) for i in range(config.shapes)]
    shapes += [(s, BertConfig.named(s, dropout=0.0, attention_dropout=0.0)) for s in config.sizes]

    worst = {"score": 0.0, "gradient": 0.0}
    titles = ("layers", "width", "heads", "vocab")
    print(f"{'shape':8}", *(f"{t:>6}" for t in titles), "largest difference: scores, gradients")
    for name, shape in shapes:
        torch.manual_seed(config.seed)
        found = compare(shape)
        worst = {kind: max(worst[kind], found[kind]) for kind in worst}
        numbers = (shape.n_layers, shape.d_model, shape.n_heads, shape.vocab_size)
        told = f"{found['score']:27.1e} {found['gradient']:10.1e}"
        print(f"{name:8}", *(f"{number:6}" for number in numbers), told)

    hidden = pretrained_difference()
    print(
        f"pretrained MiniLM encoder, real sentences: hidden states differ by {hidden:.1e} at most"
    )
    for name, value in (worst | {"pretrained hidden state": hidden}).items():
        if not value <= LARGEST_DIFFERENCE:
            raise UserError(f"largest {name} difference {value:.1e} is above {LARGEST_DIFFERENCE}")
    difference = dict(unit="", higher_is_better=False)
    run.result(
        step="step2_bert",
        script="parity",
        system="our BERT against transformers.BertForPreTraining",
        preset=config.preset,
        dataset="random tokens; MiniLM: three sentences",
        split="-",
        metrics={
            "largest_score_difference": metric(worst["score"], n=len(shapes), **difference),
            "largest_relative_gradient_difference": metric(
                worst["gradient"], n=len(shapes), **difference
            ),
            "largest_pretrained_hidden_difference": metric(hidden, **difference),
        },
        compare_to=[],
        model={"name": "odd shapes, " + ", ".join(config.sizes), "parameters": None},
        tokens=None,
        seconds=round(time.monotonic() - started, 1),
        tokens_per_second=None,
        seeds=[config.seed],
        config=cli.as_dict(config),
    )


def odd_shape(rng: random.Random) -> BertConfig:
    """A small shape with numbers that hide no transposition: odd widths, few or many heads."""
    n_heads = rng.randint(1, 5)
    return BertConfig(
        vocab_size=rng.randint(37, 101),
        d_model=n_heads * rng.choice([5, 7, 8, 13]),
        n_heads=n_heads,
        n_layers=rng.randint(1, 3),
        d_ff=rng.choice([5, 19, 33]),
        max_seq_len=rng.randint(11, 20),
        n_segments=rng.randint(1, 3),
        pad_token_id=rng.choice([0, 3]),
        dropout=0.0,
        attention_dropout=0.0,
        initializer_range=0.2,
        attention=rng.choice(["explicit", "fused"]),
    )


def compare(shape: BertConfig) -> dict[str, float]:
    """Largest differences of scores and gradients over the three modes."""
    ours, theirs = pair(shape)
    B, T = 3, min(shape.max_seq_len, 40)
    lengths = torch.randint(2, T + 1, (B, 1))
    batch = {
        "input_ids": torch.randint(shape.vocab_size, (B, T)),
        "attention_mask": (torch.arange(T) < lengths).long(),
        "token_type_ids": torch.randint(shape.n_segments, (B, T)),
    }
    labels = torch.randint(shape.vocab_size, (B, T))
    is_random_next = torch.randint(2, (B,))

    largest = {"score": 0.0, "gradient": 0.0}
    for training, grad in ((True, True), (False, True), (False, False)):
        ours.train(training), theirs.train(training)
        with torch.set_grad_enabled(grad):
            got, want = ours(**batch), theirs(**batch)
        for a, b in ((got.mlm_logits, want.prediction_logits),
                     (got.nsp_logits, want.seq_relationship_logits)):  # fmt: skip
            largest["score"] = max(largest["score"], (a - b).abs().max().item())
        if not grad:
            continue
        masked = torch.arange(B * T)
        out = ours(**batch, masked_positions=masked, masked_labels=labels.flatten(),
                   is_random_next=is_random_next)  # fmt: skip
        ours.zero_grad(), theirs.zero_grad()
        (out.mlm_loss_sum / len(masked) + out.nsp_loss_sum / B).backward()
        theirs(**batch, labels=labels, next_sentence_label=is_random_next).loss.backward()
        largest["gradient"] = max(largest["gradient"], gradient_difference(ours, theirs))
    return largest


@torch.no_grad()
def pair(shape: BertConfig) -> tuple[BertForPreTraining, nn.Module]:
    """Ours and theirs with the same random weights."""
    ours = BertForPreTraining(shape)
    for parameter in ours.parameters():  # biases and norms too, or their mistakes would not show
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return ours, ours.to_hf()


def gradient_difference(ours: BertForPreTraining, theirs: nn.Module) -> float:
    """The largest over all parameters of max|a - b| / max|b|, for gradients a of ours, b of theirs.

    max|b| counts as 1e-2 at least. A gradient is a sum of terms of order 1, each rounded at 1e-7:
    where they cancel, as for a key's bias, which cannot change a softmax, only noise is left.
    """
    largest, expected = 0.0, dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        want = torch.cat([expected[n].grad for n in hf_names(name)])
        size = want.abs().max().clamp(min=1e-2)
        largest = max(largest, ((parameter.grad - want).abs().max() / size).item())
    return largest


@torch.no_grad()
def pretrained_difference() -> float:
    """Largest difference of hidden states on real sentences, with real pretrained weights."""
    import transformers

    folder = locate("minilm")
    tokenizer = load_tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])
    ours = BertForPreTraining.load(folder).bert(ids, mask)[0]
    transformers.utils.logging.disable_progress_bar()  # for one small file
    theirs = transformers.AutoModel.from_pretrained(folder)(ids, mask).last_hidden_state
    return (ours - theirs)[mask.bool()].abs().max().item()


if __name__ == "__main__":
    cli.run(main, Config, PRESETS)
