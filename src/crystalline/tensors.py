"""safetensors files: written as a stream, and their tensors read each when it is asked for.

The format's own writer hides which write failed, or holds the whole file once more in memory.

A checkpoint that is loaded whole lies in memory beside what it is loaded into, three times the
weights beside a training's own.  A file is held open, so a save that replaces it meanwhile changes
nothing.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
DTYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "|u1"}
LONGEST_HEADER = 100_000_000  # bytes, as the format's own reader allows


class TensorFile(Mapping[str, Array]):
    """Raises ValueError for what is no safetensors file of these types, OSError as reading does."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        size = os.fstat(self._fd).st_size
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise ValueError("its header does not fit into it")
        header = json.loads(os.pread(self._fd, length, 8))
        self._places: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
        try:
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
                begin, end = entry["data_offsets"]
                fits = 0 <= begin <= end <= size - 8 - length and min(shape, default=0) >= 0
                if not fits or end - begin != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} does not lie in it")
                self._places[name] = dtype, shape, 8 + length + begin
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its header is damaged ({error!r})") from error

    def __getitem__(self, name: str) -> Array:
        dtype, shape, begin = self._places[name]
        out = np.empty(shape, dtype)
        room = out.reshape(-1).view(np.uint8).data
        while room:
            got = os.preadv(self._fd, [room], begin)
            if got == 0:
                raise OSError(f"{name} ends early")
            room, begin = room[got:], begin + got
        return out

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def outlines(self) -> dict[str, Array]:
        """Arrays of the shapes and types that the tensors have, without memory for their values."""
        return {
            name: np.broadcast_to(np.zeros((), dtype), shape)
            for name, (dtype, shape, _) in self._places.items()
        }


def tensor_bytes(tensors: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """A file of these tensors: header length, header, then the data."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": names[tensor.dtype.str],
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the data begin aligned
    yield len(head).to_bytes(8, "little") + head
    for tensor in tensors.values():
        yield np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
