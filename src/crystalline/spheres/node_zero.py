"""Node Zero: the control thread of a training, and the handle by which others command it.

    INITIALIZING --START--> RUNNING <--PAUSE, RESUME--> PAUSED
          any of them --STOP, or the end--> STOPPING --> STOPPED
          any of them --an exception--> FAILED

The training's steps run on this thread, so a command is looked at between two steps and at no other
moment; the step is noted beside it, and a training told the same commands at the same steps ends
in the same bits.  (Inside a parallel region the thread lends itself to the team as its thread 0: a
thread of its own that only waited would cost every region a hand-over.)

Whatever happens, the thread ends in STOPPED or FAILED, and everybody who waits for it, or for an
answer, is woken.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import os
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from enum import StrEnum
from typing import Any

from crystalline._queue import MessageQueue, SphereMessage
from crystalline.errors import QueueClosed, UsageError
from crystalline.spheres.driver import Command, Driver
from crystalline.spheres.messages import ALL_SPHERES, NORMAL, NOTICE, URGENT, MessageType, Setting

INBOX = 256  # commands under way; so many are obeyed between two steps, at most
SIGNAL_SECONDS = 0.1  # a signal that another thread got is seen after so long


class State(StrEnum):
    """Where a training stands."""

    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


REPLAYED = {MessageType[name] for name in ("CHECKPOINT", "SET", "SPAWN", "TERMINATE", "REBALANCE")}
RECORDED = REPLAYED | {MessageType.PAUSE, MessageType.RESUME, MessageType.STOP}


class NodeZero:
    """The control thread of one training, which ``start`` starts; each serves one run.

    The methods named after commands wait until the command took effect and return the step it was;
    they raise UsageError when it is refused or the training is over, and the training's own error
    when that has failed.  Called on the control thread itself, as in an ``on_event``, they only
    send.  A program that ends while the training goes on stops it, after a checkpoint.
    """

    def __init__(self, driver: Driver, replay: Sequence[Command] = ()) -> None:
        self._driver = driver
        self._replay = [c for c in replay if MessageType[c["command"]] in REPLAYED]
        self._inbox = MessageQueue(INBOX)
        self._subscribers: list[MessageQueue] = []
        self._tickets: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._done = threading.Event()
        self._abort = self._started = False
        self._process = os.getpid()
        self.state = State.INITIALIZING
        self.error: BaseException | None = None
        self.traceback = ""
        # A daemon, so that a program can end; at its end it is stopped properly, by _at_exit.
        self._thread = threading.Thread(target=self._run, name="node-zero", daemon=True)

    # --- the handle: called from any thread -------------------------------------------------------

    def start(self) -> None:
        """Starts the thread and lets it run.  UsageError when it was started before."""
        if self._started:
            raise UsageError(f"this handle was started before and is {self.state}; make another")
        self._started = True
        atexit.register(self._at_exit)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no room for a thread
            self._failed(error)
            self._end()
            raise
        self._send(MessageType.START)

    def pause(self) -> int:
        """Stops after the step at hand until ``resume``."""
        return int(self._ask(MessageType.PAUSE))

    def resume(self) -> int:
        """Goes on after ``pause``."""
        return int(self._ask(MessageType.RESUME))

    def stop(self) -> int:
        """Ends the training after the step at hand, with a checkpoint.  It overtakes commands that
        still wait, which are refused."""
        return int(self._ask(MessageType.STOP, priority=URGENT))

    def checkpoint(self) -> int:
        """Writes a checkpoint after the step at hand."""
        return int(self._ask(MessageType.CHECKPOINT))

    def set(self, **settings: float) -> int:
        """Changes learning_rate (its peak), batch_size (sequences), epochs (of the whole training),
        evaluation_interval (steps; 0: evenly spread) or seq_len (tokens, up to the model's); adds
        layers (how many there shall be)."""
        step, asked = 0, list[tuple[float, float]]()
        for name, value in settings.items():
            if name.upper() not in Setting.__members__:
                known = f"choose among {', '.join(Setting.__members__).lower()}"
                raise UsageError(f"set: {name} cannot be set; {known}")
            try:
                asked.append((float(Setting[name.upper()]), float(value)))
            except (TypeError, ValueError, OverflowError):
                raise UsageError(f"set: {name} is {value!r:.40}, but must be a number") from None
        for values in asked:
            step = int(self._ask(MessageType.SET, values=values))
        return step

    def spawn(self, sphere: int = ALL_SPHERES) -> int:
        """Gives a sphere, or all, 12 children for each of its leaves."""
        return int(self._ask(MessageType.SPAWN, sphere=sphere))

    def terminate(self, sphere: int = ALL_SPHERES) -> int:
        """Ends the lowest children of a sphere, or of all."""
        return int(self._ask(MessageType.TERMINATE, sphere=sphere))

    def rebalance(self) -> int:
        """Moves leaves between threads by the time they took."""
        return int(self._ask(MessageType.REBALANCE))

    def stats(self) -> dict[str, Any]:
        """Counters of the spheres and threads, as of the step boundary."""
        return dict(self._ask(MessageType.STATS) or {})

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return os.getpid() == self._process and self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end, at most ``timeout`` seconds; whether it came.  Raises the error that
        ended a failed training."""
        self._here()
        if self._on_control_thread():
            raise UsageError("the control thread cannot wait for its own end; stop, or return")
        until = math.inf if timeout is None else time.monotonic() + timeout
        while not self._done.wait(max(0.0, min(SIGNAL_SECONDS, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
        if self._thread.ident is not None:  # else it could not be started
            self._thread.join()
        if self.error is not None:
            raise self.error
        return True

    def subscribe(self, capacity: int = 1024) -> MessageQueue:
        """A queue that gets what happens from now on; what does not fit is dropped, and counted.
        Who closes it hears no more."""
        self._alone()
        queue = MessageQueue(capacity)
        self._subscribers.append(queue)
        if self._done.is_set():
            queue.close()
        return queue

    def request_stop(self) -> None:
        """Asks for the end without waiting; may be called in a signal handler."""
        self._send(MessageType.STOP, priority=URGENT, timeout=0.0)  # no room: many have asked

    def request_checkpoint(self) -> None:
        """Asks for a checkpoint without waiting; may be called in a signal handler."""
        self._send(MessageType.CHECKPOINT, timeout=0.0)

    @property
    def aborted(self) -> bool:
        """Whether somebody no longer waits for a checkpoint."""
        return self._abort

    def abort(self) -> None:
        """Ends the training after the step at hand, without a checkpoint, and waits for that."""
        self._here()
        self._abort = True
        self.request_stop()
        while not self._on_control_thread() and not self._done.wait(SIGNAL_SECONDS):
            pass

    def _alone(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                f"this training runs in process {self._process}; a forked copy cannot command it"
            )

    def _here(self) -> None:
        self._alone()
        if not self._started:
            raise UsageError("the training has not been started; nobody would answer")

    def _on_control_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def _ask(
        self, kind: MessageType, *, priority: int = NORMAL, sphere: int = ALL_SPHERES,
        values: Sequence[float] = (),
    ) -> Any:  # fmt: skip
        self._here()
        timeout = 0.0 if self._on_control_thread() else None  # it cannot wait for itself
        answer = self._send(kind, priority=priority, sphere=sphere, values=values, timeout=timeout)
        if self._on_control_thread() and not answer.done():
            return 0
        return answer.result()

    def _send(
        self, kind: MessageType, *, priority: int = NORMAL, sphere: int = ALL_SPHERES,
        values: Sequence[float] = (), timeout: float | None = None,
    ) -> Future[Any]:  # fmt: skip
        number, answer = next(self._numbers), Future[Any]()
        message = SphereMessage(kind, priority, sphere, number, values=values)
        self._tickets[number] = answer
        try:
            taken = self._inbox.send_wait(message, timeout=timeout)
        except QueueClosed:
            taken = True
            self._refuse_all()
        # Without a ticket it has been refused meanwhile, because the training is over.
        if not taken and self._tickets.pop(number, None) is not None:
            answer.set_exception(UsageError(f"{kind.name}: too many commands are under way"))
        return answer

    def _refuse_all(self) -> None:
        """The training is over: nobody waits for an answer any more.  Any thread may be here."""
        with contextlib.suppress(KeyError):  # empty, perhaps by another's doing
            while True:
                _, answer = self._tickets.popitem()
                reason = self.error or UsageError(f"the training is over ({self.state})")
                answer.set_exception(reason)

    def _at_exit(self) -> None:
        if os.getpid() == self._process and self._thread.is_alive():
            self.request_stop()
            self._thread.join()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._drive()
        except BaseException as error:  # whatever it is, those who wait must hear of it
            self._failed(error)
        finally:
            self._end()

    def _failed(self, error: BaseException) -> None:
        """The first error is the one to tell; without memory it is told without its traceback."""
        if self.error is None:
            self.error = error
            with contextlib.suppress(Exception):
                self.traceback = "".join(traceback.format_exception(error))

    def _drive(self) -> None:
        driver = self._driver
        driver.begin()
        while self.state is State.INITIALIZING:
            self._obey(self._inbox.receive_wait(timeout=None))
        going = True
        while going and self.state is State.RUNNING:
            self._at_boundary()
            if self.state is State.RUNNING:
                going = driver.advance(self._tell)
        self.state = State.STOPPING
        if not self._abort:
            driver.finish()

    def _at_boundary(self) -> None:
        """Obeys what is to be replayed here and what has arrived; while paused, waits for more."""
        step = self._driver.step_number
        while self._replay and self._replay[0]["step"] <= step:
            c = self._replay.pop(0)
            kind = MessageType[c["command"]]
            self._obey(SphereMessage(kind, sphere=c["sphere"], values=c["values"]))
        left = INBOX  # who never tires of sending must not keep the next step from its turn
        while self.state is State.PAUSED or (self.state is State.RUNNING and left > 0):
            paused, left = self.state is State.PAUSED, left - 1
            message = self._inbox.receive_wait(timeout=None if paused else 0.0)
            if message is None:
                return
            self._obey(message)

    def _obey(self, message: SphereMessage | None) -> None:
        if message is None:
            return
        kind, answer = MessageType(message.type), self._tickets.pop(message.ticket, None)
        step = self._driver.step_number
        try:
            result = self._carry_out(kind, message)
            if kind in RECORDED:
                values = list(message.values)
                self._driver.record(
                    Command(step=step, command=kind.name, sphere=message.sphere, values=values)
                )
        except UsageError as refused:
            if answer is not None:
                answer.set_exception(refused)
            elif kind is MessageType.SET:  # replayed: then it is not the same training
                raise
            return
        except BaseException as error:
            if answer is not None:
                answer.set_exception(error)
            raise
        if answer is not None:
            answer.set_result(result if kind is MessageType.STATS else step)

    def _carry_out(self, kind: MessageType, message: SphereMessage) -> Any:
        if kind is MessageType.START:
            self.state = State.RUNNING
        elif kind is MessageType.STOP:
            self.state = State.STOPPING
        elif kind is MessageType.PAUSE:
            self._change_pause(State.RUNNING, State.PAUSED)
        elif kind is MessageType.RESUME:
            self._change_pause(State.PAUSED, State.RUNNING)
        else:
            return self._driver.perform(message)
        return None

    def _change_pause(self, before: State, after: State) -> None:
        if self.state not in (before, after):
            raise UsageError(f"the training is {self.state}; it cannot become {after}")
        if self.state is not before:
            return
        self.state = after  # first: what is shown of it is the new state
        try:
            self._driver.paused(after is State.PAUSED)
        except BaseException:
            self.state = before  # who is told that it was refused must find it so
            raise

    def _tell(self, message: SphereMessage) -> None:
        for queue in list(self._subscribers):
            try:
                queue.send(message)
            except QueueClosed:  # by the subscriber
                self._subscribers.remove(queue)

    def _end(self) -> None:
        """Whatever goes wrong here too, those who wait are woken."""
        try:
            self._driver.close()
        except BaseException as error:
            self._failed(error)
        self.state = State.FAILED if self.error is not None else State.STOPPED
        try:
            step = self._driver.step_number
            if self.error is not None:
                self._tell(SphereMessage(MessageType.ERROR, priority=URGENT, step=step))
            self._tell(SphereMessage(MessageType.SHUTDOWN, priority=NOTICE, step=step))
        finally:
            self._inbox.close()
            self._refuse_all()
            atexit.unregister(self._at_exit)
            self._done.set()
            for queue in self._subscribers:
                queue.close()
