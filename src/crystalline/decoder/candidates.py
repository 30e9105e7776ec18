"""Which classes stand for the whole vocabulary in a micro-step of the sampled loss.

Each of the twelve groups of tokens has S classes of its own: what one group happens to leave out
others see, so a step's gradient is less a matter of chance than with one draw for all.

Class c is among the S samples of a group with probability e(c) = min(1, s q(c)), the one s for
which the e(c) add up to S; q falls with how often the class stands in the training text.  All
arithmetic is on whole numbers, e(c) in units of 2^-32, so samples and probabilities are the same on
every machine.

Systematic sampling (Madow 1949) in a random order: the classes, each as long as its e(c), lie in a
row of length S, and the class at u, u + 1, ..., u + S - 1 is taken, u one draw from [0, 1).  No
class is longer than 1, so none is taken twice, and each is taken with probability e(c), exactly.
The groups' u lie a twelfth apart, in a circle, so 12 e(c) of them have class c, rounded up or down.
With S = V every e(c) is 1: all classes are taken, and the loss is the full one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.decoder.decoder import GROUPS
from crystalline.decoder.layers import Floats

UNIT = 1 << 32
STREAM = 0x73616D70  # tells these draws from the others that the same seed begins


class Candidates:
    """S of V classes for each micro-step, which follow from seed and place in the stream alone.

    ``log_expected`` (V) is the log of e(c).  ``counts`` (V) says how often each class stands in
    the text.
    """

    def __init__(self, counts: NDArray[np.int64], samples: int, seed: int, team: Team) -> None:
        self.samples, self._seed = samples, seed % 2**64
        self.expected = expected_counts(_weights(counts), samples)  # in units of 1 / UNIT
        self.log_expected: Floats = np.empty(len(counts), np.float32)
        team.log(self.log_expected, (self.expected / UNIT).astype(np.float32))

    def draw(self, place: int) -> NDArray[np.int32]:
        """The samples (12, S) of the micro-step that begins at ``place`` of the stream, one row for
        each group, rising."""
        V = len(self.expected)
        source = np.random.PCG64(np.random.SeedSequence([self._seed, place, STREAM]))
        start = int(source.random_raw()) % UNIT
        # Keys of 16 bits sort fast; which order equal ones take changes no probability.
        keys = source.random_raw(-(-V // 4)).view(np.uint16)[:V]
        order = np.argsort(keys, kind="stable")
        ends = np.cumsum(self.expected[order])
        starts = (start + UNIT * np.arange(GROUPS, dtype=np.int64) // GROUPS) % UNIT
        marks = starts[:, np.newaxis] + UNIT * np.arange(self.samples, dtype=np.int64)
        taken = order[np.searchsorted(ends, marks, side="right")]
        return np.sort(taken.astype(np.int32), axis=1)


def _weights(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """q(c) up to a factor: the log-uniform law log((r + 2) / (r + 1)) over the rank r by falling
    count, by the series 2 atanh(x) = 2 (x + x^3/3 + ...), x = 1 / (2 r + 3)."""
    x = 1.0 / (2.0 * np.arange(len(counts)) + 3.0)
    term, total = x.copy(), np.zeros(len(counts))
    for n in range(1, 40, 2):
        total += term / n
        term *= x * x
    weights = np.empty(len(counts), np.int64)
    by_frequency = np.argsort(-counts, kind="stable")
    weights[by_frequency] = np.maximum(1, np.floor(total * 2.0**40))
    return weights


def expected_counts(weights: NDArray[np.int64], samples: int) -> NDArray[np.int64]:
    """min(1, s weight) of every class in units of 1 / UNIT, at least 1, samples * UNIT in all."""
    falling = np.argsort(-weights, kind="stable")
    w = weights[falling].astype(object)  # whole numbers of any size
    rest = np.cumsum(w[::-1])[::-1]  # of a class and all that are rarer
    # So many of the most frequent are always taken: s q would be above 1.
    sure = int(np.argmax(w * (samples - np.arange(len(w))) <= rest))
    left = (samples - sure) * UNIT
    parts = np.maximum(1, w[sure:] * left // rest[sure]).astype(np.int64)
    # What rounding left over goes to the first that have room, or too much comes from them.
    missing = left - int(parts.sum())
    room = UNIT - parts if missing > 0 else parts - 1
    change = np.clip(abs(missing) - (np.cumsum(room) - room), 0, room)
    expected = np.full(len(w), UNIT, np.int64)
    expected[sure:] = parts + change if missing > 0 else parts - change
    out = np.empty_like(expected)
    out[falling] = expected
    return out
