"""The team a process works with, from arguments and environment."""

from __future__ import annotations

import os
from collections.abc import Sequence

from crystalline._native import Team, usable_cpus
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
    if not 1 <= threads <= 4096:
        raise UsageError(f"threads is {threads}, but must be 1 to 4096")
    return threads


def make_team(threads: int | None = None, cpus: Sequence[int] | None = None) -> Team:
    """A team of ``threads_wanted``, on the instruction set CRYSTALLINE_ISA or the best; ``cpus``
    names the CPU that each thread stays on."""
    isa = os.environ.get("CRYSTALLINE_ISA") or None
    try:
        return Team(threads_wanted(threads), isa, cpus)
    except UsageError as error:
        raise UsageError(f"CRYSTALLINE_ISA: {error}" if isa else str(error)) from None
