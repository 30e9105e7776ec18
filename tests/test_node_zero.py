"""Node Zero, driving a training that is not one: every state, every refusal, every way to end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from watch import eventually, nothing_leaks, watchdog

from crystalline._queue import MessageQueue, SphereMessage
from crystalline.errors import QueueClosed, UsageError
from crystalline.signals import noted_signals
from crystalline.spheres.messages import MessageType
from crystalline.spheres.node_zero import INBOX, Command, NodeZero, State

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


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(120), nothing_leaks():
        yield


COMMANDS: dict[str, Callable[[NodeZero], Any]] = {
    "pause": NodeZero.pause, "resume": NodeZero.resume, "stop": NodeZero.stop,
    "checkpoint": NodeZero.checkpoint, "set": lambda node: node.set(learning_rate=1.0),
    "spawn": NodeZero.spawn, "terminate": NodeZero.terminate, "rebalance": NodeZero.rebalance,
    "stats": NodeZero.stats,
}  # fmt: skip
RECORDED = [name for name in COMMANDS if name != "stats"]


# --- states and answers ---------------------------------------------------------------------------


def test_from_the_first_step_to_the_last() -> None:
    node, fake = started(5)
    assert node.wait() and node.state is State.STOPPED and fake.step == 5
    assert fake.calls == ["begin", "finish", "close"] and not node.alive


@pytest.mark.parametrize("before", ["running", "paused"])
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_in_each_state_is_answered_with_its_step(before: str, name: str) -> None:
    node, fake = started()
    least = node.pause() if before == "paused" else fake.step
    answer = COMMANDS[name](node)
    step = answer["step"] if name == "stats" else answer
    assert least <= step <= fake.step
    if before == "paused":
        assert step == least
    if name in RECORDED:
        last = fake.commands[-1]
        assert (last["command"], last["step"]) == (name.upper(), step)
    if name in ("pause", "resume"):
        assert node.state is (State.PAUSED if name == "pause" else State.RUNNING)
    elif name == "stop":
        assert node.wait() and node.state is State.STOPPED
        return
    else:
        assert fake.performed[-1][0] == step
        assert node.state is (State.PAUSED if before == "paused" else State.RUNNING)
    node.stop()
    assert node.wait() and fake.calls[-2:] == ["finish", "close"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("when", ["before", "after", "failed", "fork"])
def test_commands_to_nobody_are_refused_in_one_line(name: str, when: str) -> None:
    node = NodeZero(Fake(3, finish=raising(OSError) if when == "failed" else lambda: None))
    what: tuple[type[BaseException], str] = (UsageError, "not been started")
    if when != "before":
        node.start()
    if when == "after":
        node.wait()
        what = UsageError, OVER
    if when == "failed":
        what = OSError, "broken on purpose"
        with pytest.raises(OSError):
            node.wait()
    if when == "fork":
        node.wait()
        status = os.waitpid(forked(lambda: COMMANDS[name](node)), 0)[1]
        assert os.waitstatus_to_exitcode(status) == 7
        return
    with pytest.raises(what[0], match=what[1]) as refused:
        COMMANDS[name](node)
    assert "\n" not in str(refused.value)


def forked(command: Callable[[], Any]) -> int:
    """A child that ends with 7 if it is told in one line that it cannot command."""
    child = os.fork()
    if child == 0:
        try:
            command()
        except UsageError as error:
            os._exit(7 if "forked copy" in str(error) and "\n" not in str(error) else 8)
        finally:
            os._exit(9)
    return child


@pytest.mark.parametrize("method", ["wait", "subscribe", "abort"])
def test_a_forked_child_neither_waits_nor_listens(method: str) -> None:
    node, _ = started()
    child = forked(getattr(node, method))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    node.stop()
    assert node.wait()


def test_a_handle_serves_one_run() -> None:
    node, _ = started(1)
    node.wait()
    with pytest.raises(UsageError, match="started before and is STOPPED"):
        node.start()
    with pytest.raises(UsageError, match="not been started"):
        NodeZero(Fake()).wait()


def test_no_thread_to_be_had_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    node = NodeZero(fake)
    monkeypatch.setattr(threading, "_start_new_thread", lambda *_: raising(RuntimeError)())
    with pytest.raises(RuntimeError, match="broken on purpose"):
        node.start()
    monkeypatch.undo()
    assert node.state is State.FAILED and fake.calls == ["close"]
    with pytest.raises(RuntimeError, match="broken on purpose"):
        node.wait()


def test_pausing_twice_is_pausing_once_and_nothing_moves_meanwhile() -> None:
    node, fake = started()
    step = node.pause()
    assert node.pause() == step == node.checkpoint()
    time.sleep(0.05)
    assert fake.step == step
    assert node.resume() == step
    eventually(lambda: fake.step > step)
    node.resume()
    node.stop()
    assert node.wait()
    assert [c for c in fake.calls if c in ("paused", "resumed")] == ["paused", "resumed"]


def test_a_refused_pause_leaves_it_running() -> None:
    node, fake = started(paused=raising(UsageError))
    with pytest.raises(UsageError, match="broken on purpose"):
        node.pause()
    step = fake.step
    eventually(lambda: fake.step > step)
    assert node.state is State.RUNNING and not fake.commands
    node.stop()
    assert node.wait()


@pytest.mark.parametrize("settings", [{"dropout": 1.0}, {"dim": 3}])
def test_what_cannot_be_set_is_named(settings: dict[str, float]) -> None:
    node, _ = started()
    with pytest.raises(UsageError, match="cannot be set; choose among learning_rate, "):
        node.set(**settings)
    with pytest.raises(UsageError, match="sphere is 13"):
        node.spawn(13)
    with pytest.raises(UsageError, match="sphere is"):
        node.spawn(1 << 40)
    assert not node._tickets
    node.stop()
    assert node.wait()


@pytest.mark.parametrize("timeout", [0, 0.001, 0.15, -1])
def test_wait_for_a_while(timeout: float) -> None:
    node, _ = started()
    assert node.wait(timeout) is False
    node.stop()
    assert node.wait(60) is True and node.wait(0) is True


# --- many at once, and the moment of the end ------------------------------------------------------


def test_commands_from_many_threads_are_each_answered_once() -> None:
    node, fake = started()

    def ask(i: int) -> int:
        return node.set(learning_rate=float(i)) if i % 2 else node.spawn(i % 12)

    with ThreadPoolExecutor(16) as threads:
        steps = list(threads.map(ask, range(600)))
    node.stop()
    assert node.wait()
    done = fake.commands[:-1]
    assert sorted(steps) == [c["step"] for c in done] and len(done) == 600
    said = {int(c["values"][1]): c["step"] for c in done if c["command"] == "SET"}
    assert said == {i: steps[i] for i in range(1, 600, 2)}


def test_who_never_tires_of_asking_does_not_stop_the_training() -> None:
    node, fake = started(200)
    asking = [threading.Thread(target=ask_until_refused, args=(node,)) for _ in range(6)]
    for thread in asking:
        thread.start()
    assert node.wait()
    for thread in asking:
        thread.join()
    assert fake.step == 200


def ask_until_refused(node: NodeZero) -> None:
    """Commands, until nobody answers."""
    try:
        while True:
            node.stats()
    except UsageError as error:
        assert OVER in str(error)


def test_more_messages_than_fit_between_two_steps_leave_the_step_its_turn() -> None:
    """A command whose carrying out brings the next one: without a limit no step would come."""
    fake = Fake(3)
    node = NodeZero(fake)
    fake.hooks["perform"] = lambda: fake.step < 3 and node.rebalance()
    node.start()
    node.rebalance()
    assert node.wait()
    assert fake.step == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_at_the_moment_of_the_end_is_answered_or_refused(name: str) -> None:
    outcomes = set()
    for attempt in range(60):
        node, _ = started(1 + attempt % 7)
        with ThreadPoolExecutor(4) as threads:
            answers = [threads.submit(COMMANDS[name], node) for _ in range(4)]
            if name == "pause":  # one that got through would wait for ever, as it should
                threads.submit(COMMANDS["stop"], node)
            node.request_stop()
        assert node.wait() and not node._tickets
        for answer in answers:
            error = answer.exception()
            assert error is None or (isinstance(error, UsageError) and len(str(error)) < 100)
            outcomes.add(error is None)
    assert False in outcomes


def test_many_refused_at_once_do_not_trip_over_each_other() -> None:
    for _ in range(100):
        node, _ = started(1)
        threads = [threading.Thread(target=ask_until_refused, args=(node,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert node.wait()
        for thread in threads:
            thread.join()
        assert node.state is State.STOPPED


@pytest.mark.parametrize("end", ["stop", "fail"])
def test_a_full_inbox_holds_senders_until_the_end_and_no_longer(end: str) -> None:
    held, gate = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait()
        if end == "fail":
            raise OSError("broken on purpose")

    node, _ = started(advance=hold)
    held.wait()
    with ThreadPoolExecutor(INBOX + 20) as threads:
        answers = [threads.submit(node.rebalance) for _ in range(INBOX + 20)]
        eventually(lambda: len(node._tickets) >= INBOX + 20, 30)
        node.request_stop()
        gate.set()
    errors = [answer.exception() for answer in answers]
    assert {type(error) for error in errors} == {OSError if end == "fail" else UsageError}
    assert (node.error is None) == (end == "stop")


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
        while (message := queue.receive_wait()) is not None:
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
    wrong: Command = {"step": 4, "command": "SPAWN", "sphere": 13, "values": []}
    third = NodeZero(Fake(40), [wrong])
    third.start()
    with pytest.raises(UsageError, match="sphere is 13"):
        third.wait()
    assert third.state is State.FAILED


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
    gate = threading.Event()
    node, _ = started(advance=gate.wait)
    with noted_signals(node.request_stop):
        for _ in range(3 * INBOX):
            signal.raise_signal(signal.SIGTERM)
        gate.set()
        assert node.wait()
