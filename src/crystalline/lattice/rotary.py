"""Rotary positions with the lattice's frequencies: what ``rope="lattice"`` turns by.

    w_i = phi_(i mod 24) 3^-(1 + i mod 8) pi (1 + sqrt 5)   mod 2 pi,   radians a position

Pair i of a head turns by position * w_i: linear in the position, so the product of a query and a
key still depends on their distance alone.  There are 24 different w_i: pairs 24, 25, ... of a head
wider than 48 turn as pairs 0, 1, ... do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crystalline.lattice.circle import cosine_sine, golden
from crystalline.lattice.constants import DIMENSIONAL_FREQUENCIES


def lattice_tables(
    positions: int, head_dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of position * w_i: two arrays (positions, head_dim / 2)."""
    count = len(DIMENSIONAL_FREQUENCIES)
    w = [golden(DIMENSIONAL_FREQUENCIES[i % count], 3 ** (1 + i % 8)) for i in range(head_dim // 2)]
    at = np.arange(positions, dtype=np.uint64)[:, None]
    cosine, sine = cosine_sine(at * np.array(w, np.uint64))
    return cosine.astype(np.float32), sine.astype(np.float32)
