"""What lies at live.json is believed only where it makes sense, and holds nobody up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from crystalline import _region
from crystalline.errors import UsageError
from crystalline.spheres.live import LIVE, Broadcast, LiveTraining

GONE = {"format": 1, "pid": 2**31 - 1, "start": 5, "parameters": 1, "weights": None,
        "board": None, "problem": None}  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"pid": 10**20}, {"pid": 0}, {"start": -1}, {"weights": "crystalline-\0"}]
)
def test_nonsense_stops_no_training(wrong: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / LIVE).write_text(json.dumps(GONE | wrong))
    with pytest.raises(UsageError, match="no training runs there"):
        LiveTraining.attach(tmp_path)
    with Broadcast(tmp_path, 10, 100) as broadcast:
        assert broadcast.problem is None


def test_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LIVE)
    with pytest.raises(UsageError, match="no training runs there"):
        LiveTraining.attach(tmp_path)


def test_names_of_something_else(tmp_path: Path) -> None:
    with Broadcast(tmp_path, 1000, 100):
        said = json.loads((tmp_path / LIVE).read_text())
        assert said["start"] == _region.process_start(os.getpid())
        swapped = {"weights": said["board"], "board": said["weights"]}
        (tmp_path / LIVE).write_text(json.dumps(said | swapped))
        with pytest.raises(UsageError, match="does not fit"):
            LiveTraining.attach(tmp_path)
