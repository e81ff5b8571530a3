"""Writing with a language model: which token next?

Warps change the distribution before a token is drawn, mostly by cutting off its tail. They are
pure functions, logits (B, V) -> logits (B, V) in which a token that may not be drawn has -inf, and
they chain: `warps=(partial(temperature, tau=0.8), partial(top_p, p=0.95))`.
Below, p is softmax(logits).

`generate` draws, or takes the likeliest; `beam` and `contrastive` search. All three write for any
causal model, which is a function input_ids (B, T) -> logits (B, T, V). They keep no cache of keys
and values: a token costs a whole forward pass, but a model needs no second way to compute. A text
that is finished leaves the batch. Letters: B texts, k candidates or beams, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

Prompts = Sequence[Sequence[int] | Tensor]
Warp = Callable[[Tensor], Tensor]

# -- warps -----------------------------------------------------------------------------------


def temperature(logits: Tensor, tau: float) -> Tensor:
    """p_v^(1/tau) / sum_u p_u^(1/tau): tau < 1 sharpens, tau > 1 flattens, tau -> 0 is greedy.

    Raises ValueError for a tau of 0 or less.
    """
    if tau <= 0:
        raise ValueError(f"temperature {tau} must be above 0")
    return logits / tau


def top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens, and all that tie with the last of them (Fan et al. 2018,
    arXiv:1805.04833, section 5.4). Raises ValueError for k < 1."""
    if k < 1:
        raise ValueError(f"k {k} must be 1 or more")
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Nucleus: the fewest tokens whose p_v add up to at least p (Holtzman et al. 2020,
    arXiv:1904.09751, equation 2). Of equally likely ones, those of higher id stay.

    Raises ValueError for a p outside 0..1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p {p} must be between 0 and 1")
    ascending = logits.sort(dim=-1, stable=True)
    tail = ascending.values.softmax(-1).cumsum(-1) <= 1 - p
    tail[..., -1] = False  # the likeliest stays, whatever p
    return _without(logits, tail, ascending.indices)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Tokens with p_v >= share * max_u p_u (Nguyen et al. 2024, arXiv:2407.01082, section 3).

    So few tokens stay where the model is sure, and many where it is not. Raises ValueError for a
    share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} must be between 0 and 1")
    p = logits.softmax(-1)
    return logits.masked_fill(p < share * p.amax(-1, keepdim=True), -torch.inf)


def typical(logits: Tensor, mass: float) -> Tensor:
    """Tokens that surprise as much as is to be expected: in order of | -log p_v - H(p) |, the
    fewest whose p_v add up to at least `mass`, and ties of the last (Meister et al. 2022,
    arXiv:2202.00666, equation 6). The likeliest token can be among those cut off.

    Raises ValueError for a mass of 0 or less, or above 1.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass {mass} must be above 0 and at most 1")
    log_p = logits.log_softmax(-1)
    entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)
    distance, order = (-log_p - entropy).abs().sort(dim=-1, stable=True)
    reached = logits.gather(-1, order).softmax(-1).cumsum(-1) < mass
    last = reached.sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return _without(logits, distance > distance.gather(-1, last), order)


def repetition_penalty(logits: Tensor, input_ids: Tensor, penalty: float) -> Tensor:
    """Divide the logits of the tokens in `input_ids` (B, T) by `penalty`, or multiply them if they
    are negative (CTRL, Keskar et al. 2019, arXiv:1909.05858, section 4.1).

    Logits have no fixed zero, so the same penalty is not the same for every model. Raises
    ValueError for a penalty of 0 or less.
    """
    if penalty <= 0:
        raise ValueError(f"penalty {penalty} must be above 0")
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, input_ids, True)
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _without(logits: Tensor, out: Tensor, order: Tensor) -> Tensor:
    """`logits` without the tokens that are `out` (B, V), which is sorted by `order`."""
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(B,) tokens: one of each distribution, or without a generator the likeliest."""
    if generator is None:
        return logits.argmax(-1)
    return logits.softmax(-1).multinomial(1, generator=generator)[:, 0]


# -- writing ---------------------------------------------------------------------------------


class Writing:
    """Texts of different lengths in the middle of being written.

    ids (B, T) are padded on the right, where a causal model sees nothing of it: no masks and no
    shifted positions. The pad is a text's own first token, which no repetition penalty minds.
    """

    def __init__(self, model: Callable, prompts: Prompts, copies: int = 1):
        """Stand behind the prompts, each copied `copies` times, on the device of the model if it
        is one of PyTorch's. ValueError for an empty one."""
        device = next((p.device for p in getattr(model, "parameters", list)()), None)
        made = dict(dtype=torch.long, device=device)
        rows = [torch.as_tensor(prompt, **made) for prompt in prompts for _ in range(copies)]
        if not all(len(row) for row in rows):
            raise ValueError("a prompt needs at least one token")
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        self.model, self.lengths = model, lengths
        ids = pad_sequence(rows, batch_first=True)
        pads = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]
        self.ids = torch.where(pads, ids[:, :1], ids)

    def last(self, outputs: Tensor) -> Tensor:
        """(B, T, ...) -> (B, ...) at the last token of each text."""
        return outputs[torch.arange(len(outputs), device=outputs.device), self.lengths - 1]

    def scores(self) -> Tensor:
        """(B, V) logits of each text's next token; at least fp32."""
        logits = self.last(self.model(self.ids))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def keep(self, rows: Tensor) -> None:
        """Text i becomes what text `rows[i]` was."""
        self.lengths = self.lengths[rows]
        self.ids = self.ids[rows, : int(self.lengths.max())]

    def append(self, tokens: Tensor) -> None:
        """Write `tokens` (B,), one behind each text."""
        ids = torch.cat([self.ids, self.ids[:, :1]], 1)
        self.ids = ids.scatter(1, self.lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1


@torch.inference_mode()
def generate(
    model: Callable[[Tensor], Tensor],
    prompts: Prompts,
    max_new_tokens: int,
    *,
    warps: Sequence[Warp] = (),
    penalty: float = 1.0,
    generator: torch.Generator | None = None,
    eos_token_id: int | None = None,
) -> list[list[int]]:
    """Write up to `max_new_tokens` tokens behind each prompt, or up to `eos_token_id`.

    The logits go through `repetition_penalty`, then through the `warps` in their order; a token is
    drawn with `generator`, or is the likeliest without one. Returns what was written, without the
    end-of-sequence token. Raises ValueError for an empty prompt, or a penalty of 0 or less.
    """
    if len(prompts) == 0:
        return []
    writing = Writing(model, prompts)
    text = torch.arange(len(prompts), device=writing.ids.device)  # the one that a row writes
    written = torch.full((len(prompts), max_new_tokens), -1, device=writing.ids.device)
    for step in range(max_new_tokens):
        logits = repetition_penalty(writing.scores(), writing.ids, penalty)
        for warp in warps:
            logits = warp(logits)
        tokens = draw(logits, generator)
        rows = (tokens != _end(eos_token_id)).nonzero().flatten()
        if len(rows) == 0:
            break
        text, tokens = text[rows], tokens[rows]
        written[text, step] = tokens
        writing.keep(rows)
        writing.append(tokens)
    return _without_end(written, -1)


@torch.inference_mode()
def beam(
    model: Callable[[Tensor], Tensor],
    prompts: Prompts,
    max_new_tokens: int,
    *,
    beam_size: int = 4,
    length_penalty: float = 1.0,
    eos_token_id: int | None = None,
) -> list[list[int]]:
    """Keep the `beam_size` likeliest beginnings; return the Y of best log P(Y|prompt) / |Y|^b.

    Y ends with the end of sequence, which |Y| counts, or has `max_new_tokens`; b is
    `length_penalty`, 0 or more. Step 1's search behind a prompt, and without an encoder.
    Result as of `generate`. Raises ValueError for an empty prompt, a `beam_size` below 1 or a
    `length_penalty` below 0.
    """
    if beam_size < 1 or length_penalty < 0:
        raise ValueError(f"beam_size {beam_size} must be 1 or more, length_penalty 0 or more")
    if len(prompts) == 0:
        return []
    B, k, eos = len(prompts), beam_size, _end(eos_token_id)
    writing = Writing(model, prompts, copies=k)
    device = writing.ids.device
    answer = torch.full((B, max_new_tokens), eos, device=device)  # each text's best finished Y
    text, best = torch.arange(B, device=device), torch.full((B,), -torch.inf, device=device)
    written = torch.zeros((B, k, 0), dtype=torch.long, device=device)
    live = torch.full((B, k), -torch.inf, device=device)  # log P of what is written
    live[:, 0] = 0.0  # the k beginnings are still one and the same

    for length in range(1, max_new_tokens + 1):
        log_p = writing.scores().log_softmax(-1).unflatten(0, (-1, k))  # (B, k, V)
        V = log_p.shape[-1]
        # Of 2k candidates at most k end here (one for each parent), so k remain to go on with.
        total, place = (live[:, :, None] + log_p).flatten(1).topk(min(2 * k, k * V))
        parent, token = place // V, place % V  # (B, 2k), best first
        past = written.gather(1, parent[:, :, None].expand(-1, -1, length - 1))
        candidates = torch.cat([past, token[:, :, None]], -1)

        # The finished ones among the best k against the best that finished before
        ends = token == eos
        finished = ends[:, :k] | (length == max_new_tokens)
        scores = (total[:, :k] / length**length_penalty).masked_fill(~finished, -torch.inf)
        score, which = scores.max(1)
        better = (score > best).nonzero().flatten()
        best = torch.maximum(best, score)
        answer[text[better], :length] = candidates[better, which[better]]

        # A text goes on while its best beginning could still win: log P only falls, so what it has
        # now, over the greatest length, bounds whatever comes of it.
        live, order = total.masked_fill(ends, -torch.inf).topk(k)
        going = (live[:, 0] / max_new_tokens**length_penalty > best).nonzero().flatten()
        if len(going) == 0 or length == max_new_tokens:
            break
        order = order[going]
        writing.keep((going[:, None] * k + parent[going].gather(1, order)).flatten())
        writing.append(token[going].gather(1, order).flatten())
        written = candidates[going[:, None], order]
        live, best, text = live[going], best[going], text[going]
    return _without_end(answer, eos)


@torch.inference_mode()
def contrastive(
    model: Callable[[Tensor], tuple[Tensor, Tensor]],
    prompts: Prompts,
    max_new_tokens: int,
    *,
    k: int = 4,
    alpha: float = 0.6,
    eos_token_id: int | None = None,
) -> list[list[int]]:
    """Of the k likeliest tokens, the one of best

        (1 - alpha) p_v - alpha max_j cos(h_v, h_j)

    where h_v is the model's last hidden state at v, written behind the text, and h_j are those of
    all tokens before it (Su et al. 2022, arXiv:2202.06417, equation 5). What resembles the text so
    far is likely a repetition of it. Nothing is random; alpha 0 is greedy.

    `model` returns logits (B, T, V) and hidden states (B, T, d). Result as of `generate`. Raises
    ValueError for an empty prompt, k < 1 or an alpha outside 0..1.
    """
    if k < 1 or not 0 <= alpha <= 1:
        raise ValueError(f"k {k} must be 1 or more, alpha {alpha} between 0 and 1")
    if len(prompts) == 0:
        return []
    writing = Writing(model, prompts)
    text = torch.arange(len(prompts), device=writing.ids.device)
    written = torch.full((len(prompts), max_new_tokens), -1, device=writing.ids.device)
    scores = writing.last(model(writing.ids)[0])
    for step in range(max_new_tokens):
        p, tokens = scores.softmax(-1).topk(min(k, scores.shape[-1]))  # (B, k)
        rows = torch.arange(tokens.numel(), device=p.device).view_as(tokens)
        writing.keep(rows.flatten() // tokens.shape[1])
        writing.append(tokens.flatten())  # each candidate behind its own copy of the text
        logits, hidden = model(writing.ids)
        hidden = F.normalize(hidden, dim=-1)
        cosine = (hidden @ writing.last(hidden)[:, :, None])[:, :, 0]  # (B k, T)
        place = torch.arange(cosine.shape[1], device=cosine.device)
        cosine = cosine.masked_fill(place >= writing.lengths[:, None] - 1, -torch.inf)
        score = (1 - alpha) * p - alpha * cosine.amax(1).view_as(p)
        best = score.argmax(1, keepdim=True)
        rows, tokens = rows.gather(1, best)[:, 0], tokens.gather(1, best)[:, 0]
        going = tokens != _end(eos_token_id)
        if not going.any():
            break
        text, rows = text[going], rows[going]
        written[text, step] = tokens[going]
        scores = writing.last(logits)[rows]
        writing.keep(rows)
    return _without_end(written, -1)


def _end(eos_token_id: int | None) -> int:
    return -1 if eos_token_id is None else eos_token_id  # -1 is no token: nothing ends a text


def _without_end(rows: Tensor, end: int) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in rows.tolist()]
