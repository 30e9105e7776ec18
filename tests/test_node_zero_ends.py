"""Node Zero's ends: whatever fails, and wherever, everybody who waits is woken and told."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake import COMMANDS, Fake, raising, started
from watch import eventually, nothing_leaks, watchdog

from crystalline._queue import MessageQueue
from crystalline.errors import QueueClosed, UsageError
from crystalline.spheres.messages import MessageType
from crystalline.spheres.node_zero import INBOX, Command, NodeZero, State
from crystalline.training.signals import noted_signals


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(120), nothing_leaks():
        yield


# --- failures -------------------------------------------------------------------------------------

ERRORS = [OSError, KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit]
PLACES = ["begin", "advance", "finish", "close", "perform", "paused", "record"]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", PLACES)
def test_an_error_anywhere_wakes_everybody(place: str, error: type[BaseException]) -> None:
    gate = threading.Event()

    def broken() -> None:
        gate.wait()
        raise error("broken on purpose")

    node, fake = started(3 if place in ("finish", "close") else 10**9, **{place: broken})
    heard = node.subscribe(4096)
    commands = {"perform": ["checkpoint", "stats"], "paused": ["pause"], "record": ["spawn"]}
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(COMMANDS[name], node) for name in commands.get(place, ["stats"])]
        waiting = threads.submit(node.wait)
        time.sleep(0.01)
        gate.set()
    assert isinstance(waiting.exception(), error)
    outcomes = [answer.exception() for answer in asked]
    if place in commands:
        assert any(isinstance(outcome, error) for outcome in outcomes)
    assert node.state is State.FAILED and isinstance(node.error, error)
    assert "broken on purpose" in node.traceback and "in broken" in node.traceback
    assert fake.calls[-1] == "close" and not node._tickets
    types = told(heard)
    assert types.count(MessageType.ERROR) == 1 and types[0] is MessageType.ERROR
    assert types[-1] is MessageType.SHUTDOWN


def told(queue: MessageQueue) -> list[MessageType]:
    """What is in a queue that is closed."""
    types = []
    with pytest.raises(QueueClosed):
        while (message := queue.receive_wait(timeout=None)) is not None:
            types.append(MessageType(message.type))
    return types


def test_the_first_of_two_errors_is_told() -> None:
    node, _ = started(advance=raising(OSError), close=raising(ValueError))
    with pytest.raises(OSError):
        node.wait()
    assert "OSError" in node.traceback and "ValueError" not in node.traceback


def test_no_memory_for_a_traceback_is_still_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traceback.format_exception", lambda *_: raising(MemoryError)())
    node, _ = started(advance=raising(OSError))
    with pytest.raises(OSError):
        node.wait()
    assert node.state is State.FAILED and node.traceback == ""


# --- the control thread commands itself -----------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_the_control_thread_commands_without_waiting(name: str) -> None:
    box: list[NodeZero] = []
    answers: list[Any] = []

    def once() -> None:
        if box and not answers:
            answers.append(COMMANDS[name](box[0]))

    node, fake = started(advance=once)
    box.append(node)
    eventually(lambda: answers)
    assert answers == [{} if name == "stats" else 0]
    if name != "stats":
        eventually(lambda: any(c["command"] == name.upper() for c in fake.commands))
    node.request_stop()
    assert node.wait()


def test_the_control_thread_hears_that_there_is_no_room_and_never_waits_for_itself() -> None:
    said: list[str] = []

    def flood() -> None:
        for call in (node.wait, *[node.rebalance] * (INBOX + 1)):
            try:
                call()
            except UsageError as error:
                said.append(str(error))
        node.abort()

    fake = Fake(advance=flood)
    node = NodeZero(fake)
    node.start()
    assert node.wait()
    assert len(said) == 2 and "cannot wait for its own end" in said[0]
    assert said[1] == "REBALANCE: too many commands are under way"
    assert fake.calls == ["begin", "record", "close"]  # of the STOP, and no finish


# --- subscribers and replay -----------------------------------------------------------------------


def test_subscribers_hear_in_order_and_the_slow_lose_no_more_than_they_must() -> None:
    gate = threading.Event()
    node, _ = started(50, begin=gate.wait)
    queues = [node.subscribe(64), node.subscribe(8)]
    gate.set()
    assert node.wait()
    kinds = told(queues[0])
    assert kinds == [MessageType.BATCH] * 50 + [MessageType.SHUTDOWN]
    assert len(told(queues[1])) == 9  # eight, and the end, which has another priority
    assert queues[1].counters()["dropped"] == 42
    assert node.subscribe().closed


@pytest.mark.parametrize("end", [0, 5])
def test_a_subscriber_that_closes_its_queue_is_no_failure(end: int) -> None:
    gate = threading.Event()
    node, _ = started(end or 3, begin=gate.wait, **({} if end else {"close": gate.wait}))
    queue = node.subscribe()
    queue.close()
    gate.set()
    assert node.wait() and node.state is State.STOPPED


def test_replay_gives_each_command_at_its_step_and_refuses_nothing() -> None:
    said: list[Command] = [
        {"step": s, "command": c, "sphere": i, "values": [1.0, float(s), 0.0, 0.0]}
        for i, (s, c) in enumerate(
            [(0, "SET"), (3, "SPAWN"), (3, "PAUSE"), (3, "TERMINATE"), (9, "STOP"), (39, "SET")]
        )
    ]
    again = Fake(40)
    second = NodeZero(again, said)
    second.start()
    assert second.wait() and again.step == 40
    assert again.commands == [c for c in said if c["command"] not in ("PAUSE", "STOP")]


@pytest.mark.parametrize("command", ["SET", "SPAWN"])
def test_a_replayed_command_that_is_refused_matters_where_it_changes_the_result(
    command: str,
) -> None:
    wrong: Command = {"step": 4, "command": command, "sphere": 13, "values": []}
    fake = Fake(40)
    node = NodeZero(fake, [wrong])
    node.start()
    if command == "SET":
        with pytest.raises(UsageError, match="sphere is 13"):
            node.wait()
        assert node.state is State.FAILED and fake.step == 4
    else:
        assert node.wait() and fake.step == 40 and not fake.commands


# --- signals --------------------------------------------------------------------------------------


def test_a_signal_is_noted_a_second_interrupt_raises_and_handlers_come_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    told_of: list[int] = []
    with pytest.raises(KeyboardInterrupt), noted_signals(lambda: told_of.append(1)) as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert stop and stop.signal == signal.SIGHUP and told_of == [1, 1]
        signal.raise_signal(signal.SIGINT)
    assert before == [
        signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ]


def test_any_number_of_signals_never_waits_for_room() -> None:
    held, gate = threading.Event(), threading.Event()
    node, _ = started(advance=lambda: held.set() or gate.wait())
    held.wait()
    with noted_signals(node.request_stop):
        for _ in range(3 * INBOX):
            signal.raise_signal(signal.SIGTERM)
        gate.set()
        assert node.wait()
