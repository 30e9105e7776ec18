"""The spheres and their children: root, 12 spheres, 144, 1728.

A sphere without children is a leaf and takes tasks; a sphere with children only controls, its 12
children share its tasks.  Each leaf has a thread that takes its tasks first.  All of this decides
who works when, and never a result: it may change between any two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystalline._native import PARTS, Team
from crystalline.errors import UsageError
from crystalline.spheres.allocation import GROUPS, MOST_DEPTH, MOST_THREADS, ThreadAllocation

LEAF_BYTES = 64  # of a leaf's counters in the team
UNEVEN = 1.10  # busiest thread over mean, from which on an automatic hierarchy acts
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Quota:
    """What a hierarchy may not exceed."""

    threads: int = MOST_THREADS
    depth: int = MOST_DEPTH
    scratch_bytes: int = 120 * MEGABYTE  # of the tables that say who takes what


@dataclass(frozen=True)
class Leaf:
    """A sphere or child that takes tasks: those of parts begin .. end of 1728, ``owner`` first."""

    sphere: int
    begin: int
    end: int
    owner: int


class SphereHierarchy:
    """Which leaves each of the 12 spheres has, and which thread owns each.

    ``depth`` is 1 (the spheres work themselves), 2 (12 children each), 3 (144 grandchildren each)
    or "auto", the least that gives every thread about as much to do; only then does ``adapt``
    change it.  Raises UsageError for other depths, and where the quota is exceeded.
    """

    def __init__(
        self, allocation: ThreadAllocation, depth: int | str = "auto", quota: Quota | None = None
    ) -> None:
        self.allocation, self.quota = allocation, quota or Quota()
        self.automatic = depth == "auto"
        self.depths: list[int] = []
        self.leaves: tuple[Leaf, ...] = ()
        if allocation.threads > self.quota.threads:
            raise UsageError(
                f"threads is {allocation.threads}, but the quota is {self.quota.threads}; "
                "choose fewer threads"
            )
        if isinstance(depth, str):
            if depth != "auto":
                raise UsageError(f"hierarchy_depth is {depth!r}, but must be 1, 2, 3 or auto")
            depth = min(allocation.suggested_depth(), self.quota.depth)
            while depth > 1 and self._bytes([depth] * GROUPS) > self.quota.scratch_bytes:
                depth -= 1
        self._set([self._allowed(depth)] * GROUPS)

    # --- what there is ----------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Of the deepest sphere."""
        return max(self.depths)

    @property
    def scratch_bytes(self) -> int:
        """Of the tables the team keeps for this hierarchy."""
        return self._bytes(self.depths)

    def owners(self) -> NDArray[np.int32]:
        """The thread of each leaf."""
        return np.array([leaf.owner for leaf in self.leaves], np.int32)

    def validate(self) -> None:
        """Raises ValueError unless the leaves divide all the work, sphere by sphere."""
        at = 0
        for leaf in self.leaves:
            inside = leaf.sphere * PARTS // GROUPS <= leaf.begin < leaf.end
            inside &= leaf.end <= (leaf.sphere + 1) * PARTS // GROUPS
            if leaf.begin != at or not inside or not 0 <= leaf.owner < self.allocation.threads:
                raise ValueError(f"hierarchy: {leaf} does not follow part {at} within its sphere")
            at = leaf.end
        if at != PARTS:
            raise ValueError(f"hierarchy: the leaves end at part {at} of {PARTS}")

    def order(self) -> NDArray[np.int32]:
        """How each thread looks at the leaves (threads, leaves): its own, then the siblings of its
        own, then those of threads on its memory node, then all others; where it has to rob, from
        behind, while the owners come from the front."""
        count, nodes = len(self.leaves), np.array(self.allocation.nodes)
        owner, sphere = self.owners(), np.array([leaf.sphere for leaf in self.leaves])
        order = np.empty((self.allocation.threads, count), np.int32)
        index = np.arange(count)
        for thread in range(self.allocation.threads):
            own = owner == thread
            kind = np.where(nodes[owner] == nodes[thread], 2, 3)
            kind[np.isin(sphere, sphere[own])] = 1
            kind[own] = 0
            first = int(index[own][0]) if own.any() else thread % count
            behind = np.where(own, index, (first - index) % count)
            order[thread] = np.lexsort((behind, kind))
        return order

    # --- change -----------------------------------------------------------------------------------

    def spawn(self, sphere: int | None = None) -> None:
        """Gives ``sphere``, or every one, 12 children for each of its leaves.  UsageError where the
        quota on depth or scratch does not allow it; then nothing has changed."""
        self._change(sphere, 1)

    def terminate(self, sphere: int | None = None) -> None:
        """Ends the lowest children of ``sphere``, or of every one that has some.  UsageError when
        there are none."""
        self._change(sphere, -1)

    def rebalance(self, leaf_busy: Sequence[int] | NDArray[np.int64]) -> int:
        """Gives leaves of the busiest threads to the least busy, by the measured time of each leaf,
        as long as that lowers the greater of the two; returns how many moved.

        A leaf's time is that of its owner's CPU: on one twice as fast it is half."""
        cost = np.asarray(leaf_busy, np.float64)
        if len(cost) != len(self.leaves):
            raise ValueError(f"rebalance: {len(cost)} times for {len(self.leaves)} leaves")
        owner = self.owners()
        speed = np.array(self.allocation.capacity)
        cost = cost * speed[owner]  # work, which stays the same wherever it is done
        load = np.bincount(owner, cost, self.allocation.threads)
        moved = 0
        while moved < len(owner):
            full, empty = int(np.argmax(load / speed)), int(np.argmin(load / speed))
            mine = np.flatnonzero(owner == full)
            after = np.maximum(
                (load[full] - cost[mine]) / speed[full], (load[empty] + cost[mine]) / speed[empty]
            )
            if not len(mine) or after.min() >= load[full] / speed[full] * (1 - 1e-9):
                break
            leaf = mine[int(np.argmin(after))]
            load[full] -= cost[leaf]
            load[empty] += cost[leaf]
            owner[leaf] = empty
            moved += 1
        self.leaves = tuple(
            Leaf(leaf.sphere, leaf.begin, leaf.end, int(t))
            for leaf, t in zip(self.leaves, owner, strict=True)
        )
        return moved

    def adapt(self, thread_busy: NDArray[np.int64], leaf_busy: NDArray[np.int64]) -> str | None:
        """What an automatic hierarchy does about uneven threads: leaves move, and if none can be
        moved to any good, they are cut finer.  Returns what was done, None for nothing."""
        if not self.automatic or thread_busy.max() <= UNEVEN * thread_busy.mean():
            return None
        if self.rebalance(leaf_busy):
            return "rebalanced"
        depths = [depth + 1 for depth in self.depths]
        if max(depths) > self.quota.depth or self._bytes(depths) > self.quota.scratch_bytes:
            return None
        self._set(depths)
        return "spawned"

    def apply(self, team: Team, steal: bool) -> None:
        """Tells the team; between its regions."""
        begin = np.array([leaf.begin for leaf in self.leaves] + [PARTS], np.int32)
        team.arrange(begin, self.owners(), self.order(), steal)

    def _bytes(self, depths: Sequence[int]) -> int:
        leaves: int = sum(GROUPS ** (depth - 1) for depth in depths)
        return leaves * (LEAF_BYTES + 4 * self.allocation.threads)

    def _allowed(self, depth: int) -> int:
        whole = isinstance(depth, int) and not isinstance(depth, bool)
        if not whole or not 1 <= depth <= self.quota.depth:
            raise UsageError(f"hierarchy_depth is {depth}, but must be 1 to {self.quota.depth}")
        if self._bytes([depth] * GROUPS) > self.quota.scratch_bytes:
            raise UsageError(
                f"hierarchy_depth is {depth}, which needs {self._bytes([depth] * GROUPS):,} bytes "
                f"of tables, but the quota is {self.quota.scratch_bytes:,}; choose less"
            )
        return depth

    def _change(self, sphere: int | None, by: int) -> None:
        if sphere is not None and not 0 <= sphere < GROUPS:
            raise UsageError(f"sphere is {sphere}, but must be 0 to {GROUPS - 1}")
        chosen = range(GROUPS) if sphere is None else [sphere]
        depths = list(self.depths)
        for g in chosen:
            depths[g] = max(1, depths[g] + by) if sphere is None and by < 0 else depths[g] + by
        if min(depths) < 1 or depths == self.depths:
            raise UsageError("there are no children to end")
        if max(depths) > self.quota.depth:
            raise UsageError(
                f"sphere {depths.index(max(depths))} would be {max(depths)} deep, but the quota "
                f"is {self.quota.depth}"
            )
        if self._bytes(depths) > self.quota.scratch_bytes:
            raise UsageError(
                f"the children need {self._bytes(depths):,} bytes of tables, but the quota is "
                f"{self.quota.scratch_bytes:,}"
            )
        self._set(depths)

    def _set(self, depths: list[int]) -> None:
        self.depths, leaves = depths, []
        for sphere, depth in enumerate(depths):
            each = GROUPS ** (depth - 1)
            width = PARTS // GROUPS // each
            owners = self.allocation.leaves(depth)[sphere * each : (sphere + 1) * each]
            begin = sphere * PARTS // GROUPS
            for child, owner in enumerate(owners):
                at = begin + child * width
                leaves.append(Leaf(sphere, at, at + width, owner))
        self.leaves = tuple(leaves)
