"""Muon for the layers' matrices, AdamW for all other weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crystalline._native import Team
from crystalline.config import ModelConfig, parameter_shapes
from crystalline.decoder.decoder import Parameters
from crystalline.decoder.memory import arena
from crystalline.decoder.sparse import EMBEDDING, OUTPUT, SparseTable
from crystalline.optimizers.adamw import AdamWConfig, corrected
from crystalline.optimizers.base import Optimizer, Tensors

# The quintic of Jordan et al. 2024, five times: singular values end between 0.7 and 1.2.
COEFFICIENTS = ((3.4445, -4.7750, 2.0315),) * 5
SCALE = 0.2  # the root mean square of an update, as AdamW's is (Liu et al. 2025)


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Settings of Muon (Jordan et al. 2024), and of AdamW beside it."""

    momentum: float = 0.95
    nesterov: bool = True
    coefficients: tuple[tuple[float, float, float], ...] = COEFFICIENTS


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a weight is one of the layers' matrices, which Muon updates."""
    return len(shape) == 2 and name not in (EMBEDDING, OUTPUT)


def others_floats(c: ModelConfig) -> int:
    """Numbers in all weights that Muon leaves to AdamW."""
    return sum(math.prod(s) for name, s in parameter_shapes(c).items() if not is_matrix(name, s))


class Muon(Optimizer):
    """A momentum whose singular values are made equal, for the layers' matrices, each by itself.

    Its step is 0.2 sqrt(max(rows, columns)) times the learning rate, so that entries change about
    as much as by AdamW, which has the other weights: both share learning rate and decay.
    """

    def __init__(
        self, weights: Parameters, team: Team, settings: MuonConfig, sparse: Sequence[str] = ()
    ) -> None:
        super().__init__(weights, team, settings, sparse)
        self.settings = settings
        shapes = {name: view.shape for name, view in weights.named.items()}
        matrices = {name: shape for name, shape in shapes.items() if is_matrix(name, shape)}
        self._matrices = np.array(
            [(weights.spans[name][0], *shape) for name, shape in matrices.items()], np.int64
        )
        self._scales = np.array([SCALE * math.sqrt(max(shape)) for shape in matrices.values()])
        self._coefficients = np.array(settings.coefficients, np.float32)
        self._second_moments([name for name in shapes if name not in matrices])
        self.tables = {
            name: SparseTable(
                weights.named[name], self.m.named[name], self.v[name], team,
                settings.beta1, settings.beta2, settings.eps,
            )
            for name in sparse
        }  # fmt: skip

    def _second_moments(self, names: Sequence[str]) -> None:
        """Second moments of the weights that AdamW has, and of no others."""
        block, at = arena(others_floats(self.weights.config)), 0
        self.team.touch(block)
        self.v: Tensors = {}
        for name in names:
            view = self.weights.named[name]
            self.v[name] = block[at : at + view.size].reshape(view.shape)
            at += view.size

    def _update(self, gradients: Parameters, lr: float, grad_scale: float) -> None:
        s = self.settings
        self.team.muon_step(
            self.weights.flat, self.m.flat, gradients.flat, self._matrices,
            (lr * self._scales).astype(np.float32), self._coefficients, grad_scale=grad_scale,
            momentum=s.momentum, nesterov=s.nesterov, decay=1.0 - lr * s.weight_decay,
        )  # fmt: skip
        step_size, root_bias2 = corrected(s, self.t, lr)
        for name, v in self.v.items():
            p = self.weights.named[name]
            decay = 1.0 - lr * s.decay_of(name, p)
            if name in self.tables:
                self.tables[name].update(
                    gradients.named[name], grad_scale=grad_scale, decay=decay,
                    step_size=step_size, root_bias2=root_bias2,
                )  # fmt: skip
                continue
            self.team.adamw(
                p.reshape(-1), self.m.named[name].reshape(-1), v.reshape(-1),
                gradients.named[name].reshape(-1), grad_scale=grad_scale, beta1=s.beta1,
                beta2=s.beta2, step_size=step_size, eps=s.eps, decay=decay, root_bias2=root_bias2,
            )  # fmt: skip

    def tensors(self) -> Tensors:
        return super().tensors() | {f"v.{name}": view for name, view in self.v.items()}
