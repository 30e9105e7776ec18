"""What the lattice accepts as arguments.  Everything else is a UsageError, which is a ValueError.

An error says the argument, its value, and the range that was expected.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline.errors import UsageError, tame

GROUPS = 12
UINT64 = 2**64 - 1
LONGEST = 60  # characters of a value that is shown


def integer(name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int from ``low`` to ``high``, both included.

    An int or an integer of NumPy; not a bool, nor a float or a str that looks like an integer.
    """
    if _is_integer(value) and low <= int(value) <= high:
        return int(value)
    raise UsageError(f"{name} is {_shown(value)}; expected an integer {_range(low, high)}")


def group(name: str, value: Any) -> int:
    """``value`` as the number of a group, 0 to 11."""
    return integer(name, value, 0, GROUPS - 1)


def span(low_name: str, low: Any, high_name: str, high: Any) -> tuple[int, int]:
    """Two integers from 0 to 2^64 - 1, the first not above the second."""
    first = integer(low_name, low, 0, UINT64)
    last = integer(high_name, high, 0, UINT64)
    if first > last:
        raise UsageError(f"{low_name} is {first}; expected an integer from 0 to {high_name} {last}")
    return first, last


def integers(name: str, value: Any, low: int, high: int) -> NDArray[Any]:
    """``value`` as an array of its own shape, every element from ``low`` to ``high``.

    A number gives an array without dimensions.  uint64 if ``low`` is 0 or more, else int64; both
    bounds lie in that type.
    """
    kind = np.uint64 if low >= 0 else np.int64
    if _is_integer(value):
        return np.asarray(integer(name, value, low, high), kind)
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iu" and (array.size or isinstance(value, np.ndarray)):
        said = _shown(value) if array.ndim == 0 else f"an array of {array.dtype}"
        raise UsageError(f"{name} is {said}; expected integers {_range(low, high)}")
    for worst in (int(array.min()), int(array.max())) if array.size else ():
        if not low <= worst <= high:
            raise UsageError(f"{name} has {worst}; expected integers {_range(low, high)}")
    if array.dtype == np.int64:
        return array.view(kind)  # the same bits, not copied
    return array.astype(kind, copy=False)


def reals(name: str, value: Any) -> NDArray[np.float64]:
    """``value`` as a float64 array of its own shape, every element finite.  Not bool, nor str."""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind in "iuf":
        array = array.astype(np.float64, copy=False)
        if np.isfinite(array).all():
            return array
        bad = array[~np.isfinite(array)].flat[0]
        raise UsageError(f"{name} is {bad}; expected a finite number")
    said = _shown(value) if array.ndim == 0 else f"an array of {array.dtype}"
    raise UsageError(f"{name} is {said}; expected a finite number")


def real(name: str, value: Any) -> float:
    """``value`` as a finite float.  Not a bool, nor a str."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if number and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:  # an int beyond the greatest float
            pass
    raise UsageError(f"{name} is {_shown(value)}; expected a finite number")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _range(low: int, high: int) -> str:
    return f"from {_power(low)} to {_power(high)}"


def _power(bound: int) -> str:
    """The bounds of machine words are easier to read as powers of 2."""
    for bits in (53, 63, 64):
        if bound == 2**bits - 1:
            return f"2^{bits} - 1"
        if bound == -(2**bits):
            return f"-2^{bits}"
    return str(bound)


def _shown(value: Any) -> str:
    """A value as it would be written, on one line, and not too long."""
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to write long ones
        return f"an integer of {value.bit_length()} bits"
    text = tame(str(value) if _is_integer(value) else repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
