"""What each of the 12 spheres has done: counted by the team's threads, and by the trainer.

The team counts tasks and times in C, with atomics and no lock.  The trainer adds what it knows of a
step.  Everything counts up; rates are differences of two snapshots.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.spheres.allocation import GROUPS
from crystalline.spheres.hierarchy import SphereHierarchy

# Token id t stands for the (t + 1)-th prime; the 13,343 primes below 144,000 end at this id.
BOUNDARY_ID = 13343


@dataclass(frozen=True)
class SphereRow:
    """One sphere.  Times in nanoseconds: busy on its tasks, whoever did them; barrier and idle are
    what its threads waited inside and outside parallel regions, shared among their leaves."""

    sphere: int
    threads: tuple[int, ...]
    leaves: int
    tokens: int
    sequences: int
    tasks: int
    stolen: int
    busy: int
    barrier: int
    idle: int
    loss: float  # nats per token, of the last step
    norm_share: float  # of the squared gradient norm, in the sphere's twelfth of the parameters
    crossings: int  # of the boundary 144,000 by neighbouring tokens, since step 0


@dataclass(frozen=True)
class ThreadRow:
    """One thread; times in nanoseconds."""

    thread: int
    cpu: int
    spheres: tuple[int, ...]
    leaves: int
    tasks: int
    stolen: int
    busy: int
    barrier: int
    idle: int


class SphereStats:
    """Counters of one training.  One thread adds; any thread may take a snapshot."""

    def __init__(
        self, team: Team, hierarchy: SphereHierarchy, boundary: bool = True,
        crossings: Sequence[int] = (0,) * GROUPS,
    ) -> None:  # fmt: skip
        """``boundary``: whether crossings are counted, from those before on."""
        self.team, self.hierarchy, self.boundary = team, hierarchy, boundary
        self.begin()
        self.tokens = np.zeros(GROUPS, np.int64)
        self.sequences = np.zeros(GROUPS, np.int64)
        self.crossings = np.array(crossings, np.int64)
        self.losses = np.zeros(GROUPS)
        self.norm_shares = np.zeros(GROUPS)
        self._nats, self._counted = np.zeros(GROUPS), np.zeros(GROUPS, np.int64)

    def begin(self) -> None:
        """What the team does is counted from here on."""
        self.begun, self._before = time.monotonic_ns(), self.team.statistics()

    def add_batch(
        self, starts: NDArray[np.int64], ids: NDArray[np.int32], targets: NDArray[np.int32],
        nats: list[float], T: int,
    ) -> None:  # fmt: skip
        """One micro-step: row starts (13) of the groups, ids and targets (R) in their order, the
        groups' summed losses."""
        learnt = np.concatenate(([0], np.cumsum(targets >= 0)))
        tokens = np.diff(learnt[starts])
        self.tokens += tokens
        used = np.concatenate(([0], np.cumsum(targets.reshape(-1, T)[:, 0] >= 0)))
        self.sequences += np.diff(used[starts // T])
        self._nats += nats
        self._counted += tokens
        if self.boundary and max(ids.max(initial=0), targets.max(initial=0)) >= BOUNDARY_ID:
            self.crossings += crossings(starts, ids, targets)

    def end_step(self, squares: NDArray[np.float64]) -> None:
        """After the update: ``squares`` (12) are the spheres' parts of the squared norm."""
        self.losses = self._nats / np.maximum(self._counted, 1)
        self.norm_shares = squares / max(float(squares.sum()), 1e-300)
        self._nats, self._counted = np.zeros(GROUPS), np.zeros(GROUPS, np.int64)

    def threads(self) -> list[ThreadRow]:
        """A row per thread."""
        s = self.team.statistics()
        wall, inside = time.monotonic_ns() - self.begun, s["inside"] - self._before["inside"]
        done = s["threads"] - self._before["threads"]
        owned: list[list[int]] = [[] for _ in range(self.team.threads)]
        for leaf in self.hierarchy.leaves:
            owned[leaf.owner].append(leaf.sphere)
        rows = []
        for t, (tasks, stolen, busy) in enumerate(done.tolist()):
            cpu = self.team.cpus[t] if self.team.cpus else -1
            waited, outside = max(0, inside - busy), max(0, wall - inside)
            rows.append(
                ThreadRow(
                    t, cpu, tuple(sorted(set(owned[t]))), len(owned[t]), tasks, stolen, busy,
                    waited, outside,
                )
            )
        return rows

    def spheres(self) -> list[SphereRow]:
        """A row per sphere."""
        threads = self.threads()
        counted = (self.team.statistics()["spheres"] - self._before["spheres"]).tolist()
        mine: list[list[int]] = [[] for _ in range(GROUPS)]
        for leaf in self.hierarchy.leaves:
            mine[leaf.sphere].append(leaf.owner)
        rows = []
        for g in range(GROUPS):
            tasks, stolen, busy = counted[g]
            barrier = sum(threads[t].barrier / threads[t].leaves for t in mine[g])
            idle = sum(threads[t].idle / threads[t].leaves for t in mine[g])
            rows.append(
                SphereRow(
                    g, tuple(sorted(set(mine[g]))), len(mine[g]), int(self.tokens[g]),
                    int(self.sequences[g]), tasks, stolen, busy, int(barrier), int(idle),
                    float(self.losses[g]), float(self.norm_shares[g]), int(self.crossings[g]),
                )
            )
        return rows

    def snapshot(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        return {
            "spheres": [asdict(row) for row in self.spheres()],
            "threads": [asdict(row) for row in self.threads()],
            "depths": list(self.hierarchy.depths),
            "strategy": self.hierarchy.allocation.strategy,
        }


def crossings(
    starts: NDArray[np.int64], ids: NDArray[np.int32], targets: NDArray[np.int32]
) -> NDArray[np.int64]:
    """How often a token and the next one, its target, lie on different sides of 144,000, by group.
    However texts are cut into sequences, each pair of neighbours is counted once."""
    crossed = ((ids >= BOUNDARY_ID) != (targets >= BOUNDARY_ID)) & (targets >= 0)
    total = np.concatenate(([0], np.cumsum(crossed)))
    counted: NDArray[np.int64] = np.diff(total[starts])
    return counted
