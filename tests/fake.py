"""A training that is not one, for Node Zero to drive: fast, and broken wherever a test wants it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from crystalline._queue import SphereMessage
from crystalline.errors import UsageError
from crystalline.spheres.messages import MessageType
from crystalline.spheres.node_zero import Command, NodeZero

OVER = "the training is over"


class Fake:
    """A driver of ``steps`` steps that do nothing, but for what a test hooks in by name."""

    def __init__(self, steps: int = 10**9, **hooks: Callable[[], Any]) -> None:
        self.steps, self.step, self.hooks = steps, 0, hooks
        self.performed: list[tuple[int, SphereMessage]] = []
        self.commands: list[Command] = []
        self.calls: list[str] = []
        self.during = ""

    def _hook(self, name: str) -> None:
        if name != "advance":
            self.calls.append(name)
        self.hooks.get(name, lambda: None)()

    @property
    def step_number(self) -> int:
        return self.step

    def begin(self) -> None:
        self._hook("begin")

    def advance(self, tell: Callable[[SphereMessage], None]) -> bool:
        if self.step >= self.steps:
            return False
        self.step += 1
        time.sleep(0)
        self._hook("advance")
        tell(SphereMessage(MessageType.BATCH, step=self.step))
        return self.step < self.steps

    def finish(self) -> None:
        self._hook("finish")

    def close(self) -> None:
        self._hook("close")

    def perform(self, message: SphereMessage) -> Any:
        self.performed.append((self.step, message))
        self._hook("perform")
        if message.sphere == 13:
            raise UsageError("sphere is 13, but must be 0 to 11")
        return {"step": self.step} if message.type == MessageType.STATS else None

    def paused(self, now: bool) -> None:
        self._hook("paused" if now else "resumed")

    def record(self, command: Command) -> None:
        self._hook("record")
        self.commands.append(command)


def started(steps: int = 10**9, **hooks: Callable[[], Any]) -> tuple[NodeZero, Fake]:
    """A training under way, or over."""
    fake = Fake(steps, **hooks)
    node = NodeZero(fake)
    node.start()
    return node, fake


def raising(error: type[BaseException]) -> Callable[[], None]:
    """A hook that raises."""

    def hook() -> None:
        raise error("broken on purpose")

    return hook


COMMANDS: dict[str, Callable[[NodeZero], Any]] = {
    "pause": NodeZero.pause, "resume": NodeZero.resume, "stop": NodeZero.stop,
    "checkpoint": NodeZero.checkpoint, "set": lambda node: node.set(learning_rate=1.0),
    "spawn": NodeZero.spawn, "terminate": NodeZero.terminate, "rebalance": NodeZero.rebalance,
    "stats": NodeZero.stats,
}  # fmt: skip


def ask_until_refused(node: NodeZero) -> None:
    """Commands, until nobody answers."""
    try:
        while True:
            node.stats()
    except UsageError as error:
        assert OVER in str(error)
