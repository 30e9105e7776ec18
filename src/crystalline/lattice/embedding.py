"""An embedding from the golden spiral, without chance: what ``init="lattice"`` begins with.

    E[t, j] = s sqrt(2) cos(n_j theta_t + pi/4 (j mod 2)),   s = 0.02
    n_j = phi_(j mod 24) 3^(j div 24),   phi_i the dimensional frequencies
    theta_t = the spiral's turn at k = (t + 1)^2

n_j theta_t grows to 1e20 turns and more, and is reduced by integers before it is rounded.

With k = t + 1 the matrix has not its full rank where V is not much above D: multiples of phi lie
almost evenly on the circle, so column n is almost column n' wherever n = +-n' modulo a Fibonacci
number near V, and 1000 rows of 1024 have rank 909 in float32.  Squares spread without that order
(Weyl's sequences): the rank is full, and the singular values are those of a normal matrix.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crystalline.lattice.circle import WHOLE, cosine_sine, golden
from crystalline.lattice.constants import DIMENSIONAL_FREQUENCIES

SIGMA = 0.02
BEHIND = 16  # bits of n_j phi behind the 64 of a turn: squares of k magnify what is cut off
BLOCK = 1 << 15  # numbers at a time


def frequency(j: int) -> int:
    """n_j, of dimension j."""
    count = len(DIMENSIONAL_FREQUENCIES)
    power: int = 3 ** (j // count)
    return DIMENSIONAL_FREQUENCIES[j % count] * power


def lattice_embedding(view: NDArray[np.float32]) -> None:
    """Fills ``view`` (V, D); a row does not depend on V, nor a column on D.

    Exact to 2^-32 of a turn, and so within an ulp of float32's, up to V = 2^24.
    """
    V, D = view.shape
    fractions = [golden(frequency(j), bits=64 + BEHIND) for j in range(D)]
    high = np.array([f >> BEHIND for f in fractions], np.uint64)
    low = np.array([f % (1 << BEHIND) for f in fractions], np.uint64)
    phase = np.array([j % 2 * (WHOLE // 8) for j in range(D)], np.uint64)
    rows = max(1, BLOCK // D)
    for first in range(0, V, rows):
        k = np.arange(first + 1, min(first + rows, V) + 1, dtype=np.uint64)[:, None]
        k *= k
        turns = k * high + ((k * low) >> np.uint64(BEHIND)) + phase
        view[first : first + rows] = SIGMA * math.sqrt(2.0) * cosine_sine(turns)[0]
