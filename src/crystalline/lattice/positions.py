"""Where the 12 spheres stand: on a clock, on the number line, and in space.

    clock           hour = group, 30 degrees each; quadrants 1 to 4 of three hours
    number line     the partition [centre - radius, centre + radius], cut off below 2
    boundary        the region [143999, 144001]; near it is what is at most 100 from 144000
    correction      3/144000 for a partition that meets the region, else 0
    space           12 unit spheres on the vertices of an icosahedron touch a central one.  In a
                    plane only 6 circles touch one; the clock is a picture of groups, not of contact
    levels          12^d spheres at depth d; 1, 13, 157, 1885, ... down to it; growth 3^d
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from crystalline.errors import UsageError
from crystalline.lattice.checks import UINT64, group, integer
from crystalline.lattice.constants import (
    BOUNDARY_LOWER,
    BOUNDARY_UPPER,
    EINSTEIN_LAMBDA,
    GOLDEN_RATIO,
    NEAR_BOUNDARY,
    SYMMETRY_GROUPS,
    VECTOR_CULMINATION,
    as_float,
)

DEEPEST = 1000
GROWTH = 3
DEGREES = 360 // SYMMETRY_GROUPS  # an hour of the clock
FIRST_PRIME = 2
BOUNDARY_REGION = (BOUNDARY_LOWER, BOUNDARY_UPPER)


@dataclass(frozen=True)
class SpherePosition:
    """A sphere: its group, 0 to 11, its depth, and the numbers it stands for.

    centre and radius: integers from 0 to 2^64 - 1, whose sum is from 2 to 2^64 - 1, so that the
    partition is not empty.  UsageError names the one that is not.
    """

    group: int
    depth: int
    centre: int
    radius: int

    def __post_init__(self) -> None:
        checked = {
            "group": group("group", self.group),
            "depth": integer("depth", self.depth, 0, DEEPEST),
            "centre": integer("centre", self.centre, 0, UINT64),
            "radius": integer("radius", self.radius, 0, UINT64),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        last = self.centre + self.radius
        if not FIRST_PRIME <= last <= UINT64:
            raise UsageError(
                f"centre + radius is {last}, of {self.centre} and {self.radius}; "
                "expected from 2 to 2^64 - 1, the last number of the partition"
            )

    @property
    def hour(self) -> int:
        """The hour of the clock, 0 to 11."""
        return self.group

    @property
    def angle(self) -> int:
        """The hour in degrees, 0 to 330."""
        return DEGREES * self.group

    @property
    def quadrant(self) -> int:
        """1 for the hours 0 to 2, up to 4 for 9 to 11."""
        return self.angle // 90 + 1

    @property
    def partition(self) -> tuple[int, int]:
        """The first and the last number of the partition."""
        return max(FIRST_PRIME, self.centre - self.radius), self.centre + self.radius

    @property
    def meets_boundary(self) -> bool:
        """Whether the partition has a number of the boundary region, 143999 to 144001."""
        return self._meets(*BOUNDARY_REGION)

    @property
    def near_boundary(self) -> bool:
        """Whether the partition has a number at most 100 from 144000."""
        return self._meets(
            VECTOR_CULMINATION - NEAR_BOUNDARY, VECTOR_CULMINATION + NEAR_BOUNDARY
        )

    def _meets(self, low: int, high: int) -> bool:
        first, last = self.partition
        return first <= high and low <= last

    def contains(self, p: int) -> bool:
        """Whether p lies in the partition and is of the sphere's group.

        p: an integer from 0 to 2^64 - 1, prime or not.
        """
        p = integer("p", p, 0, UINT64)
        first, last = self.partition
        return first <= p <= last and p % SYMMETRY_GROUPS == self.group


def correction(position: SpherePosition) -> Fraction:
    """3/144000 for a position whose partition meets the boundary region, else 0."""
    return EINSTEIN_LAMBDA if position.meets_boundary else Fraction(0)


def kissing_arrangement() -> NDArray[np.float64]:
    """The centres of 12 spheres of radius 1 that touch one at the origin, float64 (12, 3).

    The vertices of an icosahedron, 2 from the origin: even permutations of (0, +-1, +-golden
    ratio), scaled.  Neighbours are 2.1029 apart, more than 2, so no two touch, and all have room to
    roll.
    """
    golden = as_float(GOLDEN_RATIO)
    signs = [(one, other * golden) for one in (1.0, -1.0) for other in (1.0, -1.0)]
    corners = [(0.0, a, b) for a, b in signs]
    corners += [(a, b, 0.0) for a, b in signs] + [(b, 0.0, a) for a, b in signs]
    centres: NDArray[np.float64] = np.array(corners) * (2 / np.sqrt(1 + golden * golden))
    return centres


def growth(depth: int) -> Fraction:
    """3^depth, exactly; depth is an integer from -1000 to 1000."""
    return Fraction(GROWTH) ** integer("depth", depth, -DEEPEST, DEEPEST)


def level_size(depth: int) -> int:
    """How many spheres a level has: 12^depth, for depths from 0 to 1000."""
    size: int = SYMMETRY_GROUPS ** integer("depth", depth, 0, DEEPEST)
    return size


def level_total(depth: int) -> int:
    """How many spheres all levels down to one have: 1, 13, 157, 1885, ..."""
    return (level_size(depth) * SYMMETRY_GROUPS - 1) // (SYMMETRY_GROUPS - 1)
