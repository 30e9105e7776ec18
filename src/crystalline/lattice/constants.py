"""The constants of the lattice, exact, and what is and is not true of them.

Every constant is an ``int``, a ``Fraction``, a tuple of them, or (the golden ratio) a
``Quadratic``.  ``as_float`` and ``as_fixed`` derive the forms that a machine computes with.

About the boundary: 143999 is a prime and 144001 = 11 * 13 * 19 * 53 is not, so they are no twin
primes, whatever is said of them.  The nearest pairs of twin primes are (143879, 143881) below and
(144071, 144073) above.  ``boundary_pair_is_twin_prime`` and ``nearest_twin_primes`` compute both.

EINSTEIN_LAMBDA is a name only: it has nothing to do with cosmology.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from math import isqrt

from crystalline.errors import UsageError
from crystalline.lattice.checks import integer


@dataclass(frozen=True)
class Quadratic:
    """The number (a + sqrt(d)) / c, exactly; d is no square, c is above 0."""

    a: int
    d: int
    c: int

    def floor(self, scale: int) -> int:
        """The greatest integer not above ``scale`` times the number, for a scale of 0 or more."""
        return (scale * self.a + isqrt(scale * scale * self.d)) // self.c

    def __str__(self) -> str:
        return f"({self.a} + sqrt({self.d})) / {self.c}"


Exact = int | Fraction | Quadratic
MOST_BITS = 1 << 16

SYMMETRY_GROUPS = 12
VECTOR_CULMINATION = 144000
EINSTEIN_LAMBDA = Fraction(3, VECTOR_CULMINATION)
BOUNDARY_LOWER = VECTOR_CULMINATION - 1
BOUNDARY_UPPER = VECTOR_CULMINATION + 1
NEAR_BOUNDARY = 100  # numbers at most so far from VECTOR_CULMINATION are near it
GOLDEN_RATIO = Quadratic(1, 5, 2)
SOUND_SPEED = 343  # metres per second

DIMENSIONAL_FREQUENCIES = (
    3, 7, 31, 12, 19, 5, 11, 13, 17, 23, 29, 37,
    41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89,
)  # fmt: skip
CYMATIC_FREQUENCIES = (174, 285, 396, 417, 432, 528, 639, 741, 852, 963)  # Hz
PLIMPTON_322 = (
    (119, 120, 169), (3367, 3456, 4825), (4601, 4800, 6649), (12709, 13500, 18541),
    (65, 72, 97), (319, 360, 481), (2291, 2700, 3541), (799, 960, 1249),
    (481, 600, 769), (4961, 6480, 8161), (45, 60, 75), (1679, 2400, 2929),
    (161, 240, 289), (1771, 2700, 3229), (56, 90, 106),
)  # fmt: skip


def as_float(value: Exact) -> float:
    """The double nearest to an exact constant."""
    if isinstance(value, Quadratic):
        return float(Fraction(as_fixed(value, 128), 1 << 128))
    return float(value)


def as_fixed(value: Exact, bits: int) -> int:
    """An exact constant in fixed point: times 2^bits, to the nearest integer, half to even.

    A negative number has the sign of Python's integers; its low w bits, ``fixed & (2**w - 1)``, are
    the two's complement of a word of w bits.  UsageError for bits below 0 or above 65536.
    """
    bits = integer("bits", bits, 0, MOST_BITS)
    if isinstance(value, Quadratic):  # irrational: never halfway between two integers
        return (value.floor(2 << bits) + 1) >> 1
    return round(Fraction(value) * (1 << bits))


def plimpton_triple(p: int, q: int) -> tuple[int, int, int]:
    """The primitive Pythagorean triple (p^2 - q^2, 2 p q, p^2 + q^2).

    p > q > 0, without a common divisor, not both odd; UsageError names the rule that is broken.
    The first two divided by the third are a cosine and a sine, by rationals alone.
    """
    p, q = integer("p", p, 2, 2**64 - 1), integer("q", q, 1, 2**64 - 1)
    if q >= p:
        raise UsageError(f"q is {q}; expected an integer from 1 to {p - 1}, below p, which is {p}")
    if Fraction(q, p).denominator != p:
        raise UsageError(f"q is {q}; expected one without a common divisor with p, which is {p}")
    if p % 2 and q % 2:
        raise UsageError(f"q is {q}; expected an even integer, as p is odd: {p}")
    return p * p - q * q, 2 * p * q, p * p + q * q


def prime_factors(number: int) -> tuple[int, ...]:
    """The prime factors of ``number`` from 1 to 2^40, ascending, each as often as it divides.

    By trial division: for the few numbers near the boundary, not for many or great ones.
    """
    left = integer("number", number, 1, 1 << 40)
    found = []
    divisor = 2
    while divisor * divisor <= left:
        while left % divisor == 0:
            found.append(divisor)
            left //= divisor
        divisor += 1
    return (*found, left) if left > 1 else tuple(found)


def _twin_primes(lower: int) -> bool:
    return len(prime_factors(lower)) == 1 == len(prime_factors(lower + 2))


def boundary_pair_is_twin_prime() -> bool:
    """Whether both BOUNDARY_LOWER and BOUNDARY_UPPER are prime: they are not, 11 divides 144001."""
    return _twin_primes(BOUNDARY_LOWER)


def nearest_twin_primes() -> tuple[tuple[int, int], tuple[int, int]]:
    """The last pair of twin primes below the boundary pair, and the first one above it."""
    below = next(p for p in count(BOUNDARY_LOWER - 2, -2) if _twin_primes(p))
    above = next(p for p in count(BOUNDARY_UPPER, 2) if _twin_primes(p))
    return (below, below + 2), (above, above + 2)
