"""Primes in a range, ascending, of all groups or of one.

To 2^53 they are sieved by segments.  The base primes, those to the root of the range's end, are
made once, by the abacus that has no parent, and only read by all its descendants.  Beyond 2^53,
and where a range or a question is so small that sieving would cost more, each number is tested
alone, by Miller and Rabin's test with the first 12 primes as bases: up to 2^64 it is a proof.

Memory: four bytes for each base prime, as much again for each sieve at work, and segments of 32 KiB
to 1 MiB: in all O(sqrt n).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, isqrt
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalline import _sieve
from crystalline.errors import UsageError
from crystalline.lattice import checks
from crystalline.lattice.constants import VECTOR_CULMINATION

REACH = 2**53  # the greatest number that is sieved
APART = (2, 3, 5)  # the wheel of 30 holds no multiples of these
TURN, WORD = 30, 240  # numbers that a byte, and a word of eight bytes, stand for
SHORTEST, LONGEST = 1 << 15, 1 << 20  # bytes of a segment: as L1 and as L2 caches hold
TESTED = TURN << 10  # numbers tested one by one between two looks at signals
ALL = _sieve.mask(-1)

_Primes = NDArray[np.uint64]


@dataclass(frozen=True)
class Counters:
    """What an abacus did so far."""

    generated: int  # primes given by iteration, arrays() and next_prime()
    hits: int  # look-ups answered from its own window of sieved numbers
    misses: int  # look-ups for which no window held the number
    parent_lookups: int  # look-ups answered from an ancestor's window
    crossings: int  # times that a prime below 144000 was followed by one above


class _Window(NamedTuple):
    """A sieved segment that nobody sieves on: good for the numbers lo to hi."""

    sieve: _sieve.Sieve
    lo: int
    hi: int


class Abacus:
    """The primes in [lo, hi], both included; with ``group`` only those = group (mod 12).

    ``lo`` and ``hi`` are integers from 0 to 2^64 - 1, ``group`` from 0 to 11; the ``hi`` of a
    child is at most that of its ``parent``.  Anything else raises ValueError (UsageError).

    Iteration gives ints, ``arrays()`` the same by segments.  Look-ups (``contains``,
    ``next_prime``) test single numbers until enough of them lie close together; then what
    surrounds them is sieved, and kept as a window from which it and its descendants answer.

    An abacus belongs to one thread; its children may work in other threads meanwhile.
    """

    def __init__(
        self, lo: int, hi: int, group: int | None = None, parent: Abacus | None = None
    ) -> None:
        self.lo, self.hi = checks.span("lo", lo, "hi", hi)
        self.group = None if group is None else checks.group("group", group)
        if parent is not None:
            if not isinstance(parent, Abacus):
                raise UsageError(f"parent is a {type(parent).__name__}; expected an Abacus or None")
            if self.hi > parent.hi:
                raise UsageError(
                    f"hi is {self.hi}; expected an integer from 0 to {parent.hi}, the parent's hi"
                )
        self.parent = parent
        self._mask = _sieve.mask(-1 if self.group is None else self.group)
        self._small = [p for p in APART if self._in_range(p)]
        self._lock = Lock()
        self._base: NDArray[np.uint32] | None = None
        self._total: int | None = None
        self._window: _Window | None = None
        self._missed, self._near = -REACH, 0
        self._generated = self._hits = self._misses = 0
        self._parent_lookups = self._crossings = 0

    def __repr__(self) -> str:
        group = "" if self.group is None else f", group={self.group}"
        return f"Abacus({self.lo}, {self.hi}{group})"

    @property
    def counters(self) -> Counters:
        """The counters as they stand now; iteration counts by segments."""
        return Counters(
            self._generated, self._hits, self._misses, self._parent_lookups, self._crossings
        )

    @property
    def base_primes(self) -> NDArray[np.uint32]:
        """All primes to the root of the oldest ancestor's ``hi`` (of 2^53 if that is less).

        Shape (count,), uint32, read-only; the very same array for all descendants.
        """
        if self.parent is not None:
            return self.parent.base_primes
        with self._lock:
            if self._base is None:
                self._base = _primes_to(isqrt(min(self.hi, REACH)))
            return self._base

    def count(self) -> int:
        """How many primes there are.  Worked out once, without listing them."""
        if self._total is None:
            total = len(self._small)
            top = self._last_sieved()
            for sieve in self._sieved(top):
                total += sieve.count(self.lo, top, self._mask)
            for primes in self._tested(top):
                total += len(primes)
            self._total = total
        return self._total

    def arrays(self) -> Iterator[_Primes]:
        """The primes as arrays of shape (n,), uint64, n >= 1, one a segment."""
        last = VECTOR_CULMINATION
        for primes in self._runs():
            self._generated += len(primes)
            first, previous = int(primes[0]), last
            last = int(primes[-1])
            if min(first, previous) < VECTOR_CULMINATION < last:
                self._crossings += 1
            yield primes

    def __iter__(self) -> Iterator[int]:
        for primes in self.arrays():
            yield from primes.tolist()

    def contains(self, p: int) -> bool:
        """Whether p is prime, in the range, and of the group.

        p: an integer from 0 to 2^64 - 1, else ValueError.
        """
        p = checks.integer("p", p, 0, checks.UINT64)
        if not self._in_range(p) or gcd(p, TURN) > 1:
            return p in self._small
        window = self._look(p)
        return window.sieve.first(p, p, ALL) == p if window else _sieve.is_prime(p)

    __contains__ = contains

    def next_prime(self, after: int) -> int | None:
        """The first prime of the abacus above ``after``; None if there is none.

        after: an integer from 0 to 2^64 - 1, else ValueError.
        """
        after = checks.integer("after", after, 0, checks.UINT64)
        prime = next((p for p in self._small if p > after), None) or self._search(after + 1)
        if prime is not None:
            self._generated += 1
            self._crossings += max(after, self.lo) < VECTOR_CULMINATION < prime
        return prime

    def _in_range(self, p: int) -> bool:
        return self.lo <= p <= self.hi and (self.group is None or p % checks.GROUPS == self.group)

    def _search(self, start: int) -> int | None:
        """The first prime from ``start`` on that is prime to 30."""
        start = max(start, self.lo)
        while self._mask and start <= self.hi:
            window = self._look(start)
            if window is None:
                found = np.empty(1, np.uint64)
                some = _sieve.primes_between(start, self.hi, self._mask, found)
                return int(found[0]) if some else None
            prime = window.sieve.first(start, min(window.hi, self.hi), self._mask)
            if prime:
                return prime
            start = window.hi + 1
        return None

    def _look(self, n: int) -> _Window | None:
        """A window that holds n, and counts where it was found; None: n must be tested."""
        if _holds(self._window, n):
            self._hits += 1
            return self._window
        older = self.parent
        while older is not None:
            window = older._window  # read once: its owner may put a new one there
            if _holds(window, n):
                self._parent_lookups += 1
                return window
            older = older.parent
        self._misses += 1
        self._window = self._opened(n) or self._window
        return self._window if _holds(self._window, n) else None

    def _opened(self, n: int) -> _Window | None:
        """A window around n, when misses near to each other have cost as much as it will."""
        if n > REACH:
            return None
        span = TURN * _segment_bytes(n)
        self._near = self._near + 1 if abs(n - self._missed) < span else 0
        self._missed = n
        # To start the base primes among 4096 numbers costs about as much as one test.
        if self._near * 4096 < max(isqrt(n), 4096):
            return None
        lo = n // span * span
        hi = min(lo + span - 1, self.hi, REACH)
        return _Window(next(_segments(lo, hi, self.base_primes)), lo, hi)

    def _last_sieved(self) -> int:
        """The last number that is sieved; lo - 1 if all are cheaper tested one by one."""
        top = min(self.hi, REACH)
        return top if top - self.lo >= isqrt(top) >> 8 and self._mask else self.lo - 1

    def _sieved(self, top: int) -> Iterator[_sieve.Sieve]:
        if top >= self.lo:
            yield from _segments(self.lo, top, self.base_primes)

    def _tested(self, top: int) -> Iterator[_Primes]:
        if not self._mask:
            return
        for lo in range(top + 1, self.hi + 1, TESTED):
            out = np.empty(TESTED // TURN * 8 + 8, np.uint64)
            some = _sieve.primes_between(lo, min(lo + TESTED - 1, self.hi), self._mask, out)
            yield out[:some].copy()

    def _runs(self) -> Iterator[_Primes]:
        if self._small:
            yield np.array(self._small, np.uint64)
        top = self._last_sieved()
        for sieve in self._sieved(top):
            primes = _listed(sieve, self.lo, top, self._mask)
            if len(primes):
                yield primes
        for primes in self._tested(top):
            if len(primes):
                yield primes


def _holds(window: _Window | None, n: int) -> bool:
    return window is not None and window.lo <= n <= window.hi


def _segment_bytes(hi: int) -> int:
    """A power of two at least as large as the largest base prime, as far as caches allow."""
    return min(max(SHORTEST, 1 << isqrt(hi).bit_length()), LONGEST)


def _segments(lo: int, hi: int, base: NDArray[np.uint32]) -> Iterator[_sieve.Sieve]:
    """One sieve, moved over lo to hi segment by segment.  ``base`` reaches the root of hi."""
    used = base[np.searchsorted(base, _sieve.FIRST) : np.searchsorted(base, isqrt(hi), "right")]
    begin, end = lo // WORD * 8, hi // WORD * 8 + 8
    size = min(_segment_bytes(hi), end - begin)
    bits = np.empty(3 * size, np.uint8)
    sieve = _sieve.Sieve(used, np.empty(len(used), np.uint32), bits, begin)
    for _ in range(begin, end, size):
        sieve.advance()
        yield sieve


def _listed(sieve: _sieve.Sieve, lo: int, hi: int, mask: int) -> _Primes:
    out = np.empty(sieve.count(lo, hi, mask), np.uint64)
    sieve.list(lo, hi, mask, out)
    return out


def _primes_to(limit: int) -> NDArray[np.uint32]:
    """All primes to ``limit``, read-only.  To sieve below 167 squared takes no base primes."""
    base = _primes_to(isqrt(limit)) if limit >= _sieve.FIRST**2 else np.empty(0, np.uint32)
    parts = [np.array([p for p in APART if p <= limit], np.uint32)]
    for sieve in _segments(0, limit, base):
        parts.append(_listed(sieve, 0, limit, ALL).astype(np.uint32))
    primes = np.concatenate(parts)
    primes.flags.writeable = False
    return primes
