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
from crystalline.decoder.candidates import Candidates
from crystalline.decoder.decoder import Decoder, Parameters, initialise
from crystalline.decoder.sparse import touched_rows, vocabulary_weights
from crystalline.optimizers import AdamW, AdamWConfig

BATCHES = 8  # taken in turn, so that the sampled loss has rows to catch up


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
    ``samples`` are the classes of the sampled loss; 0 is the full one.
    """

    def __init__(
        self, team: Team, config: ModelConfig, B: int, lengths: NDArray[np.int64] | None = None,
        precision: str = "fp32", samples: int = 0,
    ) -> None:  # fmt: skip
        self.team, self.config, T, V = team, config, config.seq_len, config.vocab_size
        weights, self.gradients = Parameters(config), Parameters(config)
        initialise(weights, 0)
        drawn = self.candidates = (
            Candidates(np.ones(V, np.int64), samples, 0, team) if samples else None
        )
        sparse = vocabulary_weights(config) if drawn else ()
        self.optimizer = AdamW(weights, team, AdamWConfig(), sparse)
        for block in (self.gradients, self.optimizer.m, self.optimizer.v):
            team.touch(block.flat)
        expected = drawn.log_expected if drawn else None
        self.decoder = Decoder(
            weights, team, B, T, self.gradients, precision, expected, lend_gradients=True
        )
        rng, self.turn = np.random.default_rng(0), 0
        tokens = rng.integers(0, V, (BATCHES, B, T + 1), dtype=np.int32)
        self.ids, self.targets = tokens[:, :, :-1], tokens[:, :, 1:].copy()
        if lengths is not None:
            self.targets[:, np.arange(T) >= lengths[:, None]] = -1
        self.count = int((self.targets[0] >= 0).sum())

    def step(self) -> Measured:
        """One step by the clock, with all that training does for it."""
        clock = Clock(self.team)
        self.turn += 1
        ids, targets = (tokens[self.turn % BATCHES] for tokens in (self.ids, self.targets))
        with clock:
            drawn = self.candidates.draw(self.turn) if self.candidates else None
            if drawn is not None:
                touched = touched_rows(self.config, [(ids, targets)], [drawn])
                self.optimizer.begin(self.gradients, touched)
            self.decoder.gradient(ids, targets, 1.0 / self.count, False, drawn)
            self.optimizer.step(self.gradients, 1e-4)
        return clock.measured
