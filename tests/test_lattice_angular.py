"""Angles of primes: the stated values, and 50 digits of mpmath for all others."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from crystalline.lattice import angular
from crystalline.lattice.angular import (
    Angle,
    angle,
    angles,
    index,
    omega,
    phonetic,
    psi,
    spiral,
    theta,
    turns,
    wavelength,
)
from crystalline.lattice.constants import PLIMPTON_322

mp.dps = 50
UINT64 = 2**64 - 1
FEW = settings(max_examples=examples(100), deadline=None, derandomize=True)
EXACT = 1e-12
EPS = 2.0**-52

counts = st.one_of(st.integers(0, 10**12), st.integers(0, UINT64), st.integers(0, 100))
dimensions = st.one_of(st.integers(-3, 30), st.integers(-(2**63), 2**63 - 1))
primes = st.one_of(st.integers(0, 30000), st.integers(143000, 145000), st.integers(0, UINT64))
waves = st.one_of(
    st.sampled_from([0.0, -1.0, 0.343, 343.0, *angular.WAVELENGTHS.values()]),
    st.floats(allow_nan=False, allow_infinity=False),
)


def mp_hypotenuse(p: int) -> int:
    """As it is defined: the first row with an entry nearest to p."""
    return min(PLIMPTON_322, key=lambda row: min(abs(p - entry) for entry in row))[2]


def mp_terms(p: int, k: int, n: int, lam: float) -> list[Any]:
    """spiral, index, phonetic, omega, psi, in 50 digits."""
    far = 1 + mpf(abs(p - 144000)) / 144000
    c = mp_hypotenuse(p)
    turned = 2 * mp.pi * (p % c) / c
    return [
        k * mp.pi * (1 + mp.sqrt(5)),
        mpf(n - 1) * 2 * mp.pi / (12 * mp.log(3)) if n >= 1 else mpf(0),
        mp.log(343 / mpf(lam)) / mp.log(3) if lam > 0 else mpf(0),
        mpf(3) / 144000 / far * (2 if p in (143999, 144001) else 1),
        turned - 2 * mp.pi if turned > mp.pi else turned,
    ]


def around(a: Any, b: Any) -> Any:
    """How far two turns are apart, the short way."""
    far = abs(mpf(a) - mpf(b))
    return min(far, 2 * mp.pi - far)


@pytest.mark.parametrize(("given_", "value"), [
    ((2, 1, 0, 0.343), "16.621679232"),
    ((5, 3, 1, 0.343), "37.205821414"),
    ((7, 4, 2, 1.372), "46.754521044"),
    ((13, 6, 3, 0.086), "70.5876599"),
    ((143999, 13336, 1, 0.343), "135584.029618781"),
    ((144001, 13337, 1, 0.343), "135594.196703926"),
])  # fmt: skip
def test_stated_values_of_theta(given_: tuple[int, int, int, float], value: str) -> None:
    digits = len(value.split(".")[1])
    found, truth = theta(*given_), sum(mp_terms(*given_))
    assert abs(truth - mpf(value)) <= mpf(10) ** -digits / 2
    assert f"{found:.{digits}f}" == f"{angle(*given_).theta:.{digits}f}" == value


def test_stated_values_of_the_terms() -> None:
    assert f"{spiral(1):.8f}" == "10.16640738"
    assert f"{index(2):.8f}" == "0.47660014"
    assert f"{phonetic(1):.5f}" == "5.31373"
    assert f"{omega(144000):.5e}" == "2.08333e-05"
    assert spiral(1) == pytest.approx(10.16640738463052, abs=5e-15)
    assert f"{np.degrees(turns(1)):.4f}" == "222.4922"


def test_the_spiral_is_the_golden_angle_mirrored() -> None:
    """One step and the golden angle, a turn over the golden ratio squared, make a whole turn."""
    golden_angle = 2 * mp.pi / mp.phi**2
    assert around(turns(1), 2 * mp.pi - golden_angle) < EXACT


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(counts)
@example(0)
@example(10**12)
@example(UINT64)
def test_turns_are_exact(k: int) -> None:
    turn = float(turns(k))
    assert 0 <= turn < 2 * mp.pi
    assert around(turn, 2 * mp.pi * mp.frac(k * mp.phi)) < 2e-15


def test_turns_of_many_are_exact() -> None:
    rng = np.random.default_rng(0)
    ks = np.concatenate([np.arange(30000), rng.integers(0, 10**12, 3000)])
    for k, turn in zip(ks.tolist()[::7], turns(ks)[::7].tolist(), strict=True):
        assert around(turn, 2 * mp.pi * mp.frac(k * mp.phi)) < 2e-15


@FEW
@given(st.lists(counts, max_size=40))
def test_fractions_are_the_product_floored(ks: list[int]) -> None:
    step = angular._golden_step()
    found = angular._multiples(np.array(ks, np.uint64), step)
    assert found.tolist() == [k * step % 2**128 >> 64 for k in ks]


def test_turns_stay_below_a_whole_one() -> None:
    assert float(angular._radians(np.array([UINT64], np.uint64))[0]) < 2 * mp.pi
    assert angular._radians(np.array([0], np.uint64)) == 0


@settings(max_examples=examples(500), deadline=None, derandomize=True)
@given(primes, counts, dimensions, waves)
def test_angles_are_exact(p: int, k: int, n: int, lam: float) -> None:
    terms = mp_terms(p, k, n, lam)
    whole = sum(terms) / (2 * mp.pi)
    turn = whole - mp.floor(whole)
    found = angle(p, k, n, lam)
    assert 0 <= found.turn < 2 * mp.pi
    assert around(found.turn, 2 * mp.pi * turn) < EXACT
    assert abs(found.theta - sum(terms)) <= 4 * EPS * sum(abs(term) for term in terms) + 1e-15
    if abs(12 * turn - mp.nint(12 * turn)) > EXACT:
        assert found.hour == int(12 * turn)
    if abs(720 * turn - mp.nint(720 * turn)) > 60 * EXACT:
        assert found.minute == int(720 * turn) % 60
    assert found.group == p % 12
    assert found.near_boundary is (abs(p - 144000) <= 100)


@FEW
@given(primes, waves, dimensions, counts)
def test_terms_are_right_to_a_few_units(p: int, lam: float, n: int, k: int) -> None:
    terms = mp_terms(p, k, n, lam)
    found = spiral(k), index(n), phonetic(lam), omega(p), psi(p)
    # The logarithm of a wavelength is a difference of two; the others are products.
    floor = (0, 0, 1e-14, 0, 2e-15)
    for one, term, least in zip(found, terms, floor, strict=True):
        assert abs(one - term) <= 3 * EPS * abs(term) + least
    assert theta(p, k, n, lam) == angle(p, k, n, lam).theta


@FEW
@given(primes, st.integers(1, 2**27), st.integers(-1, 24), st.sampled_from([0.0, 0.086, 1.372]))
def test_theta_is_right_to_two_units_in_its_last_place(
    p: int, k: int, n: int, lam: float
) -> None:
    found, truth = theta(p, k, n, lam), sum(mp_terms(p, k, n, lam))
    assert abs(found - truth) <= 2 * np.spacing(found)


@FEW
@given(st.lists(st.tuples(primes, counts, dimensions, waves), max_size=20))
def test_arrays_give_what_numbers_give(rows: list[tuple[int, int, int, float]]) -> None:
    kinds = (np.uint64, np.uint64, np.int64, np.float64)
    columns = [np.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds)]
    many = angles(*columns)
    each = [angle(*row) for row in rows]
    for name in Angle._fields:
        assert getattr(many, name).tolist() == [getattr(one, name) for one in each]
    assert theta(*columns).tolist() == [one.theta for one in each]
    assert turns(columns[1]).tolist() == [float(turns(row[1])) for row in rows]


def test_blocks_and_strides_and_shapes_change_nothing() -> None:
    size = 3 * angular.BLOCK + 5
    k = np.arange(2 * size, dtype=np.int64)[::2] * 104729
    square = k[: 7 * 11].reshape(7, 11)
    whole = angles(k % 200000, k, 3, 0.343)
    again = [angles(k[i : i + 999] % 200000, k[i : i + 999], 3, 0.343) for i in range(0, size, 999)]
    for i, field in enumerate(whole):
        assert field.tobytes() == np.concatenate([part[i] for part in again]).tobytes()
    assert np.array_equal(turns(square.T), turns(square).T)
    assert np.array_equal(turns(k)[:77].reshape(7, 11), turns(square))


def test_shapes_are_broadcast() -> None:
    found = angles(np.arange(3), np.arange(4)[:, None], 1, 0.343)
    kinds = [field.dtype.str[1:] for field in found]
    assert {field.shape for field in found} == {(4, 3)}
    assert kinds == ["f8", "f8", "i8", "i8", "i8", "b1"]
    assert found.turn[2, 1] == angle(1, 2, 1, 0.343).turn
    assert angles(7, 4).turn.shape == () and turns([]).shape == (0,)


def test_a_number_of_any_kind_of_integer_is_the_same() -> None:
    for kind in (np.int8, np.uint8, np.int32, np.uint64, ">i8"):
        assert turns(np.array([7, 8], kind)).tolist() == turns([7, 8]).tolist()
    assert turns(np.int16(7)) == turns(7)
    assert isinstance(theta(2, 1), float) and isinstance(angle(2, 1).hour, int)


def test_psi_takes_the_first_of_equally_near_rows() -> None:
    rows = [(row, entry) for row in PLIMPTON_322 for entry in row]
    for p in range(20000):
        nearest = min(abs(p - entry) for _, entry in rows)
        first = next(row for row, entry in rows if abs(p - entry) == nearest)
        r = Fraction(p % first[2], first[2])
        expected = float(r - (1 if r > Fraction(1, 2) else 0))
        assert angular._psi_turns(np.array([p], np.uint64))[0] == expected


def test_omega_is_doubled_at_the_boundary_only() -> None:
    near = omega(np.arange(143997, 144004))
    assert (np.round(near * 48000, 3) == [1, 1, 2, 1, 2, 1, 1]).all()
    assert 0 < omega(UINT64) < 1e-18


def test_the_hour_is_a_twelfth_and_the_minute_a_sixtieth_of_it() -> None:
    place = np.array([0, 2**62, 2**63, UINT64, (2**64 // 12) + 1, 2**64 // 24 + 1], np.uint64)
    assert angular._scaled(place, np.uint64(12)).tolist() == [0, 3, 6, 11, 1, 0]
    assert angular._scaled(place * np.uint64(12), np.uint64(60)).tolist() == [0, 0, 0, 59, 0, 30]


def test_the_clock_is_visited_evenly() -> None:
    """The golden angle spreads best: 12 x 10,000 steps are even to a few in every hour."""
    hours = (turns(np.arange(120000)) * (12 / angular.TURN)).astype(int)
    assert abs(np.bincount(hours, minlength=12) - 10000).max() <= 4


@pytest.mark.parametrize(("letters", "metres"), [
    ("a", 1.372), ("e", 0.980), ("i", 0.686), ("o", 1.143), ("u", 1.225), ("sz", 0.086),
    ("fv", 0.098), ("td", 0.114), ("kg", 0.137), ("pb", 0.171), ("mn", 0.343), ("lr", 0.490),
    ("wy", 0.686), ("chjqx7 é", 0.343),
])  # fmt: skip
def test_wavelengths(letters: str, metres: float) -> None:
    for letter in letters:
        assert wavelength(letter) == wavelength(f"{letter.upper()}word") == metres


RANGE = "from 0 to 2^64 - 1"
HUGE = 10**9000


@pytest.mark.parametrize(("call", "says"), [
    (lambda: turns(-1), f"k is -1; expected an integer {RANGE}"),
    (lambda: turns(2**64), f"k is 18446744073709551616; expected an integer {RANGE}"),
    (lambda: turns(HUGE), f"k is an integer of 29898 bits; expected an integer {RANGE}"),
    (lambda: turns(1.0), f"k is 1.0; expected integers {RANGE}"),
    (lambda: turns(True), f"k is True; expected integers {RANGE}"),
    (lambda: turns("1"), f"k is '1'; expected integers {RANGE}"),
    (lambda: turns("x" * 99), f"k is '{'x' * 59}...; expected integers {RANGE}"),
    (lambda: turns(None), f"k is None; expected integers {RANGE}"),
    (lambda: turns([3, -4]), f"k has -4; expected integers {RANGE}"),
    (lambda: turns([2**64]), f"k is an array of object; expected integers {RANGE}"),
    (lambda: turns([0.5]), f"k is an array of float64; expected integers {RANGE}"),
    (lambda: turns(np.zeros(0)), f"k is an array of float64; expected integers {RANGE}"),
    (lambda: turns(np.array([True])), f"k is an array of bool; expected integers {RANGE}"),
    (lambda: turns([[1], [1, 2]]), f"k is [[1], [1, 2]]; expected integers {RANGE}"),
    (lambda: spiral(-1), f"k is -1; expected an integer {RANGE}"),
    (lambda: index(0.5), "n is 0.5; expected integers from -2^63 to 2^63 - 1"),
    (lambda: index(2**63), "n is 9223372036854775808; expected an integer from -2^63 to 2^63 - 1"),
    (lambda: index(np.array([2**63], np.uint64)),
     "n has 9223372036854775808; expected integers from -2^63 to 2^63 - 1"),
    (lambda: omega(-2), f"p is -2; expected an integer {RANGE}"),
    (lambda: psi("2"), f"p is '2'; expected integers {RANGE}"),
    (lambda: phonetic("m"), "lam is 'm'; expected a finite number"),
    (lambda: phonetic(True), "lam is True; expected a finite number"),
    (lambda: phonetic([1.0, float("nan")]), "lam is nan; expected a finite number"),
    (lambda: phonetic([[1.0], [1.0, 2.0]]), "lam is [[1.0], [1.0, 2.0]]; expected a finite number"),
    (lambda: phonetic(["m"]), "lam is an array of <U1; expected a finite number"),
    (lambda: theta(2, -1), f"k is -1; expected an integer {RANGE}"),
    (lambda: theta([1, 2], [1, 2, 3]),
     "shapes do not fit together: p (2,), k (3,); expected one for all"),
    (lambda: angle(2, 1.5), f"k is 1.5; expected an integer {RANGE}"),
    (lambda: angle([2], 1), f"p is [2]; expected an integer {RANGE}"),
    (lambda: angle(2, 1, False), "n is False; expected an integer from -2^63 to 2^63 - 1"),
    (lambda: angle(2, 1, 0, float("inf")), "lam is inf; expected a finite number"),
    (lambda: angle(2, 1, 0, False), "lam is False; expected a finite number"),
    (lambda: angle(2, 1, 0, HUGE),
     "lam is an integer of 29898 bits; expected a finite number"),
    (lambda: angles(2, [1], [[1, 2, 3]], [1.0, 2.0]),
     "shapes do not fit together: k (1,), n (1, 3), lam (2,); expected one for all"),
    (lambda: wavelength(""), "word is ''; expected a text of one character or more"),
    (lambda: wavelength(1), "word is 1; expected a text of one character or more"),
])  # fmt: skip
def test_bad_arguments_are_named(call: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == says
