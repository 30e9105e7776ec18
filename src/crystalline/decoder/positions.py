"""Rotary positions: their tables, the same bits on every machine, and the windows they tell of.

The system's cosine differs between machines in the last bit, so each frequency's first angle comes
from decimal arithmetic and the others from it by the addition theorem, in plain double products
and sums, which round alike everywhere.
"""

from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from crystalline.config import ModelConfig
from crystalline.decoder.scaling import RopeScaling
from crystalline.lattice.rotary import lattice_tables


def _cos_sin(x: Decimal) -> tuple[float, float]:
    """Taylor's series; the angles are at most 1, so 30 digits are reached in 30 terms."""
    cosine, sine, term = Decimal(1), Decimal(0), Decimal(1)
    for n in range(1, 31):
        term = term * x / n
        if n % 2:
            sine += term if n % 4 == 1 else -term
        else:
            cosine += term if n % 4 == 0 else -term
    return float(cosine), float(sine)


def _frequencies(head_dim: int, theta: float) -> list[Decimal]:
    log_theta = Decimal(theta).ln()
    return [(-log_theta * 2 * i / head_dim).exp() for i in range(head_dim // 2)]


def scaling_factors(head_dim: int, theta: float, scaling: RopeScaling) -> NDArray[np.float32]:
    """By what each of the head_dim / 2 frequencies is divided: float32, as GGUF files keep it."""
    with localcontext() as context:
        context.prec = 40
        plain = _frequencies(head_dim, theta)
        return np.array([float(f / scaling.stretched(f)) for f in plain], np.float32)


def rope_tables(
    positions: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of position * theta^(-2 i / head_dim): two arrays (positions, head_dim / 2).

    With ``scaling`` the frequencies are stretched by it first.
    """
    half = head_dim // 2
    cosine, sine = np.ones((positions, half)), np.zeros((positions, half))
    with localcontext() as context:
        context.prec = 40
        frequencies = _frequencies(head_dim, theta)
        if scaling is not None:
            frequencies = [scaling.stretched(f) for f in frequencies]
        first = [_cos_sin(f) for f in frequencies]
    c, s = np.array([a for a, _ in first]), np.array([b for _, b in first])
    done = 1  # rows so far; c, s turn by `done` positions
    while done < positions:
        n = min(done, positions - done)
        a, b = cosine[:n], sine[:n]
        cosine[done : done + n] = a * c - b * s
        sine[done : done + n] = b * c + a * s
        c, s = c * c - s * s, (s * c) + (s * c)
        done += n
    return cosine.astype(np.float32), sine.astype(np.float32)


def model_tables(
    c: ModelConfig, positions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The tables (positions, head_dim / 2) of the rotary positions that a model has."""
    if c.rope == "lattice":
        return lattice_tables(positions, c.head_dim)
    return rope_tables(positions, c.head_dim, c.rope_theta, c.rope_scaling)


def window_starts(
    positions: NDArray[np.int32], name: str = "positions"
) -> NDArray[np.int64]:
    """Where windows begin in the rows of positions (B, T), one sequence behind the other; last, how
    many rows there are.  A position is the row's place in its window.

    ValueError where a sequence does not begin with 0, or a position is neither 0, which begins a
    window, nor one more than the one before.
    """
    wrong = positions != 0
    starts = np.append(np.flatnonzero(~wrong), positions.size)
    wrong[:, 1:] &= positions[:, 1:] != positions[:, :-1] + 1
    if wrong.any():
        b, t = np.argwhere(wrong)[0].tolist()
        before = f"after {positions[b, t - 1]}" if t else "in front"
        raise ValueError(
            f"{name}: sequence {b} has {positions[b, t]} {before}, at {t}; a sequence begins "
            "with 0, and then comes one more or, where a window begins, 0"
        )
    return starts
