"""The team a process works with, from arguments and environment."""

from __future__ import annotations

import contextlib
import operator
import os
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crystalline._native import ISAS, Team, available_isas, usable_cpus
from crystalline.errors import UsageError


def threads_wanted(threads: int | None = None) -> int:
    """``threads``, or CRYSTALLINE_THREADS, or as many as this process may use."""
    if threads is None:
        said = os.environ.get("CRYSTALLINE_THREADS", "")
        if said and (not said.isdecimal() or len(said) > 9 or int(said) < 1):
            raise UsageError(
                f"CRYSTALLINE_THREADS is {said!r}, but must be a whole number from 1; unset it"
            )
        threads = min(int(said), usable_cpus()) if said else usable_cpus()
    try:
        threads = operator.index(threads)
    except TypeError:
        raise UsageError(
            f"threads is {threads!r}, but must be a whole number from 1 to 4096"
        ) from None
    if not 1 <= threads <= 4096:
        raise UsageError(f"threads is {threads}, but must be 1 to 4096")
    return threads


def make_team(
    threads: int | None = None, cpus: Sequence[int] | None = None, isa: str | None = None
) -> Team:
    """A team of ``threads_wanted``, on ``isa``, or CRYSTALLINE_ISA, or the best; ``cpus`` names the
    CPU that each thread stays on."""
    said = None if isa else os.environ.get("CRYSTALLINE_ISA") or None
    try:
        return Team(threads_wanted(threads), isa or said, cpus)
    except UsageError as error:
        raise UsageError(f"CRYSTALLINE_ISA: {error}" if said else str(error)) from None


class Shared(NamedTuple):
    """A team that several threads may ask for."""

    team: Team
    lock: threading.RLock  # who holds it has the team for himself


_usable: dict[frozenset[int], int] = {}  # of the CPUs allowed, how many may be used


def _threads_of_shared(threads: int | None) -> int:
    """``threads_wanted``; quotas, which take 40 microseconds to read, are read once for each
    affinity mask."""
    if threads is not None or os.environ.get("CRYSTALLINE_THREADS"):
        return threads_wanted(threads)
    allowed = frozenset(os.sched_getaffinity(0))
    if allowed not in _usable:
        _usable[allowed] = threads_wanted()
    return _usable[allowed]


KEPT = 4  # teams kept for the next call; the one not used for longest goes
_shared: dict[tuple[int, str | None], Shared] = {}
_guard = threading.RLock()


def _after_fork() -> None:
    """A child gets locks and teams of its own: the parent's may have been held by other threads."""
    global _guard, _shared
    _guard, _shared = threading.RLock(), {}


os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def shared_team(threads: int | None = None, isa: str | None = None) -> Iterator[Team]:
    """The team of that size on that instruction set, kept between calls; who asks while another
    thread has it waits."""
    if isa is not None and isa not in ISAS:
        raise UsageError(f"isa is {isa!r}, but must be one of {', '.join(available_isas())}")
    key = _threads_of_shared(threads), isa or os.environ.get("CRYSTALLINE_ISA") or None
    with _guard:
        held = _shared.pop(key, None) or Shared(make_team(key[0], isa=isa), threading.RLock())
        _shared[key] = held
        if len(_shared) > KEPT:
            del _shared[next(iter(_shared))]
    with held.lock:
        yield held.team
