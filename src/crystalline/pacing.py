"""The clock of a training: how long a step takes, when it will be over, what is due when."""

from __future__ import annotations

import time
from collections.abc import Callable

from crystalline.schedule import Course

VALIDATIONS = 8  # in a run, evenly spread
SAVE_SHARE = 0.05  # of the time may go into checkpoints
SAVE_SECONDS = 60.0  # between two checkpoints, at least
REPLANS = 40  # how often a run told minutes looks at the clock
TRIALS = 4  # steps measured before the first plan


class Pacing:
    """Seconds a step, a validation and a checkpoint take, and the deadline if there is one."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.pace = self.validation_seconds = self.save_seconds = 0.0
        self.saved_at = self.begun = time.monotonic()
        self._paused_at: float | None = None

    def aim(
        self,
        deadline: float,
        course: Course,
        step: Callable[[], object],
        validate: Callable[[], object],
    ) -> Course:
        """The course that is over at ``deadline`` (time.monotonic); measures by doing some steps
        whose results are thrown away, and a validation."""
        self.deadline = deadline
        spent = []
        for _ in range(TRIALS):
            begun = time.monotonic()
            step()
            spent.append(time.monotonic() - begun)
            if time.monotonic() > deadline:
                break
        self.pace = min(spent) * 1.05
        begun = time.monotonic()
        if validate() is not None:
            self.validation_seconds = time.monotonic() - begun
        return self.replan(course, 0)

    def replan(self, course: Course, step: int) -> Course:
        """The end moved so that training, validations and checkpoints are over at the deadline."""
        if self.deadline is None:
            return course
        validations = VALIDATIONS - int(VALIDATIONS * course.at(step)) + 0.5
        reserve = validations * self.validation_seconds + 3 * self.save_seconds + 1.0
        seconds = self.deadline - time.monotonic() - reserve
        more = max(1, int(seconds / self.pace))
        # Near the end only a large error moves it: the last steps have the lowest learning rates.
        left = course.steps - step
        if step == 0 or abs(more - left) > max(2, 0.01 * step):
            return course.moved(step, step + more)
        return course

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self.pace = 0.9 * (self.pace or seconds) + 0.1 * seconds

    def saved(self, begun: float) -> None:
        """A checkpoint that began then is written."""
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - begun

    def save_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        waited = time.monotonic() - self.saved_at
        return waited > max(SAVE_SECONDS, self.save_seconds / SAVE_SHARE)

    def paused(self, now: bool) -> None:
        """The clock of a deadline stands still in a pause."""
        if now:
            self._paused_at = self._paused_at or time.monotonic()
        elif self._paused_at is not None:
            if self.deadline is not None:
                self.deadline += time.monotonic() - self._paused_at
            self._paused_at = None


def passes(share: int, before: float, now: float) -> bool:
    """Whether progress has passed a multiple of 1 / share."""
    return int(share * now) > int(share * before)
