"""Solutions of the drills: one good way each, seldom the only one."""

import math
from collections import Counter
from itertools import pairwise

import torch
from torch.nn import functional as F


def count_pairs(words):
    counts = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] += n
    return counts


def merge_pair(word, pair):
    merged = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def learn_bpe(words, n_merges):
    age = {character: i for i, character in enumerate(sorted(set("".join(words))))}
    split = {tuple(word): n for word, n in words.items()}
    merges = []
    while len(merges) < n_merges and (counts := count_pairs(split)):
        *_, pair = min((-n, age[a], age[b], (a, b)) for (a, b), n in counts.items())
        merges.append(pair)
        age.setdefault("".join(pair), len(age))
        split = {merge_pair(word, pair): n for word, n in split.items()}
    return merges


def encode_bpe(word, merges):
    symbols, rank = list(word), {pair: i for i, pair in enumerate(merges)}
    while found := [(rank[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in rank]:
        _, i = min(found)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return symbols


def byte_characters():
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def longest_match(word, vocab):
    pieces, start = [], 0
    while start < len(word):
        rest = ("##" if start else "") + word[start:]
        piece = next((rest[:n] for n in range(len(rest), 0, -1) if rest[:n] in vocab), None)
        if piece is None:
            return ["[UNK]"]
        pieces.append(piece)
        start += len(piece.removeprefix("##"))
    return pieces


def viterbi(text, log_p):
    best, starts = [0.0], [0]  # of each prefix: its best log P, and where the last piece starts
    for end in range(1, len(text) + 1):
        ways = ((best[s] + log_p.get(text[s:end], -math.inf), s) for s in range(end))
        score, start = max(ways)
        best.append(score)
        starts.append(start)
    pieces, end = [], len(text)
    while end:
        pieces.append(text[starts[end] : end])
        end = starts[end]
    return pieces[::-1]


def log_likelihood(text, log_p):
    total = [0.0]  # log of the sum over all ways to cut each prefix
    for end in range(1, len(text) + 1):
        ways = [total[s] + log_p.get(text[s:end], -math.inf) for s in range(end)]
        total.append(torch.tensor(ways, dtype=torch.double).logsumexp(0).item())
    return total[-1]


def alibi_bias(n_heads, T):
    slope = 2.0 ** (-8 / n_heads * torch.arange(1, n_heads + 1))
    distance = torch.arange(T) - torch.arange(T)[:, None]  # j - i
    return (slope[:, None, None] * distance).masked_fill(distance > 0, -torch.inf)


def t5_buckets(distance, n_buckets, max_distance):
    half = n_buckets // 2
    exact, far = half // 2, distance.abs()
    growth = (far.clamp(min=1) / exact).log() / math.log(max_distance / exact)
    wide = exact + (growth * (half - exact)).long()
    return half * (distance > 0) + torch.where(far < exact, far, wide.clamp(max=half - 1))


def rope(x, base):
    T, d = x.shape[-2:]
    angle = torch.arange(T)[:, None] * base ** (-torch.arange(0, d, 2) / d)  # (T, d/2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def relative_scores(q, table):
    (T, d), k = q.shape[-2:], len(table) // 2
    distance = torch.arange(T) - torch.arange(T)[:, None]  # j - i
    vectors = table[distance.clamp(-k, k) + k]  # (T, T, d)
    return torch.einsum("bhid, ijd -> bhij", q, vectors) / math.sqrt(d)


def skew(x):
    T, W = x.shape[1:]  # W = 2T - 1
    flat = F.pad(x, (0, 1)).flatten(1)  # rows of W + 1, read as rows of W: each begins one earlier
    return flat[:, T - 1 : -1].unflatten(1, (T, W))[..., :T]


def span_mask(starts, lengths, budget):
    hidden = torch.zeros(len(starts), dtype=torch.bool)
    for start, length in zip(starts, lengths, strict=True):
        if not hidden[start]:
            for place in range(start, min(start + length, len(hidden))):
                if hidden.sum() < budget:
                    hidden[place] = True
    return hidden


def t5_corrupt(ids, hidden, first_sentinel):
    shown, target, sentinel, before = [], [], first_sentinel, False
    for token, now in zip(ids, hidden, strict=True):
        if now and not before:
            shown.append(sentinel)
            target.append(sentinel)
            sentinel -= 1
        (target if now else shown).append(token)
        before = now
    return shown, [*target, sentinel]


def keep_top_p(logits, p):
    ordered, order = logits.sort(descending=True)
    share = ordered.softmax(-1)
    likelier = share.cumsum(-1) - share  # what all likelier tokens add up to
    out = torch.zeros_like(likelier, dtype=torch.bool).scatter(-1, order, likelier >= p)
    return logits.masked_fill(out, -torch.inf)


def keep_min_p(logits, share):
    p = logits.softmax(-1)
    return logits.masked_fill(p < share * p.amax(-1, keepdim=True), -torch.inf)


def source_shares(sizes, temperature):
    return (sizes.log() / temperature).softmax(-1)


def minhash_jaccard(x, y, a, b):
    def least(shingles):
        return ((a[:, None] * shingles + b[:, None]) % (2**31 - 1)).amin(1)  # (K,)

    return (least(x) == least(y)).double().mean().item()
