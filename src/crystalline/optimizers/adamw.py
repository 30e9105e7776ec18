"""AdamW over the parameters; some tables by the rows a step touches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crystalline._native import Team
from crystalline.decoder.decoder import Parameters
from crystalline.decoder.sparse import SparseTable
from crystalline.optimizers.base import Optimizer, OptimizerConfig, Tensors, decay_spans


@dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
    """Settings of AdamW (Loshchilov and Hutter 2019)."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8


def power(base: float, n: int) -> float:
    """base^n by repeated squaring: the same bits everywhere, unlike the system's power."""
    result = 1.0
    while n:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result


def corrected(s: AdamWConfig, t: int, lr: float) -> tuple[float, float]:
    """Update t's step size lr / (1 - beta1^t), and the root of 1 - beta2^t."""
    return lr / (1.0 - power(s.beta1, t)), math.sqrt(1.0 - power(s.beta2, t))


class AdamW(Optimizer):
    """First and second moments m, v and the update."""

    def __init__(
        self, weights: Parameters, team: Team, settings: AdamWConfig, sparse: Sequence[str] = ()
    ) -> None:
        super().__init__(weights, team, settings, sparse)
        self.settings = settings
        self.v = Parameters(weights.config)
        team.touch(self.v.flat)
        self.tables = {
            name: SparseTable(
                weights.named[name], self.m.named[name], self.v.named[name], team,
                settings.beta1, settings.beta2, settings.eps,
            )
            for name in sparse
        }  # fmt: skip
        self._spans = decay_spans(weights, settings, [n for n in weights.named if n not in sparse])

    def _update(self, gradients: Parameters, lr: float, grad_scale: float) -> None:
        s = self.settings
        step_size, root_bias2 = corrected(s, self.t, lr)
        for decay, spans in self._spans:
            self.team.adamw_spans(
                self.weights.flat, self.m.flat, self.v.flat, gradients.flat, spans,
                grad_scale=grad_scale, beta1=s.beta1, beta2=s.beta2, step_size=step_size,
                eps=s.eps, decay=1.0 - lr * decay, root_bias2=root_bias2,
            )  # fmt: skip
        for name, table in self.tables.items():
            table.update(
                gradients.named[name], grad_scale=grad_scale,
                decay=1.0 - lr * s.decay_of(name, table.p), step_size=step_size,
                root_bias2=root_bias2,
            )  # fmt: skip

    def tensors(self) -> Tensors:
        return super().tensors() | {f"v.{name}": view for name, view in self.v.named.items()}
