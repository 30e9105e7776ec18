"""The team a process works with, from arguments and environment."""

from __future__ import annotations

import os

from crystalline._native import Team, usable_cpus
from crystalline.errors import UsageError


def make_team(threads: int | None = None) -> Team:
    """A team of ``threads``, or of CRYSTALLINE_THREADS, or of as many as this process may use;
    with the instruction set CRYSTALLINE_ISA, or the best."""
    if threads is None:
        said = os.environ.get("CRYSTALLINE_THREADS", "")
        if said and (not said.isdecimal() or len(said) > 9 or int(said) < 1):
            raise UsageError(
                f"CRYSTALLINE_THREADS is {said!r}, but must be a whole number from 1; unset it"
            )
        threads = min(int(said), usable_cpus()) if said else usable_cpus()
    if not 1 <= threads <= 4096:
        raise UsageError(f"threads is {threads}, but must be 1 to 4096")
    isa = os.environ.get("CRYSTALLINE_ISA") or None
    try:
        return Team(threads, isa)
    except UsageError as error:
        raise UsageError(f"CRYSTALLINE_ISA: {error}" if isa else str(error)) from None
