"""What the spheres and threads have done, counted: held against slow counts in plain Python."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from case import draw, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline._native import Team
from crystalline.decoder.decoder import group_order
from crystalline.spheres.allocation import ThreadAllocation
from crystalline.spheres.crew import Crew
from crystalline.spheres.hierarchy import SphereHierarchy
from crystalline.spheres.stats import BOUNDARY_ID, SphereStats, crossings

GROUPS = 12
COUNTED = {"tokens", "sequences", "tasks", "stolen", "busy", "barrier", "idle", "crossings"}


def stats(threads: int = 2, depth: int = 1) -> SphereStats:
    allocation = ThreadAllocation(threads)
    crew = Crew(Team(threads), SphereHierarchy(allocation, depth))
    return SphereStats(crew.team, crew.hierarchy)


def work(team: Team, times: int = 20) -> None:
    y, x, w = poison(200, 150), draw(200, 90), draw(150, 90)
    for _ in range(times):
        team.matmul(y, x, w)


Batch = tuple[Any, Any, Any, list[float], int]


@st.composite
def batches(draw: Any, vocabulary: int = 20000) -> Batch:
    """Starts, ids, targets, nats and T of one micro-step; documents end anywhere, even at once."""
    B, T = draw(st.integers(1, 30)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = rng.integers(0, vocabulary, (B, T), dtype=np.int32)
    targets = rng.integers(0, vocabulary, (B, T), dtype=np.int32)
    targets[np.arange(T) >= rng.integers(0, T + 1, B)[:, None]] = -1
    nats = rng.random(GROUPS).tolist()
    return group_order(B)[1] * T, ids.reshape(-1), targets.reshape(-1), nats, T


def slow_count(batch: Batch) -> dict[str, list[int]]:
    """Tokens learnt, sequences with any, and crossings of each group, row by row."""
    starts, ids, targets, _, T = batch
    got: dict[str, list[int]] = {"tokens": [], "sequences": [], "crossings": []}
    for g in range(GROUPS):
        rows = range(int(starts[g]), int(starts[g + 1]))
        got["tokens"].append(sum(targets[r] >= 0 for r in rows))
        got["sequences"].append(sum(targets[r] >= 0 for r in rows if r % T == 0))
        crossed = 0
        for r in rows:
            if targets[r] >= 0:
                crossed += (ids[r] >= BOUNDARY_ID) != (targets[r] >= BOUNDARY_ID)
        got["crossings"].append(crossed)
    return got


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(steps=st.lists(batches(), min_size=1, max_size=3))
def test_tokens_sequences_and_crossings_are_those_of_a_slow_count(steps: list[Batch]) -> None:
    s = stats(1)
    for batch in steps:
        s.add_batch(*batch)
    slow = [slow_count(batch) for batch in steps]
    for name in ("tokens", "sequences", "crossings"):
        want = np.sum([counted[name] for counted in slow], 0).tolist()
        assert getattr(s, name).tolist() == want, name
        assert [getattr(row, name) for row in s.spheres()] == want, name


def primes(below: int) -> int:
    """How many primes there are below a number."""
    sieve = np.ones(below, bool)
    sieve[:2] = False
    for n in range(2, int(below**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = False
    return int(sieve.sum())


def test_the_boundary_is_the_first_token_whose_prime_is_beyond_144000() -> None:
    assert primes(144_000) == BOUNDARY_ID == 13343


def test_crossings_at_the_boundary_itself_and_never_between_sequences() -> None:
    starts = np.array([0, *[8] * 12], np.int64)
    below, above = BOUNDARY_ID - 1, BOUNDARY_ID
    ids = np.array([below, above, above, below, above, above, above, above], np.int32)
    targets = np.array([above, above, below, below, above, above, above, below], np.int32)
    assert crossings(starts, ids, targets).tolist() == [3] + [0] * 11
    targets[7] = -1  # what is padding is not counted
    assert crossings(starts, ids, targets).tolist() == [2] + [0] * 11


def test_crossings_are_the_same_however_a_text_is_cut() -> None:
    text = np.random.default_rng(0).integers(BOUNDARY_ID - 9, BOUNDARY_ID + 9, 241, dtype=np.int32)
    want = int((np.diff((text >= BOUNDARY_ID).astype(int)) != 0).sum())
    assert want > 90
    for B in (1, 5, 12, 24):
        s = stats(1)
        order, starts = group_order(B)
        T = 240 // B
        ids, targets = (t.reshape(B, T)[order].reshape(-1) for t in (text[:-1], text[1:]))
        s.add_batch(starts * T, ids, targets, [0.0] * GROUPS, T)
        assert s.crossings.sum() == want


def test_crossings_can_be_left_out_or_go_on_from_before() -> None:
    ids, targets = np.array([BOUNDARY_ID - 1], np.int32), np.array([BOUNDARY_ID], np.int32)
    starts = np.array([0, *[1] * 12], np.int64)
    for boundary, want in ((True, 8), (False, 7)):
        s = SphereStats(Team(1), stats(1).hierarchy, boundary, [7, *[0] * 11])
        s.add_batch(starts, ids, targets, [0.0] * GROUPS, 1)
        assert s.crossings.tolist() == [want] + [0] * 11


@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(batch=batches(vocabulary=BOUNDARY_ID))
def test_a_small_vocabulary_crosses_nothing(batch: Batch) -> None:
    s = stats(1)
    s.add_batch(*batch)
    assert not s.crossings.any()


def test_losses_are_nats_per_token_of_the_last_step() -> None:
    s, starts = stats(1), np.arange(13, dtype=np.int64) * 2
    ids, targets = np.zeros(24, np.int32), np.ones(24, np.int32)
    targets[2:4] = -1  # the second group learns nothing
    nats = [float(g) for g in range(GROUPS)]
    for _ in range(2):  # two micro-steps make one step
        s.add_batch(starts, ids, targets, nats, 2)
    s.end_step(np.ones(GROUPS))
    assert s.losses.tolist() == [0, 1 * 2 / 1, *[g * 2 / 4 for g in range(2, GROUPS)]]
    s.add_batch(starts, ids, np.ones(24, np.int32), [3.0] * GROUPS, 2)
    s.end_step(np.ones(GROUPS))
    assert s.losses.tolist() == [1.5] * GROUPS, "the step before is still in it"


@settings(max_examples=examples(30), deadline=None, derandomize=True)
@given(
    squares=st.lists(st.floats(0, 1e30), min_size=GROUPS, max_size=GROUPS).filter(
        lambda s: sum(s) > 1e-200
    )
)
def test_shares_of_the_norm_sum_to_one(squares: list[float]) -> None:
    s = stats(1)
    s.end_step(np.array(squares))
    assert abs(s.norm_shares.sum() - 1) < 1e-12
    assert (s.norm_shares >= 0).all()
    np.testing.assert_allclose(s.norm_shares, np.array(squares) / sum(squares), 1e-12, 1e-300)


def test_a_gradient_of_zero_has_no_shares() -> None:
    s = stats(1)
    s.end_step(np.zeros(GROUPS))
    assert s.norm_shares.tolist() == [0.0] * GROUPS


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_threads_times_add_up_to_the_wall(threads: int) -> None:
    s = stats(threads)
    work(s.team)
    before = time.monotonic_ns() - s.begun
    rows = s.threads()
    after = time.monotonic_ns() - s.begun
    assert len(rows) == threads
    for row in rows:
        assert before <= row.busy + row.barrier + row.idle <= after
        assert min(row.busy, row.barrier, row.idle) >= 0
    assert sum(row.busy for row in rows) > 0  # not each: others may have been faster


@pytest.mark.parametrize(("threads", "depth"), [(1, 1), (2, 1), (5, 2), (12, 1), (20, 2)])
def test_spheres_and_threads_count_the_same_work(threads: int, depth: int) -> None:
    s = stats(threads, depth)
    work(s.team)
    rows, spheres = s.threads(), s.spheres()
    for name in ("tasks", "stolen", "busy"):
        of_threads = sum(getattr(row, name) for row in rows)
        assert of_threads == sum(getattr(row, name) for row in spheres), name
    assert sum(row.tasks for row in rows) > 0
    assert sum(row.leaves for row in rows) == sum(row.leaves for row in spheres)
    assert sum(row.leaves for row in rows) == len(s.hierarchy.leaves)
    for row in rows:
        mine = tuple(g.sphere for g in spheres if row.thread in g.threads)
        assert row.spheres == mine


def test_a_sphere_waits_as_long_as_its_share_of_its_threads() -> None:
    s = stats(5, 2)
    work(s.team)
    before, spheres, after = s.threads(), s.spheres(), s.threads()
    for name in ("barrier", "idle"):
        low, high = (sum(getattr(r, name) for r in rows) for rows in (before, after))
        total = sum(getattr(row, name) for row in spheres)
        assert low - GROUPS <= total <= high, name


def test_a_snapshot_is_plain_json_and_comes_back_the_same() -> None:
    s = stats(3, 2)
    starts = np.arange(13, dtype=np.int64) * 2
    s.add_batch(starts, np.zeros(24, np.int32), np.ones(24, np.int32), [1.0] * GROUPS, 2)
    s.end_step(np.arange(GROUPS, dtype=np.float64))
    work(s.team)
    snapshot = s.snapshot()
    back = json.loads(json.dumps(snapshot))
    assert back.keys() == {"spheres", "threads", "depths", "strategy"}
    assert back["depths"] == [2] * GROUPS
    for row, again in zip(snapshot["spheres"], back["spheres"], strict=True):
        assert row == again | {"threads": tuple(again["threads"])}
        assert all(isinstance(row[name], int) for name in COUNTED)
    assert [row["thread"] for row in back["threads"]] == [0, 1, 2]
    assert all(row["cpu"] == -1 for row in back["threads"])


def test_counters_only_rise() -> None:
    s = stats(2)
    names = ("tasks", "stolen", "busy")
    last = {name: [0] * GROUPS for name in names}
    for _ in range(5):
        work(s.team, 3)
        for name in names:
            now = [getattr(row, name) for row in s.spheres()]
            assert all(a <= b for a, b in zip(last[name], now, strict=True)), name
            last[name] = now
    assert sum(last["tasks"]) > 0
