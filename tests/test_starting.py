"""A training is started once at a time, and no step of it is lost to the caller's errors."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from crystalline.api import training
from crystalline.errors import UsageError
from crystalline.spheres.node_zero import NodeZero


def test_of_threads_that_start_a_training_at_once_one_does(text_file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**TINY, "steps": 10**6}
    with training(text_file, tmp_path / "m", **options) as trainer:
        for _ in range(40):
            nodes: list[NodeZero] = []
            together = threading.Barrier(4)

            def start(
                nodes: list[NodeZero] = nodes, together: threading.Barrier = together
            ) -> None:
                together.wait(10)
                try:
                    nodes.append(trainer.start())
                except UsageError:
                    return

            threads = [threading.Thread(target=start) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            for node in nodes:
                node.abort()
                node.wait(10)
            assert len(nodes) == 1


def test_steps_before_an_error_of_the_caller_are_kept(text_file: Path, tmp_path: Path) -> None:
    out, failures = tmp_path / "m", [RuntimeError("the caller's")]

    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5 and failures:
            raise failures.pop()

    options: dict[str, Any] = {**TINY, "steps": 5}
    with training(text_file, out, on_event=fail, **options) as trainer:
        with pytest.raises(RuntimeError, match="the caller's"):
            trainer.run()
        trainer.run()
    state = json.loads((out / "training_state.json").read_text())
    assert state["progress"]["step"] == 5
