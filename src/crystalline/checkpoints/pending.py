"""A tensor that is made when it is written: a model larger than the memory passes one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Tensor(Protocol):
    """What a checkpoint can be written from: an array, or something that becomes one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def nbytes(self) -> int: ...

    def __array__(self) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Pending:
    """A tensor of ``shape`` and ``dtype`` that ``make`` gives each time it is asked for."""

    shape: tuple[int, ...]
    make: Callable[[], npt.NDArray[Any]]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    @property
    def nbytes(self) -> int:
        """Its size once it is made."""
        return self.dtype.itemsize * math.prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.make()
