"""The 12 groups over threads: whole, even, and on the right CPUs, whatever the machine."""

from __future__ import annotations

import re
from collections import Counter
from statistics import mean
from typing import Any

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from topology_cases import RECORDS, topologies

from crystalline.errors import UsageError
from crystalline.spheres import AllocationRow, Cpu, ThreadAllocation, Topology
from crystalline.spheres.crew import make_crew

COUNTS = [*range(1, 25), 48, 96, 144, 1000]
STRATEGIES = ["auto", "round_robin", "one_to_one", "compact", "spread"]
EVEN = {"vm-2", "smt-8", "two-socket-96"}  # one per machine of equal CPUs, mask and quota apart


def check(a: ThreadAllocation) -> None:
    """Everything that holds of every allocation, from the maps alone."""
    t = a.topology
    by_number = {cpu.number: cpu for cpu in t.cpus}
    placed = [by_number[number] for number in a.cpus]
    assert len(placed) == a.threads
    assert a.nodes == tuple(cpu.node for cpu in placed)
    assert a.capacity == tuple(cpu.capacity for cpu in placed)
    cores = len({cpu.core for cpu in t.cpus})
    assert len({cpu.core for cpu in placed[:cores]}) == min(a.threads, cores)
    times = Counter(a.cpus)
    assert len(times) == min(a.threads, len(t.cpus))
    assert max(times.values()) - min(times.values()) <= 1
    assert sorted(group for row in a.table() for group in row.groups) == list(range(12))
    for depth in (1, 2, 3):
        check_leaves(a, depth)


def check_leaves(a: ThreadAllocation, depth: int) -> None:
    a.validate(depth)
    leaves = a.leaves(depth)
    assert len(leaves) == 12**depth and set(leaves) <= set(range(a.threads))
    carried = Counter(leaves)
    loads = [carried[t] / 12 ** (depth - 1) / a.capacity[t] for t in range(a.threads)]
    assert a.expected_load(depth) == pytest.approx(loads)
    assert a.load_balance(depth) == pytest.approx(mean(loads) / max(loads))
    assert 0 < a.load_balance(depth) <= 1
    if depth == 1:
        return
    counts = [carried[t] for t in range(a.threads)]
    if len(set(a.capacity)) == 1:
        assert max(counts) - min(counts) <= 1
    # Even in time: nobody's last leaf would have ended sooner elsewhere.
    soonest = min((n + 1) / c for n, c in zip(counts, a.capacity, strict=True))
    assert max(n / c for n, c in zip(counts, a.capacity, strict=True)) <= soonest * (1 + 1e-12)
    # A leaf is away from its group's thread only if that thread is full of its own leaves.
    children = 12 ** (depth - 1)
    home = [a.groups[leaf // children] for leaf in range(12**depth)]
    owned = Counter(home)
    stayed = Counter(t for t, h in zip(leaves, home, strict=True) if t == h)
    assert all(stayed[t] == min(owned[t], counts[t]) for t in range(a.threads))
    # What was dealt is contiguous: along the leaves, the thread that takes them only rises.
    dealt = [t for t, h in zip(leaves, home, strict=True) if t != h]
    assert dealt == sorted(dealt)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", RECORDS)
def test_every_group_and_leaf_is_carried_once_and_evenly(name: str, strategy: str) -> None:
    for threads in COUNTS:
        if strategy == "one_to_one" and threads < 12:
            continue
        a = ThreadAllocation(threads, strategy, topology=RECORDS[name])
        assert a.threads == threads
        assert strategy in ("auto", a.strategy)
        check(a)


@settings(max_examples=examples(60), deadline=None)
@given(t=topologies(), threads=st.integers(1, 60), strategy=st.sampled_from(STRATEGIES))
def test_random_machines(t: Topology, threads: int, strategy: str) -> None:
    if strategy == "one_to_one":
        threads += 12
    check(ThreadAllocation(threads, strategy, topology=t))


# --- Groups.


@pytest.mark.parametrize("threads", COUNTS)
@pytest.mark.parametrize("name", sorted(EVEN))
def test_groups_follow_the_rule_of_the_strategy(name: str, threads: int) -> None:
    def groups(strategy: str) -> tuple[int, ...]:
        return ThreadAllocation(threads, strategy, topology=RECORDS[name]).groups

    robin = tuple(g % threads for g in range(12))
    assert groups("auto") == groups("round_robin") == groups("spread") == robin
    blocks = groups("compact")
    assert blocks == tuple(sorted(blocks)) and set(blocks) == set(range(min(threads, 12)))
    sizes = Counter(blocks).values()
    assert max(sizes) - min(sizes) <= 1
    if threads >= 12:
        assert groups("one_to_one") == tuple(range(12))


def test_auto_says_what_it_stands_for() -> None:
    t = RECORDS["smt-8"]
    assert ThreadAllocation(11, topology=t).strategy == "round_robin"
    assert ThreadAllocation(12, topology=t).strategy == "one_to_one"
    t = RECORDS["hybrid-laptop"]
    assert ThreadAllocation(6, topology=t).strategy == "round_robin"  # all on fast cores
    assert ThreadAllocation(7, topology=t).strategy == "proportional"


def test_slow_cores_carry_less() -> None:
    t = RECORDS["hybrid-laptop"]
    for threads in range(7, 21):
        even = ThreadAllocation(threads, topology=t)
        robin = ThreadAllocation(threads, "round_robin", topology=t)
        assert max(even.expected_load()) <= max(robin.expected_load())
    a = ThreadAllocation(8, topology=t)
    assert a.groups == (0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3)  # the slow 6 and 7 carry one each
    assert max(a.expected_load()) == 2
    fast, slow = Cpu(0, 0, 0, 0, 0), Cpu(1, 1, 0, 0, 0, 0.5)
    two = ThreadAllocation(2, topology=Topology((fast, slow)))
    # Two groups to one; of two threads that would both end at 2, the lowest is next.
    assert two.groups == (0, 0, 1) * 4
    assert two.expected_load() == (8, 8) and two.load_balance() == 1
    assert Counter(two.leaves(3)) == {0: 1152, 1: 576}


# --- Leaves.


def test_twenty_threads_carry_7_or_8_of_144_leaves() -> None:
    a = ThreadAllocation(20, topology=RECORDS["smt-8"])
    leaves = a.leaves(2)
    assert sorted(Counter(leaves).values()) == [7] * 16 + [8] * 4
    assert leaves[:12] == (0,) * 8 + (12,) * 4  # group 0: siblings stay together
    assert a.expected_load(2)[:5] == pytest.approx([8 / 12] * 4 + [7 / 12])


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 12])
def test_where_groups_are_even_no_leaf_leaves_its_group(threads: int) -> None:
    for strategy in ("auto", "compact", "spread"):
        a = ThreadAllocation(threads, strategy, topology=RECORDS["two-socket-96"])
        for depth in (2, 3):
            width = 12 ** (depth - 1)
            assert a.leaves(depth) == tuple(g for g in a.groups for _ in range(width))


@pytest.mark.parametrize(
    ("depth", "counts"), [(1, [1, 2, 3, 4, 6, 12, 13]), (2, [5, 7, 8, 9, 11, 20]), (3, [1000])]
)
def test_depth_grows_until_threads_are_busy(depth: int, counts: list[int]) -> None:
    for threads in counts:
        for name in EVEN:
            a = ThreadAllocation(threads, topology=RECORDS[name])
            assert a.suggested_depth() == depth
            if depth < 3:
                assert a.load_balance(depth) >= 0.9 - 1e-9
            assert all(a.load_balance(d) < 0.9 for d in range(1, depth))


@pytest.mark.parametrize("depth", [0, 4, -1, True, 1.0])
def test_other_depths_are_refused(depth: Any) -> None:
    with pytest.raises(UsageError, match=f"depth is {depth}, but must be 1 to 3"):
        ThreadAllocation(2, topology=RECORDS["vm-2"]).leaves(depth)


# --- CPUs.


def test_compact_stays_in_one_l3_and_spread_uses_both_packages() -> None:
    t = RECORDS["two-socket-96"]
    by_number = {cpu.number: cpu for cpu in t.cpus}
    for strategy in ("compact", "auto"):
        a = ThreadAllocation(8, strategy, topology=t)
        assert len({by_number[n].l3 for n in a.cpus}) == 1 and set(a.nodes) == {0}
    spread = ThreadAllocation(2, "spread", topology=t)
    assert {by_number[n].package for n in spread.cpus} == {0, 1} and spread.nodes == (0, 1)


@pytest.mark.parametrize(
    ("name", "threads", "cpus"),
    [
        ("vm-2", 2, (0, 1)), ("smt-8", 16, tuple(range(16))), ("smt-8-mask-3", 3, (2, 3, 10)),
        ("hybrid-laptop", 20, (0, 2, 4, 6, 8, 10, *range(12, 20), 1, 3, 5, 7, 9, 11)),
        ("two-socket-96", 192, tuple(range(192))),
        ("two-socket-96-quota-12", 12, tuple(range(12))),
    ],
)  # fmt: skip
def test_by_default_mask_and_quota_say_how_many(
    name: str, threads: int, cpus: tuple[int, ...]
) -> None:
    a = ThreadAllocation(topology=RECORDS[name])
    assert a.threads == threads and a.cpus == cpus


def test_more_threads_than_cpus_take_turns() -> None:
    a = ThreadAllocation(7, topology=RECORDS["smt-8-mask-3"])
    assert a.cpus == (2, 3, 10, 2, 3, 10, 2)


def test_this_machine_is_the_default() -> None:
    t = Topology.detect()
    assert ThreadAllocation() == ThreadAllocation(t.usable, "auto", topology=t)


def test_the_table_has_a_row_per_thread() -> None:
    assert ThreadAllocation(5, topology=RECORDS["vm-2"]).table() == [
        AllocationRow(0, 0, 0, (0, 5, 10), 3.0), AllocationRow(1, 1, 0, (1, 6, 11), 3.0),
        AllocationRow(2, 0, 0, (2, 7), 2.0), AllocationRow(3, 1, 0, (3, 8), 2.0),
        AllocationRow(4, 0, 0, (4, 9), 2.0),
    ]  # fmt: skip


# --- Mistakes.


@pytest.mark.parametrize("threads", [0, -1, 4097, 5000, True, 2.0, "4", 10**99])
def test_other_numbers_of_threads_are_refused(threads: Any) -> None:
    with pytest.raises(UsageError, match=r"^threads is .*, but must be a whole number from 1 to 4"):
        ThreadAllocation(threads, topology=RECORDS["vm-2"])


def test_the_most_threads() -> None:
    check(ThreadAllocation(4096, topology=RECORDS["hybrid-laptop"]))


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("roundrobin", "did you mean round_robin?"), ("compct", "did you mean compact?"),
        ("SPREAD", "choose one of auto, round_robin"), ("", "choose one of"), (None, "choose one"),
        ("x" * 999, "choose one of"), ("one-to-one", "did you mean one_to_one?"),
    ],
)  # fmt: skip
def test_an_unknown_strategy_is_refused_and_the_nearest_named(strategy: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"^strategy .* is unknown; {re.escape(said)}"):
        ThreadAllocation(2, strategy, topology=RECORDS["vm-2"])


def test_one_to_one_needs_12_threads() -> None:
    with pytest.raises(UsageError, match="needs 12 threads or more, not 11; choose round_robin"):
        ThreadAllocation(11, "one_to_one", topology=RECORDS["vm-2"])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("groups", (0,) * 11, "11 entries name the thread of a group, but at depth 1 there are 12"),
        ("groups", (0,) * 13, "13 entries"),
        ("groups", (0, 1, 2) * 3 + (0, 4, 2), "group 10 is carried by thread 4, but threads are"),
        ("groups", (0, 1, -1) * 4, "group 2 is carried by thread -1"),
        ("cpus", (2, 3), "cpus has 2 entries, but there are 3 threads"),
        ("cpus", (2, 3, 5), "thread 2 is on cpu 5, which this process may not use"),
        ("nodes", (0, 1, 0), "thread 1 has node 1 and capacity 1.0, but its cpu 3 has 0 and 1.0"),
        ("capacity", (0.5, 1.0, 1.0), "thread 0 has node 0 and capacity 0.5, but its cpu 2 has 0"),
        ("threads", 4, "cpus has 3 entries, but there are 4 threads"),
    ],
)  # fmt: skip
def test_a_damaged_map_is_found(name: str, value: Any, said: str) -> None:
    for depth in (1, 2):
        a = ThreadAllocation(topology=RECORDS["smt-8-mask-3"])
        a.validate(depth)
        object.__setattr__(a, name, value)
        with pytest.raises(ValueError, match=f"^allocation: {said}"):
            a.validate(depth)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda leaves: leaves[:-1], "143 entries name the thread of a leaf, but at depth 2 there"),
        (lambda leaves: (*leaves[:-1], 5), "leaf 143 is carried by thread 5, but threads are 0 to"),
        (lambda leaves: (0, *leaves[1:-1], 0), "thread 0 carries 30 leaves at depth 2, but its"),
    ],
)
def test_damaged_leaves_are_found(damage: Any, said: str) -> None:
    class Damaged(ThreadAllocation):
        def leaves(self, depth: int) -> tuple[int, ...]:
            leaves: tuple[int, ...] = damage(super().leaves(depth))
            return leaves

    a = Damaged(5, topology=RECORDS["smt-8"])
    with pytest.raises(ValueError, match=f"^allocation: {said}"):
        a.validate(2)


@pytest.mark.parametrize("said", ["x", "false", "2"])
def test_a_word_for_pinning_that_nobody_knows(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYSTALLINE_PIN", said)
    with pytest.raises(UsageError, match=f"CRYSTALLINE_PIN is '{said}', but must be 0 or 1"):
        make_crew(1)
