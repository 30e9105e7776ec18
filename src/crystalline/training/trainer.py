"""A training that is driven: by Node Zero's thread, step after step, to its end or a command's.

What a command changes stands in ``settings.py``.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline._native import pin_thread
from crystalline._queue import SphereMessage
from crystalline.errors import Interrupted, StoreError, UsageError
from crystalline.forecast.machine import most_resident
from crystalline.forecast.memory import MIB
from crystalline.pipeline.feed import Feed
from crystalline.pipeline.record import Record
from crystalline.spheres.driver import Command
from crystalline.spheres.messages import MessageType
from crystalline.spheres.node_zero import NodeZero, State
from crystalline.spheres.show import Show
from crystalline.store import Store
from crystalline.training import early
from crystalline.training.pacing import passes
from crystalline.training.saving import Saving
from crystalline.training.settings import perform
from crystalline.training.signals import noted_signals
from crystalline.training.training import VALIDATION_TOKENS, Event, Training

Tell = Callable[[SphereMessage], None]

LEAVE_SECONDS = 0.2  # from the end of the last checkpoint to that of the process, at least, and
LEAVE_SHARE = 0.35  # of the time that loading the libraries took
ADAPT_STEPS = 50  # between two looks at how evenly the threads are loaded


class Trainer(Training):
    """Trains one model in one folder: ``run`` here and now, ``start`` in the background.

    ``on_event`` is called on the control thread.
    """

    node: NodeZero | None = None
    _making = threading.Lock()  # of a node: two threads may start one training at once
    _show: Show | None = None
    _mask: frozenset[int] = frozenset()  # the CPUs of the control thread before it was pinned
    _busy: NDArray[np.int64] | None = None  # of the threads, when they were last looked at
    feed: Feed | None = None  # where the text comes from a queue
    _record: Record | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.saving = Saving(self)

    def start(self, replay: Sequence[Command] = ()) -> NodeZero:
        """Trains in the background; returns the handle.  ``replay`` are commands as another
        training recorded them (``commands``): told the same ones, this one ends in the same bits.
        Signals are the caller's affair."""
        node = self._new_node(replay)
        node.start()
        return node

    def run(self, replay: Sequence[Command] = ()) -> None:
        """Trains to the end of the course.  A signal ends it early, after a checkpoint; a second
        Ctrl-C ends it without one.  SIGUSR1 asks for a checkpoint."""
        p = self.progress
        node = self._new_node(replay)
        with noted_signals(node.request_stop, node.request_checkpoint) as stop:
            try:
                node.start()
                node.wait()
            except KeyboardInterrupt:
                node.abort()
                raise
        if stop and p.step < p.course.steps:
            error = Interrupted(
                f"stopped by a signal after step {p.step} of {p.course.steps}; the checkpoint in "
                f"{self.out} is whole; go on with --resume"
            )
            error.exit_code = 128 + (stop.signal or 2)
            raise error

    def _new_node(self, replay: Sequence[Command]) -> NodeZero:
        """A control thread for this run.  UsageError while another one drives this training."""
        with self._making:
            before = self.node
            # INITIALIZING: made by another thread, which is about to start it.
            if before is not None and (before.alive or before.state is State.INITIALIZING):
                raise UsageError(f"this training is {before.state} already; wait for its end")
            # What a resumed training was told before its checkpoint is in it already.
            new = [c for c in replay if c not in self.commands]
            self.node = node = NodeZero(self, new)
        return node

    def aim(self, deadline: float, pace: float, loading: float = 0.0) -> None:
        """Sets the end so that the process is over at ``deadline`` (time.monotonic), if a step
        takes ``pace`` seconds; its clock goes on telling.  ``loading`` is how long the libraries
        took to load: a measure of how long the process takes to end."""
        p, held = self.progress, self.store.val.tokens
        # Going forward is a third of the work of a step.
        one = self.recipe.sequences * self.config.seq_len
        validation = min(held, VALIDATION_TOKENS) / one * pace / 3
        if held > 2 * VALIDATION_TOKENS:
            self.pacing.whole = held / VALIDATION_TOKENS
        self.pacing.leave_seconds = max(LEAVE_SECONDS, LEAVE_SHARE * loading)
        p.course = self.pacing.aim(deadline, p.course, pace, validation)

    # --- what Node Zero calls, on its thread ------------------------------------------------------

    @property
    def step_number(self) -> int:
        """Steps done."""
        return self.progress.step

    def begin(self) -> None:
        """Before the first step: the checkpoint of step 0, and what others may look at."""
        if self.team.cpus:
            self._mask = frozenset(os.sched_getaffinity(0))
            pin_thread(self.team.cpus[0])
        self.pacing.begun = time.monotonic()
        self.pacing.paused(False)
        self.stats.begin()
        self._write_down()
        if self.begins_learnt and self.progress.step == 0:
            self.validated()  # how good they are before shows what training does to them
        self.saving.begin()
        self._show = Show(self)

    def _rest(self, feed: Feed) -> None:
        """A turn without a step, as there is no text for one."""
        unsaved = self.saved_step != self.progress.step
        if unsaved and (self.saving.due() if self.saving.failed else feed.idle):
            self.saving.attempt()
        feed.wait()

    def _write_down(self) -> None:
        """Opens state.db.  Without it a training of files goes on: it is no truth of its own."""
        try:
            self._record = Record(self)
        except StoreError as error:
            if self.feed is not None:
                raise
            self.saving.warn(f"{error}; this run is not written down there")
        if self.feed is not None and self._record is not None:
            self.feed.begin(self._record.store)

    def advance(self, tell: Tell) -> bool:
        """One step, and what is due after it."""
        p, feed = self.progress, self.feed
        if feed is not None and not feed.ready():
            if feed.lasting:
                self._rest(feed)
            return feed.lasting
        if p.step >= p.course.steps:
            return False
        before = p.course.at(p.step)
        crossed, epoch = int(self.stats.crossings.sum()), self._epoch()
        event = self._pace(self.step())
        self.tell(event)
        self._between_steps(before)
        self._adapt(tell)
        tell(SphereMessage(MessageType.GRADIENT, step=p.step,
                           values=(event["grad_norm"], event["lr"])))  # fmt: skip
        tell(SphereMessage(MessageType.BATCH, step=p.step,
                           values=(event["loss"], event["tokens"], event["seconds"])))  # fmt: skip
        if int(self._epoch()) > int(epoch):
            tell(SphereMessage(MessageType.EPOCH, step=p.step, values=(int(self._epoch()),)))
        if (more := int(self.stats.crossings.sum()) - crossed) > 0:
            tell(SphereMessage(MessageType.BOUNDARY, step=p.step, values=(more,)))
        if self._show is not None and (version := self._show.step_done(event)):
            tell(SphereMessage(MessageType.WEIGHTS, step=p.step, values=(version,)))
        return p.step < p.course.steps or feed is not None

    def finish(self) -> None:
        """The end: a checkpoint.  That of the last step is there already, unless the caller's code
        failed before it and the training was started again."""
        p = self.progress
        if p.step < p.course.steps:
            self.saving.last()  # also where this step has one: commands may have come after it
            self.pacing.paused(True)  # until it is started again
            return
        if self.saved_step != p.step or self.saved_commands != len(self.commands):
            self.saving.last()
        self.tell({"event": "done", "step": p.step, "ended": p.ended, "model_step": self.model_step,
                    "seconds": time.monotonic() - self.pacing.begun,
                    "validation": p.validation, "best": p.best, "best_step": p.best_step,
                    "best_bits_per_byte": p.best_bits_per_byte,
                    "path": str(self.out), **self.stats.snapshot()})  # fmt: skip

    def close(self) -> None:
        """Gives back what the run held beside memory."""
        show, self._show = self._show, None
        if show is not None:
            show.close()
        self.saving.close()
        with contextlib.suppress(OSError):  # the error that ended the run is the one to tell
            self.metrics.flush()
        record, self._record = self._record, None
        if record is not None:
            with contextlib.suppress(StoreError):
                record.close(self._outcome())

    def _outcome(self) -> str:
        """How the run ended, for the history."""
        if self.node is not None and self.node.error is not None:
            return f"{type(self.node.error).__name__}: {self.node.error}"
        return "stopped" if self.progress.step < self.progress.course.steps else "done"

    def perform(self, message: SphereMessage) -> Any:
        """A command at a step boundary; UsageError refuses it."""
        return perform(self, message)

    def paused(self, now: bool) -> None:
        """In a pause the deadline waits."""
        self.pacing.paused(now)
        if self._show is not None:
            self._show.board()

    def save(self) -> None:
        """As ``Training.save``, with what is to be kept.  Raises CheckpointError."""
        self.saving.save()

    def save_best(self) -> None:
        """As ``Training.save_best``, but a disk that will not have it ends nothing."""
        self.saving.best()

    def show_again(self) -> None:
        """After what is shown has changed its size, or its folder."""
        if self._show is not None:
            self._show.close()
            self._show = Show(self)

    @property
    def store_of_record(self) -> Store | None:
        """state.db, on the thread that trains, while it does."""
        return None if self._record is None else self._record.store

    def folder_again(self) -> None:
        """After the folder was made anew: what else lay there."""
        self.show_again()
        if self._record is not None:
            self._record.again()

    def record(self, command: Command) -> None:
        """Kept in the checkpoint, for a replay."""
        self.commands.append(command)

    def tell(self, event: Event) -> None:
        """As ``Training.tell``, with the thread where the caller's code expects it."""
        # The caller's code, and what it starts, may use every CPU.
        if self._mask:
            os.sched_setaffinity(0, self._mask)
        super().tell(event)
        if self._record is not None:
            self._record.hear(event)
        if self._mask and self.team.cpus:
            pin_thread(self.team.cpus[0])

    def _epoch(self) -> float:
        return self.batches.epoch_of(self.progress.sequences)

    def _pace(self, event: Event) -> Event:
        """A step's event with what a reader wants to see beside it."""
        p, pacing = self.progress, self.pacing
        pacing.stepped(event["seconds"])
        event |= {
            "steps": p.course.steps, "epoch": self._epoch(),
            "tokens_per_s": event["tokens"] / pacing.pace,
            "elapsed": time.monotonic() - pacing.begun,
            "eta": (p.course.steps - p.step) * pacing.pace,
            "peak_mib": most_resident() / MIB,
        }  # fmt: skip
        return event

    def _between_steps(self, before: float) -> None:
        """What is due after a step that began at progress ``before``."""
        p = self.progress
        now = p.course.at(p.step)
        done = now >= 1.0
        every = p.evaluation_interval
        due = p.step % every == 0 if every else passes(self.pacing.validations, before, now)
        if done or due:
            self.validated()
            done = early.end_if_due(self) or done
            if done and self.store.val.tokens > 2 * VALIDATION_TOKENS:
                self.validated(most=None)
            self.pacing.went_on()
        if not done and self.saving.due():
            self.saving.attempt()
            self.pacing.went_on()
        if not done and self.pacing.look_due(p.course, p.step):
            p.course = self.pacing.replan(p.course, p.step)

    def _adapt(self, tell: Tell) -> None:
        """Looks now and then whether the threads are evenly loaded, where the crew may change."""
        if not self.crew.adaptive or self.progress.step % ADAPT_STEPS:
            return
        now = self.team.statistics()
        busy, before = now["threads"][:, 2], self._busy
        self._busy = busy
        done = None if before is None else self.crew.adapt(busy - before, now["leaves"])
        if done is not None:
            kind = MessageType.SPAWN if done == "spawned" else MessageType.REBALANCE
            tell(SphereMessage(kind, step=self.progress.step))
            self.tell({"event": "hierarchy", "step": self.progress.step, "what": done,
                        "depths": list(self.crew.hierarchy.depths)})  # fmt: skip
