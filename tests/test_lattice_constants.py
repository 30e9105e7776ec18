"""The constants of the lattice: every identity by rationals, every claim computed."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, isqrt, prod
from typing import Any

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from crystalline import lattice
from crystalline.errors import UsageError
from crystalline.lattice import constants as c
from crystalline.lattice.constants import (
    GOLDEN_RATIO,
    PLIMPTON_322,
    as_fixed,
    as_float,
    plimpton_triple,
    prime_factors,
)

FEW = settings(max_examples=examples(100), deadline=None, derandomize=True)


def primes_to(most: int) -> set[int]:
    """By trial division."""
    return {n for n in range(2, most + 1) if all(n % d for d in range(2, isqrt(n) + 1))}


def test_vector_culmination_has_the_stated_factors() -> None:
    assert c.VECTOR_CULMINATION == 144000 == 2**7 * 3**2 * 5**3
    assert 3 * c.SYMMETRY_GROUPS**3 * Fraction(250, 9) == c.VECTOR_CULMINATION
    assert prime_factors(c.VECTOR_CULMINATION) == (2,) * 7 + (3,) * 2 + (5,) * 3


def test_einstein_lambda_is_one_48000th() -> None:
    assert c.EINSTEIN_LAMBDA == Fraction(3, 144000) == Fraction(1, 48000)
    assert as_float(c.EINSTEIN_LAMBDA) == 1 / 48000


def test_the_boundary_pair_is_no_pair_of_twin_primes() -> None:
    assert (c.BOUNDARY_LOWER, c.BOUNDARY_UPPER) == (143999, 144001)
    assert prime_factors(143999) == (143999,)
    assert prime_factors(144001) == (11, 13, 19, 53)
    assert c.boundary_pair_is_twin_prime() is False


def test_the_boundary_pair_is_judged_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is computed: with a pair of twin primes in its place it is another one."""
    monkeypatch.setattr(c, "BOUNDARY_LOWER", 143879)
    assert c.boundary_pair_is_twin_prime() is True


def test_the_nearest_twin_primes() -> None:
    assert c.nearest_twin_primes() == ((143879, 143881), (144071, 144073))
    near = primes_to(144073) & set(range(143879, 144074))
    assert [p for p in sorted(near) if p + 2 in near] == [143879, 144071]


def test_dimensional_frequencies() -> None:
    assert len(c.DIMENSIONAL_FREQUENCIES) == 24 == len(set(c.DIMENSIONAL_FREQUENCIES))
    assert prod(c.DIMENSIONAL_FREQUENCIES[:12]) == 44524428808860
    assert set(c.DIMENSIONAL_FREQUENCIES) == primes_to(89) - {2} | {12}


def test_cymatic_frequencies_and_the_speed_of_sound() -> None:
    assert c.CYMATIC_FREQUENCIES == (174, 285, 396, 417, 432, 528, 639, 741, 852, 963)
    assert c.SOUND_SPEED == 343


@pytest.mark.parametrize("row", PLIMPTON_322)
def test_a_row_of_plimpton_is_a_right_triangle(row: tuple[int, int, int]) -> None:
    a, b, hypotenuse = row
    assert a * a + b * b == hypotenuse * hypotenuse
    assert Fraction(a, hypotenuse) ** 2 + Fraction(b, hypotenuse) ** 2 == 1


def test_plimpton_has_15_rows_and_all_but_two_come_from_the_generator() -> None:
    made = {tuple(sorted(plimpton_triple(p, q))) for p in range(2, 137) for q in range(1, p)
            if gcd(p, q) == 1 and (p - q) % 2}  # fmt: skip
    missing = [row for row in PLIMPTON_322 if tuple(sorted(row)) not in made]
    assert len(PLIMPTON_322) == 15
    assert missing == [(45, 60, 75), (56, 90, 106)]  # 15 and 2 times smaller ones
    assert {(3, 4, 5), (28, 45, 53)} <= made


@FEW
@given(st.integers(2, 2**64 - 1), st.integers(1, 2**64 - 1))
def test_generated_triples_are_primitive(p: int, q: int) -> None:
    q = q % p or 1
    if gcd(p, q) > 1 or (p - q) % 2 == 0:
        with pytest.raises(UsageError, match=f"^q is {q}; expected "):
            plimpton_triple(p, q)
        return
    a, b, hypotenuse = plimpton_triple(p, q)
    assert (a, b, hypotenuse) == (p * p - q * q, 2 * p * q, p * p + q * q)
    assert gcd(a, b) == 1 and a * a + b * b == hypotenuse * hypotenuse


@FEW
@given(st.integers(1, 10**5))
def test_prime_factors_multiply_to_the_number_and_are_prime(number: int) -> None:
    factors = prime_factors(number)
    assert prod(factors) == number and list(factors) == sorted(factors)
    assert all(f % d for f in factors for d in range(2, isqrt(f) + 1))


def test_prime_factors_of_large_numbers() -> None:
    assert prime_factors(2**40) == (2,) * 40
    assert prime_factors(2**40 - 87) == (2**40 - 87,)


@FEW
@given(st.integers(0, 2000))
def test_the_golden_ratio_in_fixed_point_is_the_nearest_integer(bits: int) -> None:
    """The golden ratio solves x^2 = x + 1, so whether a fraction is above it integers decide."""
    fixed, one = as_fixed(GOLDEN_RATIO, bits), 1 << bits

    def above(halves: int) -> bool:  # whether halves / 2^(bits + 1) is above the golden ratio
        return halves * halves > 2 * one * halves + 4 * one * one

    assert above(2 * fixed + 1) and not above(2 * fixed - 1)


def test_the_golden_ratio_as_a_float_is_the_nearest() -> None:
    with mp.workdps(60):
        assert as_float(GOLDEN_RATIO) == float((1 + mp.sqrt(5)) / 2)
        assert abs(mpf(as_fixed(GOLDEN_RATIO, 128)) / 2**128 - mp.phi) < mpf(2) ** -129
    assert str(GOLDEN_RATIO) == "(1 + sqrt(5)) / 2"


@FEW
@given(st.fractions(), st.integers(0, 300))
def test_fixed_point_is_within_half_a_unit(value: Fraction, bits: int) -> None:
    off = abs(as_fixed(value, bits) - value * 2**bits)
    assert off <= Fraction(1, 2)
    assert off < Fraction(1, 2) or as_fixed(value, bits) % 2 == 0


@FEW
@given(st.fractions())
def test_floats_are_the_nearest(value: Fraction) -> None:
    assert as_float(value) == value.numerator / value.denominator


def test_halves_are_rounded_to_even_and_negative_numbers_are_twos_complement() -> None:
    halves = [as_fixed(Fraction(n, 2), 0) for n in (-5, -3, -1, 1, 3, 5)]
    assert halves == [-2, -2, 0, 0, 2, 2]
    assert as_fixed(Fraction(-1, 4), 8) & 0xFFFF == 0xFFC0
    assert as_fixed(c.VECTOR_CULMINATION, 8) == 144000 * 256
    assert as_fixed(c.EINSTEIN_LAMBDA, 64) == round(Fraction(2**64, 48000))


@pytest.mark.parametrize(("call", "says"), [
    (lambda: as_fixed(1, -1), "bits is -1; expected an integer from 0 to 65536"),
    (lambda: as_fixed(1, 65537), "bits is 65537; expected an integer from 0 to 65536"),
    (lambda: as_fixed(1, True), "bits is True; expected an integer from 0 to 65536"),
    (lambda: as_fixed(1, 2.0), "bits is 2.0; expected an integer from 0 to 65536"),
    (lambda: plimpton_triple(1, 1), "p is 1; expected an integer from 2 to 2^64 - 1"),
    (lambda: plimpton_triple(2, 2), "q is 2; expected an integer from 1 to 1, below p, which is 2"),
    (lambda: plimpton_triple(2, 0), "q is 0; expected an integer from 1 to 2^64 - 1"),
    (lambda: plimpton_triple(6, 3), "q is 3; expected one without a common divisor with p, "
                                    "which is 6"),
    (lambda: plimpton_triple(5, 3), "q is 3; expected an even integer, as p is odd: 5"),
    (lambda: prime_factors(0), "number is 0; expected an integer from 1 to 1099511627776"),
    (lambda: prime_factors(2**40 + 1), "number is 1099511627777; expected an integer from 1 to "
                                       "1099511627776"),
])  # fmt: skip
def test_bad_arguments_are_named(call: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == says


def test_public_names_are_those_of_the_modules() -> None:
    for name in set(lattice.__all__) - {"Abacus"}:
        home = __import__(f"crystalline.lattice.{lattice._HOMES[name]}", fromlist=[name])
        assert getattr(lattice, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="no attribute 'abakus'"):
        lattice.abakus  # noqa: B018


def test_nothing_takes_three_or_355_over_113_for_pi() -> None:
    """Every angle comes from math.pi, which is the double nearest to pi."""
    from crystalline.lattice import angular

    with mp.workdps(40):
        assert float(2 * mp.pi) == angular.TURN
        assert abs(mpf(angular.SPIRAL_HIGH) + angular.SPIRAL_LOW - 2 * mp.pi * mp.phi) < 1e-22
        assert abs(angular.INDEX_STEP - 2 * mp.pi / (12 * mp.log(3))) < 1e-16
