"""The spheres and their children: what there is, how it changes, and what a change must keep."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from topology_cases import RECORDS, topologies

from crystalline._native import PARTS, Team
from crystalline.errors import UsageError
from crystalline.spheres.allocation import ThreadAllocation
from crystalline.spheres.hierarchy import MEGABYTE, UNEVEN, Leaf, Quota, SphereHierarchy

FEW = settings(max_examples=examples(60), deadline=None, derandomize=True)


def on(machine: str, threads: int, depth: Any = 1, quota: Quota | None = None) -> SphereHierarchy:
    return SphereHierarchy(ThreadAllocation(threads, topology=RECORDS[machine]), depth, quota)


def state(h: SphereHierarchy) -> tuple[Any, ...]:
    return list(h.depths), h.leaves


# --- What there is.


@pytest.mark.parametrize("machine", RECORDS)
@pytest.mark.parametrize("threads", [1, 2, 7, 12, 31])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_leaves_of_every_depth_divide_the_work(machine: str, threads: int, depth: int) -> None:
    h = on(machine, threads, depth)
    h.validate()
    assert h.depth == depth and h.depths == [depth] * 12
    assert len(h.leaves) == 12**depth
    assert {leaf.end - leaf.begin for leaf in h.leaves} == {PARTS // 12**depth}
    assert [x.sphere for x in h.leaves] == [i // 12 ** (depth - 1) for i in range(12**depth)]
    assert h.owners().tolist() == list(h.allocation.leaves(depth))
    assert h.scratch_bytes == 12**depth * (64 + 4 * threads)


@pytest.mark.parametrize("machine", RECORDS)
@pytest.mark.parametrize("threads", [1, 2, 5, 8, 12, 13, 48])
def test_auto_is_the_depth_that_the_allocation_suggests(machine: str, threads: int) -> None:
    h = on(machine, threads, "auto")
    assert h.automatic and h.depth == h.allocation.suggested_depth()
    assert not on(machine, threads, h.depth).automatic


def test_auto_keeps_to_the_quota() -> None:
    assert on("two-socket-96", 20, "auto").depth > 1
    assert on("two-socket-96", 20, "auto", Quota(depth=1)).depth == 1
    assert on("two-socket-96", 20, "auto", Quota(scratch_bytes=12 * 144)).depth == 1


@pytest.mark.parametrize("depth", [0, 4, -1, True, 1.0, 2.5, "2", "", "AUTO"])
def test_other_depths_are_refused(depth: Any) -> None:
    with pytest.raises(UsageError, match=r"hierarchy_depth is .*, but must be 1"):
        on("smt-8", 4, depth)


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf(0, 0, 145, 0), Leaf(0, 0, 143, 0), Leaf(0, 1, 144, 0), Leaf(0, 0, 0, 0),
        Leaf(0, 0, 144, 2), Leaf(0, 0, 144, -1), Leaf(1, 0, 144, 0), Leaf(0, 0, -1, 0),
    ],
)  # fmt: skip
def test_leaves_that_do_not_fit_are_invalid(leaf: Leaf) -> None:
    h = on("vm-2", 2)
    h.leaves = (leaf, *h.leaves[1:])
    with pytest.raises(ValueError, match=r"^hierarchy: Leaf\(.* does not follow part"):
        h.validate()


def test_missing_leaves_are_invalid() -> None:
    h = on("vm-2", 2)
    h.leaves = h.leaves[:-1]
    with pytest.raises(ValueError, match="end at part 1584 of 1728"):
        h.validate()


# --- Order.


def kinds(h: SphereHierarchy, thread: int) -> list[int]:
    """How near each leaf of the thread's order is: own, siblings, same node, all others."""
    nodes, mine = h.allocation.nodes, {x.sphere for x in h.leaves if x.owner == thread}
    found = []
    for at in h.order()[thread]:
        leaf = h.leaves[at]
        near = 2 if nodes[leaf.owner] == nodes[thread] else 3
        found.append(0 if leaf.owner == thread else 1 if leaf.sphere in mine else near)
    return found


@pytest.mark.parametrize("machine", RECORDS)
@pytest.mark.parametrize("threads", [1, 2, 7, 12, 20])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_thread_looks_at_its_own_leaves_then_at_nearer_ones(
    machine: str, threads: int, depth: int
) -> None:
    h = on(machine, threads, depth)
    order = h.order()
    assert order.shape == (threads, len(h.leaves)) and order.dtype == np.int32
    for thread in range(threads):
        assert sorted(order[thread].tolist()) == list(range(len(h.leaves)))
        near = kinds(h, thread)
        assert near == sorted(near)
        own = order[thread][: near.count(0)].tolist()
        assert own == sorted(own), "its own from the front"


def test_every_kind_of_leaf_is_met_on_a_machine_of_two_nodes() -> None:
    h = on("two-socket-96", 60, 2)
    assert {kind for thread in range(60) for kind in kinds(h, thread)} == {0, 1, 2, 3}


def test_two_threads_rob_each_other_from_behind() -> None:
    h = on("vm-2", 2)
    assert h.owners().tolist() == [0, 1] * 6
    assert h.order()[0].tolist() == [0, 2, 4, 6, 8, 10, 11, 9, 7, 5, 3, 1]
    assert h.order()[1].tolist() == [1, 3, 5, 7, 9, 11, 0, 10, 8, 6, 4, 2]


# --- Children.


@FEW
@given(topology=topologies(), threads=st.integers(1, 30), data=st.data())
def test_whatever_is_spawned_and_ended_the_leaves_divide_the_work(
    topology: Any, threads: int, data: Any
) -> None:
    h = SphereHierarchy(ThreadAllocation(threads, topology=topology), 1)
    team = Team(threads)
    for _ in range(data.draw(st.integers(1, 5))):
        sphere = data.draw(st.none() | st.integers(0, 11))
        before = state(h)
        change = h.spawn if data.draw(st.booleans()) else h.terminate
        try:
            change(sphere)
        except UsageError:
            assert state(h) == before
            continue
        assert state(h) != before
        h.validate()
        assert Counter(leaf.sphere for leaf in h.leaves) == {
            g: 12 ** (depth - 1) for g, depth in enumerate(h.depths)
        }
        h.apply(team, data.draw(st.booleans()))
        assert len(team.statistics()["leaves"]) == len(h.leaves)


def test_spawn_and_terminate_of_one_and_of_all() -> None:
    h = on("smt-8", 4)
    first = state(h)
    h.spawn(5)
    assert h.depths == [1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1] and len(h.leaves) == 11 + 12
    h.spawn()
    assert h.depths == [2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 2, 2] and len(h.leaves) == 11 * 12 + 144
    h.terminate()
    h.terminate()  # those that have none left keep what they have
    assert state(h) == first


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    h = on("smt-8", 4)
    for change, sphere, words in (
        (h.terminate, None, "no children to end"), (h.terminate, 3, "no children to end"),
        (h.spawn, 12, "sphere is 12, but must be 0 to 11"), (h.spawn, -1, "sphere is -1"),
        (h.terminate, 99, "sphere is 99"),
    ):  # fmt: skip
        before = state(h)
        with pytest.raises(UsageError, match=words):
            change(sphere)
        assert state(h) == before
    h.spawn(7)
    h.spawn(7)
    for sphere in (7, None):
        before = state(h)
        with pytest.raises(UsageError, match="sphere 7 would be 4 deep, but the quota is 3"):
            h.spawn(sphere)
        assert state(h) == before


def test_quotas() -> None:
    with pytest.raises(UsageError, match="threads is 5, but the quota is 4"):
        on("smt-8", 5, 1, Quota(threads=4))
    with pytest.raises(UsageError, match="hierarchy_depth is 3, but must be 1 to 2"):
        on("smt-8", 4, 3, Quota(depth=2))
    each = 64 + 4 * 4
    with pytest.raises(UsageError, match=f"needs {144 * each:,} bytes .* quota is 5,000; choose"):
        on("smt-8", 4, 2, Quota(scratch_bytes=5000))
    h = on("smt-8", 4, 1, Quota(scratch_bytes=(12 + 11) * each))
    h.spawn(0)  # fills the quota to the last byte
    before = state(h)
    with pytest.raises(UsageError, match=f"need {34 * each:,} bytes of tables, but the quota is"):
        h.spawn(1)
    assert state(h) == before and h.scratch_bytes == h.quota.scratch_bytes
    assert Quota().scratch_bytes == 120 * MEGABYTE


# --- Balance.


def finish(h: SphereHierarchy, work: Any) -> Any:
    """When each thread is done, if leaf l holds work[l]: a slow CPU takes longer over it."""
    load = np.bincount(h.owners(), work, h.allocation.threads)
    return load / np.array(h.allocation.capacity)


def measured(h: SphereHierarchy, work: Any) -> Any:
    """The times that the leaves take where they are."""
    return np.asarray(work, float) / np.array(h.allocation.capacity)[h.owners()]


@FEW
@given(
    machine=st.sampled_from(sorted(RECORDS)), threads=st.integers(1, 24),
    depth=st.integers(1, 2), seed=st.integers(0, 2**32), tail=st.floats(0, 4),
)  # fmt: skip
def test_rebalance_makes_the_last_thread_end_no_later(
    machine: str, threads: int, depth: int, seed: int, tail: float
) -> None:
    h = on(machine, threads, depth)
    work = np.random.default_rng(seed).random(len(h.leaves)) ** tail
    before, owners = finish(h, work).max(), h.owners()
    shape = [(leaf.sphere, leaf.begin, leaf.end) for leaf in h.leaves]
    moved = h.rebalance(measured(h, work))
    h.validate()
    assert [(leaf.sphere, leaf.begin, leaf.end) for leaf in h.leaves] == shape
    assert (moved == 0) == (h.owners() == owners).all() or moved > 1
    assert finish(h, work).max() <= before * (1 + 1e-9)
    if moved:
        h.rebalance(measured(h, work))
        assert finish(h, work).max() <= before * (1 + 1e-9)


def test_rebalance_lowers_the_maximum() -> None:
    h = on("vm-2", 2)
    cost = np.array([10, 1, 10, 1, 10, 1, 10, 1, 10, 1, 10, 1])
    assert finish(h, cost).tolist() == [60, 6]
    assert h.rebalance(cost) > 0
    assert finish(h, cost).max() <= 36


@pytest.mark.parametrize("machine", RECORDS)
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 12])
def test_rebalance_moves_nothing_that_is_even(machine: str, threads: int) -> None:
    h = on(machine, threads, 2)
    if len(set(h.allocation.capacity)) > 1:
        pytest.skip("CPUs of different speeds have different leaves")
    before = state(h)
    assert h.rebalance(measured(h, np.ones(144))) == 0
    assert h.rebalance(np.zeros(144)) == 0
    assert state(h) == before


def test_rebalance_respects_speeds() -> None:
    h = on("hybrid-laptop", 16, 3)
    speed = np.array(h.allocation.capacity)
    assert len(set(speed.tolist())) > 1
    work = np.ones(1728)
    # As dealt the threads end together, so that nothing is worth moving far.
    dealt = finish(h, work)
    assert dealt.max() <= 1.02 * dealt.mean()
    h.leaves = tuple(Leaf(x.sphere, x.begin, x.end, i % 16) for i, x in enumerate(h.leaves))
    uneven = finish(h, work)
    for _ in range(50):
        if not h.rebalance(measured(h, work)):
            break
    even = finish(h, work)
    assert uneven.max() > 1.2 * uneven.mean() and even.max() <= 1.02 * even.mean()
    carried = np.bincount(h.owners(), minlength=16)
    assert carried[speed == speed.min()].max() < carried[speed == speed.max()].min()


@pytest.mark.parametrize("count", [0, 11, 13, 144])
def test_times_of_other_leaves_are_refused(count: int) -> None:
    h = on("vm-2", 2)
    with pytest.raises(ValueError, match=f"rebalance: {count} times for 12 leaves"):
        h.rebalance([1] * count)


def busy_of(h: SphereHierarchy, times: Any) -> Any:
    return np.bincount(h.owners(), times, h.allocation.threads)


def test_an_automatic_hierarchy_moves_leaves_then_cuts_them_finer() -> None:
    h = on("vm-2", 2, "auto")
    even = np.ones(12)
    assert h.adapt(busy_of(h, even), even) is None
    uneven = np.array([9.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    assert busy_of(h, uneven).max() > UNEVEN * busy_of(h, uneven).mean()
    assert h.adapt(busy_of(h, uneven), uneven) == "rebalanced"
    assert h.depths == [1] * 12 and busy_of(h, uneven).tolist() == [10, 10]
    # One leaf that is more than all the others cannot be moved to any good, only cut.
    single = np.array([99.0] + [0.01] * 11)
    while (done := h.adapt(busy_of(h, single), single)) == "rebalanced":
        pass
    assert done == "spawned" and h.depths == [2] * 12
    h.validate()


def test_at_a_quota_an_automatic_hierarchy_stays_as_it_is() -> None:
    single = [99.0] + [0.0] * 11
    for quota in (Quota(depth=1), Quota(scratch_bytes=144 * 72 - 1)):
        h = on("vm-2", 2, "auto", quota)
        h.leaves = (h.leaves[0], *(Leaf(x.sphere, x.begin, x.end, 1) for x in h.leaves[1:]))
        before = state(h)
        assert h.adapt(busy_of(h, single), np.array(single)) is None
        assert state(h) == before


def test_a_chosen_depth_does_not_change_by_itself() -> None:
    h = on("vm-2", 2, 1)
    before = state(h)
    assert h.adapt(np.array([100, 1]), np.arange(12)) is None
    assert state(h) == before


def test_threads_that_end_together_are_left_alone_whatever_their_speed() -> None:
    h = on("hybrid-laptop", 16, "auto")
    work = np.ones(len(h.leaves))
    busy = busy_of(h, measured(h, work))
    if busy.max() > UNEVEN * busy.mean():
        pytest.fail(f"the allocation itself is uneven: {busy}")
    before = state(h)
    assert h.adapt(busy, measured(h, work)) is None
    assert state(h) == before
