"""Write a language model's peripherals yourself: vocabulary, positions, corruption, sampling, data.

    cp step3_peripherals/drills.py my_peripherals.py
    python my_peripherals.py --check
    python my_peripherals.py --check --only rope,skew

All of them can stand in for the gym's own in its parity tests, against `tokenizers`,
`sentencepiece`, `transformers` and scikit-learn:

    pytest tests/parity/test_peripheral_blocks.py --mine my_peripherals.py

Letters: B sentences, T tokens, d the width of a head, h heads, V vocabulary, K hash functions;
a query stands at i, a key at j. Drills on strings and lists may loop, those on tensors should not.
"""

from torch import Tensor

from common import cli
from step0_pytorch_warmup import checker
from step3_peripherals import checks


def count_pairs(words: dict[tuple[str, ...], int]) -> dict[tuple[str, str], int]:
    """How often each two symbols stand side by side, in words given as symbols with their counts.

    {("l", "o", "w"): 5, ("l", "o"): 2} -> {("l", "o"): 7, ("o", "w"): 5}
    """
    raise NotImplementedError


def merge_pair(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The word with `pair` written as one symbol wherever it stands, from left to right.

    ("a", "a", "a"), ("a", "a") -> ("aa", "a")
    """
    raise NotImplementedError


def learn_bpe(words: dict[str, int], n_merges: int) -> list[tuple[str, str]]:
    """The merges that BPE learns (arXiv:1508.07909, algorithm 1) from words with their counts.

    Split words in characters; merge the most frequent pair everywhere; repeat, until there are
    n_merges or no pair is left. Of pairs equally frequent: that with the oldest left symbol, then
    that with the oldest right one. Characters, by code point, are older than what merges make.
    """
    raise NotImplementedError


def encode_bpe(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The symbols of a new word: of all pairs in it that are merges, merge the one learned first.

    The leftmost, if it is there more than once. Then look again, until no pair is a merge.
    """
    raise NotImplementedError


def byte_characters() -> dict[int, str]:
    """How GPT-2 writes each byte, 0 to 255, as a character that can be seen.

    33 to 126, 161 to 172 and 174 to 255 as the character of that code; the other 68, in their
    order, as those of the codes 256, 257, ...
    """
    raise NotImplementedError


def longest_match(word: str, vocab: set[str]) -> list[str]:
    """WordPiece: from the left, always the longest piece in `vocab`; "##" leads all but the first.

    A word that cannot be cut so is ["[UNK]"] as a whole.
    """
    raise NotImplementedError


def viterbi(text: str, log_p: dict[str, float]) -> list[str]:
    """Unigram: of all ways to cut `text` in pieces, the one with the greatest sum of log_p.

    Not by trying all, of which there are 2^(len - 1): the best way to a place begins with the best
    way to some place before it (arXiv:1804.10959, section 3.1).
    """
    raise NotImplementedError


def log_likelihood(text: str, log_p: dict[str, float]) -> float:
    """log of the sum, over all ways to cut `text`, of their probabilities: what EM raises.

    Like Viterbi, with a sum in place of the maximum. Probabilities of long texts are 0 in floating
    point: add them as logs.
    """
    raise NotImplementedError


def alibi_bias(n_heads: int, T: int) -> Tensor:
    """-> (h, T, T): what ALiBi adds to causal scores (arXiv:2108.12409, section 3).

    -m (i - j), where m is 2^(-8/h), 2^(-16/h), ..., 2^-8, a slope for each of h heads, a power of
    two; -infinity where the key is ahead, j > i.
    """
    raise NotImplementedError


def t5_buckets(distance: Tensor, n_buckets: int, max_distance: int) -> Tensor:
    """Distances j - i, int64 of any shape -> their buckets in T5's encoder (arXiv:1910.10683).

    The upper half of the buckets is for what is ahead, j > i. In each half of H: distances below
    E = H // 2 have a bucket each; a distance n from there on is in bucket
    E + floor((H - E) log(n / E) / log(max_distance / E)), at most H - 1.
    """
    raise NotImplementedError


def rope(x: Tensor, base: float) -> Tensor:
    """(..., T, d) -> (..., T, d): the vector at position i = 0, 1, ... turned (arXiv:2104.09864).

    Pairs are the dimensions (m, m + d/2), as in transformers' Llama. Pair m turns by the angle
    i base^(-2m/d): (a, b) -> (a cos - b sin, b cos + a sin).
    """
    raise NotImplementedError


def relative_scores(q: Tensor, table: Tensor) -> Tensor:
    """(B, h, T, d), (2k + 1, d) -> (B, h, T, T): Shaw's term q_i w' / sqrt(d), by definition.

    w is the row of the table for the distance j - i, clipped to -k ... k; row k is distance 0
    (arXiv:1803.02155, section 3.2).
    """
    raise NotImplementedError


def skew(x: Tensor) -> Tensor:
    """(B, T, 2T - 1) -> (B, T, T): from scores by distance to scores by pair, without an index.

    x[b, i] holds the distances 1-T, ..., T-1; the result at [b, i, j] is that of j - i. So Shaw's
    term needs q @ table' only, and no tensor of (T, T, d). Hint: rows that are read one element
    too short begin one element earlier each time.
    """
    raise NotImplementedError


def span_mask(starts: list[int], lengths: list[int], budget: int) -> Tensor:
    """SpanBERT -> (T,) bool, True where hidden; `starts` is an order of all T positions. May loop.

    In turn, a span of lengths[n] tokens begins at starts[n], unless that is hidden already. It ends
    early at the end of the text, and when `budget` tokens are hidden; hidden ones cost nothing.
    """
    raise NotImplementedError


def t5_corrupt(
    ids: list[int], hidden: list[bool], first_sentinel: int
) -> tuple[list[int], list[int]]:
    """What T5 reads and what it is to write (arXiv:1910.10683, figure 2).

    Reads: a sentinel for each run of hidden tokens. Writes: each sentinel and what it stands for,
    then one more sentinel. They count down: first_sentinel, first_sentinel - 1, ...
    """
    raise NotImplementedError


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) -> (B, V): -infinity but for the fewest likeliest tokens with p in all, 0 < p < 1.

    They add up to at least p, so the last one may pass it (arXiv:1904.09751, equation 2).
    """
    raise NotImplementedError


def keep_min_p(logits: Tensor, share: float) -> Tensor:
    """(B, V) -> (B, V): -infinity where the probability is below share times the greatest one."""
    raise NotImplementedError


def source_shares(sizes: Tensor, temperature: float) -> Tensor:
    """Samples in each of n sources (n,) -> how often to draw from each (n,): size^(1/tau), of the
    temperature tau, normalised. Right for 10^9 samples at tau = 0.02 too.
    """
    raise NotImplementedError


def minhash_jaccard(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> float:
    """Likeness of two documents with shingles (n,), (m,) by K hash functions (K,), (K,), int64.

    h_k(s) = (a_k s + b_k) mod (2^31 - 1). A document's signature is the least hash of its shingles
    under each function; the estimate is the share of functions where two signatures agree.
    """
    raise NotImplementedError


def main(config: checker.Config) -> None:
    checker.main(config, __file__, checks.DRILLS)


if __name__ == "__main__":
    cli.run(main, checker.Config, {})
