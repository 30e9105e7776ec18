"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from crystalline._native import Team
from crystalline.decoder.decoder import Parameters

SWAPPED = 1 << 18  # numbers at a time


class Average:
    """a += (1 - d) (w - a) after every update of the weights w, where d is ``decay``, and less at
    first: (1 + t) / (10 + t) after update t, so that the first weights are soon forgotten."""

    def __init__(self, weights: Parameters, team: Team, decay: float) -> None:
        self.weights, self.team, self.decay = weights, team, decay
        self.parameters = Parameters(weights.config)
        team.touch(self.parameters.flat)

    def start(self) -> None:
        """The average of the weights as they are, before the first update."""
        self.parameters.flat[...] = self.weights.flat

    def update(self, t: int) -> None:
        """After update ``t``, which counts from 1."""
        decay = min(self.decay, (1 + t) / (10 + t))
        self.team.ema(self.parameters.flat, self.weights.flat, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the weights' memory holds the average, and the average's the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        a, b = self.parameters.flat, self.weights.flat
        for i in range(0, a.size, SWAPPED):
            kept = a[i : i + SWAPPED].copy()
            a[i : i + SWAPPED] = b[i : i + SWAPPED]
            b[i : i + SWAPPED] = kept
