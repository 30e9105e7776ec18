"""Trainings again and again, stopped at every moment, in every kind of process: none hangs, none
leaks, none loses a checkpoint.

CRYSTALLINE_SOAK=1 (`make soak`) is the long version.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soak_child
from conftest import TINY, prose
from test_training import fingerprint
from watch import eventually, held, more, nothing_leaks, watchdog

import crystalline
from crystalline.api import training
from crystalline.checkpoints.checkpoint import load_training
from crystalline.errors import UsageError
from crystalline.spheres.live import LIVE
from crystalline.spheres.node_zero import NodeZero, State
from crystalline.training.trainer import Trainer

LONG = os.environ.get("CRYSTALLINE_SOAK") == "1"
EPOCHS = 1000 if LONG else 40
CYCLES = 300 if LONG else 12
STOPS = 500 if LONG else 25
REPEATS = 10 if LONG else 1  # of each process that is made, and of each that is signalled
MANY = 1_000_000
HURRY = 3600 if LONG else 120  # seconds until a test counts as hung


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("soak") / "prose.txt"
    path.write_text(prose(4000))
    soak_child.twin(str(path), str(path.parent / "first"), 1)  # starts the libraries' threads
    return path


@pytest.fixture(autouse=True)
def watched(text: Path) -> Iterator[None]:
    with watchdog(HURRY), nothing_leaks():
        yield


def saved(out: Path) -> int:
    """The step of the checkpoint, which is whole."""
    fingerprint(out)
    return int(load_training(out)[1]["progress"]["step"])


def gone(out: Path) -> bool:
    """Nothing is shown any more."""
    return not (out / LIVE).exists()


# --- in one process -------------------------------------------------------------------------------


def test_a_thousand_epochs_in_one_training(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(prose(300))
    epochs: list[float] = []
    sizes = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            epochs.append(event["epoch"])
            if event["step"] in (50, 51) or event["step"] == event["steps"] - 1:
                sizes.append(held())

    out = tmp_path / "m"
    options = TINY | {"epochs": EPOCHS, "threads": 2, "on_event": on_event}
    crystalline.train(path, out, **options)
    assert epochs[-1] >= EPOCHS > epochs[-2] and gone(out)
    assert not more(sizes[-1], sizes[0])
    print(f"{EPOCHS} epochs in {len(epochs)} steps")


def cycle(trainer: Trainer, rng: random.Random) -> None:
    """Start, pause, resume, stop, with random moments between."""
    node = trainer.start()
    for command in (node.pause, node.resume, node.stop):
        time.sleep(rng.random() * 0.01)
        command()
    assert node.wait() and node.state is State.STOPPED and gone(trainer.out)


@pytest.mark.parametrize("kind", ["one", "new"])
def test_started_paused_resumed_stopped(kind: str, text: Path, tmp_path: Path) -> None:
    rng, out, options = random.Random(7), tmp_path / "m", TINY | {"threads": 2, "steps": MANY}
    if kind == "one":
        with training(text, out, **options) as trainer:
            cycle(trainer, rng)
            before = held()
            for _ in range(CYCLES - 1):
                cycle(trainer, rng)
            assert not more(held(), before)
            step = trainer.progress.step
        del trainer
    else:
        step = 0
        for i in range(CYCLES):
            first = {"resume": True} if i else {"paths": text, **options}
            step = cycle_of_new(out, rng, **first)
    assert saved(out) == step
    print(f"{CYCLES} cycles of {kind} trainer, {step} steps")


def cycle_of_new(out: Path, rng: random.Random, **options: Any) -> int:
    """A cycle of a trainer made for it; its last step."""
    with training(out=out, **options) as trainer:
        cycle(trainer, rng)
        return trainer.progress.step


@pytest.mark.parametrize("how", ["stop", "request_stop", "abort"])
def test_stopped_at_any_moment(how: str, text: Path, tmp_path: Path) -> None:
    rng, counts = random.Random(11), dict.fromkeys(("before", "during", "end"), 0)
    once = tmp_path / "once"
    stopped_after(text, once, how, 1e9, steps=2)  # imports, first use
    for i in range(STOPS if how == "stop" else STOPS // 5):
        steps = rng.choice([2, 5, 30])
        out = tmp_path / f"m{i}"
        step = stopped_after(text, out, how, rng.random() ** 2 * 0.08, steps=steps)
        counts["before" if step == 0 else "end" if step == steps else "during"] += 1
        assert how == "abort" or saved(out) == step
    assert counts["before"] + counts["during"] > 0
    print(f"{how} at random: {counts}")


def stopped_after(text: Path, out: Path, how: str, seconds: float, steps: int) -> int:
    """Commands the end after so long, or after the end; the last step."""
    with training(text, out, **TINY, threads=2, steps=steps) as trainer:
        node = trainer.start()
        node.wait(seconds)
        try:
            getattr(node, how)()
        except UsageError as error:
            assert "is over" in str(error)
        assert node.wait() and node.state is State.STOPPED and gone(out)
        return trainer.progress.step


def test_a_training_that_runs_is_not_started_again(text: Path, tmp_path: Path) -> None:
    with training(text, tmp_path / "m", **TINY, threads=2, steps=MANY) as trainer:
        node = trainer.start()
        for again in (trainer.start, trainer.run):
            with pytest.raises(UsageError, match="already; wait for its end"):
                again()
        node.stop()
        node.wait()
    del trainer, again


def test_two_at_once_and_one_after_another_are_as_one_alone(text: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    soak_child.twin(str(text), str(alone), 20)
    for i in range(REPEATS):
        outs = [tmp_path / f"{name}{i}" for name in "ab"]
        together(text, outs)
        assert [fingerprint(out) for out in outs] == [fingerprint(alone)] * 2


def together(text: Path, outs: list[Path]) -> None:
    """Two trainings in the background of one process, at one time."""
    options = TINY | {"threads": 2, "steps": 20}
    with training(text, outs[0], **options) as a, training(text, outs[1], **options) as b:
        nodes = [a.start(), b.start()]
        assert all(node.wait() for node in nodes)


# --- in other processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fork", "spawn"])
@pytest.mark.parametrize("parent", ["trained before", "trains"])
def test_a_child_trains_as_its_parent_does(
    parent: str, kind: str, text: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    soak_child.twin(str(text), str(alone), 20)
    context: Any = multiprocessing.get_context(kind)
    for i in range(REPEATS):
        out, other = tmp_path / f"child{i}", tmp_path / f"parent{i}"
        if parent == "trains":
            with training(text, other, **TINY, threads=2, steps=MANY) as trainer:
                node = trainer.start()
                assert child_of(context, text, out) == 0
                assert node.state is State.RUNNING
                node.stop()
                node.wait()
            del trainer, node
            assert saved(other) > 0
        else:
            assert child_of(context, text, out) == 0
        assert fingerprint(out) == fingerprint(alone)
    multiprocessing.resource_tracker.ensure_running()
    print(f"{REPEATS} by {kind}, whose parent {parent}")


def child_of(context: Any, text: Path, out: Path) -> int | None:
    """A training in a child; its exit code, None if it hangs."""
    child = context.Process(target=soak_child.twin, args=(str(text), str(out), 20))
    child.start()
    child.join(60)
    code: int | None = child.exitcode
    if code is None:
        child.kill()
        child.join()
    child.close()
    return code


def signalled(mode: str, signals: list[int], text: Path, out: Path) -> tuple[int, str]:
    """A script in a mode, signalled when it is ready; exit code and standard error."""
    script = [sys.executable, soak_child.__file__, mode, str(out), str(text)]
    with subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        killer = threading.Timer(60, child.kill)
        killer.start()
        assert child.stdout is not None
        child.stdout.readline()
        for number in signals:
            child.send_signal(number)
            time.sleep(0.3 if len(signals) > 1 else 0)
        _, error = child.communicate()
        killer.cancel()
        killer.join()
    assert child.returncode != -signal.SIGKILL, f"{mode} {signals} hung: {error}"
    return child.returncode, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("mode", ["running", "paused", "saving"])
def test_a_signal_ends_it_with_a_checkpoint(
    mode: str, number: int, text: Path, tmp_path: Path
) -> None:
    for i in range(REPEATS):
        out = tmp_path / f"m{i}"
        assert signalled(mode, [number], text, out) == (128 + number, "")
        assert saved(out) >= 3 and gone(out)


@pytest.mark.parametrize("mode", ["slow", "saving"])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_it_without_another(
    mode: str, first: int, text: Path, tmp_path: Path
) -> None:
    for i in range(REPEATS):
        out = tmp_path / f"m{i}"
        code, error = signalled(mode, [first, signal.SIGINT], text, out)
        assert (code, error) == (99, "")
        assert saved(out) == (0 if mode == "slow" else 3) and gone(out)


ENDS = {"end": 0, "end-exit": 5, "end-raise": 1}


@pytest.mark.parametrize("mode", [*ENDS, *(f"{mode}-paused" for mode in ENDS)])
def test_a_script_that_ends_stops_its_training(mode: str, text: Path, tmp_path: Path) -> None:
    for i in range(REPEATS):
        out = tmp_path / f"m{i}"
        code, error = signalled(mode, [], text, out)
        assert code == ENDS[mode.removesuffix("-paused")], error
        assert ("broken on purpose" in error) == ("raise" in mode)
        assert saved(out) >= 3 and gone(out)


def test_a_failure_ends_what_is_shown(text: Path, tmp_path: Path) -> None:
    out, nodes = tmp_path / "m", []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            assert (out / LIVE).exists()
            raise OSError("broken on purpose")

    def fail(remember: Callable[[NodeZero], None]) -> None:
        with training(text, out, **TINY, steps=9, threads=2, on_event=on_event) as trainer:
            remember(trainer.start())
            trainer.node.wait()  # type: ignore[union-attr]

    with pytest.raises(OSError, match="broken on purpose"):
        fail(nodes.append)
    assert nodes.pop().state is State.FAILED
    eventually(lambda: gone(out))
