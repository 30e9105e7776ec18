"""A text that is being made, token by token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.config import ModelConfig
from crystalline.inference.sampling import Sampling, draw
from crystalline.inference.weights import Cache, Floats


class Speaker:
    """One text that is being made: its tokens, its random bits, its cache.

    When the positions run out the model goes on from the last half of them.
    """

    def __init__(self, place: int, c: ModelConfig, ids: list[int], most: int, seed: int) -> None:
        self.place, self.config, self.ids, self.left = place, c, list(ids), most
        self.bits, self.ended = np.random.PCG64(seed), False
        self.cache, self.waiting = Cache(c, min(c.seq_len, len(ids) + most)), len(ids)

    def fresh(self) -> NDArray[np.int32]:
        """The tokens that are not in the cache yet."""
        room = self.config.seq_len
        if self.cache.used + self.waiting > room:
            self.cache, self.waiting = Cache(self.config, room), max(room // 2, 1)
        return np.array(self.ids[-self.waiting :], np.int32)

    def draw(self, logits: Floats, sampling: Sampling, team: Team) -> int:
        """The next token, by the text's own random bits."""
        seen = self.ids if sampling.repetition_penalty != 1.0 else []
        return draw(logits, np.array(seen, np.int64), sampling, self.bits, team)

    def take(self, token: int, eot: int) -> None:
        """Goes on with ``token``, or ends with it."""
        self.ended = token == eot
        self.ids.append(token)
        self.left, self.waiting = self.left - 1, 1


def until(pieces: Iterator[str], stops: list[str]) -> Iterator[str]:
    """The pieces up to the first stop string; what may be the beginning of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        found = [at for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        keep = max((n for s in stops for n in range(len(s)) if held.endswith(s[:n])), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held
