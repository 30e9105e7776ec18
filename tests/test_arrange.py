"""Who takes which tasks: every arrangement runs each task once, and changes no bit of a result."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from case import Array, draw, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline._native import PARTS, Team, available_isas, interleave
from crystalline.decoder.memory import arena

SPHERE = PARTS // 12
SPANS = 144  # tasks of an update or a norm
FEW = settings(max_examples=examples(60), deadline=None, derandomize=True)


class Leaves(NamedTuple):
    """What ``Team.arrange`` is given, but for stealing."""

    begin: Array
    owner: Array
    order: Array


def arranged(begin: list[int], owner: list[int], threads: int, rng: Any = None) -> Leaves:
    """Leaves in orders that hold to the rules, shuffled by ``rng``."""
    order = np.empty((threads, len(owner)), np.int32)
    for t in range(threads):
        own = [at for at, o in enumerate(owner) if o == t]
        others = [at for at, o in enumerate(owner) if o != t]
        if rng is not None:
            rng.shuffle(own)
            rng.shuffle(others)
        order[t] = own + others
    return Leaves(np.array(begin, np.int32), np.array(owner, np.int32), order)


def twelve(threads: int, owner: list[int] | None = None) -> Leaves:
    """One leaf a sphere."""
    owner = owner or [g % threads for g in range(12)]
    return arranged([g * SPHERE for g in range(13)], owner, threads)


@st.composite
def arrangements(draw: Any) -> tuple[int, Leaves]:
    """Threads and any leaves: cut anywhere within spheres, owned by any, often by a few."""
    threads = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    cuts = {g * SPHERE for g in range(13)}
    cuts |= set(rng.integers(0, PARTS, draw(st.integers(0, 60))).tolist())
    if draw(st.integers(0, 20)) == 0:
        cuts = set(range(PARTS + 1))  # every leaf there can be
    begin = sorted(cuts)
    owner = rng.integers(0, draw(st.integers(1, threads)), len(begin) - 1).tolist()
    return threads, arranged(begin, owner, threads, rng)


# --- What a region leaves behind.  The update and the turn are in place: to run a task twice shows.

VALUES = {
    "qkv": draw(5 * 37, 6 * 10), "p": draw(5003), "grad": draw(5003, seed=1),
    "w": draw(300, 10), "wide": draw(10, 1000), "table": draw(37, 5),
}  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 300, 185).astype(np.int32)
SETTINGS = {
    "grad_scale": 0.5, "beta1": 0.9, "beta2": 0.95, "step_size": 1e-2, "eps": 1e-8,
    "decay": 0.99, "root_bias2": 0.2,
}  # fmt: skip


def outputs(team: Team) -> list[bytes]:
    """The bits of several operations, each of many tasks."""
    qkv, p, m, v = VALUES["qkv"].copy(), VALUES["p"].copy(), *np.zeros((2, 5003), np.float32)
    team.rope(qkv, VALUES["table"], VALUES["table"], 4, 37)
    out, lse, act = poison(185, 20), poison(370), poison(185, 30)
    team.attention(out, lse, qkv, 37, 2, 2, np.array([37, 1, 0, 20, 36]))
    team.swiglu(act, qkv)
    team.adamw(p, m, v, VALUES["grad"], **SETTINGS)
    x, y = poison(185, 10), poison(185, 300)
    team.embedding(x, VALUES["w"], IDS)
    team.matmul(y, x, VALUES["w"])
    few, across = poison(1, 300), poison(2, 1000)
    team.matmul(few, x[:1], VALUES["w"])
    team.matmul_dx(across, VALUES["w"][:2], VALUES["wide"])
    norm = np.float64(team.squared_norm(VALUES["grad"]))
    return [a.tobytes() for a in (qkv, out, lse[:74], act, p, m, v, x, y, few, across, norm)]


WANT = outputs(Team(1, "portable"))


@FEW
@given(arrangement=arrangements(), steal=st.booleans(), isa=st.sampled_from(available_isas()))
def test_no_arrangement_changes_a_bit(
    arrangement: tuple[int, Leaves], steal: bool, isa: str
) -> None:
    threads, leaves = arrangement
    team = Team(threads, isa)
    team.arrange(*leaves, steal)
    for got, want in zip(outputs(team), WANT, strict=True):
        assert got == want


def update(team: Team, times: int = 1) -> None:
    """``times`` regions of SPANS tasks."""
    x = VALUES["grad"]
    for _ in range(times):
        team.squared_norm(x)


def share(first: int, end: int) -> int:
    """Tasks of SPANS that lie in parts first .. end."""
    return SPANS * end // PARTS - SPANS * first // PARTS


@FEW
@given(arrangement=arrangements(), steal=st.booleans(), times=st.integers(1, 20))
def test_every_task_is_counted_once_for_its_sphere_and_its_thread(
    arrangement: tuple[int, Leaves], steal: bool, times: int
) -> None:
    threads, leaves = arrangement
    team = Team(threads)
    team.arrange(*leaves, steal)
    update(team, times)
    s = team.statistics()
    assert s["regions"] == times
    assert s["spheres"][:, 0].tolist() == [times * SPANS // 12] * 12
    assert s["threads"][:, 0].sum() == times * SPANS
    assert (s["spheres"].sum(0) == s["threads"].sum(0)).all()
    assert s["leaves"].sum() == s["threads"][:, 2].sum()
    assert (s["threads"][:, 2] <= s["inside"]).all()
    if not steal:
        owned = [0] * threads
        for at, t in enumerate(leaves.owner):
            owned[t] += times * share(leaves.begin[at], leaves.begin[at + 1])
        assert s["threads"][:, 0].tolist() == owned
        assert not s["threads"][:, 1].any()


def test_an_idle_thread_steals_and_only_where_it_may() -> None:
    """All the work is thread 0's; attention is long enough for the other to come."""
    T, R = 64, 24 * 64
    qkv, out, lse = draw(R, 3 * 32), poison(R, 32), poison(R * 2)
    team = Team(2)
    for steal in (False, True):
        team.arrange(*twelve(2, [0] * 12), steal)
        before = team.statistics()
        for _ in range(500):
            team.attention(out, lse, qkv, T, 2, 2)
            tasks, stolen = (team.statistics()["threads"] - before["threads"])[:, :2].T.tolist()
            if stolen[1]:
                break
        assert stolen[0] == 0, "one's own are not stolen"
        assert stolen[1] == tasks[1] and (tasks[1] > 0) == steal
        spheres = team.statistics()["spheres"] - before["spheres"]
        assert spheres[:, 1].sum() == stolen[1]


def test_counters_may_be_read_while_the_team_works() -> None:
    team, over, seen = Team(2), threading.Event(), []

    def look() -> None:
        while not over.is_set():
            s = team.statistics()
            seen.append((s["regions"], s["inside"], *s["spheres"].ravel(), *s["threads"].ravel()))

    watcher = threading.Thread(target=look)
    watcher.start()
    w, y = draw(300, 200), poison(300, 300)
    while len(seen) < 50 or seen[-1][0] < 20:
        team.matmul(y, w, w)
    over.set()
    watcher.join()
    assert (np.diff(np.array(seen), axis=0) >= 0).all(), "a counter went back"
    assert seen[-1][0] > seen[0][0]


# --- What is no arrangement.


def spoilt() -> Iterator[tuple[str, Leaves]]:
    """Each rule, broken once."""

    def changed(**at: Any) -> Leaves:
        arrays = {name: a.copy() for name, a in twelve(2)._asdict().items()}
        for name, (where, value) in at.items():
            arrays[name][where] = value
        return Leaves(**arrays)

    good = twelve(2)
    yield "a leaf of no parts", changed(begin=(4, 5 * SPHERE))
    yield "leaves that go back", changed(begin=(4, 2 * SPHERE))
    yield "a begin above 0", changed(begin=(0, 1))
    yield "a negative begin", changed(begin=(0, -1))
    yield "an end before the last part", changed(begin=(12, PARTS - 1))
    yield "an end beyond the last part", changed(begin=(12, PARTS + 1))
    yield "a leaf across a sphere's end", changed(begin=(4, 4 * SPHERE + 1))
    yield "a leaf across a sphere's begin", changed(begin=(4, 4 * SPHERE - 1))
    yield "a far number", changed(begin=(4, 2**31 - 1))
    yield "a far negative number", changed(begin=(4, -(2**31)))
    yield "an owner that is no thread", changed(owner=(3, 2))
    yield "a negative owner", changed(owner=(3, -1))
    yield "a leaf named twice", changed(order=((1, 11), good.order[1, 10]))
    yield "a leaf that is none", changed(order=((1, 11), 12))
    yield "a negative leaf", changed(order=((0, 11), -1))
    yield "its own not first", changed(order=((0, slice(5, 7)), good.order[0, [6, 5]]))
    fine = arranged(list(range(PARTS + 1)), [0] * PARTS, 2)
    more = Leaves(
        np.append(fine.begin, np.int32(PARTS)), np.append(fine.owner, np.int32(0)),
        np.tile(np.arange(PARTS + 1, dtype=np.int32), (2, 1)),
    )  # fmt: skip
    yield "more leaves than parts", more
    yield "eleven leaves", Leaves(good.begin[:12], good.owner[:11], good.order[:, :11].copy())
    yield "no leaves", Leaves(good.begin[:1], good.owner[:0], good.order[:, :0].copy())
    yield "a begin too few", good._replace(begin=good.begin[:12])
    yield "an owner too few", good._replace(owner=good.owner[:11])
    yield "an order too few", good._replace(order=good.order[:1])
    yield "an order too many", good._replace(order=np.vstack([good.order, good.order[:1]]))
    yield "orders too short", good._replace(order=good.order[:, :11].copy())
    yield "orders too long", good._replace(order=np.hstack([good.order, good.order[:, :1]]))
    yield "other numbers", good._replace(begin=good.begin.astype(np.int64))
    yield "another layout", good._replace(order=np.asfortranarray(good.order))


@pytest.mark.parametrize("steal", [False, True])
@pytest.mark.parametrize(("what", "leaves"), [*spoilt()], ids=lambda x: x if type(x) is str else "")
def test_what_breaks_a_rule_is_refused_and_changes_nothing(
    what: str, leaves: Leaves, steal: bool
) -> None:
    team = Team(2)
    owner = [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    team.arrange(*twelve(2, owner), False)
    update(team, 3)
    before = team.statistics()
    with pytest.raises(ValueError, match=r"^arrange: |dtype mismatch|contiguous"):
        team.arrange(*leaves, steal)
    after = team.statistics()
    assert before["leaves"].any()
    for name, value in before.items():
        assert np.array_equal(after[name], value), f"{what}: {name} changed"
    update(team, 3)
    assert team.statistics()["threads"][:, :2].tolist() == [[6 * 120, 0], [6 * 24, 0]]
    assert outputs(team) == WANT


def test_a_good_arrangement_starts_the_leaves_times_again() -> None:
    team = Team(2)
    update(team)
    team.arrange(*twelve(2), True)
    s = team.statistics()
    assert s["regions"] == 1 and s["threads"].any() and not s["leaves"].any()
    team.arrange(*arranged([*range(0, PARTS, 12), PARTS], [1] * 144, 2), True)
    assert len(team.statistics()["leaves"]) == 144


def test_another_arrangement_before_every_region() -> None:
    team, once, rng = Team(3), Team(3), np.random.default_rng(0)
    outputs(once)
    for n in range(300):
        begin = sorted({g * SPHERE for g in range(13)} | set(rng.integers(0, PARTS, n).tolist()))
        owner = rng.integers(0, 3, len(begin) - 1).tolist()
        team.arrange(*arranged(begin, owner, 3, rng), bool(n % 2))
        if n % 20 == 0:
            assert outputs(team) == WANT
        update(team)
    assert team.statistics()["regions"] == 300 + 15 * once.statistics()["regions"]


# --- Memory.


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [1, 143, 1024, 300_001])
def test_touch_reaches_every_page_and_writes_nothing_but_zeros(n: int, threads: int) -> None:
    x = arena(n)
    x[:] = 1
    Team(threads).touch(x)
    pages = np.pad(x, (0, -n % 1024), constant_values=2).reshape(-1, 1024)
    assert (pages == 0).any(1).all()
    assert np.isin(x, (0, 1)).all() and (x == 0).sum() <= min(n, SPANS + n // 1024 + 1)
    Team(1).touch(x[:0])


def test_interleaving_changes_no_value_and_refuses_nodes_there_are_not() -> None:
    x = arena(1 << 20)
    asked = interleave(x, np.array([0], np.int32))
    assert asked in (True, False) and not x.any()
    for nodes in ([], [-1], [1024], [0, -5]):
        assert interleave(x, np.array(nodes, np.int32)) is False
    assert interleave(x[:0], np.array([0], np.int32)) is False
    assert interleave(x[1:5], np.array([0], np.int32)) is False, "less than a page"
    x[:] = 3
    assert (x == 3).all()
