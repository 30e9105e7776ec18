"""Node Zero's states: each command in each, many at once, and at the moment of the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import examples
from fake import COMMANDS, OVER, Fake, ask_until_refused, raising, started
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from watch import eventually, nothing_leaks, watchdog

from crystalline.errors import UsageError
from crystalline.spheres.node_zero import INBOX, NodeZero, State


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(120), nothing_leaks():
        yield


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
    if name != "stats":
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
        child = forked(lambda: COMMANDS[name](node))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
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


# --- any commands in any order --------------------------------------------------------------------


class AnyCommands(RuleBasedStateMachine):
    """Node Zero against a model of its states."""

    @initialize(steps=st.sampled_from([0, 1, 50, 10**9]))
    def begin(self, steps: int) -> None:
        self.node, self.fake = started(steps)
        eventually(lambda: self.node.state is not State.INITIALIZING)
        self.endless, self.paused, self.over = steps == 10**9, False, False
        self.said: list[str] = []

    @rule(name=st.sampled_from(sorted(COMMANDS)))
    def command(self, name: str) -> None:
        try:
            answer = COMMANDS[name](self.node)
        except UsageError as error:
            assert OVER in str(error) and (self.over or not self.endless)
            self.over = True
            return
        assert not self.over
        step = answer["step"] if name == "stats" else answer
        held = self.paused and name != "resume"
        assert self.fake.step == step if held else self.fake.step >= step
        if name != "stats":
            self.said.append(name.upper())
        self.over = name == "stop"
        self.paused = not self.over and (name == "pause" or (self.paused and name != "resume"))

    @invariant()
    def as_the_model(self) -> None:
        if self.over:
            assert self.node.wait(60) and self.node.state is State.STOPPED
        elif self.paused:
            assert self.node.state is State.PAUSED and not self.node.wait(0)
        elif self.endless:
            assert self.node.state is State.RUNNING

    def teardown(self) -> None:
        self.node.request_stop()
        assert self.node.wait(60) and not self.node._tickets
        said = [c["command"] for c in self.fake.commands]
        assert said[: len(self.said)] == self.said and set(said[len(self.said) :]) <= {"STOP"}


TestAnyCommands = AnyCommands.TestCase
TestAnyCommands.settings = settings(
    max_examples=examples(40), stateful_step_count=20, deadline=None
)
