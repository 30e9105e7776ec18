"""Positions: by their definitions, over all groups; and what touches what, by distances."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline.lattice.checks import span
from crystalline.lattice.positions import (
    BOUNDARY_REGION,
    SpherePosition,
    correction,
    growth,
    kissing_arrangement,
    level_size,
    level_total,
)

FEW = settings(max_examples=examples(100), deadline=None, derandomize=True)
UINT64 = 2**64 - 1


@pytest.mark.parametrize("group", range(12))
def test_the_clock(group: int) -> None:
    position = SpherePosition(group, 1, 100, 50)
    assert position.hour == group and position.angle == 30 * group
    assert position.quadrant == (1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)[group]


@FEW
@given(st.integers(0, 11), st.integers(2, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_sphere_contains_its_groups_numbers_of_its_partition(
    group: int, centre: int, radius: int, p: int
) -> None:
    position = SpherePosition(group, 0, centre, radius)
    first, last = position.partition
    assert (first, last) == (max(2, centre - radius), centre + radius)
    inside = p >= 2 and abs(p - centre) <= radius
    assert position.contains(p) is (inside and p % 12 == group)


@FEW
@given(st.integers(143000, 145000), st.integers(0, 500))
def test_the_boundary_is_met_by_what_has_a_number_of_it(centre: int, radius: int) -> None:
    position = SpherePosition(0, 0, centre, radius)
    numbers = range(centre - radius, centre + radius + 1)
    assert position.meets_boundary is any(n in numbers for n in (143999, 144000, 144001))
    assert position.near_boundary is any(n in numbers for n in range(143900, 144101))
    assert correction(position) == (Fraction(3, 144000) if position.meets_boundary else 0)


def test_the_edges_of_the_boundary() -> None:
    assert BOUNDARY_REGION == (143999, 144001)
    meets = {at: SpherePosition(0, 0, at, 10).meets_boundary for at in (143988, 143989, 144011,
                                                                       144012)}  # fmt: skip
    assert meets == {143988: False, 143989: True, 144011: True, 144012: False}
    near = {at: SpherePosition(0, 0, at, 0).near_boundary for at in (143899, 143900, 144100,
                                                                    144101)}  # fmt: skip
    assert near == {143899: False, 143900: True, 144100: True, 144101: False}


def test_partitions_reach_to_both_ends() -> None:
    assert SpherePosition(1, 0, 0, UINT64).partition == (2, UINT64)
    assert SpherePosition(1, 0, UINT64, 0).contains(UINT64) is (UINT64 % 12 == 1)
    assert SpherePosition(np.int8(3), 0, np.uint64(7), 0) == SpherePosition(3, 0, 7, 0)
    assert type(SpherePosition(np.int8(3), 0, 7, 0).group) is int


def test_twelve_spheres_touch_the_central_one_and_no_other() -> None:
    centres = kissing_arrangement()
    assert centres.shape == (12, 3) and centres.dtype == np.float64
    assert np.allclose(np.linalg.norm(centres, axis=1), 2, rtol=0, atol=1e-15)
    apart = sorted(float(np.linalg.norm(a - b)) for a, b in combinations(centres, 2))
    # 30 edges of the icosahedron, 30 diagonals, 6 diameters.
    assert np.allclose(apart[:30], 2.1029244484765344, rtol=0, atol=1e-14)
    assert apart[30] > 3.4 and np.allclose(apart[60:], 4)
    assert np.allclose(centres.sum(axis=0), 0)


def test_in_a_plane_seven_circles_overlap_and_six_do_not() -> None:
    def gap(circles: int) -> float:
        """Between the centres of neighbours around one, less the two radii."""
        return 4 * np.sin(np.pi / circles) - 2

    assert gap(7) < -0.2 and abs(gap(6)) < 1e-15


@FEW
@given(st.integers(-1000, 1000))
def test_growth_is_exact(depth: int) -> None:
    assert growth(depth) == (Fraction(3**depth) if depth >= 0 else Fraction(1, 3**-depth))
    assert growth(depth) * growth(-depth) == 1


def test_levels() -> None:
    assert [level_size(d) for d in range(5)] == [1, 12, 144, 1728, 20736]
    assert [level_total(d) for d in range(4)] == [1, 13, 157, 1885]
    assert all(level_total(d) == sum(map(level_size, range(d + 1))) for d in range(60))
    assert growth(-2) == Fraction(1, 9) and growth(4) == 81


def test_a_span_is_two_integers_in_order() -> None:
    assert span("lo", 2, "hi", 2) == (2, 2)


POSITION = {"group": 1, "depth": 0, "centre": 100, "radius": 10}


@pytest.mark.parametrize(("call", "says"), [
    (lambda: SpherePosition(**POSITION | {"group": 12}),
     "group is 12; expected an integer from 0 to 11"),
    (lambda: SpherePosition(**POSITION | {"group": -1}),
     "group is -1; expected an integer from 0 to 11"),
    (lambda: SpherePosition(**POSITION | {"group": 1.0}),
     "group is 1.0; expected an integer from 0 to 11"),
    (lambda: SpherePosition(**POSITION | {"group": True}),
     "group is True; expected an integer from 0 to 11"),
    (lambda: SpherePosition(**POSITION | {"depth": -1}),
     "depth is -1; expected an integer from 0 to 1000"),
    (lambda: SpherePosition(**POSITION | {"centre": -1}),
     "centre is -1; expected an integer from 0 to 2^64 - 1"),
    (lambda: SpherePosition(**POSITION | {"radius": "10"}),
     "radius is '10'; expected an integer from 0 to 2^64 - 1"),
    (lambda: SpherePosition(**POSITION | {"radius": 2**64}),
     "radius is 18446744073709551616; expected an integer from 0 to 2^64 - 1"),
    (lambda: SpherePosition(**POSITION | {"centre": UINT64}),
     "centre + radius is 18446744073709551625, of 18446744073709551615 and 10; expected from 2 to "
     "2^64 - 1, the last number of the partition"),
    (lambda: SpherePosition(0, 0, 1, 0),
     "centre + radius is 1, of 1 and 0; expected from 2 to 2^64 - 1, the last number of the "
     "partition"),
    (lambda: SpherePosition(**POSITION).contains(-1),
     "p is -1; expected an integer from 0 to 2^64 - 1"),
    (lambda: SpherePosition(**POSITION).contains(97.0),
     "p is 97.0; expected an integer from 0 to 2^64 - 1"),
    (lambda: growth(0.5), "depth is 0.5; expected an integer from -1000 to 1000"),
    (lambda: growth(1001), "depth is 1001; expected an integer from -1000 to 1000"),
    (lambda: level_size(-1), "depth is -1; expected an integer from 0 to 1000"),
    (lambda: level_total(True), "depth is True; expected an integer from 0 to 1000"),
    (lambda: span("lo", 5, "hi", 4), "lo is 5; expected an integer from 0 to hi 4"),
    (lambda: span("lo", -5, "hi", 4), "lo is -5; expected an integer from 0 to 2^64 - 1"),
    (lambda: span("lo", 5, "hi", 2**64),
     "hi is 18446744073709551616; expected an integer from 0 to 2^64 - 1"),
])  # fmt: skip
def test_bad_arguments_are_named(call: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == says
