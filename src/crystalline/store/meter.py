"""How far long work is: told once it takes long, and then not of every small piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

QUIET_SECONDS = 2.0  # what is done sooner needs no progress
TOLD_EVERY = 0.25  # seconds between two events

OnEvent = Callable[[dict[str, Any]], None]


class Meter:
    """Counts bytes of ``total`` and tells ``on_event`` the share and the time left."""

    def __init__(self, phase: str, total: int, on_event: OnEvent | None) -> None:
        self.phase, self.total, self.done, self.on_event = phase, total, 0, on_event
        self.begun = self.told = time.monotonic()

    def add(self, size: int) -> None:
        """So many more bytes are done."""
        self.done += size
        now = time.monotonic()
        if (
            self.on_event is None
            or now - self.begun < QUIET_SECONDS
            or now - self.told < TOLD_EVERY
        ):
            return
        self.told = now
        eta = (now - self.begun) * max(self.total - self.done, 0) / max(self.done, 1)
        self.on_event(
            {"event": "progress", "phase": self.phase, "done": self.done, "total": self.total,
             "eta": eta}
        )  # fmt: skip
