"""A queue that is trained: documents join the model's text, and passes over them its stream.

A document that lacks epochs is in every pass that begins from now on, until it has as many as are
asked for.  A step is made when the stream has a whole one left; what remains waits for more text,
or is trained in a step that is padded (``flush``).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from crystalline.errors import CheckpointError, StoreError
from crystalline.pipeline.ingest import ingest
from crystalline.store import Store
from crystalline.training import early
from crystalline.training.schedule import Course

if TYPE_CHECKING:
    from crystalline.training.trainer import Trainer
    from crystalline.training.training import Event

LOOK_SECONDS = 1.0  # between two looks into the queue
RETRY_SECONDS = 30.0  # after one that failed
IDLE_SECONDS = 2.0  # without a step, until what has been trained is saved
WAIT_SECONDS = 0.2  # of a turn that has nothing to train: so soon a command is obeyed


class Feed:
    """Feeds one trainer from its model's queue.  ``epochs`` is how often each document is trained;
    ``lasting`` waits for more text rather than end."""

    def __init__(self, trainer: Trainer, epochs: int, *, flush: bool, lasting: bool) -> None:
        self.trainer, self.epochs = trainer, epochs
        self.flush, self.lasting = flush, lasting
        self.arrived = threading.Event()  # set by who has added text
        self._store: Store | None = None
        self._look_at = -1e9  # so long nobody looks into the queue
        self._waiting = False
        self._idle_since = time.monotonic()
        self.heard: deque[Event] = deque()  # of another thread, to be told on this one

    def begin(self, store: Store) -> None:
        """Takes in what is in the queue now; on the thread that ``store`` belongs to."""
        self._store = store
        self.trainer.batches.limit(None)
        self._take_in()
        self._plan()

    def ready(self) -> bool:
        """Whether there is a step to make; looks into the queue now and then."""
        ends = not self.lasting and not self.enough  # unless something has just come
        if ends or time.monotonic() >= self._look_at or self.arrived.is_set():
            self._look()
        while self.heard:
            self.trainer.tell(self.heard.popleft())
        enough = self.enough
        if enough:
            self._idle_since = time.monotonic()
        self._tell_waiting(not enough)
        return enough

    @property
    def idle(self) -> bool:
        """Whether nothing could be trained for a while."""
        return time.monotonic() - self._idle_since > IDLE_SECONDS

    def ask_epochs(self, epochs: int) -> None:
        """Each document is to be trained so often."""
        self.epochs = epochs
        self.store.set(target_epochs=epochs)
        self._plan()

    @property
    def store(self) -> Store:
        """The queue, on the thread that trains."""
        store = self.trainer.store_of_record or self._store
        assert store is not None
        return store

    def _look(self) -> None:
        """Takes in what has come.  A disk that fails ends nothing while there is more to train, or
        while more text is waited for."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        before, failure = self.trainer.batches.split.documents, None
        try:
            self._take_in()
        except (CheckpointError, StoreError) as error:
            failure = error
        if self.trainer.batches.split.documents > before:
            self._plan()
        if failure is None:
            return
        if not self.lasting and not self.enough:
            raise failure
        self._look_at = time.monotonic() + RETRY_SECONDS
        self.trainer.saving.warn(f"{failure}; what waits in the queue is taken in later")

    def wait(self) -> None:
        """Until text arrives, or it is time to look whether there is a command."""
        self.arrived.wait(WAIT_SECONDS)

    @property
    def left(self) -> int:
        """Sequences of the stream that are not trained yet."""
        end = self.trainer.batches.end
        assert end is not None
        return end - self.trainer.progress.sequences

    @property
    def enough(self) -> bool:
        """Whether they make a step."""
        left = self.left
        return left >= self.trainer.recipe.sequences or (self.flush and left > 0)

    def _take_in(self) -> int:
        """Everything that waits in the queue joins the tokens; how many documents did."""
        trainer, store = self.trainer, self.store
        self.arrived.clear()
        total = 0
        while store.has_pending():
            tokens, came = ingest(trainer.out, store, trainer.tokenizer, trainer.store)
            if not came:
                break
            before, trainer.store = trainer.store.train.tokens, tokens
            trainer.batches.grow(tokens.train)
            trainer.saving.text_grew()
            total += came
            trainer.tell({"event": "queue", "step": trainer.progress.step, "documents": came,
                          "tokens": tokens.train.tokens - before, "waiting": False})  # fmt: skip
        return total

    def _plan(self) -> None:
        """Passes that have not begun are listed anew, with all documents that lack epochs."""
        trainer, store = self.trainer, self.store
        p, batches = trainer.progress, trainer.batches
        batches.close(p.sequences)
        documents = batches.split.documents
        epochs = np.zeros(documents, np.int64)
        for number in range(batches.passes or 0):
            epochs[np.unique(batches.documents(number))] += 1
        weights = np.zeros(documents, np.int64)
        for place, weight, _ in store.lacking():
            weights[place] = weight
        lacking = np.where(weights > 0, self.epochs - epochs, 0)
        while lacking.max(initial=0) > 0:
            now = np.flatnonzero(lacking > 0)
            times = int(lacking[now].min())
            batches.append_pass(np.repeat(now, weights[now]), times)
            lacking -= times
        self.aim()

    def aim(self) -> None:
        """The course leads to the end of the stream; a new one, once the last has come there."""
        trainer, p = self.trainer, self.trainer.progress
        per = trainer.recipe.sequences
        steps = -(-self.left // per) if self.flush else self.left // per
        if steps == 0:
            if 0 < p.step < p.course.steps:
                p.course = replace(p.course, steps=p.step)
            return
        end = p.step + steps
        if p.step >= p.course.steps:
            p.course = Course(end, p.step)
            early.go_on(trainer)
        elif p.course.steps != end:
            p.course = p.course.moved(p.step, end)

    def _tell_waiting(self, now: bool) -> None:
        if now and self.lasting and not self._waiting:
            trainer = self.trainer
            trainer.tell({"event": "queue", "step": trainer.progress.step, "documents": 0,
                               "tokens": 0, "waiting": True})  # fmt: skip
        self._waiting = now
