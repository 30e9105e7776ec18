"""AdamW over the parameters, with gradient clipping; some tables by the rows a step touches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crystalline._native import Team
from crystalline.layers import Floats
from crystalline.model import Parameters
from crystalline.sparse import Rows, SparseTable


@dataclass(frozen=True)
class AdamWConfig:
    """Settings of AdamW (Loshchilov and Hutter 2019); decay touches matrices, not norm gains."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # the gradient's norm is held to this


def power(base: float, n: int) -> float:
    """base^n by repeated squaring: the same bits everywhere, unlike the system's power."""
    result = 1.0
    while n:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result


class AdamW:
    """First and second moments m, v and the update; ``t`` counts the updates made.

    Weights named in ``sparse`` (V, D) are updated where ``begin`` says that a step touches them.
    """

    def __init__(
        self, weights: Parameters, team: Team, settings: AdamWConfig, sparse: Sequence[str] = ()
    ) -> None:
        self.weights, self.team, self.settings = weights, team, settings
        self.m, self.v = Parameters(weights.config), Parameters(weights.config)
        self.t = 0
        self.squares = np.zeros(12)  # of the last gradient: the spheres' parts of its squared norm
        self.tables = {
            name: SparseTable(
                weights.named[name], self.m.named[name], self.v.named[name], team,
                settings.beta1, settings.beta2, settings.eps,
            )
            for name in sparse
        }  # fmt: skip
        spans = _decay_spans(weights, sparse)
        self._spans = np.array(spans, np.int64).reshape(-1, 3)  # begin, end, whether they decay
        self._dense = _joined([(begin, end) for begin, end, _ in spans])

    def begin(self, gradients: Parameters, touched: Mapping[str, Rows]) -> None:
        """Before a step's forward: the rows of each sparse weight that it reads or that have a
        gradient.  They are brought up to date, and their gradients set to zero."""
        for name, rows in touched.items():
            self.tables[name].begin(rows, gradients.named[name])

    def step(self, gradients: Parameters, lr: float) -> float:
        """One update; returns the gradient's norm before clipping.

        A norm that is not finite changes nothing: the caller decides.
        """
        s = self.settings
        norm = math.sqrt(self._squared_norm(gradients))
        if not math.isfinite(norm):
            return norm
        self.t += 1
        bias1, bias2 = 1.0 - power(s.beta1, self.t), 1.0 - power(s.beta2, self.t)
        decay = 1.0 - lr * s.weight_decay
        grad_scale = 1.0 if norm <= s.clip else s.clip / norm
        step_size, root_bias2 = lr / bias1, math.sqrt(bias2)
        self.team.adamw_spans(
            self.weights.flat, self.m.flat, self.v.flat, gradients.flat, self._spans,
            grad_scale=grad_scale, beta1=s.beta1, beta2=s.beta2, step_size=step_size,
            eps=s.eps, decay=decay, root_bias2=root_bias2,
        )  # fmt: skip
        for name, table in self.tables.items():
            table.update(
                gradients.named[name], grad_scale=grad_scale, decay=decay, step_size=step_size,
                root_bias2=root_bias2,
            )
        return norm

    def settle(self) -> None:
        """Brings every row of the sparse weights up to date, for readers of all of them.  It may be
        done between any two steps, or not, without a bit of later weights changing."""
        for table in self.tables.values():
            table.settle()

    def tensors(self) -> dict[str, Floats]:
        """What resuming needs beside ``t``, by name; settled before."""
        named = {f"m.{name}": view for name, view in self.m.named.items()}
        return named | {f"v.{name}": view for name, view in self.v.named.items()}

    def load(self, tensors: Mapping[str, Floats], updates: int) -> None:
        """Goes on where the optimizer that gave these ``tensors`` after ``updates`` stood."""
        for name, view in self.tensors().items():
            view[...] = tensors[name]
        self.t = updates

    def _squared_norm(self, gradients: Parameters) -> float:
        total, shares = 0.0, np.zeros(12)
        self.squares[...] = 0.0
        for begin, end in self._dense:
            total += self.team.squared_norm(gradients.flat[begin:end], shares)
            self.squares += shares
        for name, table in self.tables.items():
            total += table.squared_norm(gradients.named[name], shares)
            self.squares += shares
        return total


def _decay_spans(weights: Parameters, sparse: Sequence[str]) -> list[tuple[int, int, bool]]:
    """The block without the sparse weights, cut where decay begins or ends."""
    spans: list[tuple[int, int, bool]] = []
    for name, (begin, end) in weights.spans.items():
        if name in sparse:
            continue
        decays = weights.named[name].ndim == 2
        if spans and spans[-1][1:] == (begin, decays):
            spans[-1] = (spans[-1][0], end, decays)
        else:
            spans.append((begin, end, decays))
    return spans


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that touch, as one."""
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined
