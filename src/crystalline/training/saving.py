"""When a training saves, what it keeps of that, and what happens where the disk will have nothing.

A save that fails is told as a warning, and the training goes on: the earlier checkpoint is whole,
and it is tried again at the next step that is due or after a minute.  Only at the end it is an
error, after waiting as long as the training took that would be lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from crystalline.checkpoints import kept
from crystalline.checkpoints.checkpoint import save_model
from crystalline.checkpoints.claim import Claim
from crystalline.checkpoints.rescue import Rescue
from crystalline.decoder.layers import Floats
from crystalline.errors import CheckpointError, CrystallineError
from crystalline.training.training import Training

if TYPE_CHECKING:
    from crystalline.training.trainer import Trainer

RETRY_SECONDS = 60.0  # after a save that failed
WAIT_SECONDS = 600.0  # at the end for a disk to have room again, at most
LOOK_SECONDS = 1.0  # between two tries then


@dataclass(frozen=True)
class SavePlan:
    """What the user said of checkpoints; 0 where nothing.  Neither steps nor minutes: by the time
    a save takes (``Pacing.save_due``)."""

    save_steps: int = 0  # a checkpoint after every so many
    save_minutes: float = 0.0  # and when so many have passed since the last
    keep: int = 0  # of the last ones
    milestones: int = 0  # a checkpoint that is kept for ever after every so many steps


SAVING = tuple(field.name for field in fields(SavePlan))  # options


def save_plan(options: Mapping[str, Any]) -> SavePlan:
    """The plan in a training's options; None is what was not said."""
    said = {field.name: options.get(field.name) for field in fields(SavePlan)}
    return SavePlan(**{name: value for name, value in said.items() if value is not None})


class Saving:
    """The checkpoints of one trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.plan = SavePlan()
        self.claim: Claim | None = None  # of the folder, where somebody claimed it
        self.changed = False  # what the next checkpoint must tell as soon as can be
        self.back_to: int | None = None  # a kept step: what is later goes with the first save
        self._rescue: Rescue | None = None
        self._best: dict[str, Floats] | None = None  # that could not be written
        self._failed: float | None = None  # when the last save did
        self._saved_seconds = trainer.progress.seconds  # of training, at the last save

    def text_grew(self) -> None:
        """There are more files of tokens."""
        if self._rescue is not None:
            self._rescue.look("data")

    def begin(self) -> None:
        """Before the first step."""
        self._rescue = Rescue(self.trainer.out, "data", kept.BEST)
        if self.trainer.progress.step == 0 or self.changed:
            self.save()

    def close(self) -> None:
        """After the last."""
        if self._rescue is not None:
            self._rescue.close()
        self._rescue = None

    def go_back(self, at: int | None) -> None:
        """The training was read from the kept checkpoint of step ``at``: it becomes the present
        one with the first save, and what is later goes then."""
        self.back_to, self.changed = at, at is not None

    @property
    def failed(self) -> bool:
        """Whether the last save did."""
        return self._failed is not None

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        plan, pacing, step = self.plan, self.trainer.pacing, self.trainer.progress.step
        if self.changed or any(n and step % n == 0 for n in (plan.save_steps, plan.milestones)):
            return True
        now = time.monotonic()
        if self._failed is not None:
            return now - self._failed > RETRY_SECONDS
        if plan.save_minutes:
            return now - pacing.saved_at >= 60 * plan.save_minutes
        return not plan.save_steps and pacing.save_due()

    def save(self) -> None:
        """A checkpoint, and what is to be kept of it.  Raises CheckpointError where it cannot be
        written; what cannot be kept or removed is told."""
        trainer, p = self.trainer, self.trainer.progress
        self._ensure_folder()
        if self._best is not None:
            self._write_best(self._best)
        Training.save(trainer)
        self._failed, self._saved_seconds, self.changed = None, p.seconds, False
        milestone = self.plan.milestones and p.step and p.step % self.plan.milestones == 0
        try:
            if self.back_to is not None:
                trainer.metrics.forget_after(self.back_to)
                kept.bring_back_best(trainer.out, kept.place(trainer.out, self.back_to))
            if milestone or self.plan.keep:
                kept.keep(trainer.out, p.step, kept.MILESTONE if milestone else kept.LAST)
            kept.forget(trainer.out, self.plan.keep, self.back_to)
        except (CrystallineError, OSError) as error:
            self.warn(f"{error}; the checkpoint of step {p.step} itself is saved")
        self.back_to = None

    def attempt(self) -> None:
        """A save that may fail: then the training goes on."""
        try:
            self.save()
        except CheckpointError as error:
            self._failed = time.monotonic()
            self.warn(f"{error}; training goes on and tries again")

    def last(self) -> None:
        """The save at the end; tries again for a while rather than lose what was trained."""
        lost = self.trainer.progress.seconds - self._saved_seconds
        until, told = time.monotonic() + min(lost, WAIT_SECONDS), False
        while True:
            try:
                return self.save()
            except CheckpointError as error:
                node = self.trainer.node
                left = until - time.monotonic()
                if left <= 0 or (node is not None and node.aborted):
                    raise
                if not told:
                    self.warn(f"{error}; this was the end, it is tried again for {left:.0f} s")
                told = True
            time.sleep(min(LOOK_SECONDS, left))

    def keep_before(self, why: str) -> None:
        """Keeps what is trained so far for ever.  Raises CheckpointError."""
        if self.trainer.saved_step != self.trainer.progress.step:
            self.save()
        kept.keep(self.trainer.out, self.trainer.progress.step, why)

    def best(self) -> None:
        """Keeps the weights of now as the best model; if that fails, in memory until it can be."""
        try:
            self._ensure_folder()
            self._write_best(self.trainer.offered.named)
        except CheckpointError as error:
            self._best = {name: w.copy() for name, w in self.trainer.offered.named.items()}
            self.warn(f"{error}; the best model so far is written with the next checkpoint")

    def warn(self, message: str) -> None:
        """Tells what went wrong and ends nothing."""
        step = self.trainer.progress.step
        self.trainer.tell({"event": "warning", "step": step, "message": message})

    def _write_best(self, weights: dict[str, Floats]) -> None:
        trainer = self.trainer
        save_model(trainer.out / kept.BEST, trainer.config, trainer.tokenizer, weights)
        self._best = None
        if self._rescue is not None:
            self._rescue.look(kept.BEST)

    def _ensure_folder(self) -> None:
        """The folder is there and ours, with the tokens; made anew where somebody removed it."""
        if self.claim is None:
            return
        out = self.trainer.out
        try:
            if gone := not self.claim.holds():
                self.claim.again()
            lost = self._rescue.restore() if self._rescue is not None else []
        except OSError as error:
            raise CheckpointError(
                f"{out}: was removed while the training runs, and cannot be made again "
                f"({error.strerror or error}); make room for it there"
            ) from error
        if gone:
            self.warn(
                f"{out}: was removed or moved while the training runs; it is made again with all "
                "that is in memory; metrics and kept checkpoints of before are gone"
            )
            self.trainer.folder_again()
        elif lost:
            self.warn(f"{out}: {', '.join(lost)} was removed, and is written again")
