"""How each drill of this step is judged: its inputs, and its usual mistakes with their hints."""

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from step0_pytorch_warmup.checker import Drill
from step0_pytorch_warmup.checks import floats, ids
from step1_transformer import solutions as s

MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])  # (B, S)
KEYS = MASK[:, None, None]  # for (B, h, T, S)
EOS = 2


def attention_case(mask: Tensor | None, T: int = 3, S: int = 4) -> tuple:
    return *(floats(2, 2, n, 8, grad=True) for n in (T, S, S)), mask


def heads_case(mask: Tensor | None, T: int = 3, S: int = 4) -> tuple:
    weights = floats(24, 8, scale=0.4), floats(24), floats(8, 8, scale=0.4), floats(8)
    return floats(2, T, 8, grad=True), floats(2, S, 8), *weights, 2, mask


def language(seed: int, V: int = 5):
    """next_log_p of a made-up language: the next token depends on the two before."""
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(V, V, V, generator=g, dtype=torch.double).log_softmax(-1)
    return lambda ids: table[ids[:, -2] if ids.shape[1] > 1 else 0, ids[:, -1]]


def _unmasked(q, k, v, mask):
    return s.scaled_dot_product(q, k, v, None)


def _unscaled(q, k, v, mask):
    return s.scaled_dot_product(q * math.sqrt(q.shape[-1]), k, v, mask)


def _scaled_twice(q, k, v, mask):
    return s.scaled_dot_product(q / math.sqrt(q.shape[-1]), k, v, mask)


def _masked_after(q, k, v, mask):
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights if mask is None else weights * mask) @ v


def _mask_upside_down(q, k, v, mask):
    return s.scaled_dot_product(q, k, v, None if mask is None else ~mask)


def _softmax_over_queries(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-2) @ v


def _heads(split=None, join=None, **changed):
    """multi_head_attention with one thing done otherwise."""

    def wrong(query, memory, w_in, b_in, w_out, b_out, n_heads, mask):
        if "memory" in changed:
            memory = query
        q, k, v = (
            F.linear(x, w, b)
            for x, w, b in zip((query, memory, memory), w_in.chunk(3), b_in.chunk(3), strict=True)
        )
        if split:
            q, k, v = (split(x, n_heads) for x in (q, k, v))
        else:
            q, k, v = (x.unflatten(-1, (n_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if "whole" in changed:
            q = q / math.sqrt(n_heads)
        out = s.scaled_dot_product(q, k, v, None if "unmasked" in changed else mask)
        out = out.flatten(2).view_as(query) if join else out.transpose(1, 2).flatten(2)
        return out if "unprojected" in changed else F.linear(out, w_out, b_out)

    return wrong


def _halves(n_positions, d_model):
    pairs = s.sinusoidal_positions(n_positions, d_model).unflatten(1, (-1, 2))
    return pairs.transpose(1, 2).flatten(1)


def _frequency_of_each(n_positions, d_model):
    i = torch.arange(d_model)
    angle = torch.arange(n_positions)[:, None] * 10000 ** (-i / d_model)
    return torch.where(i % 2 == 0, angle.sin(), angle.cos())


def _from_one(n_positions, d_model):
    return s.sinusoidal_positions(n_positions + 1, d_model)[1:]


def _smoothed_others(logits, labels, smoothing, pad):
    """Szegedy's q with the smoothing shared among the V - 1 others."""
    V = logits.shape[1]
    return s.label_smoothing(logits, labels, smoothing * V / (V - 1), pad)


def _pads_count(logits, labels, smoothing, pad):
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def _pads_divide(logits, labels, smoothing, pad):
    real = (labels != pad).sum()
    return s.label_smoothing(logits, labels, smoothing, pad) * real / len(labels)


def _greedy_goes_on(logits, finished, eos, pad):
    tokens = logits.argmax(-1)
    return tokens, finished | (tokens == eos)


def _greedy_forgets(logits, finished, eos, pad):
    tokens = logits.argmax(-1).masked_fill(finished, pad)
    return tokens, tokens == eos


def _best_of_each(scores, log_p):
    best, token = (scores[:, None] + log_p).max(1)
    order = best.argsort(descending=True)
    return best[order], order, token[order]


def _without_scores(scores, log_p):
    return s.beam_step(torch.zeros_like(scores), log_p)


def _probabilities(scores, log_p):
    best, place = (scores[:, None] + log_p.exp()).flatten().topk(len(scores))
    return best, place // log_p.shape[1], place % log_p.shape[1]


def _greedy(next_log_p, bos, eos, beam_size, max_len, alpha):
    return s.beam_search(next_log_p, bos, eos, 1, max_len, alpha)


def _unpenalised(next_log_p, bos, eos, beam_size, max_len, alpha):
    return s.beam_search(next_log_p, bos, eos, beam_size, max_len, 0.0)


def _longest(next_log_p, bos, eos, beam_size, max_len, alpha):
    return s.beam_search(next_log_p, bos, eos, beam_size, max_len, 10.0)


def _shrinking(next_log_p, bos, eos, beam_size, max_len, alpha):
    live, finished = [(0.0, [])], []
    for length in range(1, max_len + 1):
        log_p = next_log_p(torch.tensor([[bos, *tokens] for _, tokens in live])).tolist()
        grown = [
            (score + more, [*tokens, token])
            for (score, tokens), row in zip(live, log_p, strict=True)
            for token, more in enumerate(row)
        ]
        best = sorted(grown, reverse=True)[:beam_size]
        ended = [each for each in best if each[1][-1] == eos or length == max_len]
        finished += [(score / s.length_penalty(length, alpha), tokens) for score, tokens in ended]
        live = [each for each in best if each not in ended]
    return max(finished)[1]


def _bos_kept(*arguments):
    return [arguments[1], *s.beam_search(*arguments)]


def _eos_cut(*arguments):
    return [token for token in s.beam_search(*arguments) if token != arguments[2]]


def _unclipped(hypothesis, reference, n):
    def ngrams(words):
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    return sum(g in ngrams(reference) for g in ngrams(hypothesis)), len(ngrams(hypothesis))


def _distinct(hypothesis, reference, n):
    ours, theirs = (
        Counter(zip(*(words[i:] for i in range(n)), strict=False)).keys()
        for words in (hypothesis, reference)
    )
    return len(ours & theirs), len(ours)


def _of_reference(hypothesis, reference, n):
    return s.ngram_matches(reference, hypothesis, n)


def _mean_of_sentences(hypotheses, references):
    pairs = zip(hypotheses, references, strict=True)
    return sum(s.bleu([h], [r]) for h, r in pairs) / len(hypotheses)


def _without_brevity(hypotheses, references):
    lengths = sum(map(len, hypotheses)), sum(map(len, references))
    return s.bleu(hypotheses, references) / s.brevity_penalty(*lengths)


CAT, THE, LONG, SHORT, MADE, READ = (
    text.split()
    for text in (
        "the cat is on the mat today",
        "the the the the the the the",
        "there is a cat on the mat in the house",
        "a cat on the mat is there",
        "the dog ran over the old bridge at night",
        "a dog ran over the old bridge",
    )
)

DRILLS = [
    Drill(
        s.scaled_dot_product,
        lambda: {"masked": attention_case(KEYS), "no mask": attention_case(None, T=2, S=5)},
        {
            "this is right without the mask": _unmasked,
            "the scores are not divided by the square root of the head's width": _unscaled,
            "the scores are divided by the width, not by its square root": _scaled_twice,
            "masked after the softmax: the weights no longer sum to 1": _masked_after,
            "True means may look: this hides what should be seen": _mask_upside_down,
            "the softmax runs over queries: a query shares itself out over keys, the last axis": (
                _softmax_over_queries
            ),
        },
    ),
    Drill(
        s.decoder_mask,
        lambda: {
            "padding": (MASK,),
            "none": (torch.ones(3, 3, dtype=torch.bool),),
        },
        {
            "right without padding: a padded key is seen": (
                lambda mask: (
                    torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool)
                    .tril()
                    .expand(len(mask), 1, -1, -1)
                )
            ),
            "right for padding, but a token sees what comes after it": (
                lambda mask: mask[:, None, None].expand(-1, 1, mask.shape[1], -1)
            ),
            "padding hides keys (the last axis), not queries": (
                lambda mask: (
                    mask[:, None, :, None]
                    & torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
                )
            ),
            "the axis of the heads is missing": lambda mask: s.decoder_mask(mask).squeeze(1),
        },
    ),
    Drill(
        s.multi_head_attention,
        lambda: {
            "T = S = h": heads_case(None, T=2, S=2),
            "masked": heads_case(KEYS),
        },
        {
            "this is right without the mask": _heads(unmasked=True),
            "view(B, h, T, d/h) mixes positions and heads: split the last axis, then transpose": (
                _heads(lambda x, h: x.reshape(len(x), h, x.shape[1], -1))
            ),
            "each head got every h-th feature: head i takes the i-th d/h features": (
                _heads(lambda x, h: x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2))
            ),
            "the heads are joined in the wrong order: transpose back before you flatten": (
                _heads(join=True)
            ),
            "scaled by the square root of d: each head is only d/h wide": _heads(whole=True),
            "keys and values come from the memory, not from the query": _heads(memory=True),
            "the output projection W^O is missing": _heads(unprojected=True),
        },
        loops=True,
    ),
    Drill(
        s.sinusoidal_positions,
        lambda: {"10 x 8": (10, 8), "1 x 2": (1, 2), "far away": (300, 4)},
        {
            "sines in one half and cosines in the other: the paper has them side by side": _halves,
            "sine 2i and cosine 2i + 1 share the exponent 2i / d": _frequency_of_each,
            "positions count from 0": _from_one,
            "float64 where float32 is expected": (
                lambda n, d: s.sinusoidal_positions(n, d).double()
            ),
            "sines and cosines are exchanged": (
                lambda n, d: s.sinusoidal_positions(n, d).unflatten(1, (-1, 2)).flip(-1).flatten(1)
            ),
        },
    ),
    Drill(
        s.layer_norm,
        lambda: {
            "x": (*(floats(*n, grad=True) for n in ((2, 3, 6), (6,), (6,))), 1e-5),
            "a large eps": (floats(3, 4), floats(4), floats(4), 0.5),
        },
        {
            "the variance divides by d, not d - 1: unbiased=False": (
                lambda x, w, b, eps: (
                    (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * w + b
                )
            ),
            "eps stands under the root": (
                lambda x, w, b, eps: (
                    (x - x.mean(-1, keepdim=True))
                    / (x.std(-1, keepdim=True, unbiased=False) + eps)
                    * w
                    + b
                )
            ),
            "right without weight and bias": (
                lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], eps=eps)
            ),
            "the whole sentence is normalised: each position stands alone": (
                lambda x, w, b, eps: F.layer_norm(x, x.shape[1:], eps=eps) * w + b
            ),
        },
    ),
    Drill(
        s.feed_forward,
        lambda: {
            "x": (floats(2, 3, 4, grad=True), floats(6, 4), floats(6), floats(4, 6), floats(4))
        },
        {
            "the ReLU between the two is missing": (
                lambda x, w_1, b_1, w_2, b_2: F.linear(F.linear(x, w_1, b_1), w_2, b_2)
            ),
            "no activation after the second product": (
                lambda *arguments: s.feed_forward(*arguments).relu()
            ),
            "this is GELU; the paper's activation is max(0, x)": (
                lambda x, w_1, b_1, w_2, b_2: F.linear(F.gelu(F.linear(x, w_1, b_1)), w_2, b_2)
            ),
            "the biases are missing": (
                lambda x, w_1, b_1, w_2, b_2: F.linear(F.linear(x, w_1).relu(), w_2)
            ),
        },
    ),
    Drill(
        s.residual,
        lambda: {
            "post": (floats(2, 3, 4, grad=True), torch.tanh, torch.exp, "post"),
            "pre": (floats(2, 3, 4, grad=True), torch.tanh, torch.exp, "pre"),
        },
        {
            "x itself is not added": (
                lambda x, f, norm, order: norm(f(x)) if order == "post" else f(norm(x))
            ),
            "pre-norm adds x as it is: only the sublayer sees the normed one": (
                lambda x, f, norm, order: (
                    norm(x + f(x)) if order == "post" else norm(x) + f(norm(x))
                )
            ),
            "post-norm norms the sum, not the sublayer's output": (
                lambda x, f, norm, order: x + norm(f(x)) if order == "post" else x + f(norm(x))
            ),
            "right for the other order": (
                lambda x, f, norm, order: x + f(norm(x)) if order == "post" else norm(x + f(x))
            ),
        },
    ),
    Drill(
        s.embed,
        lambda: {"T < n": (ids(7, 2, 3), floats(7, 4, grad=True), floats(5, 4))},
        {
            "tokens are not scaled: times the square root of d": (
                lambda ids, weight, positions: weight[ids] + positions[: ids.shape[1]]
            ),
            "positions are scaled too: only tokens should be": (
                lambda ids, weight, positions: (
                    (weight[ids] + positions[: ids.shape[1]]) * math.sqrt(weight.shape[1])
                )
            ),
            "positions are missing": (
                lambda ids, weight, positions: weight[ids] * math.sqrt(weight.shape[1])
            ),
        },
    ),
    Drill(
        s.shift_right,
        lambda: {"labels": (ids(9, 2, 4), 1), "T = 1": (ids(9, 3, 1), 1)},
        {
            "shifted the other way: at t the decoder reads label t - 1": (
                lambda labels, bos: torch.cat(
                    (labels[:, 1:], torch.full_like(labels[:, :1], bos)), 1
                )
            ),
            "T + 1 tokens: drop the last label, which nothing is left to read": (
                lambda labels, bos: torch.cat((torch.full_like(labels[:, :1], bos), labels), 1)
            ),
            "the last label comes round to the front: bos should stand there": (
                lambda labels, bos: labels.roll(1, 1)
            ),
        },
    ),
    Drill(
        s.label_smoothing,
        lambda: {
            "some pad": (floats(5, 4, grad=True), torch.tensor([1, 0, 3, 2, 0]), 0.2, 0),
            "no smoothing": (floats(3, 4), torch.tensor([1, 2, 3]), 0.0, 0),
            "large logits": (1e3 * floats(3, 4), torch.tensor([1, 2, 3]), 0.1, 0),
        },
        {
            "this is right without smoothing": lambda x, y, eps, pad: F.cross_entropy(
                x, y, ignore_index=pad
            ),
            "eps is shared among all V tokens, the label included: it gets 1 - eps + eps / V": (
                _smoothed_others
            ),
            "pad labels count: leave them out": _pads_count,
            "pad labels still count in the divisor": _pads_divide,
            "this is the sum, not the mean": lambda x, y, eps, pad: F.cross_entropy(
                x, y, ignore_index=pad, label_smoothing=eps, reduction="sum"
            ),
        },
    ),
    Drill(
        s.warmup_rate,
        lambda: {"warming up": (100, 512, 4000), "after": (16000, 512, 4000), "first": (1, 64, 10)},
        {
            "right during warm-up, but nothing stops the rise: the smaller of the two": (
                lambda step, d, warmup: d**-0.5 * step * warmup**-1.5
            ),
            "right after warm-up, but without it: the smaller of the two": (
                lambda step, d, warmup: d**-0.5 * step**-0.5
            ),
            "the factor d_model^-0.5 is missing": (
                lambda step, d, warmup: min(step**-0.5, step * warmup**-1.5)
            ),
        },
    ),
    Drill(
        s.cached_attention,
        lambda: {
            "4 tokens so far": (
                *(floats(2, 2, 1, 4) for _ in range(3)),
                (floats(2, 2, 4, 4), floats(2, 2, 4, 4)),
            ),
            "the first token": (
                *(floats(2, 2, 1, 4) for _ in range(3)),
                (floats(2, 2, 0, 4), floats(2, 2, 0, 4)),
            ),
        },
        {
            "the newest token does not look at itself: append k and v first": (
                lambda q, k, v, cache: (
                    s.scaled_dot_product(q, *cache, None),
                    s.cached_attention(q, k, v, cache)[1],
                )
            ),
            "the cache does not grow": (
                lambda q, k, v, cache: (s.cached_attention(q, k, v, cache)[0], cache)
            ),
            "the newest goes behind the others, not in front": (
                lambda q, k, v, cache: (
                    s.cached_attention(q, k, v, cache)[0],
                    (torch.cat((k, cache[0]), 2), torch.cat((v, cache[1]), 2)),
                )
            ),
        },
        loops=True,
    ),
    Drill(
        s.greedy_step,
        lambda: {
            "one finished before, one now": (
                floats(4, 5) + 9 * F.one_hot(torch.tensor([3, 4, EOS, 1]), 5),
                torch.tensor([False, True, False, False]),
                EOS,
                0,
            )
        },
        {
            "a finished sentence goes on: it gets pad": _greedy_goes_on,
            "finished once, finished for ever: combine with what was finished before": (
                _greedy_forgets
            ),
        },
    ),
    Drill(
        s.length_penalty,
        lambda: {"7 tokens": (7, 0.6), "alpha 1": (25, 1.0), "alpha 0": (3, 0.0)},
        {
            "this is length^alpha: the 5 softens it for short sentences": (
                lambda length, alpha: length**alpha
            ),
            "the power takes the whole fraction, the 6 too": (
                lambda length, alpha: (5 + length) ** alpha / 6
            ),
            "upside down: log P is divided by it, so it grows with the length": (
                lambda length, alpha: s.length_penalty(length, -alpha)
            ),
        },
    ),
    Drill(
        s.beam_step,
        lambda: {
            "a strong beam": (torch.tensor([0.0, -0.5, -3.0]), 0.3 * floats(3, 5)),
            "even beams": (torch.tensor([-1.0, -1.1]), floats(2, 4)),
        },
        {
            "one from each beam: a strong beam may go on more than once": _best_of_each,
            "the scores so far are not added": _without_scores,
            "log probabilities add as they are: no exp": _probabilities,
        },
    ),
    Drill(
        s.beam_search,
        lambda: {
            "3 beams": (language(1), 1, EOS, 3, 6, 0.6),
            "other words": (language(2), 1, EOS, 3, 6, 0.6),
            "alpha 2": (language(5), 1, EOS, 4, 8, 2.0),
            "2 beams": (language(3), 1, EOS, 2, 7, 1.0),
            "eos among the best does not cost a beam": (language(5), 1, EOS, 2, 5, 2.0),
            "more beams than tokens": (language(65), 1, EOS, 7, 5, 2.0),
        },
        {
            "this is what greedy search finds": _greedy,
            "right without the length penalty": _unpenalised,
            "a beam that ends leaves its place to the next best: go on with beam_size": _shrinking,
            "the length counts too much: divide by lp, ((5 + length) / 6)^alpha": _longest,
            "bos is no part of the answer": _bos_kept,
            "eos stays in the answer": _eos_cut,
        },
        loops=True,
    ),
    Drill(
        s.average_checkpoints,
        lambda: {
            "3 checkpoints": ([{"w": floats(2, 3), "b": floats(3)} for _ in range(3)],),
            "one": ([{"w": floats(2)}],),
        },
        {
            "this is the sum: divide by the number of checkpoints": (
                lambda checkpoints: {
                    name: sum(weights[name] for weights in checkpoints) for name in checkpoints[0]
                }
            ),
            "this is the last checkpoint alone": lambda checkpoints: checkpoints[-1],
            "each step halves what came before: all checkpoints weigh the same": (
                lambda checkpoints: {
                    name: (checkpoints[0][name] + checkpoints[-1][name]) / 2
                    for name in checkpoints[0]
                }
            ),
        },
        loops=True,
    ),
    Drill(
        s.ngram_matches,
        lambda: {
            "a repeated word": (THE, CAT, 1),
            "pairs": (SHORT, LONG, 2),
            "a reference that repeats": (CAT[:3], THE, 1),
            "shorter than n": (["cat"], CAT, 3),
        },
        {
            "an n-gram matches at most as often as the reference has it": _unclipped,
            "each n-gram counts as often as it occurs, not once": _distinct,
            "the other way round: count the n-grams of the hypothesis": _of_reference,
            "a sentence shorter than n has none, not fewer than none": (
                lambda h, r, n: (s.ngram_matches(h, r, n)[0], len(h) - n + 1)
            ),
        },
        loops=True,
    ),
    Drill(
        s.brevity_penalty,
        lambda: {"shorter": (8, 10), "longer": (12, 10), "equal": (7, 7), "empty": (0, 5)},
        {
            "this is the ratio of lengths: exp(1 - reference / hypothesis)": (
                lambda h, r: min(1.0, h / r)
            ),
            "hypothesis and reference are exchanged": lambda h, r: s.brevity_penalty(r, h),
            "a longer hypothesis is not punished, nor rewarded: never above 1": (
                lambda h, r: math.exp(1 - r / h) if h else 0.0
            ),
        },
    ),
    Drill(
        s.bleu,
        lambda: {
            "two sentences": ([SHORT, MADE], [LONG, READ]),
            "longer than the reference": ([MADE], [READ]),
            "no match of four": ([CAT], [SHORT]),
        },
        {
            "a mean over sentences: counts and lengths are summed over the corpus first": (
                _mean_of_sentences
            ),
            "the brevity penalty is missing": _without_brevity,
            "BLEU runs from 0 to 100 here": lambda h, r: s.bleu(h, r) / 100,
        },
        loops=True,
    ),
]
