"""How far training is, and how long it shall go on.

Progress runs from 0 to 1 and decides the learning rate.  A run told a number of steps goes there
evenly.  A run told minutes measures its steps now and then and moves the end; each such change is
part of the training state, so a resumed run follows the same course.
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


def learning_rate(peak: float, warmup: float, floor: float, progress: float) -> float:
    """Linear warm-up over the share ``warmup`` of training, then a cosine down to floor * peak."""
    if progress < warmup:
        return peak * progress / warmup
    along = min(1.0, (progress - warmup) / (1.0 - warmup))
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + cos_pi(along)))
