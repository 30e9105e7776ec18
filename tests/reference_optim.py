"""Optimizers with a momentum, and the average of weights, in float64 as their papers have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import float64

Array = NDArray[Any]
Coefficients = tuple[tuple[float, float, float], ...]


@float64
def sgd(
    p: Array, g: Array, m: Array, *, lr: float, momentum: float, nesterov: bool,
    weight_decay: float,
) -> tuple[Array, Array]:  # fmt: skip
    """The new p, m (Sutskever et al. 2013, as torch has it); decay is decoupled."""
    m = momentum * m + g
    u = g + momentum * m if nesterov else m
    return p - lr * weight_decay * p - lr * u, m


@float64
def lion(
    p: Array, g: Array, m: Array, *, lr: float, beta1: float, beta2: float, weight_decay: float
) -> tuple[Array, Array]:
    """The new p, m (Chen et al. 2023, algorithm 2)."""
    u = np.sign(beta1 * m + (1 - beta1) * g)
    return p - lr * (u + weight_decay * p), beta2 * m + (1 - beta2) * g


@float64
def newton_schulz(u: Array, coefficients: Coefficients) -> Array:
    """u (rows, columns) / |u| after the iterations X <- a X + b (X X^T) X + c (X X^T)^2 X."""
    x = u / np.linalg.norm(u)
    for a, b, c in np.asarray(coefficients, np.float64):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@float64
def muon(
    p: Array, g: Array, m: Array, *, step_size: float, momentum: float, nesterov: bool,
    decay: float, coefficients: Coefficients,
) -> tuple[Array, Array]:  # fmt: skip
    """The new p, m (rows, columns) (Jordan et al. 2024); decay is what is left of p."""
    m = momentum * m + g
    u = g + momentum * m if nesterov else m
    return decay * p - step_size * newton_schulz(u, coefficients), m


@float64
def ema(average: Array, p: Array, *, decay: float) -> Array:
    """The new average."""
    return decay * average + (1 - decay) * p
