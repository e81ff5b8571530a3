"""Our blocks in the form of the drills of step 3, so that one test judges ours or a learner's."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from step2_bert.masking import Vocabulary
from step3_peripherals import corruption, dedup, masking, mixing, positions, sampling
from step3_peripherals.vocabulary import bpe, byte_level
from step3_peripherals.vocabulary.sentencepiece_model import Kind, Model, Piece
from step3_peripherals.vocabulary.unigram import Unigram
from step3_peripherals.vocabulary.unigram_training import Lattice
from step3_peripherals.vocabulary.wordpiece import WordPiece


def count_pairs(words):
    symbols = sorted({symbol for word in words for symbol in word})
    numbered = [[symbols.index(symbol) for symbol in word] for word in words]
    counts = bpe._Pairs(numbered, list(words.values())).counts
    return {(symbols[a], symbols[b]): n for (a, b), n in counts.items()}


def _vocabulary(symbols, merges):
    parts = (part for pair in merges for part in (*pair, "".join(pair)))
    tokens = dict.fromkeys(["<unk>", *symbols, *parts])
    return bpe.BPE({token: index for index, token in enumerate(tokens)}, merges)


def merge_pair(word, pair):
    ours = _vocabulary(word, [pair])
    symbols = ours._merge_all([ours.vocab[symbol] for symbol in word], 0.0, None)
    return tuple(ours._tokens[index] for index in symbols)


def learn_bpe(words, n_merges):
    _, merges = bpe.learn(words, len(set("".join(words))) + n_merges)
    return merges[:n_merges]


def encode_bpe(word, merges):
    return _vocabulary(word, merges).tokens(word)


def byte_characters():
    return byte_level.WRITTEN


def longest_match(word, vocab):
    tokens = sorted({*vocab, "[UNK]"})
    return WordPiece({token: index for index, token in enumerate(tokens)}).tokens(word)


def viterbi(text, log_p):
    pieces = [Piece(piece, score) for piece, score in log_p.items()]
    return [*Unigram(Model([Piece("<unk>", kind=Kind.UNKNOWN), *pieces])).viterbi(text)]


def log_likelihood(text, log_p):
    lattice = Lattice([text], list(log_p), max(map(len, log_p)))
    return lattice.forward(np.array(list(log_p.values())))[-1].item()


def alibi_bias(n_heads, T):
    bias = positions.ALiBi(4 * n_heads, n_heads, T).scores(torch.zeros(1, n_heads, T, 4))
    return bias.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)


def t5_buckets(distance, n_buckets, max_distance):
    return positions.t5_bucket(distance, False, n_buckets, max_distance)


def rope(x, base):
    d = x.shape[-1]
    return positions.RoPE(d, 1, x.shape[-2], base=base).rotate(x, x)[0]


def relative_scores(q, table):
    h, T, d = q.shape[1:]
    scheme = positions.Shaw(h * d, h, T, causal=False, k=len(table) // 2)
    del scheme.keys_table
    scheme.keys_table = table
    return scheme.scores(q)


def skew(x):
    return positions.by_pair(F.pad(x, (0, 1)))


def span_mask(starts, lengths, budget):
    """`choose_spans`, with scores that come in this order and draw these lengths."""
    T, longest = len(starts), max(lengths)
    uniform = np.full(longest, 1 / longest)
    score = np.zeros((1, T), np.uint64)
    for turn, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        tries = np.uint64(turn << 32) + np.arange(100 * longest, dtype=np.uint64)
        score[0, start] = tries[masking.words_of_span(tries, uniform) == length][0]
    plain = np.ones((1, T), bool)
    chosen, _ = masking.choose_spans(plain, ~plain, score, np.array([budget]), uniform)
    return torch.from_numpy(chosen[0])


def t5_corrupt(ids, hidden, first_sentinel):
    rows, lengths = np.array([ids]), np.array([len(ids)])
    none = np.zeros(max(ids) + 1, bool)
    candidates = masking.candidates_of(rows, lengths, Vocabulary(0, none, none))
    text = corruption._Text(rows, lengths, candidates, pad_id=0)
    n = dict(first_sentinel=first_sentinel, n_sentinels=min(100, first_sentinel + 1))
    options = corruption.Corruption("t5", **n)
    made = corruption._with_sentinels(text, np.array([hidden]), options)
    return (
        made.input_ids[0, : made.input_lengths[0]].tolist(),
        made.target_ids[0, : made.target_lengths[0]].tolist(),
    )


keep_top_p = sampling.top_p
keep_min_p = sampling.min_p


def source_shares(sizes, temperature):
    return torch.from_numpy(mixing.shares(sizes.numpy(), temperature))


def minhash_jaccard(x, y, a, b):
    """By hash functions of our own, as many."""
    ours = dedup.MinHash(bands=len(a), rows=1)
    x, y = (ours.signature(shingles.numpy().astype(np.uint64)) for shingles in (x, y))
    return float(np.mean(x == y))
