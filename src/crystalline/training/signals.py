"""Ctrl-C at a step boundary: a signal is noted and told, and the training stops when it can."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether a signal has asked the training to stop, and which."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def noted_signals(
    tell: Callable[[], None], save: Callable[[], None] = lambda: None
) -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGHUP are noted and ``tell`` is called, instead of dying at once; at
    SIGUSR1 ``save`` is.

    A second SIGINT raises KeyboardInterrupt.  Outside the main thread signals cannot be caught and
    the flag stays down.  What was installed before comes back at the end.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number
        tell()

    # A signal that is ignored, as a hang-up is under nohup, stays so.
    wanted = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(n) != signal.SIG_IGN]  # fmt: skip
    before = {number: signal.signal(number, note) for number in wanted}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda number, frame: save())
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
