"""What the lattice accepts as arguments; all else is a UsageError, which is a ValueError."""

from __future__ import annotations

from typing import Any

import numpy as np

from crystalline.errors import UsageError, tame

GROUPS = 12
UINT64 = 2**64 - 1


def integer(name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int from ``low`` to ``high``: an int or a NumPy integer, not a bool."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and low <= int(value) <= high:
        return int(value)
    top = "2^64 - 1" if high == UINT64 else str(high)
    said = str(value) if whole else repr(value)
    raise UsageError(f"{name} is {tame(said)[:60]}; expected an integer from {low} to {top}")


def group(name: str, value: Any) -> int:
    """``value`` as the number of a group, 0 to 11."""
    return integer(name, value, 0, GROUPS - 1)


def span(low_name: str, low: Any, high_name: str, high: Any) -> tuple[int, int]:
    """Two integers from 0 to 2^64 - 1, the first not above the second."""
    first, last = integer(low_name, low, 0, UINT64), integer(high_name, high, 0, UINT64)
    if first > last:
        raise UsageError(f"{low_name} is {first}; expected an integer from 0 to {high_name} {last}")
    return first, last
