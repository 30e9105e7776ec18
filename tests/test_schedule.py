"""Schedules of the learning rate: their shapes, and the bits of the one that was first."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from crystalline.config import SCHEDULES
from crystalline.training.schedule import Schedule

PEAK, WARMUP, FLOOR, DECAY = 3e-3, 0.1, 0.2, 0.25
SHAPES: dict[str, Callable[[float], float]] = {  # what is left of the peak above the floor
    "constant": lambda x: 1.0,
    "linear": lambda x: 1 - (x - WARMUP) / (1 - WARMUP),
    "cosine": lambda x: (1 + math.cos(math.pi * (x - WARMUP) / (1 - WARMUP))) / 2,
    "wsd": lambda x: 1.0 if x < 1 - DECAY else 1 - math.sqrt((x - 1 + DECAY) / DECAY),
}

RATES = [
    "0x1.8033fd8f99751p-9", "0x1.5195b016abb3dp-9", "0x1.04f1fe89507c8p-9",
    "0x1.56259f33adaf9p-10", "0x1.5ea06ae8fcadcp-11", "0x1.cf7d947e30388p-13",
    "0x1.f75104d551d3ap-15",
]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_learning_rate_rises_stays_and_falls(kind: str) -> None:
    schedule = Schedule(kind, WARMUP, FLOOR, DECAY)
    assert schedule.rate(PEAK, 0.0) == 0
    assert schedule.rate(PEAK, 0.05) == pytest.approx(PEAK / 2)
    assert schedule.rate(PEAK, 0.1) == pytest.approx(PEAK)
    end = PEAK if kind == "constant" else FLOOR * PEAK
    assert schedule.rate(PEAK, 1.0) == pytest.approx(end)
    assert schedule.rate(PEAK, 1.5) == schedule.rate(PEAK, 1.0)
    assert Schedule(kind, 0.0, FLOOR, DECAY).rate(PEAK, 0.0) == pytest.approx(PEAK)
    for progress in np.linspace(0.1, 1, 50):
        want = PEAK * (FLOOR + (1 - FLOOR) * SHAPES[kind](float(progress)))
        assert schedule.rate(PEAK, float(progress)) == pytest.approx(want)


def test_wsd_may_fall_from_the_warm_up_on() -> None:
    schedule = Schedule("wsd", 0.3, 0.0, 0.7)
    assert schedule.rate(PEAK, 0.3) == pytest.approx(PEAK)
    assert schedule.rate(PEAK, 0.475) == pytest.approx(PEAK / 2)
    assert schedule.rate(PEAK, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_the_default_is_half_a_cosine_to_a_fiftieth() -> None:
    """The bits of trainings that began before there was a choice."""
    assert Schedule() == Schedule("cosine", 0.05, 0.02, 0.2)
    assert [Schedule().rate(3e-3, i / 7).hex() for i in range(1, 8)] == RATES
