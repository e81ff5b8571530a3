"""How each drill of this step is judged: its inputs, and its usual mistakes with their hints."""

import math
from collections import Counter
from itertools import pairwise

import torch
from torch import Tensor

from step0_pytorch_warmup.checker import Drill
from step0_pytorch_warmup.checks import floats, ids
from step3_peripherals import solutions as s

LOW = {"low": 5, "lower": 2, "newest": 6, "widest": 3}  # the example of Sennrich et al.
PIECES = {"un", "##aff", "##able", "##a", "##f", "aff", "able", "u", "##n"}
TRAP = {"ab", "##c", "a", "##b", "##bcd"}
LOG_P = {"a": -2.0, "b": -3.0, "c": -2.5, "ab": -3.6, "bc": -3.2, "abc": -6.5, "ca": -6.0}
PRIME = 2**31 - 1


# -- vocabulary ------------------------------------------------------------------------------


def _unordered(words):
    counts = Counter()
    for pair, n in s.count_pairs(words).items():
        counts[tuple(sorted(pair))] += n
    return counts


def _without_overlap(words):
    counts = Counter()
    for word, n in words.items():
        for pair in set(pairwise(word)):
            merged = s.merge_pair(word, pair)
            counts[pair] += n * (len(word) - len(merged))
    return counts


def _merge_first(word, pair):
    places = [i for i, found in enumerate(pairwise(word)) if found == pair][:1]
    return next(((*word[:i], "".join(pair), *word[i + 2 :]) for i in places), word)


def _merge_from_right(word, pair):
    mirrored = s.merge_pair(
        tuple(symbol[::-1] for symbol in word[::-1]), tuple(symbol[::-1] for symbol in pair[::-1])
    )
    return tuple(symbol[::-1] for symbol in mirrored[::-1])


def _merge_in_text(word, pair):
    return tuple(" ".join(word).replace(" ".join(pair), "".join(pair)).split())


def _merge_either_way(word, pair):
    merged = []
    for symbol in word:
        if merged and {merged[-1], symbol} == set(pair):
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def _learn(key):
    """learn_bpe that merges the pair of least `key`: of its count, its two symbols, and the count
    and age of each symbol."""

    def wrong(words, n_merges):
        age = {character: i for i, character in enumerate(sorted(set("".join(words))))}
        split = {tuple(word): n for word, n in words.items()}
        merges = []
        while len(merges) < n_merges and (counts := s.count_pairs(split)):
            single = Counter()
            for word, n in split.items():
                for symbol in word:
                    single[symbol] += n
            keys = {(a, b): key(n, a, b, single, age) for (a, b), n in counts.items()}
            pair = min(keys, key=keys.get)
            merges.append(pair)
            age.setdefault("".join(pair), len(age))
            split = {s.merge_pair(word, pair): n for word, n in split.items()}
        return merges

    return wrong


def _counted_once(words, n_merges):
    counts = s.count_pairs({tuple(word): n for word, n in words.items()})
    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:n_merges]


def _leftmost(word, merges):
    symbols = list(word)
    while places := [i for i, pair in enumerate(pairwise(symbols)) if pair in merges]:
        symbols[places[0] : places[0] + 2] = ["".join(symbols[places[0] : places[0] + 2])]
    return symbols


def _longest_tokens(word, merges):
    vocab = {"##" * (i > 0) + token for i in (0, 1) for token in {*word, *map("".join, merges)}}
    return [piece.removeprefix("##") for piece in s.longest_match(word, vocab)]


def _bytes(seen, hidden=lambda byte, i: 256 + i):
    """byte_characters with other bytes that are themselves, or other names for the rest."""
    others = enumerate(byte for byte in range(256) if byte not in seen)
    return {byte: chr(byte) for byte in seen} | {b: chr(hidden(b, i)) for i, b in others}


SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]


def _match(prefix="##", shortest=False, unknown=None):
    """longest_match that looks for other pieces, or says otherwise that there is none."""

    def wrong(word, vocab):
        pieces, start = [], 0
        while start < len(word):
            ends = range(start + 1, len(word) + 1)
            lead = prefix if start else ""
            fits = [end for end in ends if lead + word[start:end] in vocab]
            if not fits:
                return unknown(pieces) if unknown else ["[UNK]"]
            end = fits[0 if shortest else -1]
            pieces.append(lead + word[start:end])
            start = end
        return pieces

    return wrong


def _match_with_return(word, vocab):
    def cut(start):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            rest = [] if end == len(word) else cut(end) if piece in vocab else None
            if piece in vocab and rest is not None:
                return [piece, *rest]
        return None

    return cut(0) or ["[UNK]"]


def _greedy(choose):
    """A way through the text that takes the best piece at each place, and looks no further."""

    def wrong(text, log_p):
        pieces, start = [], 0
        while start < len(text):
            found = [p for p in log_p if text.startswith(p, start)]
            pieces.append(max(found, key=lambda piece: choose(piece, log_p)))
            start += len(pieces[-1])
        return pieces

    return wrong


def _least_likely(text, log_p):
    return s.viterbi(text, {piece: -score for piece, score in log_p.items()})


def _of_best_way(text, log_p):
    return sum(log_p[piece] for piece in s.viterbi(text, log_p))


def _of_probabilities(text, log_p):
    total = [1.0]
    for end in range(1, len(text) + 1):
        ways = (total[i] * math.exp(log_p.get(text[i:end], -math.inf)) for i in range(end))
        total.append(sum(ways))
    return math.log(total[-1]) if total[-1] else -math.inf


def _of_all_pieces(text, log_p):
    """Adds the probabilities of the pieces that end at a place, whatever comes before them."""
    ends = range(1, len(text) + 1)
    sums = (sum(math.exp(log_p.get(text[i:e], -math.inf)) for i in range(e)) for e in ends)
    return sum(math.log(p) if p else -math.inf for p in sums)


# -- positions -------------------------------------------------------------------------------


def _alibi(slopes=lambda h: 2.0 ** (-8 / h * torch.arange(1, h + 1)), ahead=-torch.inf, sign=1):
    """alibi_bias with other slopes, another sign, or what is ahead not hidden."""

    def wrong(n_heads, T):
        distance = torch.arange(T) - torch.arange(T)[:, None]
        bias = sign * slopes(n_heads)[:, None, None] * distance
        return bias.masked_fill(distance > 0, ahead) if ahead is not None else bias

    return wrong


def _buckets(rounded=False, bounded=True, split=True):
    """t5_buckets with one thing done otherwise."""

    def wrong(distance, n_buckets, max_distance):
        half = n_buckets // 2 if split else n_buckets
        exact, far = half // 2, distance.abs()
        growth = (far.clamp(min=1) / exact).log() / math.log(max_distance / exact)
        growth = growth * (half - exact)
        wide = exact + (growth.round() if rounded else growth).long()
        wide = wide.clamp(max=half - 1) if bounded else wide
        return half * (distance > 0) * split + torch.where(far < exact, far, wide)

    return wrong


def _turned(first=0, power=2, sign=1, axis=-2, spoilt=False):
    """rope with one thing done otherwise."""

    def wrong(x, base):
        x = x.transpose(axis, -2)
        T, d = x.shape[-2:]
        theta = base ** (-power * torch.arange(d // 2) / d)
        angle = sign * (torch.arange(T)[:, None] + first) * theta
        a, b = x.chunk(2, -1)
        left = a * angle.cos() - b * angle.sin()
        right = b * angle.cos() + (left if spoilt else a) * angle.sin()
        return torch.cat((left, right), -1).transpose(axis, -2)

    return wrong


def _neighbours(x, base):
    halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return s.rope(halves, base).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _relative(rows):
    """relative_scores with other rows of the table."""

    def wrong(q, table):
        T, k = q.shape[-2], len(table) // 2
        vectors = table[rows(torch.arange(T) - torch.arange(T)[:, None], k)]
        return torch.einsum("bhid,ijd->bhij", q, vectors) / math.sqrt(q.shape[-1])

    return wrong


def _later(x):
    place = torch.arange(x.shape[1])
    return x.gather(2, (place + place[:, None]).expand(len(x), -1, -1))


# -- corruption ------------------------------------------------------------------------------


def spans(T: int, budget: int, longest: int = 5) -> tuple:
    """A case of `span_mask`: starts in random order, random lengths."""
    return torch.randperm(T).tolist(), (1 + ids(longest, T)).tolist(), budget


def _spans(cut=True, skip=True, free=True, whole=False, wrap=False):
    """span_mask with one thing done otherwise."""

    def wrong(starts, lengths, budget):
        T, spent = len(starts), 0
        hidden = torch.zeros(T, dtype=torch.bool)
        for start, length in zip(starts, lengths, strict=True):
            if spent >= budget or (skip and hidden[start]):
                continue
            span = [i % T for i in range(start, start + length) if wrap or i < T]
            if whole and spent + len(span) > budget:
                continue
            for place in span:
                if not cut or spent < budget:
                    spent += 1 if not free else int(not hidden[place])
                    hidden[place] = True
        return hidden

    return wrong


def _t5(each=False, last=True, step=-1, sentinels=(True, True)):
    """t5_corrupt with one thing done otherwise."""

    def wrong(tokens, hidden, first_sentinel):
        shown, target, sentinel, before = [], [], first_sentinel, False
        for token, now in zip(tokens, hidden, strict=True):
            if now and (each or not before):
                shown += [sentinel] * sentinels[0]
                target += [sentinel] * sentinels[1]
                sentinel += step
            (target if now else shown).append(token)
            before = now
        return shown, target + [sentinel] * last

    return wrong


# -- sampling --------------------------------------------------------------------------------


def _nucleus(out):
    """keep_top_p that takes out other tokens: `out` of the shares, best first, and p."""

    def wrong(logits, p):
        ordered, order = logits.sort(descending=True)
        gone = out(ordered.softmax(-1), p)
        return logits.masked_fill(torch.zeros_like(gone).scatter(-1, order, gone), -torch.inf)

    return wrong


def _by_id(logits, p):
    share = logits.softmax(-1)
    return logits.masked_fill(share.cumsum(-1) - share >= p, -torch.inf)


def _left_sorted(logits, p):
    return s.keep_top_p(logits.sort(descending=True).values, p)


def _zeros(solution):
    """-infinity written as 0."""
    return lambda logits, p: solution(logits, p).nan_to_num(neginf=0.0)


def _shares(solution):
    """Probabilities in place of logits."""
    return lambda logits, p: solution(logits, p).softmax(-1)


# -- data ------------------------------------------------------------------------------------


def documents(n: int, shared: int, K: int) -> tuple[Tensor, ...]:
    """Two documents of `n` shingles each, the last `shared` of one the first of the other."""
    shingles, functions = ids(PRIME, 2 * n - shared), 1 + ids(PRIME - 1, 2, K)
    return shingles[:n], shingles[n - shared :], *functions


def _exact_jaccard(x, y, a, b):
    x, y = set(x.tolist()), set(y.tolist())
    return len(x & y) / len(x | y)


def _signatures(reduce=lambda hashes: hashes.amin(1), prime=PRIME):
    """minhash_jaccard by other signatures."""

    def wrong(x, y, a, b):
        def signature(shingles):
            hashes = a[:, None] * shingles + b[:, None]
            return reduce(hashes % prime if prime else hashes)

        return (signature(x) == signature(y)).double().mean().item()

    return wrong


DRILLS = [
    Drill(
        s.count_pairs,
        lambda: {
            "three words": ({("l", "o", "w"): 5, ("l", "o", "w", "er"): 2, ("n", "e", "w"): 6},),
            "a run": ({("a", "a", "a", "a"): 5},),
            "one symbol": ({("a",): 4},),
        },
        {
            "a pair counts as often as its word occurs": (
                lambda words: s.count_pairs(dict.fromkeys(words, 1))
            ),
            "(a, b) is not (b, a)": _unordered,
            "a pair may stand in a word more than once": (
                lambda words: sum(
                    (Counter(dict.fromkeys(pairwise(w), n)) for w, n in words.items()), Counter()
                )
            ),
            "pairs overlap: a a a a holds (a, a) three times": _without_overlap,
        },
        loops=True,
    ),
    Drill(
        s.merge_pair,
        lambda: {
            "twice": (("o", "w", "o", "w", "o"), ("w", "o")),
            "a run": (("a", "a", "a"), ("a", "a")),
            "a symbol that ends alike": (("xa", "b", "a", "b"), ("a", "b")),
            "not there": (("a", "b"), ("b", "a")),
        },
        {
            "the pair is merged wherever it stands, not once": _merge_first,
            "from left to right: a a a becomes aa a": _merge_from_right,
            "the end of a symbol is no symbol: xa b does not hold the pair a b": _merge_in_text,
            "(a, b) is not (b, a)": _merge_either_way,
        },
        loops=True,
    ),
    Drill(
        s.learn_bpe,
        lambda: {
            "the paper's words": (LOW, 8),
            "ties": ({"cab": 2, "bc": 2, "abd": 1, "da": 2}, 5),
            "few pairs": ({"abc": 1, "d": 7}, 9),
        },
        {
            "words count as often as they occur": (
                lambda words, n: s.learn_bpe(dict.fromkeys(words, 1), n)
            ),
            "count anew after each merge: it makes new pairs and unmakes others": _counted_once,
            "this is WordPiece's score, count / (count of left x count of right)": (
                _learn(lambda n, a, b, single, age: -n / (single[a] * single[b]))
            ),
            "of equally frequent pairs, this takes the one met first, not the oldest symbols": (
                _learn(lambda n, a, b, single, age: -n)
            ),
            "of equally frequent pairs, this takes the youngest symbols": (
                _learn(lambda n, a, b, single, age: (-n, -age[a], -age[b]))
            ),
            "in a tie, what a merge made is younger than any character, however it is spelt": (
                _learn(lambda n, a, b, single, age: (-n, a, b))
            ),
        },
        loops=True,
    ),
    Drill(
        s.encode_bpe,
        lambda: {
            "lowest": ("lowest", s.learn_bpe(LOW, 10)),
            "pairs that overlap": ("abc", [("a", "b"), ("b", "c")]),
            "no longest tokens": ("abcd", [("c", "d"), ("b", "c"), ("a", "bc"), ("a", "b")]),
            "in the order of learning": ("abcabc", [("b", "c"), ("a", "b"), ("a", "bc")]),
            "no merges": ("low", []),
        },
        {
            "the pair learned first goes first, not the leftmost": _leftmost,
            "this takes the longest token, as WordPiece does: BPE follows its merges": (
                _longest_tokens
            ),
            "the other way round: the pair learned first goes first": (
                lambda word, merges: s.encode_bpe(word, merges[::-1])
            ),
            "one merge is not all: look again until no pair is a merge": (
                lambda word, merges: s.encode_bpe(word, merges[:1])
            ),
        },
        loops=True,
    ),
    Drill(
        s.byte_characters,
        lambda: {"the table": ()},
        {
            "a byte that cannot be seen gets the next free code, not its own + 256": (
                lambda: _bytes(SEEN, lambda byte, i: 256 + byte)
            ),
            "a range leaves out its end: 126, 172 and 255 are themselves too": (
                lambda: _bytes([*range(33, 126), *range(161, 172), *range(174, 255)])
            ),
            "173, the soft hyphen, cannot be seen": (
                lambda: _bytes([*range(33, 127), *range(161, 256)])
            ),
            "a space cannot be seen: 32 gets another character": (lambda: _bytes([32, *SEEN])),
            "bytes from 128 on can be seen too, nearly all": lambda: _bytes(range(33, 127)),
            "each is its own character here: many cannot be seen": (
                lambda: {byte: chr(byte) for byte in range(256)}
            ),
        },
        loops=True,
    ),
    Drill(
        s.longest_match,
        lambda: {
            "unaffable": ("unaffable", PIECES),
            "no piece fits the end": ("unaffx", PIECES),
            "a dead end": ("abcd", TRAP),
            "one piece": ("aff", PIECES),
        },
        {
            'a piece that goes on with a word is looked up with "##"': _match(prefix=""),
            "the longest piece, not the shortest": _match(shortest=True),
            "a word with an unknown part is [UNK] as a whole": (
                _match(unknown=lambda pieces: [*pieces, "[UNK]"])
            ),
            "what does not fit is not left out: the word is [UNK]": _match(unknown=list),
            "greedy: the longest piece is taken, even if the rest then has none": (
                _match_with_return
            ),
        },
        loops=True,
    ),
    Drill(
        s.viterbi,
        lambda: {
            "abcab": ("abcab", LOG_P),
            "a dead end": ("abc", {"a": -5.0, "ab": -1.0, "bc": -5.0}),
            "one piece": ("abc", {"abc": -9.0, "a": -4.0, "b": -4.0, "c": -4.0}),
            "40 characters": ("abcab" * 8, LOG_P),
        },
        {
            "this takes the longest piece at each place, as WordPiece does": (
                _greedy(lambda piece, log_p: len(piece))
            ),
            "this takes the likeliest piece at each place: a way is judged as a whole": (
                _greedy(lambda piece, log_p: log_p[piece])
            ),
            "back to front: the way is read from its end": (
                lambda text, log_p: s.viterbi(text, log_p)[::-1]
            ),
            "this is the least likely: log_p is no cost": _least_likely,
        },
        loops=True,
    ),
    Drill(
        s.log_likelihood,
        lambda: {
            "abcab": ("abcab", LOG_P),
            "one way": ("cab", {"c": -1.0, "ab": -2.0}),
            "600 characters": ("abc" * 200, LOG_P),
        },
        {
            "this is the best way alone: add up all of them": _of_best_way,
            "this is the probability: its log is asked for": (
                lambda text, log_p: math.exp(s.log_likelihood(text, log_p))
            ),
            "the probability of a long text is 0 in floating point: logsumexp": (_of_probabilities),
            "a piece that ends here goes with all the ways to where it starts": _of_all_pieces,
        },
        loops=True,
    ),
    Drill(
        s.alibi_bias,
        lambda: {"4 heads": (4, 5), "8 heads": (8, 3), "1 token": (2, 1)},
        {
            "what is far is to be fainter: -m (i - j), not +": _alibi(sign=-1),
            "the slopes begin at 2^(-8/h), not at 1": (
                _alibi(lambda h: 2.0 ** (-8 / h * torch.arange(h)))
            ),
            "the slopes depend on h: they go down to 2^-8 whatever it is": (
                _alibi(lambda h: 2.0 ** -torch.arange(1.0, h + 1))
            ),
            "what is ahead is not hidden": _alibi(ahead=None),
            "-infinity hides what is ahead; 0 lets it be seen": _alibi(ahead=0.0),
        },
    ),
    Drill(
        s.t5_buckets,
        lambda: {
            "-40 to 40": (torch.arange(-40, 41), 32, 128),
            "far, by pair": (torch.arange(-300, 300, 7).view(2, -1), 32, 128),
            "few buckets": (torch.arange(-9, 10), 8, 20),
        },
        {
            "the upper half is for what is ahead, j > i": (
                lambda distance, n, most: s.t5_buckets(-distance, n, most)
            ),
            "what is ahead has buckets of its own, the upper half": _buckets(split=False),
            "a range begins at its bucket: floor, do not round": _buckets(rounded=True),
            "nothing is beyond the last bucket": _buckets(bounded=False),
            "half of the buckets hold one distance each, the others ranges": (
                lambda distance, n, most: (
                    n // 2 * (distance > 0) + distance.abs().clamp(max=n // 2 - 1)
                )
            ),
        },
    ),
    Drill(
        s.rope,
        lambda: {
            "two heads": (floats(2, 2, 3, 8, grad=True), 10000.0),
            "another base": (floats(5, 4), 100.0),
        },
        {
            "neighbours are turned as pairs; here they are m and m + d/2": _neighbours,
            "turned the other way: the angle's sign": _turned(sign=-1),
            "positions count from 0": _turned(first=1),
            "the exponent is -2m/d: the 2 is missing": _turned(power=1),
            "axis -2 is the position, not the head": _turned(axis=-3),
            "b is turned with the a that was turned already: keep the old one": (
                _turned(spoilt=True)
            ),
        },
    ),
    Drill(
        s.relative_scores,
        lambda: {
            "clipped": (floats(2, 2, 5, 4, grad=True), floats(5, 4, grad=True)),
            "no distance is clipped": (floats(1, 2, 3, 4), floats(9, 4)),
        },
        {
            "not divided by the square root of d": (
                lambda q, table: s.relative_scores(q, table) * math.sqrt(q.shape[-1])
            ),
            "the distance is j - i, not i - j": _relative(lambda r, k: (-r).clamp(-k, k) + k),
            "row k is distance 0: add k (a negative row counts from the end)": (
                _relative(lambda r, k: r.clamp(-k, k))
            ),
            "farther than k is k: clip, do not go round": _relative(
                lambda r, k: (r + k) % (2 * k + 1)
            ),
            "what lies behind has a distance below 0, and rows of its own": (
                _relative(lambda r, k: r.abs().clamp(max=k) + k)
            ),
        },
    ),
    Drill(
        s.skew,
        lambda: {
            "4 tokens": (floats(2, 4, 7, grad=True),),
            "1 token": (floats(3, 1, 1),),
        },
        {
            "these are the first T distances of every query: each row begins one earlier": (
                lambda x: x[..., : x.shape[1]]
            ),
            "these are the last T distances of every query: each row begins one earlier": (
                lambda x: x[..., x.shape[1] - 1 :]
            ),
            "this is the score at i - j, not j - i": lambda x: s.skew(x.flip(-1)),
            "each row begins one later: row 0 begins at T - 1, the last one at 0": _later,
        },
    ),
    Drill(
        s.span_mask,
        lambda: {
            "16 tokens": spans(20, 12),
            "short text, long spans": spans(12, 9, longest=9),
            "single tokens": spans(8, 3, longest=1),
        },
        {
            "more than the budget: the last span is cut": _spans(cut=False),
            "a span that passes the budget is cut, not left out": _spans(whole=True),
            "a start that is hidden already begins no span": _spans(skip=False),
            "a token that was hidden before costs nothing": _spans(free=False),
            "a span ends at the end of the text: it does not go round": _spans(wrap=True),
        },
        loops=True,
    ),
    Drill(
        s.t5_corrupt,
        lambda: {
            "two spans": ([11, 12, 13, 14, 15, 16, 17], [h == "x" for h in "..xx.x."], 99),
            "at both ends": ([11, 12, 13, 14], [True, False, False, True], 99),
            "nothing hidden": ([11, 12], [False, False], 99),
        },
        {
            "one sentinel for a run of hidden tokens, not for each": _t5(each=True),
            "one more sentinel ends what is to be written": _t5(last=False),
            "the sentinels count down": _t5(step=1),
            "what is read has a sentinel where tokens are hidden": _t5(sentinels=(False, True)),
            "what is to be written has each run's sentinel before it": (
                _t5(sentinels=(True, False))
            ),
            "each run has a sentinel of its own": _t5(step=0),
            "what is read comes first, then what is to be written": (
                lambda tokens, hidden, first: s.t5_corrupt(tokens, hidden, first)[::-1]
            ),
        },
        loops=True,
    ),
    Drill(
        s.keep_top_p,
        lambda: {
            "p 0.7": (floats(3, 8), 0.7),
            "p below any token's": (floats(2, 6), 0.01),
            "all stay": (floats(2, 6), 0.999),
        },
        {
            "the token that reaches p stays too: they add up to at least p": (
                _nucleus(lambda share, p: share.cumsum(-1) > p)
            ),
            "the other way round: these are the unlikely ones": (
                _nucleus(lambda share, p: share.cumsum(-1) - share < p)
            ),
            "sum from the likeliest down, not in the order of ids": _by_id,
            "each token is to be where it was before the sort": _left_sorted,
            "a logit of 0 can be drawn: -infinity cannot": _zeros(s.keep_top_p),
            "logits are asked for, not probabilities": _shares(s.keep_top_p),
            "each token on its own is below p: their sum counts": (
                _nucleus(lambda share, p: share < p)
            ),
        },
    ),
    Drill(
        s.keep_min_p,
        lambda: {
            "0.3": (floats(3, 8), 0.3),
            "all stay": (floats(2, 5), 0.0),
            "the best stay": (floats(2, 5), 1.0),
        },
        {
            "the threshold is a share of the greatest probability": (
                lambda logits, share: logits.masked_fill(logits.softmax(-1) < share, -torch.inf)
            ),
            "compare probabilities, not logits": (
                lambda logits, share: logits.masked_fill(
                    logits < share * logits.amax(-1, keepdim=True), -torch.inf
                )
            ),
            "each row has a greatest probability of its own": (
                lambda logits, share: logits.masked_fill(
                    logits.softmax(-1) < share * logits.softmax(-1).max(), -torch.inf
                )
            ),
            "a logit of 0 can be drawn: -infinity cannot": _zeros(s.keep_min_p),
            "logits are asked for, not probabilities": _shares(s.keep_min_p),
        },
    ),
    Drill(
        s.source_shares,
        lambda: {
            "tau = 2": (torch.tensor([1e6, 1e4, 1e2], dtype=torch.double), 2.0),
            "by size": (torch.tensor([300.0, 100.0], dtype=torch.double), 1.0),
            "large, tau = 0.02": (torch.tensor([1e9, 9e8], dtype=torch.double), 0.02),
        },
        {
            "this is right for tau = 1 alone": lambda sizes, tau: s.source_shares(sizes, 1.0),
            "the power is 1/tau, not tau: a higher temperature is to flatten": (
                lambda sizes, tau: s.source_shares(sizes, 1 / tau)
            ),
            "a power of the sizes, not of e: take their log first": (
                lambda sizes, tau: (sizes / tau).softmax(-1)
            ),
            "they do not add up to 1": lambda sizes, tau: sizes ** (1 / tau),
            "size^(1/tau) overflows: softmax of log(size) / tau": (
                lambda sizes, tau: sizes ** (1 / tau) / (sizes ** (1 / tau)).sum()
            ),
        },
    ),
    Drill(
        s.minhash_jaccard,
        lambda: {
            "alike": documents(40, 30, K=64),
            "equal": documents(20, 20, K=8),
            "nothing shared": documents(20, 0, K=8),
        },
        {
            "this is the Jaccard index itself: estimate it from signatures": _exact_jaccard,
            "the least hash of all functions: each has a least of its own": (
                _signatures(lambda hashes: hashes.amin())
            ),
            "the greatest hash: the least is asked for": _signatures(lambda h: h.amax(1)),
            "the mod is missing: all functions have their least at the same shingle": (
                _signatures(prime=None)
            ),
        },
    ),
]
