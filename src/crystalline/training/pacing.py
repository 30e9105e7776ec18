"""The clock of a training: how long a step takes, when it will be over, what is due when."""

from __future__ import annotations

import time
from collections import deque
from itertools import islice

from crystalline.training.schedule import Course

VALIDATIONS = 8  # in a run, evenly spread, or
FEWEST_VALIDATIONS = 2  # where they would take
VALIDATION_SHARE = 0.05  # of the time that a run was given, or more
SAVE_SHARE = 0.05  # of the time may go into checkpoints
SAVE_SECONDS = 60.0  # between two checkpoints, at least
LOOK_SHARE = 0.005  # of the time that a run was given, between two looks at the clock
LAST_STEPS = 16  # before each of which the clock is looked at
MOVE_SHARE = 0.0025  # of that time: an end that is off by more is moved
RECENT = (8, 1024)  # steps that tell how fast the next ones will be, at least and at most


class Pacing:
    """Seconds a step, a validation and a checkpoint take, and the deadline if there is one."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.given = 0.0  # seconds from the first plan to the deadline
        self.pace = self.validation_seconds = self.save_seconds = 0.0
        self.validations = VALIDATIONS
        self.best_seconds = 0.0  # of keeping the best weights
        self.whole = 0.0  # validations that the last one, over all the held-out text, is worth
        self.leave_seconds = 0.0  # from the last checkpoint to the end of the process
        self.saved_at = self.begun = time.monotonic()
        self._recent: deque[float] = deque(maxlen=RECENT[1])
        self._mark: float | None = None  # the end of the last step and of what was due after it
        self._looked = 0.0
        self._paused_at: float | None = None

    def aim(self, deadline: float, course: Course, pace: float, validation: float) -> Course:
        """The course that is over at ``deadline`` (time.monotonic), if a step and a validation take
        so many seconds."""
        self.deadline, self.given = deadline, deadline - time.monotonic()
        self.pace, self.validation_seconds = pace, validation
        most = VALIDATION_SHARE * self.given / max(validation, 1e-9)
        self.validations = int(min(max(most, FEWEST_VALIDATIONS), VALIDATIONS))
        return self.replan(course, 0)

    def look_due(self, course: Course, step: int) -> bool:
        """Whether it is time to look at the clock."""
        if self.deadline is None:
            return False
        waited = time.monotonic() - self._looked
        return course.steps - step <= LAST_STEPS or waited > LOOK_SHARE * self.given

    def replan(self, course: Course, step: int) -> Course:
        """The end moved so that training, validations and checkpoints are over at the deadline."""
        if self.deadline is None:
            return course
        self._looked = time.monotonic()
        left = course.steps - step
        pace = self._ahead(left)
        seconds = self.deadline - self._looked - self._reserve(course.at(step))
        more = max(1, round(seconds / pace))
        off = abs(more - left) * pace
        if step == 0 or (off > MOVE_SHARE * self.given and more != left):
            return course.moved(step, step + more)
        return course

    def _reserve(self, progress: float) -> float:
        """Seconds that what is still due beside the steps will take."""
        best = self.validations - int(self.validations * progress)
        assert self.deadline is not None
        left = self.deadline - time.monotonic()
        saves = 1 + int(max(left, 0.0) / self._between_saves())
        return ((best + self.whole) * self.validation_seconds + best * self.best_seconds
                + saves * self.save_seconds + self.leave_seconds)  # fmt: skip

    def _ahead(self, left: int) -> float:
        """Seconds of each of the next steps: what as many of the last ones took."""
        count = min(len(self._recent), max(left, RECENT[0]))
        if count < RECENT[0]:
            return self.pace
        return sum(islice(reversed(self._recent), count)) / count

    def stepped(self, seconds: float) -> None:
        """A step took so long; with what belongs to every step, so long as since the last one."""
        now = time.monotonic()
        if self._mark is not None:
            seconds = max(seconds, now - self._mark)
        self._mark = now
        self._recent.append(seconds)
        self.pace = 0.9 * (self.pace or seconds) + 0.1 * seconds

    def went_on(self) -> None:
        """What was due after a step is done: it was not the step's own time."""
        self._mark = time.monotonic()

    def validated(self, seconds: float, keeping: float, whole: bool) -> None:
        """A validation took so long, and so long to keep the weights as the best (0: they are
        not)."""
        if not whole:
            self.validation_seconds = _between(self.validation_seconds, seconds)
            self.best_seconds = _between(self.best_seconds, keeping or self.best_seconds)

    def saved(self, begun: float) -> None:
        """A checkpoint that began then is written."""
        self.saved_at = time.monotonic()
        self.save_seconds = _between(self.save_seconds, self.saved_at - begun)

    def save_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self.saved_at > self._between_saves()

    def _between_saves(self) -> float:
        return max(SAVE_SECONDS, self.save_seconds / SAVE_SHARE)

    def paused(self, now: bool) -> None:
        """The clock of a deadline stands still in a pause."""
        if now:
            self._paused_at = self._paused_at or time.monotonic()
        elif self._paused_at is not None:
            if self.deadline is not None:
                self.deadline += time.monotonic() - self._paused_at
            self._paused_at = self._mark = None


def _between(before: float, now: float) -> float:
    """What to expect of something that took so long the last time, and before that."""
    return 0.5 * (before + now) if before else now


def passes(share: int, before: float, now: float) -> bool:
    """Whether progress has passed a multiple of 1 / share."""
    return int(share * now) > int(share * before)
