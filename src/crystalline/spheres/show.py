"""What a training shows while it runs: its weights and the board of its spheres."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crystalline.errors import CrystallineError
from crystalline.spheres.live import Broadcast

if TYPE_CHECKING:
    from crystalline.training.trainer import Trainer

BOARD_SECONDS = 0.25  # between two boards
BOARD_EVENT = ("step", "steps", "loss", "lr", "epoch", "tokens_per_s", "eta")  # of the last step
PUBLISH_SECONDS = 1.0  # between two versions of the weights, about


class Show:
    """Publishes for one run; ``close`` ends it."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        room = 16384 + 512 * trainer.team.threads
        self.broadcast: Broadcast | None = Broadcast(trainer.out, trainer.weights.flat.size, room)
        self.next_step, self.versions, self.shown = 0, 0, 0.0
        self.event: dict[str, Any] = {}
        self._publish()
        self.board()

    def step_done(self, event: dict[str, Any]) -> int:
        """After every step; the version of the weights if they were published, else 0."""
        self.event = event
        if time.monotonic() - self.shown >= BOARD_SECONDS:
            self.board()
        if self.trainer.progress.step < self.next_step:
            return 0
        return self._publish()

    def board(self) -> None:
        """The board, as it is now."""
        trainer = self.trainer
        self.shown = time.monotonic()
        snapshot = {
            "time": time.time(), "state": str(trainer.node.state) if trainer.node else "",
            "model": str(trainer.out), "isa": trainer.team.isa, "steal": trainer.crew.steal,
            "pinned": trainer.team.cpus is not None,
            **{k: self.event[k] for k in BOARD_EVENT if k in self.event},
            **trainer.stats.snapshot(),
        }  # fmt: skip
        self._try(lambda broadcast: broadcast.show(snapshot))

    def close(self) -> None:
        """Nothing is shown any more."""
        broadcast, self.broadcast = self.broadcast, None
        if broadcast is not None:
            broadcast.close()

    def _try(self, act: Callable[[Broadcast], None]) -> None:
        """What cannot be shown is no reason to end a training: the show ends instead."""
        if self.broadcast is not None:
            try:
                act(self.broadcast)
            except CrystallineError:
                self.close()

    def _publish(self) -> int:
        p = self.trainer.progress
        steps = PUBLISH_SECONDS / self.trainer.pacing.pace if self.trainer.pacing.pace else 1
        self.next_step = p.step + max(1, round(steps))
        self.trainer.optimizer.settle()
        weights = self.trainer.weights.flat
        self._try(lambda broadcast: broadcast.publish(weights, p.step, p.tokens))
        self.versions += 1
        return self.versions
