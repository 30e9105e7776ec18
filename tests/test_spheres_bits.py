"""The same bits whoever works, whatever is commanded that changes no result, and on every replay.

CRYSTALLINE_SOAK=1 runs every combination of the grid (`make soak`), otherwise a part of it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, prose
from test_training import STEPS, fingerprint
from watch import nothing_leaks, watchdog

import crystalline
from crystalline.api import training
from crystalline.checkpoints.checkpoint import load_training
from crystalline.errors import UsageError
from crystalline.spheres.node_zero import Command, NodeZero

GRID = list(itertools.product((1, 2, 3, 5, 8, 12, 16), (1, 2, 3), (True, False), (True, False)))
if os.environ.get("CRYSTALLINE_SOAK") != "1":
    # Every pair of a thread number and a depth, each with one of the four ways to steal and pin.
    GRID = [case for i, case in enumerate(GRID) if i % 4 == (i // 4 + i // 12) % 4]

Act = Callable[[NodeZero, int], Any]  # what to command after a step


def commanded(paths: Any, out: Path, act: Act | None = None, **options: Any) -> list[Command]:
    """Trains the tiny model, commanding after each step; returns the commands that took effect."""
    replay = options.pop("replay", ())

    def on_event(event: dict[str, Any]) -> None:
        if act is not None and event["event"] == "step":
            assert trainer.node is not None
            act(trainer.node, event["step"])

    said = {"on_event": on_event, **TINY, "steps": STEPS, "threads": 2, **options}
    if paths is None:
        said = {"on_event": on_event, "resume": True}
    with training(paths, out, **said) as trainer:
        assert trainer.start(replay).wait()
    return trainer.commands


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plain")
    text = folder / "prose.txt"
    text.write_text(prose(4000))
    with watchdog(60):
        commanded(text, folder / "model", threads=1)
    return {"text": text, "hash": fingerprint(folder / "model")}


@pytest.mark.parametrize(("threads", "depth", "steal", "pin"), GRID)
def test_one_result_whoever_works(
    threads: int, depth: int, steal: bool, pin: bool, plain: dict[str, Any], tmp_path: Path
) -> None:
    crew = {"threads": threads, "hierarchy_depth": depth, "work_stealing": steal, "pin": pin}
    with watchdog(120), nothing_leaks():
        commanded(plain["text"], tmp_path / "m", **crew)
        assert fingerprint(tmp_path / "m") == plain["hash"]


def children(seed: int) -> Act:
    """Spawns and ends children, of one sphere or of all, and rebalances, at random."""
    rng = random.Random(seed)

    def act(node: NodeZero, step: int) -> None:
        for _ in range(rng.randint(0, 3)):
            sphere = rng.choice([-1, rng.randrange(12)])
            rng.choice([node.spawn, node.terminate, lambda _: node.rebalance()])(sphere)

    return act


@pytest.mark.parametrize("steal", [True, False])
@pytest.mark.parametrize(("threads", "seed"), [(1, 0), (2, 1), (3, 2), (12, 3), (16, 4)])
def test_children_that_come_and_go_change_no_bit(
    threads: int, seed: int, steal: bool, plain: dict[str, Any], tmp_path: Path
) -> None:
    with watchdog(120), nothing_leaks():
        done = commanded(
            plain["text"], tmp_path / "m", children(seed), threads=threads, work_stealing=steal
        )
    assert {"SPAWN", "REBALANCE"} <= {c["command"] for c in done}
    assert fingerprint(tmp_path / "m") == plain["hash"]


def paused_again_and_again(text: Path, out: Path) -> list[int]:
    """Trains with pauses and checkpoints; the steps of the pauses."""
    steps = []
    with training(text, out, **TINY, steps=STEPS, threads=2) as trainer:
        node = trainer.start()
        for _ in range(10):
            try:
                steps.append(node.pause())
                node.checkpoint()
                node.resume()
            except UsageError:  # it was faster than we
                break
        assert node.wait()
    return steps


def test_paused_saved_and_resumed_again_and_again(plain: dict[str, Any], tmp_path: Path) -> None:
    with watchdog(120), nothing_leaks():
        steps = paused_again_and_again(plain["text"], tmp_path / "m")
    assert steps == sorted(steps) and steps[0] < STEPS
    assert fingerprint(tmp_path / "m") == plain["hash"]


@pytest.mark.parametrize("step", [1, 7, 19])
def test_stopped_and_resumed_by_others(step: int, plain: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "m"
    with watchdog(120), nothing_leaks():
        commanded(plain["text"], out, lambda node, at: at == step and node.stop())
        assert load_training(out)[1]["progress"]["step"] == step
        crystalline.train(out=out, resume=True, threads=3, hierarchy_depth=3, work_stealing=False)
    assert fingerprint(out) == plain["hash"]


SETTINGS: list[tuple[int, dict[str, float]]] = [
    (2, {"evaluation_interval": 3}), (3, {"learning_rate": 1.7e-3}), (5, {"batch_size": 7}),
    (6, {"epochs": 0.5}), (9, {"learning_rate": 0.9e-3, "batch_size": 14}), (11, {"epochs": 0.6}),
]  # fmt: skip


def settings(node: NodeZero, step: int) -> None:
    """Changes what changes the result, and whoever works."""
    for at, values in SETTINGS:
        if at == step:
            node.set(**values)
    if step in (4, 10):
        node.spawn()
    if step == 8:
        node.terminate(step)
        node.checkpoint()


@pytest.mark.parametrize("source", ["memory", "file"])
def test_a_replay_ends_in_the_same_bits(
    source: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    with watchdog(120), nothing_leaks():
        said = commanded(plain["text"], first, settings)
        assert {"SET", "SPAWN", "TERMINATE", "CHECKPOINT"} <= {c["command"] for c in said}
        if source == "file":
            said = json.loads((first / "training_state.json").read_text())["commands"]
        assert commanded(plain["text"], again, replay=said, threads=3) == said
    assert fingerprint(first) == fingerprint(again) != plain["hash"]
    a, b = (load_training(folder)[1] for folder in (first, again))
    assert a["progress"]["step"] == b["progress"]["step"] == b["course"]["steps"] != STEPS
    assert a["course"] == b["course"] and a["recipe"] == b["recipe"]


def test_a_commanded_run_stopped_and_resumed_is_the_same_run(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def stopping(node: NodeZero, step: int) -> None:
        settings(node, step)
        if step in (1, 7):  # a STOP overtakes what was sent before it: there is nothing at these
            node.stop()

    with watchdog(120), nothing_leaks():
        commanded(plain["text"], whole, settings)
        commanded(plain["text"], parts, stopping)
        for _ in range(2):
            commanded(None, parts, stopping)
    assert fingerprint(parts) == fingerprint(whole)


def test_a_replay_goes_on_after_a_stop(plain: dict[str, Any], tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    with watchdog(120), nothing_leaks():
        said = commanded(plain["text"], first, settings)
        commanded(plain["text"], again, lambda node, at: at == 7 and node.stop(), replay=said)
        done = commanded(None, again, replay=said)
    assert fingerprint(first) == fingerprint(again)
    # Children end with the run that had them; who works is no part of a training's state.
    assert [c for c in done if c["command"] == "SET"] == [c for c in said if c["command"] == "SET"]


def test_what_was_set_after_a_checkpoint_is_in_that_of_a_stop_at_the_same_step(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    def act(node: NodeZero, step: int) -> None:
        if step == 3:
            node.checkpoint()
            node.pause()

    with watchdog(120), training(
        plain["text"], tmp_path / "m", **TINY, steps=STEPS,
        on_event=lambda e: act(trainer.node, e["step"]) if e["event"] == "step" else None,
    ) as trainer:  # fmt: skip
        node = trainer.start()
        node.pause()
        node.set(batch_size=7)
        node.stop()
        node.wait()
    state = load_training(tmp_path / "m")[1]
    assert state["recipe"]["batch_size"] == 7
    assert "SET" in [command["command"] for command in state["commands"]]
