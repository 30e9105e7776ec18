"""What all optimizers share: clipping, which weights decay by how much, and the checkpoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.checkpoints.pending import Tensor
from crystalline.decoder.decoder import Parameters
from crystalline.decoder.sparse import EMBEDDING, OUTPUT, Rows, SparseTable
from crystalline.errors import CheckpointError

Floats = NDArray[np.float32]
Tensors = dict[str, Floats]


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings that every optimizer has.  Decay is decoupled: each step takes lr * decay off."""

    weight_decay: float = 0.1  # of the layers' matrices
    embedding_decay: float | None = None  # of embedding and output weight; None: as the matrices
    norm_decay: float = 0.0
    clip: float = 1.0  # the gradient's norm is held to this; 0 leaves it as it is
    lambda_correction: float = 0.0  # every gradient is multiplied by 1 less this

    def decay_of(self, name: str, view: Floats) -> float:
        """The decay of one weight."""
        if view.ndim == 1:
            return self.norm_decay
        if name in (EMBEDDING, OUTPUT) and self.embedding_decay is not None:
            return self.embedding_decay
        return self.weight_decay


class Optimizer(ABC):
    """Updates ``weights`` from gradients; ``t`` counts the updates made.

    ``m`` is the first moment, which they all have.  Of weights named in ``sparse`` (V, D) a step
    has gradients only where ``begin`` says so; their gradient is taken as zero elsewhere.
    """

    def __init__(
        self, weights: Parameters, team: Team, settings: OptimizerConfig, sparse: Sequence[str] = ()
    ) -> None:
        self.weights, self.team = weights, team
        self.t = 0
        self.squares = np.zeros(12)  # of the last gradient: the spheres' parts of its squared norm
        self.m = Parameters(weights.config)
        team.touch(self.m.flat)
        self.tables: dict[str, SparseTable] = {}
        self._clip, self._correction = settings.clip, 1.0 - settings.lambda_correction

    def begin(self, gradients: Parameters, touched: Mapping[str, Rows]) -> None:
        """Before a step's forward: the rows of each sparse weight that it reads or that have a
        gradient.  They are brought up to date, and their gradients set to zero."""
        for name, rows in touched.items():
            if name in self.tables:
                self.tables[name].begin(rows, gradients.named[name])
            else:
                gradients.named[name].fill(0.0)

    def step(self, gradients: Parameters, lr: float) -> float:
        """One update; returns the gradient's norm before clipping and lambda correction, which are
        one factor.

        A norm that is not finite changes nothing: the caller decides.
        """
        norm = math.sqrt(self._squared_norm(gradients))
        if not math.isfinite(norm):
            return norm
        self.t += 1
        fits = self._clip == 0 or norm <= self._clip
        self._update(gradients, lr, (1.0 if fits else self._clip / norm) * self._correction)
        return norm

    @abstractmethod
    def _update(self, gradients: Parameters, lr: float, grad_scale: float) -> None:
        """Update number ``t`` from ``grad_scale`` times the gradients."""

    def settle(self) -> None:
        """Brings every row of the sparse weights up to date, for readers of all of them.  It may be
        done between any two steps, or not, without a bit of later weights changing."""
        for table in self.tables.values():
            table.settle()

    def tensors(self) -> Tensors:
        """What resuming needs beside ``t``, by name; settled before."""
        return {f"m.{name}": view for name, view in self.m.named.items()}

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Goes on where the optimizer that gave these ``tensors`` after ``updates`` stood."""
        for name, view in self.tensors().items():
            found = tensors.get(name)  # which may read it from the disk
            if found is None or found.shape != view.shape:
                raise CheckpointError(
                    f"optimizer.safetensors: {name} is missing or not {view.shape}, which "
                    f"{type(self).__name__} needs; restore the folder from a copy, or train again"
                )
            view[...] = np.asarray(found)
        self.t = updates

    def _squared_norm(self, gradients: Parameters) -> float:
        total, shares = 0.0, np.zeros(12)
        self.squares[...] = 0.0
        for begin, end in self._dense():
            total += self.team.squared_norm(gradients.flat[begin:end], shares)
            self.squares += shares
        for name, table in self.tables.items():
            total += table.squared_norm(gradients.named[name], shares)
            self.squares += shares
        return total

    def _dense(self) -> list[tuple[int, int]]:
        """Where the block is without the tables: spans that touch, as one."""
        joined: list[tuple[int, int]] = []
        for name, (begin, end) in self.weights.spans.items():
            if name in self.tables:
                continue
            if joined and joined[-1][1] == begin:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((begin, end))
        return joined


def decay_spans(
    weights: Parameters, settings: OptimizerConfig, names: Sequence[str]
) -> list[tuple[float, NDArray[np.int64]]]:
    """For each decay that occurs, rows (begin, end, whether it decays) of the ``names`` that have
    it, neighbours joined.  Those without decay go along with the first that there is."""
    decays = {name: settings.decay_of(name, weights.named[name]) for name in names}
    found: list[tuple[float, NDArray[np.int64]]] = []
    several = sorted(set(decays.values()) - {0.0}) or [0.0]
    for decay in several:
        also = 0.0 if decay == several[0] else decay
        spans: list[tuple[int, int, bool]] = []
        for name in names:
            if decays[name] not in (decay, also):
                continue
            begin, end = weights.spans[name]
            decaying = decays[name] > 0.0
            if spans and spans[-1][1:] == (begin, decaying):
                spans[-1] = (spans[-1][0], end, decaying)
            else:
                spans.append((begin, end, decaying))
        found.append((decay, np.array(spans, np.int64).reshape(-1, 3)))
    return found
