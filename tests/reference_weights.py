"""Weights of fewer bits, for inference: the numbers they stand for."""

from __future__ import annotations

import numpy as np
from case import Array


def rounded_weight(w: Array, precision: str) -> tuple[Array, Array]:
    """w(N,K) as it is kept: numbers q(N,K) and scales(N), w being nearly q * scale.

    bf16 has 8 significant bits, ties to even; int8 counts in the row's largest magnitude / 127.
    """
    w = w.astype(np.float32)
    ones = np.ones(len(w))
    if precision == "fp32":
        return w.astype(np.float64), ones
    if precision == "bf16":
        mantissa, exponent = np.frexp(w.astype(np.float64))
        return np.ldexp(np.rint(mantissa * 256) / 256, exponent), ones
    scale = abs(w).max(axis=1) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(w / scale[:, None]).astype(np.float64), scale.astype(np.float64)
