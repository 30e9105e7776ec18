"""Large blocks of float32, asked for once, on huge pages where the system gives them."""

import contextlib
import ctypes
import functools
import mmap

import numpy as np
from numpy.typing import NDArray

HUGE = 2 << 20  # bytes


def arena(count: int) -> NDArray[np.float32]:
    """``count`` zeros, page-aligned; freed when the last view of the array is gone.

    A block of half a huge page or more begins on one and owns its last one to the end: of the rest,
    which is address space alone, nothing is touched.
    """
    size = max(4 * count, mmap.PAGESIZE)
    large = size >= HUGE // 2
    room = size + 2 * HUGE if large else size
    # Private: a forked child must get a copy, not the parent's own numbers to write over.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    block = mmap.mmap(-1, room, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel built without transparent huge pages refuses; ordinary pages do as well.
        with contextlib.suppress(OSError):
            block.madvise(mmap.MADV_HUGEPAGE)
    begin = -np.frombuffer(block, np.uint8).ctypes.data % HUGE if large else 0
    return np.frombuffer(block, np.float32, count, begin)


def arena_bytes(count: int) -> int:
    """What an arena of ``count`` floats takes of the memory once all of it has been touched."""
    size = max(4 * count, mmap.PAGESIZE)
    piece = HUGE if size >= HUGE // 2 and _huge_pages() else mmap.PAGESIZE
    return -(-size // piece) * piece


@functools.cache
def _huge_pages() -> bool:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
            return "[never]" not in file.read()
    except OSError:
        return False


def give_back() -> None:
    """Returns to the system what was freed: the C library keeps it otherwise, some tens of MiB for
    every thread that took part in making a vocabulary and tokens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
