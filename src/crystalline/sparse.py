"""A weight of which each step updates few rows: AdamW there, and its decay on all others later.

A row that no token of a step has read and whose gradient is zero takes part in weight decay only:
one multiplication a step.  It is put off until the row is read again, or all are settled, and done
then factor by factor in the order of the steps, so the bits are those of never having put it off.
Moments of such a row rest: they are averages over the steps in which it took part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.config import ModelConfig
from crystalline.layers import Floats

Rows = NDArray[np.int32]
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
MOST_PUT_OFF = 4096  # steps


class Update(TypedDict):
    """The numbers of one AdamW update but its decay, as ``Team.adamw`` takes them."""

    grad_scale: float
    beta1: float
    beta2: float
    step_size: float
    eps: float
    root_bias2: float


class SparseTable:
    """Weight p (V, D) with its moments m and v; ``begin`` and ``update`` enclose each step."""

    def __init__(self, p: Floats, m: Floats, v: Floats, team: Team) -> None:
        self.p, self.m, self.v, self.team = p, m, v, team
        self.rows: Rows = np.empty(0, np.int32)  # of the step at hand
        self._factors = np.empty(MOST_PUT_OFF, np.float32)  # decay of the steps since all settled
        self._steps = 0  # so many
        self._last = np.zeros(len(p), np.int32)  # how many of them each row has had

    def begin(self, rows: Rows, gradient: Floats) -> None:
        """A step that reads these rising rows: they are caught up, their gradient is zero."""
        self.rows = rows
        self._catch_up(rows)
        gradient[rows] = 0.0

    def squared_norm(self, gradient: Floats, shares: NDArray[np.float64]) -> float:
        """Of the rows' gradient (V, D), the others of which are not looked at."""
        return self.team.squared_norm_rows(gradient, self.rows, shares)

    def update(self, gradient: Floats, decay: float, numbers: Update) -> None:
        """AdamW on the rows; the others will get ``decay``."""
        team, rows = self.team, self.rows
        team.adamw_rows(self.p, self.m, self.v, gradient, rows, decay=decay, **numbers)
        self._factors[self._steps] = decay
        self._steps += 1
        self._last[rows] = self._steps
        if self._steps == MOST_PUT_OFF:
            self.settle()

    def settle(self) -> None:
        """Every row is caught up: p is what dense weight decay would have made of it."""
        if self._steps:
            self._catch_up(np.arange(len(self.p), dtype=np.int32))
            self._steps = 0
            self._last[...] = 0

    def _catch_up(self, rows: Rows) -> None:
        self.team.decay_rows(self.p, rows, self._last, self._factors[: self._steps])


def vocabulary_weights(c: ModelConfig) -> tuple[str, ...]:
    """The names of the weights that have a row for every token."""
    return (EMBEDDING,) if c.tied else (EMBEDDING, OUTPUT)


def touched_rows(
    c: ModelConfig, batches: Sequence[tuple[Rows, Rows]], samples: Sequence[Rows]
) -> dict[str, Rows]:
    """The rows of ``vocabulary_weights`` that a step of these batches (ids and targets) reads: of
    ids in the embedding, of targets and samples in the output weight."""
    ids = [ids for ids, _ in batches]
    classes = [*(targets for _, targets in batches), *samples]
    if c.tied:
        return {EMBEDDING: _marked(c.vocab_size, [*ids, *classes])}
    return {EMBEDDING: _marked(c.vocab_size, ids), OUTPUT: _marked(c.vocab_size, classes)}


def _marked(V: int, arrays: Sequence[Rows]) -> Rows:
    """The rising ids that stand in any of the arrays, without those below zero."""
    seen = np.zeros(V, np.bool_)
    for ids in arrays:
        seen[ids[ids >= 0]] = True
    return np.flatnonzero(seen).astype(np.int32)
