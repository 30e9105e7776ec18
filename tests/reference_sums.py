"""The two fixed orders of summation (MATH.md section 6), bit by bit in float32: the order of the
roundings is the very thing to be tested."""

from __future__ import annotations

import numpy as np
from reference import Array


def fixed_tree(s: Array) -> Array:
    """s(12, ...) float32, the sums of the 12 groups -> their total(...), four threes in a row."""
    s = s.astype(np.float32)
    q = [(s[3 * j] + s[3 * j + 1]) + s[3 * j + 2] for j in range(4)]
    return ((q[0] + q[1]) + q[2]) + q[3]


def lane_sum(x: Array) -> Array:
    """x(..., n) float32 -> sum(...): lane l adds x[l], x[l+16], ... to 0 in order; 16>8>4>2>1."""
    x = x.astype(np.float32)
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // 16) * 16), np.float32)
    padded[..., : x.shape[-1]] = x
    lanes = np.zeros((*x.shape[:-1], 16), np.float32)
    for start in range(0, padded.shape[-1], 16):
        lanes = lanes + padded[..., start : start + 16]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]
