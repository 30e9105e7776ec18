"""A case: one operation of a Team on one shape, with all that it reads, writes and should give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.decoder.decoder import group_order

Array = NDArray[Any]
Arrays = dict[str, Array]
Shape = tuple[int, ...]
# Family of the tolerance table, the output it judges, what was wanted, the reference's inputs.
Due = tuple[str, Array, Array, tuple[Any, ...], dict[str, Any]]
EPS, THETA = 1e-5, 10000.0


@dataclass(frozen=True)
class Case:
    """One call. ``run`` finds reads and writes by name in one dictionary."""

    reads: Arrays
    writes: Arrays  # as they are before the call
    run: Callable[[Team, Arrays], None]
    due: Callable[[Arrays], list[Due]]

    def arrays(self) -> Arrays:
        """What one call is given: its own copy of all that it may write."""
        return self.reads | {name: a.copy() for name, a in self.writes.items()}

    def outputs(self, team: Team) -> Arrays:
        """What one call leaves in the arrays it writes."""
        a = self.arrays()
        self.run(team, a)
        return {name: a[name] for name in self.writes}


def draw(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32 numbers, a different draw for every shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def poison(*shape: int) -> Array:
    """An output that nobody has written yet."""
    return np.full(shape, np.nan, np.float32)


def start(want: Array, add: bool) -> Array:
    """What an output holds before the call: half of what will be added, or poison."""
    return (want / 2).astype(np.float32) if add else poison(*want.shape)


def groups_of(B: int, T: int = 1) -> Array:
    """The 13 row starts for B sequences of T rows."""
    return group_order(B)[1] * T
