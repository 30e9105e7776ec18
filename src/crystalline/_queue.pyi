"""Types of the message queue; what it does stands in ``_kernels/queue.pyx``."""

from collections.abc import Sequence
from typing import TypedDict

from typing_extensions import Buffer

class _Counters(TypedDict):
    sent: int
    received: int
    dropped: int
    skipped: int
    lost: int
    depth: tuple[int, int, int, int]

class SphereMessage:
    def __init__(
        self,
        type: int,
        priority: int = 1,
        sphere: int = -1,
        ticket: int = 0,
        step: int = 0,
        values: Sequence[float] = (),
        *,
        flags: int = 0,
    ) -> None: ...
    @property
    def type(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def sphere(self) -> int: ...
    @property
    def ticket(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def values(self) -> tuple[float, float, float, float]: ...

class MessageQueue:
    def __init__(
        self, capacity: int | None = None, *, buffer: Buffer | None = None, create: bool = True
    ) -> None: ...
    @staticmethod
    def bytes_needed(capacity: int) -> int: ...
    def send(self, message: SphereMessage, *, timeout: float | None = 0.0) -> bool: ...
    def receive(self, timeout: float | None = 0.0) -> SphereMessage | None: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def capacity(self) -> int: ...
    def counters(self) -> _Counters: ...
    def __len__(self) -> int: ...
