"""SentencePiece's BPE, as in Llama 2: no list of merges, only a score for each piece.

The score of a piece is minus the number of the merge that made it. So of all neighbours whose
concatenation is a piece, the pair with the best score is merged, the leftmost first; until no two
neighbours make a piece. Characters without a piece are then written as their bytes.
"""

import re
from collections.abc import Iterator
from heapq import heappop, heappush

from step3_peripherals.vocabulary.pieces import CACHED_LENGTH, CACHED_WORDS, SentencePieces
from step3_peripherals.vocabulary.sentencepiece_model import BPE, SPACE, Kind, Model

LONGEST = 1 << 16  # characters; bounds the memory
WORD = re.compile(f"{SPACE}{{0,{LONGEST}}}[^{SPACE}]{{1,{LONGEST}}}|{SPACE}{{1,{LONGEST}}}")
ANY = re.compile(f".{{1,{LONGEST}}}", re.DOTALL)


class ScoredBPE(SentencePieces):
    """Encodes with a BPE .model file (`from_sentencepiece`); to learn a BPE see `bpe.py`.

    A word longer than LONGEST is cut there, so that no piece lies across; `sentencepiece` alone
    would look for one. Where a piece has a ▁ behind another character, this is so of whole texts.
    """

    algorithm = BPE

    def __init__(self, model: Model):
        super().__init__(model)
        self.score = {piece: model.pieces[index].score for piece, index in self.visible.items()}
        self._whole = {p.text for p in model.pieces if p.kind == Kind.USER_DEFINED}
        # No merge makes what is no piece. So if none has a ▁ behind another character, words are
        # cut by themselves.
        self.divisible = not any(len(WORD.findall(piece)) > 1 for piece in self.visible)
        self._cache: dict[str, list[str]] = {}

    def segment(self, text: str) -> Iterator[str]:
        """Normalised text, merged as above."""
        for match in (WORD if self.divisible else ANY).finditer(text):
            word = match.group()
            found = self._cache.get(word)
            if found is None:
                found = self._merge_all(word)
                if len(word) <= CACHED_LENGTH and len(self._cache) < CACHED_WORDS:
                    self._cache[word] = found
            yield from found

    def _merge_all(self, text: str) -> list[str]:
        symbols = self.normalize.split_user_defined(text)
        size = len(symbols)
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))
        heap: list[tuple[float, int, str]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right < size and not self._whole & {symbols[left], symbols[right]}:
                merged = symbols[left] + symbols[right]
                if (score := self.score.get(merged)) is not None:
                    heappush(heap, (-score, left, merged))

        for left in range(size - 1):
            consider(left, left + 1)
        while heap:
            _, left, merged = heappop(heap)
            right = after[left]
            if right == size or not symbols[left] or symbols[left] + symbols[right] != merged:
                continue  # one of the two has been merged with another
            symbols[left], symbols[right] = merged, ""
            after[left] = after[right]
            if after[left] < size:
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [symbol for symbol in symbols if symbol]
