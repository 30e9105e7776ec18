"""What state.db is told of a training: its runs, what happened, and the passes it made.

All of it follows from the checkpoint, so what a crash leaves untold is told when training goes on.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from crystalline.errors import StoreError
from crystalline.store import Pass, Store

if TYPE_CHECKING:
    from crystalline.training.training import Event, Training

NOTED = ("validation", "hierarchy", "queue")  # events kept in the history


class Record:
    """Writes down one run.  Opened, used and closed on the thread that trains."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.store = Store.open(training.out, create=True)
        step = training.progress.step
        recipe, config = training.recipe, training.config
        self._told = 0  # commands
        self._run = self.store.run_begun(
            step, batch_size=recipe.batch_size, seq_len=config.seq_len, lr=recipe.lr,
            steps=training.progress.course.steps, precision=recipe.precision,
        )  # fmt: skip
        self._told = len(training.commands)
        self.store.record_passes(passes(training), afresh=True)

    def hear(self, event: Event) -> None:
        """After a checkpoint the passes are told; some events are kept.

        Where the disk fails this is told later, or when training goes on: it is no truth of its
        own.
        """
        with contextlib.suppress(StoreError):
            self._hear(event)

    def _hear(self, event: Event) -> None:
        kind = event["event"]
        if kind in NOTED:
            said = {k: v for k, v in event.items() if k not in ("event", "step")}
            self.store.note(kind, event.get("step"), self._run, **said)
        if kind == "checkpoint":
            for command in self.training.commands[self._told :]:
                said = {k: v for k, v in command.items() if k != "step"}
                self.store.note("command", command["step"], self._run, **said)
            self._told = len(self.training.commands)
            self.store.record_passes(passes(self.training))

    def again(self) -> None:
        """The folder was made anew, without state.db: what this process has open is written
        there."""
        with contextlib.suppress(StoreError):
            self.store = self.store.again(self.training.out)

    def close(self, outcome: str) -> None:
        """The run is over."""
        with self.store:
            self.store.shrink()
            self.store.run_ended(self._run, self.training.progress.step, outcome)


def passes(training: Training) -> list[Pass]:
    """The passes begun so far: the documents of each, and the steps that made it."""
    p, batches = training.progress, training.batches
    known: dict[int, tuple[tuple[int, int], ...]] = {}
    made = []
    begun = len(p.passes)
    for number, (first, last) in enumerate(p.passes):
        documents = batches.documents(number)
        key = id(documents)
        if key not in known:
            known = {key: _ranges(documents)}
        done = number < begun - 1 or batches.begin(number + 1) <= p.sequences
        made.append(Pass(number, known[key], first, last if done else None))
    return made


def _ranges(documents: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Rising places as ranges."""
    places = np.unique(documents)
    heads = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    ends = [*heads[1:].tolist(), len(places)]
    pairs = zip(heads.tolist(), ends, strict=True)
    return tuple((int(places[a]), int(places[b - 1]) + 1) for a, b in pairs)

