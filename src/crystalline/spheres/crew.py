"""Who works: the threads, where they run, and which spheres they carry."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team, interleave
from crystalline.errors import UsageError
from crystalline.spheres.allocation import ThreadAllocation
from crystalline.spheres.hierarchy import UNEVEN, SphereHierarchy
from crystalline.team import make_team, threads_wanted

PATIENCE = 3  # looks: a single one may have met another program


@dataclass
class Crew:
    """A team with the spheres it carries.  None of it changes a result."""

    team: Team
    hierarchy: SphereHierarchy
    steal: bool = True  # threads take what is left of others' tasks
    recursive: bool = True  # an automatic hierarchy may change while training runs

    def __post_init__(self) -> None:
        self._uneven = 0  # times in a row that the threads were found so
        self._apply()

    @property
    def adaptive(self) -> bool:
        """Whether the hierarchy changes by itself.  With stealing threads even out task by task,
        and what is left of unevenness is other programs' doing: children would not help."""
        automatic = self.recursive and self.hierarchy.automatic
        return automatic and not self.steal and self.team.threads > 1

    def spawn(self, sphere: int | None) -> None:
        """Children for one sphere or all; UsageError at a quota."""
        self.hierarchy.spawn(sphere)
        self._apply()

    def terminate(self, sphere: int | None) -> None:
        """Fewer children; UsageError when there are none."""
        self.hierarchy.terminate(sphere)
        self._apply()

    def rebalance(self) -> None:
        """Leaves to other threads, by the time each took."""
        self.hierarchy.rebalance(self.team.statistics()["leaves"])
        self._apply()

    def adapt(self, thread_busy: NDArray[np.int64], leaf_busy: NDArray[np.int64]) -> str | None:
        """What threads that stay uneven call for, if anything; says what was done."""
        even = thread_busy.max() <= UNEVEN * thread_busy.mean()
        self._uneven = 0 if even else self._uneven + 1
        if self._uneven < PATIENCE:
            return None
        self._uneven = 0
        done = self.hierarchy.adapt(thread_busy, leaf_busy)
        if done is not None:
            self._apply()
        return done

    def interleave(self, block: NDArray[np.float32]) -> None:
        """Spreads memory that every thread reads over the memory nodes, where there are several."""
        nodes = sorted(set(self.hierarchy.allocation.nodes))
        if len(nodes) > 1:
            interleave(block, np.array(nodes, np.int32))

    def described(self) -> dict[str, Any]:
        """The mapping and the hierarchy, as plain values for display."""
        h, allocation = self.hierarchy, self.hierarchy.allocation
        return {
            "machine": allocation.topology.describe(), "strategy": allocation.strategy,
            "groups": list(allocation.groups), "cpus": list(allocation.cpus),
            "pinned": self.team.cpus is not None, "steal": self.steal, "depths": list(h.depths),
            "leaves": len(h.leaves), "load_balance": allocation.load_balance(h.depth),
        }  # fmt: skip

    def _apply(self) -> None:
        self.hierarchy.apply(self.team, self.steal)


def make_crew(
    threads: int | None = None,
    *,
    depth: int | str = "auto",
    strategy: str = "auto",
    pin: bool | None = None,
    steal: bool = True,
    recursive: bool = True,
) -> Crew:
    """A crew of ``threads`` (see ``make_team``).

    ``pin`` keeps each thread on its CPU.  None does so where the crew has every CPU to itself: of a
    part of them the system makes the better choice, as others may have made the same one.
    CRYSTALLINE_PIN=0 and =1 decide for None.
    """
    allocation = ThreadAllocation(threads_wanted(threads), strategy)
    if pin is None:
        said = os.environ.get("CRYSTALLINE_PIN", "")
        if said not in ("", "0", "1"):
            raise UsageError(f"CRYSTALLINE_PIN is {said!r}, but must be 0 or 1; unset it")
        pin = said != "0" and (bool(said) or allocation.threads == len(allocation.topology.cpus))
    hierarchy = SphereHierarchy(allocation, depth)
    team = make_team(allocation.threads, allocation.cpus if pin else None)
    return Crew(team, hierarchy, steal, recursive)
