"""What Node Zero drives, and how a command is written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypedDict

from crystalline._queue import SphereMessage


class Command(TypedDict):
    """One command as it was recorded: the step after which it took effect, and what it was."""

    step: int
    command: str
    sphere: int
    values: list[float]


class Driver(Protocol):
    """What Node Zero drives: a training, step by step."""

    @property
    def step_number(self) -> int: ...

    def begin(self) -> None:
        """Before the first step, on the control thread."""

    def advance(self, tell: Callable[[SphereMessage], None]) -> bool:
        """One step and what is due after it; False when that was the last one."""

    def finish(self) -> None:
        """After the last step, or a STOP."""

    def close(self) -> None:
        """At the very end, also of a failure: gives everything back."""

    def perform(self, message: SphereMessage) -> Any:
        """Carries out CHECKPOINT, SET, SPAWN, TERMINATE, REBALANCE or STATS; UsageError refuses."""

    def paused(self, now: bool) -> None:
        """From here nothing is done, or no longer."""

    def record(self, command: Command) -> None:
        """Keeps a command that took effect."""
