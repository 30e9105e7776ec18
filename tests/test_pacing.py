"""The clock of a training: what a deadline leaves, where an end is moved, and that pauses do not
count."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from crystalline.training import pacing as module
from crystalline.training.pacing import LOOK_SHARE, VALIDATIONS, Pacing, passes
from crystalline.training.schedule import Course


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def aimed(clock: list[float], seconds: float = 100, step: float = 1.0) -> tuple[Pacing, Course]:
    """A run of so many seconds, if steps take so long and validations nothing."""
    pacing = Pacing()
    return pacing, pacing.aim(clock[0] + seconds, Course(1), step, 0.0)


def test_the_course_fills_the_time_that_is_left(clock: list[float]) -> None:
    assert aimed(clock)[1].steps == 100


def test_what_is_due_beside_the_steps_is_kept_in_reserve(clock: list[float]) -> None:
    pacing = Pacing()
    pacing.save_seconds, pacing.leave_seconds, pacing.whole = 2.0, 1.0, 3.0
    course = pacing.aim(clock[0] + 100, Course(1), 1.0, 0.5)
    # Eight validations and one worth three; one checkpoint within the time and one at its end.
    assert course.steps == round(100 - (VALIDATIONS + 3) * 0.5 - 2 * 2.0 - 1.0)


def test_where_validations_are_dear_there_are_fewer(clock: list[float]) -> None:
    counts = []
    for seconds in (0.1, 1.0, 2.0, 50.0):
        pacing = Pacing()
        pacing.aim(clock[0] + 100, Course(1), 1.0, seconds)
        counts.append(pacing.validations)
    assert counts == [8, 5, 2, 2]


@pytest.mark.parametrize("seed", range(6))
def test_a_run_ends_in_time_however_the_machine_changes(clock: list[float], seed: int) -> None:
    """Steps of 0.1 s at first; other programs come and go and make them up to four times slower,
    validations and checkpoints too."""
    source = random.Random(seed)
    pacing, course = aimed(clock, 60.0, 0.1)
    start, step, load, looked = clock[0], 0, 1.0, 0
    while step < course.steps:
        if source.random() < 0.02:
            load = source.choice([1.0, 1.5, 2.0, 4.0])
        clock[0] += 0.1 * load * source.uniform(0.9, 1.3)
        pacing.stepped(0.1 * load)
        before, step = course.at(step), step + 1
        done = step >= course.steps
        if done or passes(pacing.validations, before, course.at(step)):
            spent = 0.2 * load
            clock[0] += spent
            pacing.validated(spent, 0.0, whole=False)
            pacing.went_on()
        if done:
            begun = clock[0]
            clock[0] += 0.1 * load
            pacing.saved(begun)
        elif pacing.look_due(course, step):
            looked += 1
            course = pacing.replan(course, step)
    assert clock[0] - start == pytest.approx(60.0, rel=0.03)
    assert looked <= 2 / LOOK_SHARE


def test_what_belongs_to_every_step_is_part_of_its_time(clock: list[float]) -> None:
    pacing, course = aimed(clock, 100.0, 1.0)
    pacing.stepped(1.0)
    for _ in range(20):
        clock[0] += 1.5  # a step of one second, and half a second of telling about it
        pacing.stepped(1.0)
    left = 1000.0 + 100.0 - clock[0]
    assert pacing.replan(course, 21).steps - 21 == pytest.approx(left / 1.5, abs=3)


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
    assert not pacing.look_due(course, 49)


def test_a_share_is_passed_once() -> None:
    points = [i / 100 for i in range(101)]
    assert sum(passes(8, a, b) for a, b in pairwise(points)) == 8
