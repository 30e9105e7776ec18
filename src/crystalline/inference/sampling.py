"""From logits to the next token.  Sources: top-k Fan et al. 2018, top-p Holtzman et al. 2020, min-p
Nguyen et al. 2024, repetition penalty Keskar et al. 2019."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.errors import ConfigError, NumericsError

RANGES = {  # least, most, a value that works
    "temperature": (0.0, 100.0, 0.8),
    "top_k": (0, 2**31, 50),
    "top_p": (1e-6, 1.0, 0.9),
    "min_p": (0.0, 1.0, 0.05),
    "repetition_penalty": (1e-3, 100.0, 1.1),
}


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; temperature 0 takes the likeliest.  top_k 0, top_p 1 and min_p 0 keep
    all tokens, repetition_penalty 1 punishes none."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, (low, high, works) in RANGES.items():
            value = getattr(self, name)
            words = "whole number" if name == "top_k" else "number"
            fits = isinstance(value, Integral if name == "top_k" else Real)
            if not fits:
                raise ConfigError(f"{name} is {value!r}, but must be a {words}; choose {works}")
            if not low <= value <= high:  # not a number fails here too
                raise ConfigError(
                    f"{name} is {value}, but must be from {low} to {high}; choose {works}"
                )


def uniform(bits: np.random.PCG64) -> float:
    """A number in [0, 1) from 53 random bits."""
    return float(int(bits.random_raw()) >> 11) * 2.0**-53


def draw(
    logits: NDArray[np.float32],
    seen: NDArray[np.int64],
    s: Sampling,
    bits: np.random.PCG64,
    team: Team,
) -> int:
    """The next token's id.  ``logits`` (V,) is not kept; ``seen`` are the ids so far.

    Equal logits are ordered by id, and exp is the kernels' own, so a seed gives the same text on
    any number of threads and any instruction set.  Raises NumericsError where the largest logit is
    not finite: nothing could be drawn.
    """
    likeliest = int(np.argmax(logits))  # not a number, if any is
    if not np.isfinite(logits[likeliest]):
        raise NumericsError(
            "the logits are not finite, so no token can be drawn; the model's weights are too "
            "large or damaged: choose precision fp32, or train again"
        )
    if s.repetition_penalty != 1.0 and seen.size:
        ids = np.unique(seen)
        z = logits[ids]
        penalty = np.float32(s.repetition_penalty)
        logits[ids] = np.where(z > 0, z / penalty, z * penalty)
        likeliest = int(np.argmax(logits))
    if s.temperature < 1e-6:  # so near 0 only the likeliest has any weight left
        return likeliest
    z = (logits - logits[likeliest]) / np.float32(s.temperature)
    weights = np.empty_like(z)
    team.exp(weights, z)
    p = weights.astype(np.float64)
    p[weights < np.float32(s.min_p)] = 0.0  # the likeliest has weight 1
    order = None  # by id, unless a filter goes by the rank
    if s.top_k or s.top_p < 1.0:
        order = _by_rank(z)[: s.top_k or None]
        p = p[order]
    total = np.add.accumulate(p)
    if s.top_p < 1.0:
        total = total[: int(np.searchsorted(total, s.top_p * total[-1])) + 1]
    last = int(np.searchsorted(total, total[-1]))  # what comes after has no weight
    at = min(int(np.searchsorted(total, uniform(bits) * total[-1], side="right")), last)
    return at if order is None else int(order[at])


def _by_rank(z: NDArray[np.float32]) -> NDArray[np.int64]:
    """The ids from the largest z (all are 0 or less) to the smallest, equal ones by id.

    One sort of whole numbers, magnitude above id: no two are equal, so every algorithm gives the
    same order, and NumPy's fastest is six times as fast as its stable one.
    """
    keys = np.abs(z).view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(z), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
