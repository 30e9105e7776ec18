"""safetensors files: read one tensor at a time as float32, BF16 included, and written in a stream.

The package reads a file whole, or into arrays that NumPy has no type for; the format is a length,
a JSON header and the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from crystalline.checkpoints.pending import Floats, Pending, Tensor
from crystalline.errors import CheckpointError

MOST_HEADER = 100_000_000  # bytes: the limit that the format's own reader has
DTYPES = {"<f4": "F32", "<f8": "F64", "<i4": "I32", "<i8": "I64", "|u1": "U8"}
STORED = {kind: dtype for dtype, kind in DTYPES.items()} | {"F16": "<f2", "BF16": "<u2"}
TYPES = ("F32", "F16", "BF16")  # of weights


Content = bytes | Mapping[str, Tensor]  # of a file: its bytes, or tensors by name


class Place(NamedTuple):
    """Where a tensor lies in its file, and how."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsFile:
    """An open file: it stays readable when another takes its name."""

    path: str
    fd: int
    places: dict[str, Place]

    @classmethod
    def open(cls, path: str, remedy: str = "fetch it again") -> SafetensorsFile:
        """CheckpointError for a file that is missing, cut short or of another format, with what to
        do."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            return cls(path, fd, _places(fd))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            os.close(fd)
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({error}); {remedy}"
            ) from error

    def __del__(self) -> None:
        os.close(self.fd)

    def tensor(self, name: str) -> Pending:
        """A tensor of it as it is, to be read when it is needed."""
        place = self.places[name]
        return Pending(place.shape, lambda: self._read(name), np.dtype(STORED[place.kind]))

    def pending(self, name: str) -> Pending:
        """A tensor of it as float32, to be read when it is needed.

        Raises CheckpointError here for other types than F32, F16 and BF16, and when reading fails.
        """
        place = self.places[name]
        if place.kind not in TYPES:
            known = ", ".join(TYPES)
            raise CheckpointError(
                f"{self.path}: {name} is {place.kind}, but crystalline reads {known}; "
                "give a model saved in one of these"
            )
        return Pending(place.shape, lambda: widened(self._read(name), place.kind))

    def _read(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        kind, shape, begin, end = self.places[name]
        data, at = bytearray(end - begin), begin
        while at < end:
            try:
                n = os.preadv(self.fd, [memoryview(data)[at - begin :]], at)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from error
            if n == 0:
                raise CheckpointError(f"{self.path}: ends inside {name}; fetch it again")
            at += n
        return np.frombuffer(data, STORED[kind]).reshape(shape)


def widened(stored: np.ndarray[Any, np.dtype[Any]], kind: str) -> Floats:
    """F32, F16 or BF16 as float32, exactly; BF16 comes as its uint16 bits."""
    if kind != "BF16":
        return stored.astype(np.float32, copy=False)
    bits = stored.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _places(fd: int) -> dict[str, Place]:
    size = os.fstat(fd).st_size
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if size < 8 or length > min(size - 8, MOST_HEADER):
        raise ValueError(f"its header has {length} bytes, the file {size}")
    header = json.loads(os.pread(fd, length, 8))
    header.pop("__metadata__", None)
    places = {}
    for name, told in header.items():
        begin, end = (8 + length + int(x) for x in told["data_offsets"])
        place = Place(str(told["dtype"]), tuple(int(n) for n in told["shape"]), begin, end)
        width = np.dtype(STORED[place.kind]).itemsize if place.kind in STORED else None
        wrong = width is not None and math.prod(place.shape) * width != end - begin
        if not 8 + length <= begin <= end <= size or wrong:
            raise ValueError(f"{name} does not fit into it")
        places[name] = place
    return places


def file_chunks(content: Content) -> Iterator[bytes | memoryview]:
    """The bytes of a file. Tensors become safetensors: header length, header, then the data.

    safetensors' own writer hides which write failed, or holds the whole file once more in memory;
    this one streams, so that the bytes are hashed on their way out.
    """
    if isinstance(content, bytes):
        yield content
        return
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in content.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype.str],
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # the data begin aligned
    yield len(head).to_bytes(8, "little") + head
    for tensor in content.values():
        yield np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
