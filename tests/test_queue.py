"""The message queue in one process: what it promises, and misuse."""

from __future__ import annotations

import signal
import threading
from collections import deque
from typing import Any

import pytest
from conftest import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from queue_case import drain, memory_for, tickets, watchdog

from crystalline._queue import MessageQueue, SphereMessage
from crystalline.errors import QueueClosed, UsageError

__all__ = ["watchdog"]


# --- Messages.


def test_a_message_keeps_what_it_was_made_with() -> None:
    m = SphereMessage(65535, 3, -5, 2**63 - 1, -(2**63), (1.5, -0.0, float("inf")), flags=255)
    assert (m.type, m.priority, m.sphere, m.flags) == (65535, 3, -5, 255)
    assert (m.ticket, m.step, m.values) == (2**63 - 1, -(2**63), (1.5, -0.0, float("inf"), 0.0))
    assert repr(SphereMessage(1)).startswith("SphereMessage(type=1, priority=1, sphere=-1,")
    queue = MessageQueue(2)
    assert queue.send(m)
    got = queue.receive()
    assert got == m and hash(got) == hash(m) and got is not m
    assert m != SphereMessage(65535) and m != 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("type", -1), ("type", 65536), ("priority", 4), ("priority", -1), ("flags", 256),
     ("sphere", 2**31), ("sphere", -(2**31) - 1)],
)  # fmt: skip
def test_a_number_that_does_not_fit_is_named(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}, but must be"):
        SphereMessage(**{"type": 1, name: value})


def test_a_number_beyond_64_bits_is_refused() -> None:
    for name in ("type", "ticket", "step"):
        with pytest.raises(OverflowError):
            SphereMessage(**{"type": 1, name: 2**63})


def test_more_than_four_values_are_refused() -> None:
    with pytest.raises(UsageError, match="5 values"):
        SphereMessage(1, values=(1, 2, 3, 4, 5))


# --- One thread.


def test_the_most_urgent_comes_first_and_each_priority_in_order() -> None:
    queue = MessageQueue(8)
    for ticket in range(16):
        assert queue.send(SphereMessage(1, ticket * 7 % 4, ticket=ticket))
    assert len(queue) == 16
    got = [(m.priority, m.ticket) for m in drain(queue)]
    assert got == sorted(got) and len(got) == 16


def test_a_full_priority_drops_and_counts() -> None:
    queue = MessageQueue(2)
    sent = [queue.send(SphereMessage(1, 2, ticket=i)) for i in range(4)]
    assert sent == [True, True, False, False]
    assert queue.send(SphereMessage(1, 3)), "another priority has room of its own"
    assert not queue.send_wait(SphereMessage(1, 2), timeout=0.15)
    assert queue.counters() == {
        "sent": 3, "received": 0, "dropped": 3, "skipped": 0, "lost": 0, "depth": (0, 0, 2, 1),
    }  # fmt: skip
    assert tickets(queue) == [0, 1, 0]
    assert queue.counters()["received"] == 3 and len(queue) == 0


def test_waiting_ends_with_the_time_given() -> None:
    queue = MessageQueue(2)
    for timeout in (0.0, 0.001, 0.15):
        assert queue.receive_wait(timeout) is None


class Model(RuleBasedStateMachine):
    """A queue, and four deques that do the same."""

    @initialize(bits=st.integers(1, 3))
    def make(self, bits: int) -> None:
        self.queue = MessageQueue(2**bits)
        self.model: list[deque[int]] = [deque() for _ in range(4)]
        self.sent = self.received = self.dropped = 0
        self.closed = False

    @rule(priority=st.integers(0, 3), many=st.integers(1, 5))
    def send(self, priority: int, many: int) -> None:
        for _ in range(many):
            message = SphereMessage(1, priority, ticket=self.sent)
            if self.closed:
                with pytest.raises(QueueClosed):
                    self.queue.send(message)
                continue
            room = len(self.model[priority]) < self.queue.capacity
            assert self.queue.send(message) == room
            if room:
                self.model[priority].append(self.sent)
                self.sent += 1
            else:
                self.dropped += 1

    @rule(many=st.integers(1, 5))
    def receive(self, many: int) -> None:
        for _ in range(many):
            ring = next((r for r in self.model if r), None)
            if ring is None and self.closed:
                with pytest.raises(QueueClosed):
                    self.queue.receive()
                continue
            got = self.queue.receive()
            assert (got and got.ticket) == (ring.popleft() if ring else None)
            self.received += got is not None

    @precondition(lambda self: self.sent > 9)
    @rule()
    def close(self) -> None:
        self.queue.close()
        self.closed = True

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.queue.counters() == {
            "sent": self.sent, "received": self.received, "dropped": self.dropped, "skipped": 0,
            "lost": 0, "depth": tuple(map(len, self.model)),
        }  # fmt: skip
        assert len(self.queue) == sum(map(len, self.model))
        assert self.queue.closed == self.closed


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=examples(60), deadline=None)


# --- Several threads.


def collect(queue: MessageQueue, into: list[Any]) -> None:
    try:
        while True:
            into.append(queue.receive_wait(None))
    except QueueClosed:
        into.append("closed")


def test_threads_lose_nothing_and_keep_each_senders_order() -> None:
    queue, n = MessageQueue(4), 3000
    got: list[list[Any]] = [[] for _ in range(3)]
    receivers = [threading.Thread(target=collect, args=(queue, g)) for g in got]

    def produce(sphere: int) -> None:
        for i in range(n):
            assert queue.send_wait(SphereMessage(1, sphere % 4, sphere, i), timeout=None)

    senders = [threading.Thread(target=produce, args=(s,)) for s in range(5)]
    for thread in receivers + senders:
        thread.start()
    for thread in senders:
        thread.join()
    queue.close()
    for thread in receivers:
        thread.join()
    seen: list[tuple[int, int]] = []
    for g in got:
        assert g.pop() == "closed"
        for sphere in range(5):
            mine = [m.ticket for m in g if m.sphere == sphere]
            assert mine == sorted(mine)
        seen += [(m.sphere, m.ticket) for m in g]
    assert sorted(seen) == [(s, i) for s in range(5) for i in range(n)]


def test_a_sender_waits_for_room() -> None:
    queue = MessageQueue(2)
    queue.send(SphereMessage(1, ticket=0))
    queue.send(SphereMessage(1, ticket=1))
    sender = threading.Thread(
        target=lambda: queue.send_wait(SphereMessage(1, ticket=2), timeout=None), daemon=True
    )
    sender.start()
    sender.join(0.15)
    assert sender.is_alive()
    assert queue.receive().ticket == 0  # type: ignore[union-attr]
    sender.join()
    assert tickets(queue) == [1, 2]
    assert queue.counters()["dropped"] == 0


def test_closing_wakes_everybody_and_leaves_what_is_inside() -> None:
    empty, full = MessageQueue(2), MessageQueue(2)
    assert full.send(SphereMessage(1, ticket=0)) and full.send(SphereMessage(1, ticket=1))
    got: list[list[Any]] = [[] for _ in range(4)]
    refused: list[str] = []

    def send() -> None:
        try:
            full.send_wait(SphereMessage(1), timeout=None)
        except QueueClosed:
            refused.append("closed")

    waiting = [threading.Thread(target=collect, args=(empty, g)) for g in got]
    waiting += [threading.Thread(target=send) for _ in range(3)]
    for thread in waiting:
        thread.start()
    waiting[0].join(0.05)
    assert all(thread.is_alive() for thread in waiting)
    empty.close()
    full.close()
    for thread in waiting:
        thread.join()
    assert got == [["closed"]] * 4 and refused == ["closed"] * 3
    left: list[Any] = []
    collect(full, left)
    assert [m.ticket for m in left[:-1]] == [0, 1]
    for queue in (empty, full):
        with pytest.raises(QueueClosed):
            queue.receive()
        with pytest.raises(QueueClosed):
            queue.send(SphereMessage(1))


class Rang(Exception):
    """What the handler of the alarm raises."""


@pytest.mark.parametrize("full", [False, True])
def test_a_signal_ends_a_wait(full: bool) -> None:
    queue = MessageQueue(2)
    while full and queue.send(SphereMessage(1)):
        pass

    def ring(number: int, frame: object) -> None:
        raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Rang):
            queue.send_wait(SphereMessage(1), timeout=None) if full else queue.receive_wait(None)
    finally:
        signal.signal(signal.SIGALRM, before)


# --- Misuse.


@pytest.mark.parametrize("capacity", [-2, 0, 1, 3, 1000, 2**25, 2**70])
def test_a_capacity_that_is_no_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises(UsageError, match="must be a power of two"):
        MessageQueue(capacity)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_timeout_below_zero_is_refused(timeout: float) -> None:
    queue = MessageQueue(2)
    with pytest.raises(UsageError, match="timeout is"):
        queue.receive_wait(timeout)
    with pytest.raises(UsageError, match="timeout is"):
        queue.send_wait(SphereMessage(1), timeout=timeout)


def test_what_is_no_message_is_refused() -> None:
    queue: Any = MessageQueue(2)
    for wrong in (None, 3, "message"):
        with pytest.raises(TypeError):
            queue.send(wrong)
    with pytest.raises(TypeError):
        queue.receive_wait("soon")


def test_a_buffer_that_does_not_do_is_refused() -> None:
    memory = memory_for(4)
    with pytest.raises(UsageError, match="needs"):
        MessageQueue(1024, buffer=memory)
    with pytest.raises(UsageError, match="64 bytes"):
        MessageQueue(2, buffer=memory[8:])
    with pytest.raises((ValueError, BufferError)):
        MessageQueue(2, buffer=bytes(100000))
    with pytest.raises(UsageError, match="without a buffer"):
        MessageQueue(4, create=False)
    MessageQueue(4, buffer=memory)
    assert MessageQueue(buffer=memory, create=False).capacity == 4
    with pytest.raises(UsageError, match="capacity is 8, but the queue was made with 4"):
        MessageQueue(8, buffer=memory, create=False)
