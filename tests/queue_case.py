"""Shared memory, C drivers and a watchdog for the tests of the message queue."""

from __future__ import annotations

import faulthandler
import mmap
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from crystalline._queue import MessageQueue, SphereMessage

LIMIT = 120  # seconds until a test counts as hung
HERE = Path(__file__).parent
KERNELS = HERE.parent / "src/crystalline/_kernels"
SOURCES = [KERNELS / name for name in ("queue.c", "queue_members.c", "system.c")]
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pthread"]

# Where things lie in a queue's memory, as queue_layout.h has it.
HEAD_BYTES = MessageQueue.bytes_needed(2) - 4 * 2 * 64
PARTICIPANTS = 256
RINGS = HEAD_BYTES - 4 * 128
FREE, CLAIMED, FULL, READING = range(4)
SPARE = 256  # bytes behind a queue that nobody may write to


def word(position: int, state: int, owner: int = 0) -> int:
    """A slot's word."""
    return (position & (1 << 48) - 1) << 16 | state << 14 | owner


def slot_offset(capacity: int, priority: int, index: int) -> int:
    """Where a slot begins."""
    return HEAD_BYTES + (priority * capacity + index) * 64


def memory_for(capacity: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Aligned memory with room behind the queue."""
    size = MessageQueue.bytes_needed(capacity) + SPARE
    whole = np.full(size + 64, 0xA5, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + size]


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Ends the whole run, with every thread's stack, when one test takes too long."""
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


class Shared(NamedTuple):
    """Memory that other processes can map from `path`."""

    path: Path
    buf: mmap.mmap


@contextmanager
def shared_memory(capacity: int) -> Iterator[Shared]:
    """Shared memory for a queue; its name is gone afterwards."""
    path = Path("/dev/shm") / f"queue_test_{uuid.uuid4().hex}"
    size = MessageQueue.bytes_needed(capacity)
    with path.open("xb+") as f:
        f.truncate(size)
        memory = mmap.mmap(f.fileno(), size)
    try:
        yield Shared(path, memory)
    finally:
        path.unlink()


def compile_driver(name: str, folder: Path, *flags: str) -> Path:
    """A program of tests/c with the queue's sources."""
    program = folder / name
    command = ["gcc", *FLAGS, *flags, "-I", KERNELS, "-I", KERNELS / "include"]
    command += [HERE / "c" / f"{name}.c", *SOURCES, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def drain(queue: MessageQueue) -> list[SphereMessage]:
    """All that is there now."""
    return list(iter(queue.receive, None))


def tickets(queue: MessageQueue) -> list[int]:
    """The tickets of all that is there now."""
    return [m.ticket for m in drain(queue)]
