"""Training steps that benches take by the clock, and the team's counters around them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from undisturbed import TICKS

from crystalline._native import Team
from crystalline.config import ModelConfig
from crystalline.model import Decoder, Parameters, initialise
from crystalline.optim import AdamW, AdamWConfig


@dataclass(frozen=True)
class Measured:
    """One piece of work: seconds of wall time; nanoseconds in regions; busy ones of each thread."""

    seconds: float
    inside: int
    busy: NDArray[np.int64]  # (threads,)

    @property
    def waited(self) -> int:
        """Thread-nanoseconds at the ends of regions."""
        return len(self.busy) * self.inside - int(self.busy.sum())

    @property
    def imbalance(self) -> float:
        """Busiest thread over the mean."""
        return float(self.busy.max() / self.busy.mean())


def lasting(work: Callable[[], Measured]) -> Callable[[], Measured]:
    """``work`` as often as it takes to see what others do meanwhile, and the mean of it; run once
    here, which touches its memory for the first time."""
    work()
    times = math.ceil(TICKS / work().seconds)

    def mean() -> Measured:
        done = [work() for _ in range(times)]
        return Measured(
            sum(m.seconds for m in done) / times,
            sum(m.inside for m in done) // times,
            np.sum([m.busy for m in done], 0) // times,
        )

    return mean


class Clock:
    """``with`` it around work on a team; then ``measured``."""

    def __init__(self, team: Team) -> None:
        self.team = team

    def __enter__(self) -> Clock:
        self.before, self.begun = self.team.statistics(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, after = time.perf_counter() - self.begun, self.team.statistics()
        busy = after["threads"][:, 2] - self.before["threads"][:, 2]
        self.measured = Measured(seconds, after["inside"] - self.before["inside"], busy)


class Stepper:
    """A model on a team: forward, backward, clip and AdamW on random tokens.

    ``lengths`` (B) are the tokens of each sequence that are learnt; None is all of them.
    """

    def __init__(
        self, team: Team, config: ModelConfig, B: int, lengths: NDArray[np.int64] | None = None
    ) -> None:
        self.team, T = team, config.seq_len
        weights, self.gradients = Parameters(config), Parameters(config)
        initialise(weights, 0)
        self.optimizer = AdamW(weights, team, AdamWConfig())
        for block in (self.gradients, self.optimizer.m, self.optimizer.v):
            team.touch(block.flat)
        self.decoder = Decoder(weights, team, B, T, self.gradients)
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (B, T + 1), dtype=np.int32)
        self.ids, self.targets = ids[:, :-1], ids[:, 1:].copy()
        if lengths is not None:
            self.targets[np.arange(T) >= lengths[:, None]] = -1
        self.count = int((self.targets >= 0).sum())

    def step(self) -> Measured:
        """One step by the clock."""
        clock = Clock(self.team)
        with clock:
            self.decoder.gradient(self.ids, self.targets, 1.0 / self.count, False)
            self.optimizer.step(self.gradients, 1e-4)
        return clock.measured
