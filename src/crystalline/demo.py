"""The text that the package brings along, to see it work."""

from __future__ import annotations

import gzip
import os
import tempfile
from importlib.resources import files
from pathlib import Path

from crystalline import api
from crystalline.checkpoints.checkpoint import CHECKSUMS, COMMIT, load_training
from crystalline.inference.model import Model, load
from crystalline.training.training import OnEvent

TEXT = "tinyshakespeare.txt"


def bundled_text() -> bytes:
    """The plays; where they come from stands beside them in ORIGIN.md."""
    return gzip.decompress((files("crystalline") / "texts" / f"{TEXT}.gz").read_bytes())


def demo_model(out: str | os.PathLike[str], minutes: float, on_event: OnEvent) -> Model:
    """The model of the bundled text in ``out``: trained now, resumed, or found finished."""
    folder = Path(out)
    if (folder / CHECKSUMS).exists() or (folder / COMMIT).exists():
        state = load_training(folder)[1]
        if state["progress"]["step"] >= state["course"]["steps"]:
            return load(folder)
        return api.train(out=folder, resume=True, on_event=on_event)
    with tempfile.TemporaryDirectory() as beside:
        path = Path(beside) / TEXT
        path.write_bytes(bundled_text())
        return api.train(path, folder, minutes=minutes, on_event=on_event)
