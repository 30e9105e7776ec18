"""Samples of equal work on a machine that others use too: in turn, disturbed ones dropped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_BY_OTHERS = 0.1  # CPUs that other processes may use during a sample that counts
TRIES = 4  # at one sample, until its round goes on without it
TICKS = 0.2  # seconds that /proc/stat, which counts hundredths, needs to tell such a share


@dataclass
class Samples:
    """Of one contender: what its work returned, and how often others were in the way."""

    results: list[Any] = field(default_factory=list)
    dropped: int = 0
    noisy: bool = False  # there was no undisturbed sample, so the least disturbed one counts


def cpu_seconds() -> float:
    """CPU seconds that the whole machine has spent not idle, stolen ones included."""
    numbers = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    used = sum(int(n) for i, n in enumerate(numbers) if i not in (3, 4))
    return used / os.sysconf("SC_CLK_TCK")


def observed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` returns, and the CPUs that other processes used meanwhile."""
    machine, own, begun = cpu_seconds(), time.process_time(), time.perf_counter()
    result = work()
    wall = time.perf_counter() - begun
    ours = time.process_time() - own
    return result, max(0.0, cpu_seconds() - machine - ours) / wall


def alternate(
    works: dict[Hashable, Callable[[], Any]], samples: int,
    watch: Callable[[Callable[[], Any]], tuple[Any, float]] | None = None,
    tries: int | None = None,
) -> dict[Hashable, Samples]:  # fmt: skip
    """``samples`` rounds over all works, A B A B.  A work should take TICKS seconds or more.

    ``watch`` runs a work and tells the CPUs that others used; None watches this process.

    A sample during which others used more than MOST_BY_OTHERS is taken again, ``tries`` (TRIES)
    times at most, and else dropped.
    """
    taken = {name: Samples() for name in works}
    least: dict[Hashable, tuple[float, Any]] = {}
    for _ in range(samples):
        for name, work in works.items():
            for _ in range(tries or TRIES):
                result, others = (watch or observed)(work)
                if others <= MOST_BY_OTHERS:
                    taken[name].results.append(result)
                    break
                taken[name].dropped += 1
                if name not in least or others < least[name][0]:
                    least[name] = others, result
    for name, mine in taken.items():
        if not mine.results:
            mine.results, mine.noisy = [least[name][1]], True
    return taken


def repeated(call: Callable[[], Any]) -> Callable[[], float]:
    """A work that lasts long enough: ``call`` over and over, seconds of one on average."""
    begun = time.perf_counter()
    call()  # also the warm-up
    times = max(1, round(TICKS / (time.perf_counter() - begun)))

    def work() -> float:
        begun = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - begun) / times

    return work
