"""Large blocks of float32, asked for once, on huge pages where the system gives them."""

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray


def arena(count: int) -> NDArray[np.float32]:
    """``count`` zeros, page-aligned; freed when the last view of the array is gone."""
    # Private: a forked child must get a copy, not the parent's own numbers to write over.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    block = mmap.mmap(-1, max(4 * count, mmap.PAGESIZE), flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel built without transparent huge pages refuses; ordinary pages do as well.
        with contextlib.suppress(OSError):
            block.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(block, np.float32, count)
