"""Which thread carries which of the 12 groups and their children, and on which CPU it runs.

The groups fix the order of every sum; the allocation decides how fast a step is, never its result.
"""

from __future__ import annotations

import difflib
import heapq
import math
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from crystalline.config import STRATEGIES
from crystalline.errors import UsageError
from crystalline.spheres.topology import Topology

GROUPS = 12
MOST_THREADS = 4096
MOST_DEPTH = 3
GOOD_BALANCE = 0.9


class AllocationRow(NamedTuple):
    """What one thread carries, for display; ``load`` is groups carried / capacity."""

    thread: int
    cpu: int
    node: int
    groups: tuple[int, ...]
    load: float


@dataclass(frozen=True, init=False)
class ThreadAllocation:
    """The 12 groups laid out over ``threads`` (None: topology.usable) by one of the strategies.

    round_robin  thread t of N carries the groups t, t + N, ...
    one_to_one   group g is carried by thread g; needs 12 threads
    compact      blocks of neighbouring groups, on CPUs that share as much cache as can be
    spread       round robin, on CPUs as far apart as can be: the most memory bandwidth
    auto         round_robin below 12 threads, one_to_one from 12; where the chosen CPUs differ in
                 speed, ``proportional``: every next group to the thread that then has the least
                 load, ties to the lowest

    All but spread place threads in the compact order.  With more threads than CPUs, CPUs are used
    again in turn; capacities then stay those of the CPUs.

    Attributes: ``strategy``, what was resolved to; ``groups``, the thread of each group; ``cpus``,
    ``nodes`` and ``capacity``, the CPU number of each thread, its NUMA node, its relative speed.
    Raises UsageError on other threads or strategies.
    """

    threads: int
    strategy: str
    groups: tuple[int, ...]
    cpus: tuple[int, ...]
    nodes: tuple[int, ...]
    capacity: tuple[float, ...]
    topology: Topology = field(repr=False)

    def __init__(
        self,
        threads: int | None = None,
        strategy: str = "auto",
        *,
        topology: Topology | None = None,
    ) -> None:
        topology = topology or Topology.detect()
        threads = _checked(topology.usable if threads is None else threads, strategy)
        order = topology.order(compact=strategy != "spread")
        placed = [order[t % len(order)] for t in range(threads)]
        capacity = tuple(cpu.capacity for cpu in placed)
        strategy, groups = _carry(threads, strategy, capacity)
        values = {
            "threads": threads,
            "strategy": strategy,
            "groups": groups,
            "cpus": tuple(cpu.number for cpu in placed),
            "nodes": tuple(cpu.node for cpu in placed),
            "capacity": capacity,
            "topology": topology,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the one place where a frozen record is filled
        self.validate()

    def leaves(self, depth: int) -> tuple[int, ...]:
        """The thread of each of the 12**depth leaves, which are equal shares of the work.

        Leaf l belongs to group l // 12**(depth - 1).  At depth 1 the leaves are the groups.
        Deeper, every thread has a quota in proportion to its capacity; it keeps the first of its
        own groups' leaves, and what is over is dealt, in order, to the threads below their quota.
        Raises UsageError unless depth is 1 to 3.
        """
        if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= MOST_DEPTH:
            raise UsageError(f"depth is {depth!r}, but must be 1 to {MOST_DEPTH}")
        if depth == 1:
            return self.groups
        left = self._quotas(depth)
        leaves = [thread for thread in self.groups for _ in range(GROUPS ** (depth - 1))]
        over = []
        for leaf, thread in enumerate(leaves):
            if left[thread]:
                left[thread] -= 1
            else:
                over.append(leaf)
        below = (thread for thread, room in enumerate(left) for _ in range(room))
        for leaf, thread in zip(over, below, strict=True):
            leaves[leaf] = thread
        return tuple(leaves)

    def _quotas(self, depth: int) -> list[int]:
        """How many leaves each thread may carry: 12**depth, as evenly as whole leaves can be."""
        total, speed = GROUPS**depth, sum(self.capacity)
        # The greedy rule gives everyone the whole part of its share, so only the rest is dealt.
        quotas = [math.floor(total * c / speed) for c in self.capacity]
        for thread in _deal(quotas, self.capacity, total - sum(quotas)):
            quotas[thread] += 1
        return quotas

    def expected_load(self, depth: int = 1) -> tuple[float, ...]:
        """Each thread's work / capacity, in groups: a leaf counts 1 / 12**(depth - 1)."""
        carried = Counter(self.leaves(depth))
        leaf = GROUPS ** (depth - 1)
        return tuple(carried[t] / leaf / c for t, c in enumerate(self.capacity))

    def load_balance(self, depth: int = 1) -> float:
        """Mean load / greatest load, in (0, 1]: 1 keeps every thread busy to the end of a step."""
        loads = self.expected_load(depth)
        return min(1.0, math.fsum(loads) / len(loads) / max(loads))

    def suggested_depth(self) -> int:
        """The least depth whose load balance is 0.9 or more, else the depth with the best."""
        balance = {depth: self.load_balance(depth) for depth in range(1, MOST_DEPTH + 1)}
        good = [depth for depth, value in balance.items() if value >= GOOD_BALANCE - 1e-9]
        return good[0] if good else max(balance, key=lambda depth: balance[depth])

    def validate(self, depth: int = 1) -> None:
        """Check that every group and leaf is carried by one thread there is, no thread carries
        more leaves than its quota, and threads run on CPUs of the topology as it describes them.

        Raises ValueError naming what is wrong.
        """
        cpus = {cpu.number: cpu for cpu in self.topology.cpus}
        for name in ("cpus", "nodes", "capacity"):
            if len(getattr(self, name)) != self.threads:
                raise ValueError(
                    f"allocation: {name} has {len(getattr(self, name))} entries, but there are "
                    f"{self.threads} threads"
                )
        for thread, number in enumerate(self.cpus):
            if number not in cpus:
                raise ValueError(
                    f"allocation: thread {thread} is on cpu {number}, which this process may not "
                    "use"
                )
            cpu = cpus[number]
            if (self.nodes[thread], self.capacity[thread]) != (cpu.node, cpu.capacity):
                raise ValueError(
                    f"allocation: thread {thread} has node {self.nodes[thread]} and capacity "
                    f"{self.capacity[thread]}, but its cpu {number} has {cpu.node} and "
                    f"{cpu.capacity}"
                )
        self._check_carried("group", self.groups, 1)
        if depth > 1:
            leaves = self.leaves(depth)
            self._check_carried("leaf", leaves, depth)
            carried, quotas = Counter(leaves), self._quotas(depth)
            for thread, quota in enumerate(quotas):
                if carried[thread] > quota:
                    raise ValueError(
                        f"allocation: thread {thread} carries {carried[thread]} leaves at depth "
                        f"{depth}, but its quota is {quota}"
                    )

    def _check_carried(self, kind: str, carriers: Sequence[int], depth: int) -> None:
        if len(carriers) != GROUPS**depth:
            raise ValueError(
                f"allocation: {len(carriers)} entries name the thread of a {kind}, but at depth "
                f"{depth} there are {GROUPS**depth}"
            )
        for item, thread in enumerate(carriers):
            if not 0 <= thread < self.threads:
                raise ValueError(
                    f"allocation: {kind} {item} is carried by thread {thread}, but threads are 0 "
                    f"to {self.threads - 1}"
                )

    def table(self) -> list[AllocationRow]:
        """A row per thread, for display."""
        carried: list[list[int]] = [[] for _ in range(self.threads)]
        for group, thread in enumerate(self.groups):
            carried[thread].append(group)
        return [
            AllocationRow(thread, cpu, node, tuple(groups), load)
            for thread, (cpu, node, groups, load) in enumerate(
                zip(self.cpus, self.nodes, carried, self.expected_load(), strict=True)
            )
        ]


def _checked(threads: int, strategy: str) -> int:
    if strategy not in STRATEGIES:
        near = difflib.get_close_matches(str(strategy), STRATEGIES, n=1, cutoff=0.5)
        choose = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(STRATEGIES)}"
        raise UsageError(f"strategy {reprlib.repr(strategy)} is unknown; {choose}")
    # bool is an int to Python, but `threads=True` is a mistake.
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if not whole or not 1 <= threads <= MOST_THREADS:
        raise UsageError(
            f"threads is {reprlib.repr(threads)}, but must be a whole number from 1 to "
            f"{MOST_THREADS}; leave it out to use every CPU granted"
        )
    if strategy == "one_to_one" and threads < GROUPS:
        raise UsageError(
            f"strategy one_to_one needs {GROUPS} threads or more, not {threads}; choose round_robin"
        )
    return threads


def _carry(
    threads: int, strategy: str, capacity: Sequence[float]
) -> tuple[str, tuple[int, ...]]:
    """The strategy that auto stands for, and the thread of each group."""
    homes = min(threads, GROUPS)
    if strategy == "compact":
        return strategy, tuple(group * homes // GROUPS for group in range(GROUPS))
    if strategy == "auto" and len(set(capacity)) > 1:
        return "proportional", tuple(_deal([0] * threads, capacity, GROUPS))
    if strategy == "auto":
        strategy = "one_to_one" if threads >= GROUPS else "round_robin"
    return strategy, tuple(group % homes for group in range(GROUPS))


def _deal(carried: Sequence[int], capacity: Sequence[float], items: int) -> list[int]:
    """The threads to which so many more items go: each to the one that then has the least load,
    ties to the lowest."""
    heap = [((n + 1) / c, t, n) for t, (n, c) in enumerate(zip(carried, capacity, strict=True))]
    heapq.heapify(heap)
    dealt = []
    for _ in range(items):
        _, t, n = heap[0]
        dealt.append(t)
        heapq.heapreplace(heap, ((n + 2) / capacity[t], t, n + 1))
    return dealt
