"""The primes of the abacus: against trial division, a plain sieve, sympy, and known counts."""

from __future__ import annotations

import _thread
import signal
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from math import isqrt
from typing import Any

import numpy as np
import pytest
import sympy
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalline import _sieve
from crystalline.errors import UsageError
from crystalline.lattice import abacus
from crystalline.lattice.abacus import REACH, Abacus, Counters

MILLION = 10**6
LAST = 2**64 - 1
LARGEST = 2**64 - 59  # the last prime below 2^64
ALL = _sieve.mask(-1)
BY_GROUP = [0, 21374, 1, 1, 0, 21443, 0, 21444, 0, 0, 0, 21451]  # up to 1,100,001
# Composites that pass the test to few bases: Carmichael numbers, strong pseudoprimes to the first
# 1, 2, ... 11 primes, squares and products of primes near 2^32.
IMPOSTORS = [
    561, 1729, 2047, 1373653, 25326001, 3215031751, 2152302898747, 3474749660383, 341550071728321,
    3825123056546413051, 1122004669633, 4759123141, 825265, 9746347772161, 4294967291**2,
    4294967291 * 4294967279, 46337**2, 94906249**2,
]  # fmt: skip


def plain_sieve(end: int) -> NDArray[np.int64]:
    """All primes below ``end``."""
    flags = np.ones(end, bool)
    flags[:2] = False
    for p in range(2, isqrt(end) + 1):
        if flags[p]:
            flags[p * p :: p] = False
    return np.flatnonzero(flags)


PRIMES = plain_sieve(1_200_000)


def between(lo: int, hi: int, group: int | None = None) -> list[int]:
    """Of PRIMES."""
    some = PRIMES[(lo <= PRIMES) & (hi >= PRIMES)]
    return (some if group is None else some[some % 12 == group]).tolist()  # type: ignore[no-any-return]


def listed(a: Abacus) -> list[int]:
    """What the arrays hold; none is empty, and each is uint64."""
    arrays = list(a.arrays())
    assert all(len(x) and x.dtype == np.uint64 and x.ndim == 1 for x in arrays)
    return [p for x in arrays for p in x.tolist()]


@pytest.fixture(params=[8, 24, 104, 1000, 4096])
def segment(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Short segments: nearly all primes skip some, and every edge is met."""
    monkeypatch.setattr(abacus, "_segment_bytes", lambda hi: request.param)
    yield request.param


def test_contains_against_trial_division() -> None:
    numbers = np.arange(MILLION + 1)
    prime = numbers > 1
    for divisor in range(2, 1001):
        if prime[divisor]:
            prime &= (numbers % divisor != 0) | (numbers == divisor)
    a = Abacus(0, MILLION)
    assert [a.contains(n) for n in range(MILLION + 1)] == prime.tolist()
    assert a.counters.hits > 200_000  # nearly all from a window


@pytest.mark.parametrize("n", [4489, 73, 103, 163, 2, 3, 5, 7, 0, 1, 25, 169, 161])
def test_single_numbers_that_went_wrong(n: int) -> None:
    right = n > 1 and all(n % d for d in range(2, n))
    assert Abacus(0, MILLION).contains(n) == (n in Abacus(n, n)) == right == sympy.isprime(n)
    assert list(Abacus(n, n)) == [n] * right
    assert (n in listed(Abacus(0, MILLION))) == right
    assert _sieve.is_prime(n) == right


def test_random_64_bit_numbers_against_sympy() -> None:
    rng = np.random.default_rng(6)
    a = Abacus(0, LAST)
    found = 0
    for bits in (32, 53, 63, 64, 64):
        for n in rng.integers(0, 2**bits - 1, 600, np.uint64, endpoint=True).tolist():
            right = sympy.isprime(n | 1)
            assert a.contains(n | 1) == right, n | 1
            found += right
    assert found > 100


@pytest.mark.parametrize("n", IMPOSTORS)
def test_composites_that_look_prime(n: int) -> None:
    assert not sympy.isprime(n)
    assert not _sieve.is_prime(n) and n not in Abacus(0, LAST)


def test_proof_at_the_ends() -> None:
    known = set(PRIMES[:300].tolist())
    assert [n for n in range(1988) if _sieve.is_prime(n)] == sorted(known)
    for n in [*range(LAST - 200, LAST + 1), *range(2**32 - 100, 2**32 + 100)]:
        assert _sieve.is_prime(n) == sympy.isprime(n), n


@pytest.mark.parametrize(
    ("hi", "count"), [(143999, 13343), (10**6, 78498), (10**7, 664579), (10**9, 50847534)]
)
def test_known_counts(hi: int, count: int) -> None:
    assert Abacus(0, hi).count() == count


@pytest.mark.parametrize("group", range(12))
def test_counts_by_group(group: int) -> None:
    a = Abacus(0, 1_100_001, group)
    assert a.count() == len(listed(a)) == BY_GROUP[group]
    assert listed(a) == between(0, 1_100_001, group)


def test_all_groups_together() -> None:
    assert Abacus(0, 1_100_001).count() == sum(BY_GROUP)
    assert list(Abacus(0, 1_100_001)) == between(0, 1_100_001)


def test_short_segments(segment: int) -> None:
    """Base primes far longer than the segment skip over many of them."""
    hi = min(segment * 3000, 1_199_999)
    assert listed(Abacus(0, hi)) == between(0, hi)
    assert Abacus(hi // 2 + 1, hi, 7).count() == len(between(hi // 2 + 1, hi, 7))


def test_short_segments_far_out(segment: int) -> None:
    lo = 10**12 - 30 * segment
    assert listed(Abacus(lo, lo + 60_000)) == list(sympy.primerange(lo, lo + 60_001))


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_any_range(data: st.DataObject) -> None:
    lo = data.draw(st.integers(0, 1_000_000))
    width = data.draw(st.sampled_from([5, 500, 199_999]))
    hi = data.draw(st.integers(lo, lo + width))
    group = data.draw(st.none() | st.integers(0, 11))
    a, right = Abacus(lo, hi, group), between(lo, hi, group)
    assert listed(a) == list(a) == right
    assert a.count() == len(right)
    for n in data.draw(st.lists(st.integers(0, 1_199_999), max_size=5)):
        assert a.contains(n) == (n in a) == (n in right)
        assert a.next_prime(n) == next((p for p in right if p > n), None)


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(10**7, 10**13), st.integers(0, 30_000), st.none() | st.integers(0, 11))
def test_any_range_far_out(lo: int, width: int, group: int | None) -> None:
    """Sieved or tested, as the width has it."""
    right = [p for p in sympy.primerange(lo, lo + width + 1) if group in {None, p % 12}]
    a = Abacus(lo, lo + width, group)
    assert listed(a) == right and a.count() == len(right)


def test_sieve_and_test_agree_to_the_reach() -> None:
    """2^53 is where the sieve ends: numbers below it come sieved, those above are tested."""
    a = Abacus(REACH - 400_000, REACH + 40_000)
    out = np.empty(440_001, np.uint64)
    some = _sieve.primes_between(a.lo, a.hi, ALL, out)
    assert listed(a) == out[:some].tolist()
    assert a.count() == some
    near = [p for p in listed(a) if abs(p - REACH) < 2000]
    assert near == list(sympy.primerange(REACH - 1999, REACH + 2000))


def test_next_prime_walks() -> None:
    for lo, hi in [(0, 200_000), (10**15, 10**15 + 10**5), (LAST - 5000, LAST)]:
        a = Abacus(lo, hi)
        right, walked, p = listed(Abacus(lo, hi)), [], a.next_prime(0)
        while p is not None:
            walked.append(p)
            p = a.next_prime(p)
        assert walked == right
    assert right[-1] == LARGEST


def test_next_prime_at_the_ends() -> None:
    a = Abacus(0, LAST)
    assert a.next_prime(0) == 2 and a.next_prime(2) == 3 and a.next_prime(5) == 7
    assert a.next_prime(LARGEST - 1) == LARGEST
    assert a.next_prime(LARGEST) is a.next_prime(LAST) is None
    assert a.next_prime(REACH) == sympy.nextprime(REACH)
    assert Abacus(0, LAST, 3).next_prime(2) == 3 and Abacus(0, LAST, 3).next_prime(3) is None
    assert Abacus(0, LAST, 0).next_prime(0) is None and Abacus(0, LAST, 0).count() == 0


def test_base_primes_are_shared() -> None:
    root = Abacus(0, 10**8)
    child = Abacus(10**6, 10**7, 5, parent=root)
    grandchild = Abacus(2 * 10**6, 3 * 10**6, parent=child)
    assert grandchild.base_primes is child.base_primes is root.base_primes
    assert root.base_primes.tolist() == between(0, 10**4) and root.base_primes.dtype == np.uint32
    with pytest.raises(ValueError, match="read-only"):
        root.base_primes[0] = 1
    assert grandchild.count() == 216816 - 148933
    assert listed(child) == listed(Abacus(10**6, 10**7, 5))


@pytest.mark.parametrize("hi", [0, 1, 2, 3, 4, 8, 9, 48, 49, 27888, 27889, 10**9, 10**10])
def test_base_primes_reach_the_root(hi: int) -> None:
    assert Abacus(0, hi).base_primes.tolist() == between(0, isqrt(hi))


def test_sieves_point_into_the_base_primes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the C code reads is a part of the root's own memory."""
    root = Abacus(0, 10**8)
    base = root.base_primes
    seen: list[NDArray[np.uint32]] = []
    real = _sieve.Sieve

    def spy(primes: NDArray[np.uint32], *rest: Any) -> _sieve.Sieve:
        seen.append(primes)
        return real(primes, *rest)

    monkeypatch.setattr(_sieve, "Sieve", spy)
    assert Abacus(10**7, 2 * 10**7, parent=root).count() == 1270607 - 664579
    (used,) = seen
    start = base.__array_interface__["data"][0]
    first = int(np.searchsorted(base, 167))
    assert used.__array_interface__["data"][0] == start + 4 * first
    assert used[0] == 167 and used[-1] == 4463  # the last prime to the root of 2 * 10^7


def test_memory_grows_with_the_root() -> None:
    """Three segments, one array, base primes with their state; not the primes themselves."""
    tracemalloc.start()
    try:
        total = sum(x.nbytes for x in Abacus(0, 10**8).arrays())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 8 * 5761455 and peak < 2 << 20


def test_counters() -> None:
    a = Abacus(0, 200_000)
    assert a.counters == Counters(0, 0, 0, 0, 0)
    assert a.count() == 17984 and a.counters == Counters(0, 0, 0, 0, 0)
    assert len(list(a)) == 17984 and a.counters == Counters(17984, 0, 0, 0, 1)
    assert a.next_prime(143999) == 144013 and a.counters == Counters(17985, 0, 1, 0, 2)
    assert a.next_prime(144013) == 144031 and a.counters == Counters(17986, 0, 2, 0, 2)
    assert a.contains(143999) and not a.contains(144001)
    assert a.counters == Counters(17986, 2, 2, 0, 2)
    assert a.contains(3) and not a.contains(10**6) and not a.contains(15)  # need no look-up
    assert a.counters == Counters(17986, 2, 2, 0, 2)


@pytest.mark.parametrize(
    ("lo", "hi", "crossings"), [(0, 143999, 0), (144000, 200_000, 0), (143999, 144013, 1)]
)
def test_crossings(lo: int, hi: int, crossings: int) -> None:
    a = Abacus(lo, hi)
    list(a)
    assert a.counters.crossings == crossings
    a.next_prime(0)
    assert a.counters.crossings == crossings


def test_crossing_between_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abacus, "_segment_bytes", lambda hi: 4800)  # begins one at 144000
    a = Abacus(0, 200_000)
    arrays = list(a.arrays())
    assert any(int(x[0]) == 144013 for x in arrays)
    assert a.counters.crossings == 1


def test_windows_of_ancestors() -> None:
    root = Abacus(0, 10**7)
    child = Abacus(0, MILLION, parent=Abacus(0, MILLION, 7, parent=root))
    root.contains(999_983)
    root.contains(999_979)  # the second miss nearby opens a window
    assert root.counters == Counters(0, 0, 2, 0, 0)
    assert child.contains(999_983) and child.next_prime(999_979) == 999_983
    assert child.counters == Counters(1, 0, 0, 2, 0)
    assert root.counters == Counters(0, 0, 2, 0, 0)
    assert Abacus(0, 999_982, parent=root).next_prime(999_979) is None  # the window goes on


def test_no_window_where_tests_are_cheaper() -> None:
    a = Abacus(0, 10**14)
    for n in range(10**13, 10**13 + 100, 2):
        assert a.contains(n + 1) == sympy.isprime(n + 1)
    assert a.counters.hits == 0 and a._base is None
    far = Abacus(0, LAST)
    assert [far.contains(LARGEST) for _ in range(9)] == [True] * 9
    assert far.counters.misses == 9 and far._base is None
    far._missed, far._near = LARGEST, 10**9  # however many there were: no sieve reaches so far
    assert far.contains(LARGEST) and far._window is None


def test_a_window_ends_with_the_range() -> None:
    """The base primes answer for nothing beyond the root of hi."""
    a = Abacus(0, 30_011**2 - 1)
    last = [a.hi - 2 * i for i in range(40)]
    assert [a.contains(n) for n in last] == [sympy.isprime(n) for n in last]
    big = Abacus(0, LAST)
    big._window = abacus._Window(next(abacus._segments(0, 1000, big.base_primes)), 0, 1000)
    assert big.next_prime(997) == 1009  # goes on behind its window


def test_children_in_threads() -> None:
    """They share the base primes, and their root makes them once."""
    root = Abacus(0, 10**9)
    children = [Abacus(i * 10**7, (i + 1) * 10**7 - 1, parent=root) for i in range(8)]
    counts = [0] * 8
    barrier = threading.Barrier(8)

    def work(i: int) -> None:
        barrier.wait()
        counts[i] = children[i].count()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == Abacus(0, 8 * 10**7 - 1).count() == 4669382
    assert all(c.base_primes is root.base_primes for c in children)


@pytest.mark.parametrize("lo", [0, REACH + 1], ids=["sieved", "tested"])
def test_control_c(lo: int) -> None:
    """Years of work end at the next segment."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            Abacus(lo, LAST).count()
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_an_iteration_is_lazy() -> None:
    assert list(islice(Abacus(0, LAST), 5)) == [2, 3, 5, 7, 11]
    beyond = [p for p in sympy.primerange(REACH, REACH + 1000) if p % 12 == 11]
    assert list(islice(Abacus(REACH, LAST, 11), 2)) == beyond[:2]


WRONG: list[Any] = [-1, 2**64, 2**100, 1.0, "7", True, None, np.float64(3), np.bool_(True), [1]]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_bad_numbers(value: Any) -> None:
    a = Abacus(0, 100)
    calls = {
        "lo": lambda: Abacus(value, 100), "hi": lambda: Abacus(0, value),
        "p": lambda: a.contains(value), "after": lambda: a.next_prime(value),
    }  # fmt: skip
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name} is .*; expected .*2\^64 - 1$") as caught:
            call()
        assert isinstance(caught.value, UsageError)
    with pytest.raises(ValueError, match=r"^p is "):
        value in a  # noqa: B015


@pytest.mark.parametrize("value", [-1, 12, 1.0, "5", True], ids=repr)
def test_bad_groups(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^group is .*; expected .* 0 to 11$"):
        Abacus(0, 100, value)


def test_bad_ranges_and_parents() -> None:
    with pytest.raises(ValueError, match=r"^lo is 5; expected .* 4"):
        Abacus(5, 4)
    with pytest.raises(ValueError, match=r"^hi is 101; expected .* 0 to 100, the parent's hi$"):
        Abacus(0, 101, parent=Abacus(0, 100))
    wrong: Any = 5
    with pytest.raises(ValueError, match=r"^parent is a int; expected an Abacus or None$"):
        Abacus(0, 100, parent=wrong)


def test_numpy_integers_are_integers() -> None:
    a = Abacus(np.int32(0), np.uint64(LAST), np.int8(5))
    assert a.contains(np.uint64(5)) and a.next_prime(np.int64(5)) == 17
    assert type(a.lo) is type(a.hi) is type(a.group) is int
    assert repr(a) == f"Abacus(0, {LAST}, group=5)" and repr(Abacus(1, 2)) == "Abacus(1, 2)"
