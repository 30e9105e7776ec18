"""The softmax family in float64 NumPy, along the last axis: the judge of its kernels.

softmax y = exp(x) / S, S = sum exp(x);  log_softmax y = x - log S;  logsumexp y = log S.
"""

from __future__ import annotations

import numpy as np
from reference import Array, float64
from reference import log_softmax as log_softmax_wide


@float64
def log_softmax(x: Array) -> Array:
    """x(R,V) -> y(R,V)."""
    return log_softmax_wide(x)


@float64
def log_softmax_backward(dy: Array, y: Array) -> Array:
    """dx = dy - softmax(x) sum dy, because d log S / dx = softmax(x)."""
    return dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)


@float64
def softmax(x: Array) -> Array:
    """x(R,V) -> y(R,V)."""
    return np.exp(log_softmax_wide(x))


@float64
def softmax_backward(dy: Array, y: Array) -> Array:
    """dx = y (dy - sum y dy)."""
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))


@float64
def logsumexp(x: Array) -> Array:
    """x(R,V) -> y(R)."""
    return x[..., 0] - log_softmax_wide(x)[..., 0]


@float64
def cross_entropy(logits: Array, targets: Array) -> Array:
    """losses(R), 0 where the target is -1."""
    rows = np.arange(targets.size)
    return np.where(targets == -1, 0.0, -log_softmax_wide(logits)[rows, targets])


@float64
def cross_entropy_backward(dlosses: Array, logits: Array, targets: Array) -> Array:
    """dlogits = (softmax - onehot) dloss, 0 where the target is -1."""
    dz = np.exp(log_softmax_wide(logits))
    dz[np.arange(targets.size), targets] -= 1
    return dz * np.where(targets == -1, 0.0, dlosses)[:, None]
