"""Commands to a real training: what each changes, what is refused, what subscribers hear."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, prose
from test_training import fingerprint
from watch import eventually, nothing_leaks, watchdog

import crystalline
from crystalline.api import training
from crystalline.checkpoints.checkpoint import load_training
from crystalline.errors import QueueClosed, UsageError
from crystalline.spheres.live import LIVE, LiveTraining
from crystalline.spheres.messages import MessageType
from crystalline.spheres.node_zero import NodeZero, State
from crystalline.training.trainer import Trainer

MANY = 1_000_000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "prose.txt"
    path.write_text(prose(4000))
    crystalline.train(path, path.parent / "first", **TINY, steps=1, threads=2)
    return path


@pytest.fixture(autouse=True)
def watched(text: Path) -> Iterator[None]:
    with watchdog(120), nothing_leaks():
        yield


Events = list[dict[str, Any]]
Body = Callable[[Trainer, NodeZero, Events], None]


def trains(text: Path, out: Path, body: Body, **options: Any) -> Events:
    """Trains in the background while ``body`` commands; the events, when it is over."""
    events: Events = []
    said = {**TINY, "steps": MANY, "threads": 2, "on_event": events.append, **options}
    with training(text, out, **said) as trainer:
        body(trainer, trainer.start(), events)
    return events


def of(events: Events, kind: str) -> Events:
    """Those of one kind."""
    return [event for event in events if event["event"] == kind]


def test_the_learning_rate_changes_from_the_next_step_on(text: Path, tmp_path: Path) -> None:
    at = []

    def body(trainer: Trainer, node: NodeZero, _: Events) -> None:
        eventually(lambda: trainer.progress.step > 2)
        node.pause()
        before = trainer.recipe.lr
        at.append((node.set(learning_rate=before / 64), before))
        node.resume()
        eventually(lambda: trainer.progress.step > at[0][0] + 2)

    rates = {e["step"]: e["lr"] for e in of(trains(text, tmp_path / "m", body, steps=500), "step")}
    step, _ = at[0]
    assert rates[step + 1] < rates[step] / 32


@pytest.mark.parametrize("size", [1, 5, 29])
def test_the_batch_size_changes_and_the_epochs_stay(size: int, text: Path, tmp_path: Path) -> None:
    def body(trainer: Trainer, node: NodeZero, _: Events) -> None:
        eventually(lambda: trainer.progress.step > 2)
        node.pause()
        node.set(batch_size=size)
        assert trainer.recipe.batch_size == size == trainer.decoder.B
        left = trainer.batches.sequences_in(1.0) - trainer.progress.sequences
        assert trainer.progress.course.steps - trainer.progress.step == -(-left // size)
        node.resume()
        assert node.wait()
        assert trainer.batches.epoch_of(trainer.progress.sequences) >= 1

    events = trains(text, tmp_path / "m", body, steps=None, epochs=1.0)
    tokens = of(events, "step")[-2]["tokens"]
    assert tokens <= size * TINY["seq_len"] and events[-1]["event"] == "done"


def test_a_training_past_its_epochs_keeps_its_steps(text: Path, tmp_path: Path) -> None:
    """More steps were given on resuming than the epochs have: nothing to derive the end from."""
    out = tmp_path / "m"
    crystalline.train(text, out, **TINY, epochs=0.1, threads=2)
    done = load_training(out)[1]["progress"]["step"]
    with training(out=out, resume=True, steps=done + 9, threads=2) as trainer:
        node = trainer.start()
        node.pause()
        node.set(batch_size=3)
        assert trainer.progress.course.steps == done + 9
        node.resume()
        assert node.wait()
    del trainer, node
    assert load_training(out)[1]["progress"]["step"] == done + 9


def test_the_epochs_move_the_end(text: Path, tmp_path: Path) -> None:
    def body(trainer: Trainer, node: NodeZero, _: Events) -> None:
        node.set(epochs=0.7)
        assert node.wait()

    last = of(trains(text, tmp_path / "m", body), "step")[-1]
    rows = 0.5 / 91  # a part of an epoch ends at the nearest sequence, and 91 make one here
    assert abs(last["epoch"] - 0.7) <= rows and last["steps"] == last["step"]


def test_the_evaluation_interval(text: Path, tmp_path: Path) -> None:
    def body(trainer: Trainer, node: NodeZero, _: Events) -> None:
        step = node.set(evaluation_interval=4)
        eventually(lambda: trainer.progress.step > step + 20)

    steps = [e["step"] for e in of(trains(text, tmp_path / "m", body), "validation")]
    assert len(steps) >= 4 and all(step % 4 == 0 for step in steps)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"learning_rate": 0}, "learning_rate is 0, but must be above 0"),
        ({"learning_rate": -1}, "above 0"), ({"learning_rate": 11}, "at most 10"),
        ({"learning_rate": float("nan")}, "finite"), ({"epochs": float("inf")}, "finite"),
        ({"batch_size": 0}, "whole number from 1"), ({"batch_size": 2.5}, "whole number"),
        ({"batch_size": 1 << 21}, "whole number"), ({"batch_size": 1 << 20}, "choose a smaller"),
        ({"epochs": 0}, "above 0"), ({"epochs": 1e9}, "at most"),
        ({"epochs": 1e-9}, "are done; choose more"),
        ({"evaluation_interval": -1}, "whole number from 0"),
        ({"evaluation_interval": 0.5}, "whole number"), ({"dim": 8}, "cannot be set"),
        ({"epochs": "many"}, "must be a number"), ({"epochs": None}, "must be a number"),
        ({"epochs": 10**400}, "must be a number"),
        ({"learning_rate": 1e-4, "dim": 8}, "cannot be set"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_and_changes_nothing(
    settings: dict[str, Any], match: str, text: Path, tmp_path: Path
) -> None:
    def body(trainer: Trainer, node: NodeZero, _: Events) -> None:
        eventually(lambda: trainer.progress.step > 1)
        node.pause()
        before = trainer.recipe, trainer.progress.course, trainer.decoder, len(trainer.commands)
        with pytest.raises(UsageError, match=match) as refused:
            node.set(**settings)
        assert "\n" not in str(refused.value) and node.state is State.PAUSED
        after = trainer.recipe, trainer.progress.course, trainer.decoder, len(trainer.commands)
        assert before == after

    trains(text, tmp_path / "m", body)


def test_a_killed_training_goes_on_from_a_commanded_checkpoint(text: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "m", tmp_path / "whole"
    crystalline.train(text, whole, **TINY, steps=20, threads=2)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # saves, takes some more steps, and is killed in the pause
        try:
            with training(text, out, **TINY, steps=20, threads=2) as trainer:
                node = trainer.start()
                eventually(lambda: trainer.progress.step >= 5)
                saved = node.checkpoint()
                eventually(lambda: trainer.progress.step >= min(20, saved + 2))
                os.write(write, str(saved).encode())
                os.kill(os.getpid(), 9)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    saved = int(os.read(read, 10))
    os.close(read)
    os.close(write)
    if load_training(out)[1]["progress"]["step"] < 20:
        assert load_training(out)[1]["progress"]["step"] == saved
        crystalline.train(out=out, resume=True, threads=3)
    assert fingerprint(out) == fingerprint(whole)


def test_a_pause_takes_no_time_from_a_deadline(text: Path, tmp_path: Path) -> None:
    def body(trainer: Trainer, node: NodeZero, _: Events) -> None:
        before = trainer.pacing.deadline
        node.pause()
        paused = time.monotonic()
        time.sleep(0.5)
        waited = time.monotonic() - paused
        node.resume()
        assert before is not None and trainer.pacing.deadline is not None
        assert trainer.pacing.deadline - before >= waited
        node.stop()

    trains(text, tmp_path / "m", body, steps=None, minutes=0.2)


def test_what_subscribers_hear(text: Path, tmp_path: Path) -> None:
    """Every step's norm and loss, in order; the epochs; the weights' versions; the end, once."""
    heard: list[tuple[MessageType, int, tuple[float, ...]]] = []

    def body(trainer: Trainer, node: NodeZero, _: Events) -> None:
        queue = node.subscribe()
        first = node.pause()
        node.resume()
        node.wait()
        with pytest.raises(QueueClosed):
            while (m := queue.receive_wait(timeout=None)) is not None:
                if m.step > first or m.type == MessageType.SHUTDOWN:
                    heard.append((MessageType(m.type), m.step, m.values))

    events = trains(text, tmp_path / "m", body, steps=None, epochs=2.2, batch_size=40)
    steps = {e["step"]: e for e in of(events, "step")}
    told = {kind: [(s, v) for k, s, v in heard if k is kind] for kind in MessageType}
    for kind in (MessageType.GRADIENT, MessageType.BATCH):
        at = [step for step, _ in told[kind]]
        assert at == list(range(at[0], max(steps) + 1))
    for step, values in told[MessageType.BATCH]:
        e = steps[step]
        assert values[:3] == (e["loss"], e["tokens"], e["seconds"])
    for step, values in told[MessageType.GRADIENT]:
        assert values[:2] == (steps[step]["grad_norm"], steps[step]["lr"])
    for step, values in told[MessageType.EPOCH]:
        assert int(steps[step]["epoch"]) == values[0] == int(steps[step - 1]["epoch"]) + 1
    assert told[MessageType.EPOCH][-1][1][0] == 2
    versions = [values[0] for _, values in told[MessageType.WEIGHTS]]
    assert versions == sorted(set(versions))
    assert heard[-1][:2] == (MessageType.SHUTDOWN, max(steps)) and not told[MessageType.ERROR]


def test_the_board_tells_the_state_and_is_gone_at_the_end(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"

    def body(trainer: Trainer, node: NodeZero, _: Events) -> None:
        node.pause()
        with LiveTraining.attach(out) as live:
            assert live.alive and live.board()["state"] == "PAUSED"
            node.resume()
            assert live.board()["state"] == "RUNNING"
        assert (out / LIVE).exists()
        node.stop()
        node.wait()
        assert not (out / LIVE).exists()

    trains(text, out, body)
