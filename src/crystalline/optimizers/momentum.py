"""Optimizers that keep one momentum: Lion, and gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crystalline._native import Team
from crystalline.decoder.decoder import Parameters
from crystalline.optimizers.base import Optimizer, OptimizerConfig, decay_spans


@dataclass(frozen=True)
class LionConfig(OptimizerConfig):
    """Settings of Lion (Chen et al. 2023)."""

    beta1: float = 0.9
    beta2: float = 0.99


class Lion(Optimizer):
    """The sign of a momentum, with decoupled decay."""

    def __init__(
        self, weights: Parameters, team: Team, settings: LionConfig, sparse: Sequence[str] = ()
    ) -> None:
        super().__init__(weights, team, settings, sparse)
        self.settings = settings
        self._spans = decay_spans(weights, settings, list(weights.named))

    def _update(self, gradients: Parameters, lr: float, grad_scale: float) -> None:
        s = self.settings
        for decay, spans in self._spans:
            self.team.lion_spans(
                self.weights.flat, self.m.flat, gradients.flat, spans, grad_scale=grad_scale,
                beta1=s.beta1, beta2=s.beta2, step_size=lr, decay=1.0 - lr * decay,
            )  # fmt: skip


@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """Settings of gradient descent with momentum (Polyak 1964), or Nesterov's (Sutskever et al.
    2013)."""

    momentum: float = 0.9
    nesterov: bool = True


class SGD(Optimizer):
    """Gradient descent with momentum and decoupled decay."""

    def __init__(
        self, weights: Parameters, team: Team, settings: SGDConfig, sparse: Sequence[str] = ()
    ) -> None:
        super().__init__(weights, team, settings, sparse)
        self.settings = settings
        self._spans = decay_spans(weights, settings, list(weights.named))

    def _update(self, gradients: Parameters, lr: float, grad_scale: float) -> None:
        s = self.settings
        for decay, spans in self._spans:
            self.team.sgd_spans(
                self.weights.flat, self.m.flat, gradients.flat, spans, grad_scale=grad_scale,
                momentum=s.momentum, nesterov=s.nesterov, step_size=lr, decay=1.0 - lr * decay,
            )  # fmt: skip
