"""The clock of a training: what a deadline leaves, and that pauses do not count."""

from __future__ import annotations

from itertools import pairwise

import pytest

from crystalline import pacing as module
from crystalline.pacing import Pacing, passes
from crystalline.schedule import Course


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def aimed(clock: list[float]) -> tuple[Pacing, Course]:
    """Steps of one second, no validation, 100 seconds."""

    def step() -> None:
        clock[0] += 1.0

    pacing = Pacing()
    return pacing, pacing.aim(clock[0] + 100, Course(1), step, lambda: None)


def test_the_course_fills_the_time_that_is_left(clock: list[float]) -> None:
    _, course = aimed(clock)
    assert course.steps == int((100 - 4 - 1) / 1.05)  # four trials, a second in reserve


def test_a_pause_moves_the_deadline_however_often_it_is_told(clock: list[float]) -> None:
    pacing, course = aimed(clock)
    before = pacing.replan(course, 0).steps
    pacing.paused(True)
    clock[0] += 500
    pacing.paused(True)  # a stop in a pause
    clock[0] += 500
    for _ in range(2):
        pacing.paused(False)
    assert pacing.replan(course, 0).steps == before


def test_without_a_deadline_nothing_moves(clock: list[float]) -> None:
    pacing, course = Pacing(), Course(50)
    pacing.paused(True)
    pacing.paused(False)
    assert pacing.deadline is None and pacing.replan(course, 7) == course


def test_a_share_is_passed_once() -> None:
    points = [i / 100 for i in range(101)]
    assert sum(passes(8, a, b) for a, b in pairwise(points)) == 8
