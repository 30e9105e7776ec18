"""AdamW over the whole parameter block, with gradient clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crystalline._native import Team
from crystalline.model import Parameters


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
    """First and second moments m, v and the update; ``t`` counts the updates made."""

    def __init__(self, weights: Parameters, team: Team, settings: AdamWConfig) -> None:
        self.weights, self.team, self.settings = weights, team, settings
        self.m, self.v = Parameters(weights.config), Parameters(weights.config)
        self.t = 0
        self.squares = np.zeros(12)  # of the last gradient: the spheres' parts of its squared norm
        self._spans = _decay_spans(weights)

    def step(self, gradients: Parameters, lr: float) -> float:
        """One update; returns the gradient's norm before clipping.

        A norm that is not finite changes nothing: the caller decides.
        """
        s = self.settings
        norm = math.sqrt(self.team.squared_norm(gradients.flat, self.squares))
        if not math.isfinite(norm):
            return norm
        self.t += 1
        bias1, bias2 = 1.0 - power(s.beta1, self.t), 1.0 - power(s.beta2, self.t)
        for begin, end, decays in self._spans:
            cut = slice(begin, end)
            self.team.adamw(
                self.weights.flat[cut], self.m.flat[cut], self.v.flat[cut], gradients.flat[cut],
                grad_scale=1.0 if norm <= s.clip else s.clip / norm,
                beta1=s.beta1, beta2=s.beta2, step_size=lr / bias1, eps=s.eps,
                decay=1.0 - lr * s.weight_decay if decays else 1.0, root_bias2=math.sqrt(bias2),
            )  # fmt: skip
        return norm


def _decay_spans(weights: Parameters) -> list[tuple[int, int, bool]]:
    """The block cut where decay begins or ends."""
    spans: list[tuple[int, int, bool]] = []
    for name, (begin, end) in weights.spans.items():
        decays = weights.named[name].ndim == 2
        if spans and spans[-1][2] == decays:
            spans[-1] = (spans[-1][0], end, decays)
        else:
            spans.append((begin, end, decays))
    return spans
