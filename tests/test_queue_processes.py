"""The message queue between processes: fork, spawn, and processes killed at every point."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest
from queue_case import Shared, compile_driver, drain, shared_memory, watchdog

from crystalline._queue import MessageQueue, SphereMessage
from crystalline.errors import QueueAlone, QueueClosed

__all__ = ["watchdog"]
KILLS = int(os.environ.get("CRYSTALLINE_KILLS", "20")) * 4
FORK: Any = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver that stops in the middle of a send or a receive."""
    return compile_driver("queue_stuck", tmp_path_factory.mktemp("stuck"), "-O2")


@contextmanager
def stopped(
    program: Path, memory: Shared, step: str, priority: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has gone as far as `step` and no further."""
    command = [program, memory.path, step, str(priority)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as p:
        try:
            assert p.stdout is not None
            assert p.stdout.readline() == b"there\n"
            yield p
        finally:
            p.kill()


def start(work: Callable[..., None], *arguments: Any, context: Any = FORK) -> BaseProcess:
    process: BaseProcess = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


# --- Living processes.


def produce(name: str, sphere: int, count: int, all_here: Any) -> None:
    """Sends tickets 0, 1, 2, ... to the queue in the shared memory `name`."""
    memory = SharedMemory(name)
    queue = MessageQueue(buffer=memory.buf, create=False)
    all_here.wait()  # or one might be found dead before the other has joined
    for ticket in range(count):
        queue.send_wait(SphereMessage(1, sphere, sphere, ticket), timeout=None)
    del queue
    memory.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_send_to_each_other(method: str) -> None:
    context = multiprocessing.get_context(method)
    all_here = context.Barrier(2)
    memory = SharedMemory(create=True, size=MessageQueue.bytes_needed(8))
    try:
        queue = MessageQueue(8, buffer=memory.buf)
        senders = [
            start(produce, memory.name, s, 500, all_here, context=context) for s in range(2)
        ]
        got: list[list[int]] = [[], []]
        while sum(map(len, got)) < 1000:
            message = queue.receive_wait(60.0)
            assert message is not None
            got[message.sphere].append(message.ticket)
        for sender in senders:
            sender.join()
        assert got == [list(range(500))] * 2
    finally:
        del queue
        memory.close()
        memory.unlink()


def test_a_forked_child_uses_its_parents_queue_under_its_own_name() -> None:
    with shared_memory(4) as memory:
        queue = MessageQueue(4, buffer=memory.buf)
        queue.send(SphereMessage(1, ticket=1))
        child = start(lambda: queue.send(SphereMessage(1, ticket=2)))
        child.join()
        assert child.exitcode == 0
        assert [m.ticket for m in drain(queue)] == [1, 2]
        with pytest.raises(QueueAlone):  # the child is known, and dead
            queue.receive_wait(None)


def test_a_forked_child_has_a_private_queue_of_its_own() -> None:
    queue = MessageQueue(4)
    queue.send(SphereMessage(1, ticket=1))
    child = start(lambda: os._exit([m.ticket for m in drain(queue)] != [1]))
    child.join()
    assert child.exitcode == 0
    assert [m.ticket for m in drain(queue)] == [1]


def test_closing_wakes_other_processes() -> None:
    def wait(full: bool) -> None:
        try:
            queue.send_wait(SphereMessage(1, 0), timeout=None) if full else queue.receive_wait(None)
        except QueueClosed:
            os._exit(7)

    for full in (False, True):
        with shared_memory(2) as memory:
            queue = MessageQueue(2, buffer=memory.buf)
            while full and queue.send(SphereMessage(1, 0)):
                pass
            waiting = [start(wait, full) for _ in range(3)]
            time.sleep(0.05)
            queue.close()
            for process in waiting:
                process.join()
                assert process.exitcode == 7


def test_closing_amid_sends_loses_nothing_that_was_accepted() -> None:
    """A claim made while the queue is being closed is given back, and its sender told."""
    for n in range(20):
        with shared_memory(2**14) as memory:
            queue = MessageQueue(2**14, buffer=memory.buf)
            accepted = mmap.mmap(-1, 3 * 8)

            def send(number: int, queue: MessageQueue = queue, into: mmap.mmap = accepted) -> None:
                count = 0
                try:
                    while True:
                        count += queue.send(SphereMessage(1, 2, number, count))
                except QueueClosed:
                    struct.pack_into("=Q", into, 8 * number, count)

            senders = [start(send, number) for number in range(3)]
            got = 0
            with pytest.raises(QueueClosed):
                while True:
                    got += queue.receive() is not None
                    if got > 500 * n and not queue.closed:
                        queue.close()
            for sender in senders:
                sender.join()
            assert sum(struct.unpack("=3Q", accepted)) == got
            counters = queue.counters()
            assert counters["sent"] == counters["received"] == got and len(queue) == 0


# --- Dead processes.


@pytest.mark.parametrize("wait", [0.0, None])
@pytest.mark.parametrize("step", ["claim", "half"])
def test_the_claim_of_a_dead_sender_is_skipped(stuck: Path, step: str, wait: float | None) -> None:
    with shared_memory(4) as memory:
        queue = MessageQueue(4, buffer=memory.buf)
        queue.send(SphereMessage(1, ticket=0))
        with stopped(stuck, memory, step) as process:
            queue.send(SphereMessage(1, ticket=1))
            assert [m.ticket for m in drain(queue)] == [0], "the living are waited for"
            assert queue.receive_wait(0.15) is None
            process.send_signal(signal.SIGSTOP)
            assert queue.receive() is None, "also when they are stopped"
        assert queue.receive_wait(wait).ticket == 1  # type: ignore[union-attr]
        assert queue.counters() == {
            "sent": 2, "received": 2, "dropped": 0, "skipped": 1, "lost": 0, "depth": (0, 0, 0, 0),
        }  # fmt: skip
        for ticket in range(9):
            assert queue.send(SphereMessage(1, ticket=ticket))
            assert [m.ticket for m in drain(queue)] == [ticket]


@pytest.mark.parametrize("priorities", [(0, 3), (3, 0)])
def test_a_stopped_sender_does_not_hide_a_dead_one(
    stuck: Path, priorities: tuple[int, int]
) -> None:
    dead, living = priorities
    with shared_memory(4) as memory:
        queue = MessageQueue(4, buffer=memory.buf)
        with stopped(stuck, memory, "claim", living):
            with stopped(stuck, memory, "claim", dead):
                pass
            queue.send(SphereMessage(1, dead, ticket=7))
            message = queue.receive()
            assert message is not None and message.ticket == 7
            assert queue.counters()["skipped"] == 1


@pytest.mark.parametrize("wait", [0.0, None])
def test_the_slot_of_a_dead_receiver_is_taken_back(stuck: Path, wait: float | None) -> None:
    with shared_memory(4) as memory:
        queue = MessageQueue(4, buffer=memory.buf)
        for ticket in range(4):
            queue.send(SphereMessage(1, ticket=ticket))
        with stopped(stuck, memory, "read"):
            assert [m.ticket for m in drain(queue)] == [1, 2, 3]
            assert not queue.send(SphereMessage(1, ticket=4)), "its turn has come, and it lives"
        assert queue.send_wait(SphereMessage(1, ticket=5), timeout=wait)
        assert [m.ticket for m in drain(queue)] == [5]
        assert queue.counters() == {
            "sent": 5, "received": 4, "dropped": 1, "skipped": 0, "lost": 1, "depth": (0, 0, 0, 0),
        }  # fmt: skip


@pytest.mark.parametrize("step", ["sent", "taken"])
def test_what_a_process_finished_before_it_died_counts(stuck: Path, step: str) -> None:
    with shared_memory(2) as memory:
        queue = MessageQueue(2, buffer=memory.buf)
        if step == "taken":
            queue.send(SphereMessage(1, ticket=0))
        with stopped(stuck, memory, step):
            pass
        queue.send(SphereMessage(1, ticket=2))
        assert [m.ticket for m in drain(queue)] == ([77, 2] if step == "sent" else [2])
        counters = queue.counters()
        assert counters["sent"] == counters["received"] == 2
        assert counters["skipped"] == counters["lost"] == 0


def test_who_waits_among_the_dead_is_told(stuck: Path) -> None:
    with shared_memory(2) as memory:
        queue = MessageQueue(2, buffer=memory.buf)
        with stopped(stuck, memory, "claim") as process:
            assert queue.receive_wait(0.25) is None, "one other lives"
            process.kill()
            process.wait()
            with pytest.raises(QueueAlone):
                queue.receive_wait(None)
        while queue.send(SphereMessage(1)):
            pass
        with pytest.raises(QueueAlone):
            queue.send_wait(SphereMessage(1), timeout=None)
        assert len(drain(queue)) == 2


def test_who_waits_among_the_dead_is_told_also_when_signals_wake_it(stuck: Path) -> None:
    with shared_memory(2) as memory:
        queue = MessageQueue(2, buffer=memory.buf)
        with stopped(stuck, memory, "sent"):
            pass
        assert len(drain(queue)) == 1
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            with pytest.raises(QueueAlone):
                queue.receive_wait(20.0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_the_sixty_fifth_process_takes_the_place_and_the_slots_of_a_dead_one(stuck: Path) -> None:
    with shared_memory(64) as memory:
        queue = MessageQueue(64, buffer=memory.buf)
        for _ in range(63):  # each leaves its claim, and the next one's lies behind it
            with stopped(stuck, memory, "claim"):
                queue.send_wait(SphereMessage(1), timeout=0.0)
            if len(queue) > 40:
                drain(queue)
        before = queue.counters()["skipped"]
        with stopped(stuck, memory, "claim"):
            assert queue.counters()["skipped"] >= before
        drain(queue)
        assert queue.counters()["skipped"] == 64 and len(queue) == 0


def test_a_private_queue_forgets_the_claims_of_the_parents_threads(stuck: Path) -> None:
    assert subprocess.run([stuck, "fork"], timeout=60, check=False).returncode == 0


# --- Killed at random.


def test_senders_killed_at_random_leave_gaps_only_at_their_end() -> None:
    rng = random.Random(5)
    with shared_memory(256) as memory:
        queue = MessageQueue(256, buffer=memory.buf)

        def work(sphere: int) -> None:
            ticket = 0
            while True:
                if queue.send_wait(SphereMessage(1, sphere % 4, sphere, ticket), timeout=0.05):
                    ticket += 1

        working = {sphere: start(work, sphere) for sphere in range(3)}
        following: Counter[int] = Counter()

        def receive_until(deadline: float) -> None:
            while time.monotonic() < deadline:
                message = queue.receive_wait(0.02)
                if message is not None:
                    assert message.ticket == following[message.sphere], message
                    following[message.sphere] += 1

        for n in range(KILLS):
            receive_until(time.monotonic() + rng.random() * 0.02)
            sphere = rng.choice(sorted(working))
            working[sphere].kill()
            working.pop(sphere).join()
            working[n + 3] = start(work, n + 3)
        receive_until(time.monotonic() + 0.2)
        before, deadline = following.copy(), time.monotonic() + 30
        while not all(following[s] > before[s] for s in working):
            assert time.monotonic() < deadline, "the living go on"
            receive_until(time.monotonic() + 0.2)
        for process in working.values():
            process.kill()
            process.join()
        for message in drain(queue):
            assert message.ticket == following[message.sphere]
            following[message.sphere] += 1
        counters = queue.counters()
        print(f"{KILLS} kills, {following.total()} messages, {counters['skipped']} skipped")
        assert counters["received"] == following.total()


def test_receivers_killed_at_random_lose_at_most_one_message_each() -> None:
    rng, kills = random.Random(6), KILLS // 2
    with shared_memory(64) as memory, shared_memory(2**14) as marks:
        queue = MessageQueue(64, buffer=memory.buf)
        seen = marks.buf

        def work() -> None:
            while True:
                try:
                    message = queue.receive_wait(0.05)
                except QueueClosed:
                    os._exit(0)
                if message is not None:
                    seen[message.ticket] += 1  # each ticket has one receiver, so one writer

        working = [start(work) for _ in range(3)]
        ticket, last = 0, len(seen) - 1
        for _ in range(kills):
            until = time.monotonic() + rng.random() * 0.01
            while time.monotonic() < until and ticket < last:
                ticket += queue.send_wait(SphereMessage(1, 0, ticket=ticket), timeout=0.01)
            victim = working.pop(rng.randrange(3))
            victim.kill()
            victim.join()
            working.append(start(work))
        while ticket < last:
            ticket += queue.send_wait(SphereMessage(1, 0, ticket=ticket), timeout=1.0)
            if ticket > 2000 + 64 * kills:
                break
        queue.close()
        for process in working:
            process.join()
            assert process.exitcode == 0
        missing = [t for t in range(ticket) if seen[t] == 0]
        print(f"{kills} kills, {ticket} messages, {len(missing)} missing")
        assert max(seen[:ticket]) == 1, "nothing came twice"
        assert len(missing) <= kills
