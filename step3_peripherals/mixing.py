"""Data from several sources: how often each is drawn, and a mix that can be resumed.

Drawn by size, a large language leaves a small one nearly unseen; drawn alike, the small one is
repeated until it is learnt by heart. A temperature tau lies between: source i, of n_i samples, has

    p_i = n_i^(1/tau) / sum_j n_j^(1/tau)

tau = 1 is by size and tau -> infinity alike for all. Papers give the exponent 1/tau: multilingual
BERT 0.7, XLM 0.5 (Lample and Conneau 2019, arXiv:1901.07291, section 3.1), XLM-R 0.3 (Conneau et
al. 2020, arXiv:1911.02116, section 3.1); T5's T is this tau (arXiv:1910.10683, section 3.5.2).
"""

from collections.abc import Sequence

import numpy as np

from common.cli import UserError

BLOCK = 4096  # draws from one generator: where in a mix they stand decides which


def shares(sizes: Sequence[int] | np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The p_i of sources of `sizes` (S,): (S,) float64, 1 in all.

    Raises UserError for no sources, an empty one, or a temperature that is not above 0.
    """
    sizes = np.asarray(sizes, np.float64)
    if not len(sizes) or sizes.min() < 1:
        raise UserError("a mix needs sources with at least one sample each: leave out empty ones")
    if not temperature > 0:
        raise UserError(f"temperature {temperature} of a mix must be above 0; 1 is by size")
    log = np.log(sizes) / temperature
    powers = np.exp(log - log.max())  # n^(1/tau) itself overflows at low temperatures
    return powers / powers.sum()


def epochs(
    sizes: Sequence[int] | np.ndarray, n_samples: int, temperature: float = 1.0
) -> np.ndarray:
    """How often `n_samples` draws are expected to go through each source: p_i n / n_i.

    `sizes` (S,) -> (S,) float64. Raises UserError as `shares` does.
    """
    return shares(sizes, temperature) * n_samples / np.asarray(sizes)


class Mix:
    """An endless sequence of (source, sample), a function of the seed alone.

    Each source is gone through in a random order, and again in another one. `drawn`, how many
    samples of each source were taken, is all that a resumed run needs.
    """

    def __init__(
        self,
        sizes: Sequence[int] | np.ndarray,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        drawn: Sequence[int] | None = None,
    ):
        self.shares = shares(sizes, temperature)
        self.sizes, self.seed = np.asarray(sizes, np.int64), seed
        self.drawn = np.zeros_like(self.sizes) if drawn is None else np.array(drawn, np.int64)
        if self.drawn.shape != self.sizes.shape:
            raise UserError(f"the mix was of {len(self.drawn)} sources, now {len(self.sizes)}")
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # source: epoch, order

    @property
    def epochs(self) -> np.ndarray:
        """How often each source was gone through so far, float64."""
        return self.drawn / self.sizes

    def take(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `n` draws: sources (n,) and numbers of samples in them (n,), int64."""
        first = int(self.drawn.sum())
        blocks = range(first // BLOCK, -(-(first + n) // BLOCK))
        uniform = [np.random.default_rng((self.seed, block)).random(BLOCK) for block in blocks]
        uniform = np.concatenate([np.empty(0), *uniform])[first % BLOCK :][:n]
        # The last edge is 1 but for rounding, and no draw may lie behind it
        sources = np.searchsorted(self.shares.cumsum()[:-1], uniform, side="right")
        samples = np.empty(n, np.int64)
        for source in np.unique(sources):
            mine = np.flatnonzero(sources == source)
            turns, places = np.divmod(self.drawn[source] + np.arange(len(mine)), self.sizes[source])
            for turn in np.unique(turns):
                now = turns == turn
                samples[mine[now]] = self._order(int(source), int(turn))[places[now]]
            self.drawn[source] += len(mine)
        return sources, samples

    def _order(self, source: int, turn: int) -> np.ndarray:
        if self._orders.get(source, (None,))[0] != turn:
            rng = np.random.default_rng((self.seed, source, turn))
            self._orders[source] = turn, rng.permutation(self.sizes[source])
        return self._orders[source][1]
