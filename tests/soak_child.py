"""A training in a process of its own, for tests that signal it: ``soak_child.py MODE OUT TEXT``.

It prints a line at each moment a test waits for.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from conftest import TINY

from crystalline.api import train, training
from crystalline.errors import Interrupted
from crystalline.training.trainer import Trainer

MANY = 1_000_000


def say(word: str) -> None:
    """To the test."""
    print(word, flush=True)


def slow_saves(at: str) -> None:
    """A checkpoint takes a second longer, and is announced."""
    real = Trainer.save

    def save(self: Trainer) -> None:
        if self.progress.step:
            say(at)
            time.sleep(1)
        real(self)

    Trainer.save = save  # type: ignore[method-assign]


def foreground(mode: str, out: Path, text: str) -> None:
    """``train``, in the state that ``mode`` names."""
    box: list[Trainer] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] != "step" or event["step"] != 3:
            return
        assert box[0].node is not None
        if mode == "paused":
            threading.Thread(target=lambda: (box[0].node.pause(), say("ready"))).start()
        elif mode == "saving":
            slow_saves("ready")
            box[0].node.checkpoint()
        elif mode == "slow":  # the step at hand takes long, so that a second signal meets the first
            say("ready")
            time.sleep(2)
        else:
            say("ready")

    with training(text, out, **TINY, steps=MANY, threads=2, on_event=on_event) as trainer:
        box.append(trainer)
        trainer.run()


def background(mode: str, out: Path, text: str) -> None:
    """``start``, and then the script ends: as ``mode`` says, with the training paused or not."""
    manager = training(text, out, **TINY, steps=MANY, threads=2)
    trainer = manager.__enter__()
    globals()["kept"] = manager  # nobody leaves the block before the interpreter ends
    node = trainer.start()
    while trainer.progress.step < 3:
        time.sleep(0.001)
    if "paused" in mode:
        node.pause()
    say("ready")
    if "exit" in mode:
        sys.exit(5)
    if "raise" in mode:
        raise ValueError("broken on purpose")


def main(mode: str, out: str, text: str) -> int:
    """Runs one mode; the exit code of the command."""
    if mode.startswith("end"):
        background(mode, Path(out), text)
        return 0
    try:
        foreground(mode, Path(out), text)
    except Interrupted as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 99
    return 0


def twin(text: str, out: str, steps: int) -> None:
    """A whole training, for a process made by multiprocessing."""
    train(text, out, **TINY, steps=steps, threads=2)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
