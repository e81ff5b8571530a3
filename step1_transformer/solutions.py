"""Solutions of the drills: one good way each, seldom the only one."""

import math
from collections import Counter

import torch
from torch.nn import functional as F


def scaled_dot_product(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, h, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def decoder_mask(attention_mask):
    T = attention_mask.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    return causal & attention_mask[:, None, None, :]


def multi_head_attention(query, memory, w_in, b_in, w_out, b_out, n_heads, mask):
    inputs = zip((query, memory, memory), w_in.chunk(3), b_in.chunk(3), strict=True)
    q, k, v = (F.linear(x, w, b).unflatten(-1, (n_heads, -1)).transpose(1, 2) for x, w, b in inputs)
    heads = scaled_dot_product(q, k, v, mask)  # (B, h, T, d/h)
    return F.linear(heads.transpose(1, 2).flatten(2), w_out, b_out)


def sinusoidal_positions(n_positions, d_model):
    frequency = 10000 ** (-torch.arange(0, d_model, 2) / d_model)  # (d/2,)
    angle = torch.arange(n_positions)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)  # pairs side by side


def layer_norm(x, weight, bias, eps):
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def feed_forward(x, w_1, b_1, w_2, b_2):
    return F.linear(F.linear(x, w_1, b_1).relu(), w_2, b_2)


def residual(x, sublayer, norm, order):
    return norm(x + sublayer(x)) if order == "post" else x + sublayer(norm(x))


def embed(ids, weight, positions):
    return weight[ids] * math.sqrt(weight.shape[1]) + positions[: ids.shape[1]]


def shift_right(labels, bos):
    return torch.cat((torch.full_like(labels[:, :1], bos), labels[:, :-1]), 1)


def label_smoothing(logits, labels, smoothing, pad):
    log_p = logits.log_softmax(-1)  # (N, V)
    right = log_p.gather(1, labels[:, None]).squeeze(1)
    loss = -(1 - smoothing) * right - smoothing * log_p.mean(-1)
    return loss[labels != pad].mean()


def warmup_rate(step, d_model, warmup_steps):
    return d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)


def cached_attention(q, k, v, cache):
    keys, values = (torch.cat(both, 2) for both in zip(cache, (k, v), strict=True))
    return scaled_dot_product(q, keys, values, None), (keys, values)


def greedy_step(logits, finished, eos, pad):
    tokens = logits.argmax(-1).masked_fill(finished, pad)
    return tokens, finished | (tokens == eos)


def length_penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def beam_step(scores, log_p):
    best, place = (scores[:, None] + log_p).flatten().topk(len(scores))
    return best, place // log_p.shape[1], place % log_p.shape[1]


def beam_search(next_log_p, bos, eos, beam_size, max_len, alpha):
    live, finished = [(0.0, [])], []  # (log P, tokens)
    for length in range(1, max_len + 1):
        log_p = next_log_p(torch.tensor([[bos, *tokens] for _, tokens in live]))  # (beams, V)
        grown = [
            (score + more, [*tokens, token])
            for (score, tokens), row in zip(live, log_p.tolist(), strict=True)
            for token, more in enumerate(row)
        ]
        grown.sort(reverse=True)
        for score, tokens in grown[:beam_size]:
            if tokens[-1] == eos or length == max_len:
                finished.append((score / length_penalty(length, alpha), tokens))
        live = [each for each in grown if each[1][-1] != eos][:beam_size]
    return max(finished)[1]


def average_checkpoints(checkpoints):
    return {
        name: torch.stack([weights[name] for weights in checkpoints]).mean(0)
        for name in checkpoints[0]
    }


def ngram_matches(hypothesis, reference, n):
    def count(words):
        return Counter(zip(*(words[i:] for i in range(n)), strict=False))

    ours = count(hypothesis)
    return (ours & count(reference)).total(), ours.total()


def brevity_penalty(hypothesis_length, reference_length):
    if hypothesis_length > reference_length:
        return 1.0
    return math.exp(1 - reference_length / hypothesis_length) if hypothesis_length else 0.0


def bleu(hypotheses, references):
    logs = []
    for n in range(1, 5):
        pairs = zip(hypotheses, references, strict=True)
        matches, total = map(sum, zip(*(ngram_matches(h, r, n) for h, r in pairs), strict=True))
        if not matches:
            return 0.0
        logs.append(math.log(matches / total))
    lengths = sum(map(len, hypotheses)), sum(map(len, references))
    return 100 * brevity_penalty(*lengths) * math.exp(sum(logs) / 4)
