"""Turns of the golden spiral in fixed point, and their cosine and sine: the same bits everywhere.

A turn is 64 bits, the fraction of a whole one: adding and multiplying by integers wraps, so what is
reduced is reduced exactly, however great the angle.  With phi the golden ratio, k steps of the
spiral are k pi (1 + sqrt 5) = 2 pi k phi: frac(k phi) turns.

The system's cosine differs between machines in the last bit.  Here it is a polynomial in double,
in products and sums that NumPy rounds one by one, alike on every machine.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crystalline.lattice.constants import GOLDEN_RATIO, as_fixed

Turns = NDArray[np.uint64]
Doubles = NDArray[np.float64]

WHOLE = 1 << 64
STEP = 2.0 * math.pi / WHOLE  # radians of the last bit
TERMS = 9  # of each series: (pi/4)^18 / 18! is below a double's last bit


def golden(times: int, over: int = 1, bits: int = 64) -> int:
    """frac(times phi / over) in ``bits`` bits, rounded down."""
    guard = times.bit_length() + 16
    return (times * as_fixed(GOLDEN_RATIO, bits + guard) // over >> guard) % (1 << bits)


def _series(first: int) -> list[float]:
    """Taylor's coefficients of x^first, x^(first + 2), ..."""
    return [(-1) ** n / math.factorial(2 * n + first) for n in range(TERMS)]


def _polynomial(coefficients: list[float], square: Doubles) -> Doubles:
    value = np.full_like(square, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value *= square
        value += c
    return value


def cosine_sine(turns: Turns) -> tuple[Doubles, Doubles]:
    """cos and sin of an array of turns, each within 2^-52."""
    quarter = (turns + np.uint64(WHOLE // 8)) >> np.uint64(62)  # the nearest multiple of one
    # What is left of it: an eighth of a turn at most, to either side.
    x = (turns - (quarter << np.uint64(62))).astype(np.int64).astype(np.float64) * STEP
    square = x * x
    even, odd = _polynomial(_series(0), square), _polynomial(_series(1), square) * x
    swapped = (quarter & np.uint64(1)).astype(np.bool_)
    cosine, sine = np.where(swapped, odd, even), np.where(swapped, even, odd)
    cosine[(quarter == 1) | (quarter == 2)] *= -1.0
    sine[quarter >= 2] *= -1.0
    return cosine, sine
