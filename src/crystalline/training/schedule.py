"""How far training is, how long it shall go on, and with what learning rate.

Progress runs from 0 to 1 and decides the learning rate, by one of four schedules.  A run told a
number of steps goes there evenly.  A run told minutes measures its steps now and then and moves the
end; each such change is part of the training state, so a resumed run follows the same course.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Course:
    """From ``progress`` at step ``start``, evenly to 1 at step ``steps``."""

    steps: int
    start: int = 0
    progress: float = 0.0

    def at(self, step: int) -> float:
        """Progress when ``step`` steps are done."""
        if step >= self.steps:
            return 1.0
        return self.progress + (1.0 - self.progress) * (step - self.start) / (
            self.steps - self.start
        )

    def moved(self, step: int, steps: int) -> Course:
        """The same progress at ``step``, but an end at ``steps``."""
        return Course(max(steps, step + 1), step, self.at(step))


def cos_pi(x: float) -> float:
    """cos(pi x) for 0 <= x <= 1, by Taylor's series around 1/2: the same bits everywhere."""
    y = math.pi * (0.5 - x)
    total, term = 0.0, y
    for n in range(1, 26, 2):
        total += term
        term *= -y * y / ((n + 1) * (n + 2))
    return total


@dataclass(frozen=True)
class Schedule:
    """A learning rate over the progress of training.

    ``kind`` is one of ``config.SCHEDULES``.  All begin with a linear warm-up over the share
    ``warmup`` of training.  Then the rate stays (constant), or falls to ``floor`` of its peak: by
    half a cosine (Loshchilov and Hutter 2017), linearly, or (wsd) only over the last share
    ``decay``, as 1 - sqrt (Hu et al. 2024; Haegele et al. 2024).
    """

    kind: str = "cosine"
    warmup: float = 0.05
    floor: float = 0.02
    decay: float = 0.2

    def rate(self, peak: float, progress: float) -> float:
        """The learning rate at a ``progress`` from 0 to 1."""
        if progress < self.warmup:
            return peak * progress / self.warmup
        if self.kind == "constant":
            return peak
        begin = 1.0 - self.decay if self.kind == "wsd" else self.warmup
        along = min(1.0, max(0.0, progress - begin) / (1.0 - begin))
        return peak * (self.floor + (1.0 - self.floor) * self._left(along))

    def _left(self, along: float) -> float:
        """What is left of a fall from 1 to 0, ``along`` its way."""
        if self.kind == "cosine":
            return 0.5 * (1.0 + cos_pi(along))
        if self.kind == "wsd":
            return 1.0 - math.sqrt(along)
        return 1.0 - along
