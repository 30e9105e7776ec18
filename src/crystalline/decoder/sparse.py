"""A weight of which each step updates few rows: AdamW there, and on all others later.

A row whose gradient is zero still changes under AdamW: its moments fall, its weights go on by the
first one and decay.  This is put off until the row is read again, or all are settled, and done then
step by step in order, so the bits are those of dense AdamW at every step.  It costs the same
arithmetic, but the row comes from memory once and not at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.config import ModelConfig
from crystalline.decoder.layers import Floats

Rows = NDArray[np.int32]
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
MOST_PUT_OFF = 4096  # steps


class SparseTable:
    """Weight p (V, D) with its moments m and v; ``begin`` and ``update`` enclose each step.

    ``beta1``, ``beta2`` and ``eps`` are the same in all updates.
    """

    def __init__(
        self, p: Floats, m: Floats, v: Floats, team: Team, beta1: float, beta2: float, eps: float
    ) -> None:
        self.p, self.m, self.v, self.team = p, m, v, team
        self.rows: Rows = np.empty(0, np.int32)  # of the step at hand
        self._beta1, self._beta2, self._eps = beta1, beta2, eps
        # Decay, step size and root_bias2 of the steps since all rows were settled, so many,
        self._past = np.empty((MOST_PUT_OFF, 3), np.float32)
        self._steps = 0
        self._last = np.zeros(len(p), np.int32)  # and how many of them each row has had.

    def begin(self, rows: Rows, gradient: Floats) -> None:
        """A step that reads these rising rows: they are caught up, their gradient is zero."""
        self.rows = rows
        self._catch_up(rows)
        gradient[rows] = 0.0

    def squared_norm(self, gradient: Floats, shares: NDArray[np.float64]) -> float:
        """Of the rows' gradient (V, D), the others of which are not looked at."""
        return self.team.squared_norm_rows(gradient, self.rows, shares)

    def update(
        self, gradient: Floats, *, grad_scale: float, decay: float, step_size: float,
        root_bias2: float,
    ) -> None:  # fmt: skip
        """AdamW on the rows; the others will have it with a gradient of zero."""
        self.team.adamw_rows(
            self.p, self.m, self.v, gradient, self.rows, grad_scale=grad_scale, decay=decay,
            step_size=step_size, root_bias2=root_bias2, beta1=self._beta1, beta2=self._beta2,
            eps=self._eps,
        )  # fmt: skip
        self._past[self._steps] = decay, step_size, root_bias2
        self._steps += 1
        self._last[self.rows] = self._steps
        if self._steps == MOST_PUT_OFF:
            self.settle()

    def settle(self) -> None:
        """Every row is caught up: p, m and v are what dense AdamW would have made of them."""
        if self._steps:
            self._catch_up(np.arange(len(self.p), dtype=np.int32))
            self._steps = 0
            self._last[...] = 0

    def _catch_up(self, rows: Rows) -> None:
        self.team.adamw_rest_rows(
            self.p, self.m, self.v, rows, self._last, self._past[: self._steps],
            beta1=self._beta1, beta2=self._beta2, eps=self._eps,
        )  # fmt: skip


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
