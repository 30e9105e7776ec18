"""How far a long work is and when it will be done, on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from crystalline.words import clock

PATIENCE = 2.0  # seconds before anything is said
AGAIN = (0.2, 10.0)  # seconds between two words: on a terminal, elsewhere
ERASE = "\r\x1b[2K"


class Waiting:
    """Told how much of a work is done; says nothing of works that are done at once.

    A line that is written anew on a terminal, and a line now and then elsewhere.
    """

    def __init__(self, doing: str, to: TextIO | None = None) -> None:
        self.doing, self.to = doing, to or sys.stderr
        self.terminal = self.to.isatty()
        self.begun = self.told = time.monotonic()
        self.shown = False

    def __call__(self, done: float, total: float) -> None:
        """``done`` of ``total``, in any unit."""
        now = time.monotonic()
        spent = now - self.begun
        late = now - self.told >= AGAIN[0 if self.terminal else 1] or not self.shown
        if spent < PATIENCE or not late or done <= 0:
            return
        self.told, self.shown = now, True
        left = clock(spent * (total - done) / done)
        text = f"{self.doing}: {100 * done / max(total, 1e-9):.0f} %, {left} left"
        print(f"{ERASE}{text}" if self.terminal else text, file=self.to,
              end="" if self.terminal else "\n", flush=True)  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.shown and self.terminal:
            print(ERASE, file=self.to, end="", flush=True)
