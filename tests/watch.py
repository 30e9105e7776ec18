"""A watchdog and a leak check: a test that hangs ends with all stacks, one that leaks fails."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

import psutil
from conftest import STDERR, segments_left

PATIENCE = 10.0  # seconds in which what is ending must have ended


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Past ``seconds`` every thread's stack is printed and the process ends."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=(STDERR or [2])[0])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Held(NamedTuple):
    """What a process holds."""

    threads: tuple[str, ...]  # their names
    files: int
    segments: frozenset[str]
    children: frozenset[int]


def thread_names() -> tuple[str, ...]:
    """Of all threads the system knows, Python's and others."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it ended just now
            names.append((task / "comm").read_text().strip())
    return tuple(sorted(names))


def held() -> Held:
    """By this process, now."""
    gc.collect()
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    return Held(
        thread_names(), len(os.listdir("/proc/self/fd")),
        frozenset(segments_left()), frozenset(children),
    )  # fmt: skip


def more(now: Held, before: Held) -> dict[str, object]:
    """What is held beyond ``before``."""
    grown: dict[str, object] = {}
    if len(now.threads) > len(before.threads):
        grown["threads"] = sorted((Counter(now.threads) - Counter(before.threads)).elements())
    if now.files > before.files:
        grown["files"] = now.files - before.files
    grown["segments"] = sorted(now.segments - before.segments)
    grown["children"] = sorted(now.children - before.children)
    return {name: value for name, value in grown.items() if value}


@contextlib.contextmanager
def nothing_leaks() -> Iterator[None]:
    """The block ends with no more threads, files, segments and children than it began with."""
    resource_tracker.ensure_running()  # the one child and file that the first region leaves
    before = held()
    yield
    until = time.monotonic() + PATIENCE
    while (left := more(held(), before)) and time.monotonic() < until:
        time.sleep(0.02)  # a thread that was joined is in /proc for a moment more
    if left:
        names = [os.readlink(p) for p in Path("/proc/self/fd").iterdir() if p.exists()]
        raise AssertionError(f"left behind: {left}; open: {names}")


def eventually(true: Callable[[], object], seconds: float = 60) -> None:
    """Waits until it is true; what never is, is a failure."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not true within {seconds} seconds"
        time.sleep(0.001)
