"""The angular position of a prime: an angle that never ends, and its place on the clock.

    theta(p, k, n, lam) = k pi (1 + sqrt 5)           spiral:   k >= 0, the prime's index
                        + (n - 1) 2 pi / (12 ln 3)    index:    n, the dimension; 0 if n < 1
                        + log_3(343 / lam)            phonetic: lam, metres; 0 if lam <= 0
                        + omega(p) + psi(p)           corrections
    omega(p) = EINSTEIN_LAMBDA / (1 + |p - 144000| / 144000), doubled at 143999 and 144001
    psi(p)   = 2 pi (p mod c) / c, less 2 pi if above pi; c is the hypotenuse of the first row of
               Plimpton 322 that has an entry nearest to p

The spiral turns by the golden angle, the best-spread rotation there is; the rest are offsets.

The turn, theta mod 2 pi, is not taken of theta: at k = 10^12 a double has lost all but two digits
of it.  Every term is reduced first, in fractions of a turn of 64 bits that wrap as the turn does.
k pi (1 + sqrt 5) are k times the golden ratio turns, and the fraction of k times a ratio known to
128 bits is exact to 2^-63 for every k below 2^64.  So turns are within 1e-12 of the truth, and
those of the spiral the same bits on every machine: integers, and one product of doubles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalline.errors import UsageError
from crystalline.lattice.checks import UINT64, integer, integers, real, reals
from crystalline.lattice.constants import (
    BOUNDARY_LOWER,
    BOUNDARY_UPPER,
    EINSTEIN_LAMBDA,
    GOLDEN_RATIO,
    NEAR_BOUNDARY,
    PLIMPTON_322,
    SOUND_SPEED,
    SYMMETRY_GROUPS,
    VECTOR_CULMINATION,
    as_fixed,
)

F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]
INT64 = 2**63
BLOCK = 1 << 13  # numbers worked on at once: they and what is made of them stay in the cache
TURN = 2 * math.pi
HALF, LOW = np.uint64(32), np.uint64(2**32 - 1)
GROUPS, CULMINATION = np.uint64(SYMMETRY_GROUPS), np.uint64(VECTOR_CULMINATION)
# The sine of the double nearest to pi is what that double lacks of pi.
SPIRAL_STEP = (Fraction(math.pi) + Fraction(math.sin(math.pi))) * Fraction(
    as_fixed(GOLDEN_RATIO, 128), 1 << 127
)
SPIRAL_HIGH = math.floor(SPIRAL_STEP * 2**22) / 2**22  # 26 bits: times k to 2^27 is exact
SPIRAL_LOW = float(SPIRAL_STEP - Fraction(SPIRAL_HIGH))
INDEX_STEP = TURN / (SYMMETRY_GROUPS * math.log(3))

WAVELENGTHS = {
    "a": 1.372, "e": 0.980, "i": 0.686, "o": 1.143, "u": 1.225, "s": 0.086, "z": 0.086,
    "f": 0.098, "v": 0.098, "t": 0.114, "d": 0.114, "k": 0.137, "g": 0.137, "p": 0.171,
    "b": 0.171, "m": 0.343, "n": 0.343, "l": 0.490, "r": 0.490, "w": 0.686, "y": 0.686,
}  # fmt: skip
OTHER_WAVELENGTH = 0.343


class Angle(NamedTuple):
    """An angular position; of ``angles``, every field is an array, all of one shape."""

    theta: Any  # radians, float: the sum of all terms
    turn: Any  # radians, float in [0, 2 pi): theta mod 2 pi, exact to 1e-12
    hour: Any  # 0 to 11, the twelfth of a turn
    minute: Any  # 0 to 59, the sixtieth of that twelfth
    group: Any  # 0 to 11: p mod 12
    near_boundary: Any  # whether p is at most 100 from 144000


def turns(k: Any) -> Any:
    """The turns of the spiral, k pi (1 + sqrt 5) mod 2 pi, in [0, 2 pi), float64 of k's shape.

    k: integers from 0 to 2^64 - 1.  Exact to 1e-15, and the same bits everywhere.  UsageError for
    other values.
    """
    k = integers("k", k, 0, UINT64)
    flat, out = k.reshape(-1), np.empty(k.size)
    for rows in _blocks(k.size):
        out[rows] = _radians(_multiples(flat[rows], _golden_step()))
    return out.reshape(k.shape)[()]


def spiral(k: Any) -> Any:
    """k pi (1 + sqrt 5): the first term of theta, float64 of k's shape."""
    return _ahead(integers("k", k, 0, UINT64), np.float64(0))


def index(n: Any) -> Any:
    """(n - 1) 2 pi / (12 ln 3), 0 for n < 1: the second term of theta, float64 of n's shape."""
    return (_dimensions(n) * INDEX_STEP)[()]


def phonetic(lam: Any) -> Any:
    """log_3(343 / lam), 0 for lam <= 0: the third term of theta, float64 of lam's shape.

    lam: a wavelength in metres, or an array of them.
    """
    lam = reals("lam", lam)
    heard = np.where(lam > 0, lam, SOUND_SPEED)
    return ((math.log(SOUND_SPEED) - np.log(heard)) / math.log(3))[()]


def omega(p: Any) -> Any:
    """The correction by the distance from 144000, float64 of p's shape."""
    p = integers("p", p, 0, UINT64)
    far = _distance(p) / VECTOR_CULMINATION
    doubled = (p == BOUNDARY_LOWER) | (p == BOUNDARY_UPPER)
    return (float(EINSTEIN_LAMBDA) * np.where(doubled, 2.0, 1.0) / (1 + far))[()]


def psi(p: Any) -> Any:
    """The correction by the nearest row of Plimpton 322, in (-pi, pi], float64 of p's shape."""
    return (TURN * _psi_turns(integers("p", p, 0, UINT64)))[()]


def theta(p: Any, k: Any, n: Any = 0, lam: Any = 0.0) -> Any:
    """The whole angle in radians: a number for numbers, for arrays one of their common shape.

    p: the prime (any integer from 0 to 2^64 - 1); k: its index (from 0 to 2^64 - 1); n: the
    dimension (-2^63 to 2^63 - 1); lam: the wavelength in metres.  A double, so about 16 digits; for
    the place on the clock see ``angle``, which loses none.  UsageError names the argument.
    """
    (p, k, n, lam), _ = _together(p, k, n, lam)
    return _ahead(k, index(n) + (phonetic(lam) + omega(p)) + psi(p))


def angle(p: int, k: int, n: int = 0, lam: float = 0.0) -> Angle:
    """The angular position of one prime; arguments and errors as of ``theta``."""
    p, k = integer("p", p, 0, UINT64), integer("k", k, 0, UINT64)
    n, lam = integer("n", n, -INT64, INT64 - 1), real("lam", lam)
    return Angle(*(field.item() for field in angles(p, k, n, lam)))


def angles(p: Any, k: Any, n: Any = 0, lam: Any = 0.0) -> Angle:
    """The angular positions of many primes; arguments and errors as of ``theta``.

    The fields are arrays of the arguments' common shape: float64, float64, int64 three times, bool.
    """
    given, shape = _together(p, k, n, lam)
    fields = Angle(*(np.empty(math.prod(shape), kind) for kind in "ddqqq?"))
    flat = [one if one.ndim == 0 else np.broadcast_to(one, shape).reshape(-1) for one in given]
    for rows in _blocks(math.prod(shape)):
        block = (one if one.ndim == 0 else one[rows] for one in flat)
        for field, value in zip(fields, _angles(*block), strict=True):
            field[rows] = value
    return Angle(*(field.reshape(shape) for field in fields))


def _angles(p: U64, k: U64, n: NDArray[np.int64], lam: F64) -> Angle:
    """The fields of ``angles`` for one block, in shapes that fit it."""
    offset, turned = phonetic(lam) + omega(p), _psi_turns(p)
    place = (
        _multiples(k, _golden_step())
        + _multiples(_dimensions(n), _index_step())
        + _fractions(offset / TURN + turned)
    )
    return Angle(
        _ahead(k, index(n) + offset + TURN * turned),
        _radians(place),
        _scaled(place, GROUPS),
        _scaled(place * GROUPS, np.uint64(60)),
        p % GROUPS,
        _distance(p) <= NEAR_BOUNDARY,
    )


def wavelength(word: str) -> float:
    """The wavelength in metres of a word, by its first letter, large or small."""
    if not isinstance(word, str) or not word:
        raise UsageError(f"word is {word!r}; expected a text of one character or more")
    return WAVELENGTHS.get(word[0].lower(), OTHER_WAVELENGTH)


def _together(p: Any, k: Any, n: Any, lam: Any) -> tuple[list[NDArray[Any]], tuple[int, ...]]:
    """The arguments of ``theta``, checked, and their common shape."""
    given = [integers("p", p, 0, UINT64), integers("k", k, 0, UINT64)]
    given += [integers("n", n, -INT64, INT64 - 1), reals("lam", lam)]
    try:
        return given, np.broadcast_shapes(*(one.shape for one in given))
    except ValueError:
        names = zip(("p", "k", "n", "lam"), given, strict=True)
        said = ", ".join(f"{name} {one.shape}" for name, one in names if one.shape)
        raise UsageError(f"shapes do not fit together: {said}; expected one for all") from None


def _ahead(k: U64, rest: F64 | np.float64) -> Any:
    """The spiral's term plus the ``rest``; for k to 2^27 the large part of it is exact."""
    return (k * SPIRAL_HIGH + (k * SPIRAL_LOW + rest))[()]


def _dimensions(n: Any) -> U64:
    """n - 1, or 0 for n < 1."""
    above: U64 = (np.maximum(integers("n", n, -INT64, INT64 - 1), 1) - 1).astype(np.uint64)
    return above


def _distance(p: U64) -> U64:
    """|p - 144000|, without a negative number."""
    distance: U64 = np.maximum(p, CULMINATION) - np.minimum(p, CULMINATION)
    return distance


def _blocks(size: int) -> Iterator[slice]:
    """``size`` elements, BLOCK at a time."""
    return (slice(at, at + BLOCK) for at in range(0, size, BLOCK))


def _multiples(count: U64, step: int) -> U64:
    """The upper 64 of 128 bits of ``count`` times ``step``, modulo 2^128, floored."""
    high, l1, l0 = (np.uint64(part) for part in _words(step))
    count = np.atleast_1d(count)  # products of arrays wrap without a warning, of numbers with one
    c1, c0 = count >> HALF, count & LOW
    middle = c1 * l0 + (c0 * l0 >> HALF)
    lower = c0 * l1 + (middle & LOW)
    product: U64 = count * high + c1 * l1 + (middle >> HALF) + (lower >> HALF)
    return product


def _words(step: int) -> tuple[int, int, int]:
    """Bits 64 to 127 of a fixed point number, 32 to 63, and 0 to 31."""
    return step >> 64 & UINT64, step >> 32 & int(LOW), step & int(LOW)


@cache
def _golden_step() -> int:
    """The golden ratio times 2^128: the turns of one step of the spiral."""
    return as_fixed(GOLDEN_RATIO, 128)


@cache
def _index_step() -> int:
    """2^128 / (12 ln 3): the turns of one dimension.  ln 3 = 2 (1/2 + 1/2^3/3 + 1/2^5/5 + ...)."""
    bits = 192
    ln3 = sum((2 << bits) // (odd << odd) for odd in range(1, bits, 2))
    return (1 << bits + 128) // (SYMMETRY_GROUPS * ln3)


@cache
def _hypotenuses() -> U64:
    """c of ``psi`` for every p to the greatest entry of Plimpton 322; beyond it the last stays."""
    rows = np.array(PLIMPTON_322)
    p = np.arange(rows.max() + 1)
    distance = np.abs(p[:, None, None] - rows).min(axis=2)
    nearest: U64 = rows[distance.argmin(axis=1), 2].astype(np.uint64)  # argmin: the first of equals
    return nearest


def _psi_turns(p: U64) -> F64:
    """psi in turns."""
    table = _hypotenuses()
    c = table[np.minimum(p, np.uint64(table.size - 1))]
    rest = p % c
    signed = rest.astype(np.float64) - np.where(rest > c - rest, c, np.uint64(0))
    turned: F64 = signed / c
    return turned


def _fractions(number: F64) -> U64:
    """Turns as fractions of 64 bits, wrapped: 1/4 is 2^62, and -1/4 is 3 * 2^62."""
    near = (np.asarray(number) - np.rint(number)) * 2.0**62
    fraction: U64 = near.astype(np.int64).view(np.uint64) << np.uint64(2)
    return fraction


def _radians(fraction: U64) -> F64:
    """Fractions of a turn of 64 bits as radians below 2 pi; 53 bits are kept, all that fit."""
    return (fraction >> np.uint64(11)).astype(np.float64) * (TURN * 2.0**-53)


def _scaled(fraction: U64, whole: np.uint64) -> U64:
    """The fraction of a small number that a fraction of 64 bits is, floored: 1/4 of 12 is 3."""
    floored: U64 = (fraction >> HALF) * whole + ((fraction & LOW) * whole >> HALF) >> HALF
    return floored
