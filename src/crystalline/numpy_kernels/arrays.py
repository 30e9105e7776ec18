"""What the NumPy-facing kernels are given, made into what the compiled ones take.

The rule for numbers: no value changes without a word. Arrays come in when every value of their type
is a float32 (float32, float16, bfloat16, bool, integers of 8 and 16 bits); float64 and wider
integers are refused, with the conversion to write. Plain Python numbers and lists of them are
rounded to float32, as a literal is; one too large for that is refused.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]


def _array(op: str, name: str, x: ArrayLike) -> NDArray[Any]:
    """x as an array of its own type; what a mask hides is not read without a word."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array, but masks are not known; fill it first")
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{op}: {name} is no array of numbers ({error})") from None


def whole(op: str, name: str, n: Any) -> int:
    """n, a whole number of any type."""
    try:
        return operator.index(n)
    except TypeError:
        raise TypeError(f"{op}: {name} is {n!r}, but must be a whole number") from None


def floats(op: str, name: str, x: ArrayLike, shape: tuple[int, ...] | None = None) -> Floats:
    """x as float32, C-contiguous, itself where it is so already; with ``shape``, of that shape."""
    a = _array(op, name, x)
    if not np.can_cast(a.dtype, np.float32, "safe"):
        if a.dtype.kind not in "iuf" or (hasattr(x, "dtype") and a.dtype.kind != "O"):
            raise TypeError(
                f"{op}: {name} is {a.dtype}, but must be float32 or a type whose values all are; "
                f"convert it: {name}.astype(numpy.float32)"
            )
        wide = a
        with np.errstate(over="ignore"):
            a = a.astype(np.float32)
        if np.any(np.isinf(a) & np.isfinite(wide)):
            raise ValueError(f"{op}: {name} holds a number too large for float32")
    if shape is not None and a.shape != shape:
        raise ValueError(f"{op}: {name} has shape {a.shape}, but must have {shape}")
    return np.require(a, np.float32, ["C", "A"])


def ids(op: str, name: str, x: ArrayLike, least: int, count: int) -> Ids:
    """Whole numbers from ``least`` to ``count`` - 1, as int32."""
    a = _array(op, name, x)
    if a.dtype.kind not in "iu" and a.size:
        raise TypeError(f"{op}: {name} is {a.dtype}, but must be whole numbers")
    if a.size and count <= least:
        raise ValueError(f"{op}: {name} holds ids, but there are none to choose from")
    if a.size and (int(a.min()) < least or int(a.max()) >= count):
        raise ValueError(
            f"{op}: {name} run from {a.min()} to {a.max()}, but must be from {least} to {count - 1}"
        )
    return np.require(a, np.int32, ["C", "A"])


def output(op: str, name: str, out: Any, shape: tuple[int, ...]) -> Floats:
    """``out``, checked, or a new array of that shape."""
    if out is None:
        return np.empty(shape, np.float32)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32:
        kind = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"{op}: {name} is {kind}, but must be a float32 array")
    if out.shape != shape:
        raise ValueError(f"{op}: {name} has shape {out.shape}, but the result has {shape}")
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise ValueError(
            f"{op}: {name} must be C-contiguous, aligned and writeable; give a new array"
        )
    return out.view(np.ndarray)


def outputs(op: str, out: Any, **shapes: tuple[int, ...]) -> list[Floats]:
    """The arrays of ``out``, a tuple in which any may be None, checked, or new ones."""
    given = (None,) * len(shapes) if out is None else out
    if not isinstance(given, tuple) or len(given) != len(shapes):
        raise TypeError(f"{op}: out must be a tuple of {len(shapes)}: ({', '.join(shapes)})")
    made = [output(op, name, a, s) for a, (name, s) in zip(given, shapes.items(), strict=True)]
    for i, a in enumerate(made):
        if any(np.may_share_memory(a, b) for b in made[:i]):
            raise ValueError(f"{op}: two of the outputs overlap; give each memory of its own")
    return made


def apart(a: Any, *outs: Floats, same: bool = False) -> Any:
    """a, or a copy of it where it overlaps an output; with ``same`` it may be the output itself."""
    for out in outs:
        itself = same and a.ctypes.data == out.ctypes.data and a.nbytes == out.nbytes
        if np.may_share_memory(a, out) and not itself:
            return a.copy()
    return a


def rows(a: Floats, width: int) -> Floats:
    """a (..., width) as a matrix; width is given because a may be empty."""
    return a.reshape(math.prod(a.shape) // max(width, 1), width)


def starts(R: int) -> NDArray[np.int64]:
    """R rows in twelve even spans, for a sum over rows whose bits no number of threads changes."""
    return np.arange(13, dtype=np.int64) * R // 12


def last(op: str, name: str, a: Floats, least: int = 1) -> int:
    """The length of the last axis, which there must be."""
    if a.ndim == 0 or a.shape[-1] < least:
        raise ValueError(
            f"{op}: {name} has shape {a.shape}, but needs a last axis of {least} or more"
        )
    return int(a.shape[-1])
