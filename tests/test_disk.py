"""Disks that fill up or become read-only, and folders that vanish, while a training runs.

Told in one line; the training goes on, its earlier checkpoint whole; when the disk is well again it
ends in the same bits as one that nothing happened to.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, run, weights
from conftest import TINY, prose
from rich.console import Console
from test_training import fingerprint

import crystalline
from crystalline.api import training
from crystalline.checkpoints import checkpoint
from crystalline.checkpoints.checkpoint import load_model, load_training
from crystalline.checkpoints.claim import MARK
from crystalline.checkpoints.info import describe
from crystalline.data.shards import TokenStore
from crystalline.errors import CheckpointError, UsageError
from crystalline.progress import Lines, Screen
from crystalline.training import saving

STEPS, FROM, UNTIL = 16, 5, 11
SAID = {**TINY, "steps": STEPS, "save_steps": 2, "evaluation_interval": 3, "threads": 1}
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a training ends in that nothing happens to."""
    folder = tmp_path_factory.mktemp("disk")
    text = folder / "prose.txt"
    text.write_text(prose(4000))
    crystalline.train(text, folder / "m", **SAID)
    return {"text": text, "hash": fingerprint(folder / "m"), "best": weights(folder / "m/best")}


def mounted(*args: Any) -> None:
    """Mounts; skips the test where that is not permitted."""
    command = ["mount", *map(str, args)]
    if not shutil.which("mount") or subprocess.call(command, stderr=subprocess.DEVNULL):
        pytest.skip("mounting is not permitted here")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB: room for some checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Takes the room that is left, to the last byte."""
    with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


class Fault:
    """What happens to the disk after the step FROM, and what ends it after UNTIL."""

    def __init__(self, begin: Callable[[], object], end: Callable[[], object], out: Path) -> None:
        self.begin, self.end, self.out = begin, end, out
        self.events: Events = []
        self.steps: set[int] = set()  # of the checkpoint in the folder, while the fault lasts

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] != "step":
            return
        if event["step"] == FROM:
            self.begin()
        elif event["step"] == UNTIL:
            self.end()
        elif FROM < event["step"] < UNTIL and (self.out / "checksums.json").exists():
            self.steps.add(load_training(self.out)[1]["progress"]["step"])

    @property
    def warnings(self) -> list[str]:
        return [e["message"] for e in self.events if e["event"] == "warning"]


def check(made: dict[str, Any], fault: Fault, out: Path, says: str) -> None:
    """The fault was told in lines of their own, and it changed nothing in the end."""
    assert fault.warnings and all("\n" not in line for line in fault.warnings)
    assert any(says in line for line in fault.warnings), fault.warnings
    assert fingerprint(out) == made["hash"] and weights(out / "best") == made["best"]
    assert describe(out)["verified"]
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert sum('"event": "step"' in row for row in rows) == STEPS


def test_a_disk_that_is_full_for_a_while(made: dict[str, Any], disk: Path) -> None:
    out = disk / "m"
    fault = Fault(lambda: fill(disk), lambda: os.unlink(disk / "ballast"), out)
    crystalline.train(made["text"], out, on_event=fault, **SAID)
    check(made, fault, out, "disk full while saving")
    assert any("training goes on and tries again" in line for line in fault.warnings)
    assert fault.steps == {4}  # the earlier checkpoint, whole whenever it was looked at


def test_a_disk_that_is_read_only_for_a_while(made: dict[str, Any], disk: Path) -> None:
    out = disk / "m"

    def read_only() -> None:
        # Mounted over itself: what is open for writing below does not forbid it.
        subprocess.run(["mount", "--bind", out, out], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", out], check=True)

    fault = Fault(read_only, lambda: subprocess.run(["umount", out], check=True), out)
    crystalline.train(made["text"], out, on_event=fault, **SAID)
    check(made, fault, out, "Read-only file system")
    assert fault.steps == {4}


def test_a_limit_on_files_for_a_while(made: dict[str, Any], tmp_path: Path) -> None:
    """Needs no mounting: writes fail in the middle of a file, with another error."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fault = Fault(
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1])),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits), tmp_path / "m",
    )  # fmt: skip
    try:
        crystalline.train(made["text"], tmp_path / "m", on_event=fault, **SAID)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check(made, fault, tmp_path / "m", "file size limit reached while saving")
    assert fault.steps == {4}


def test_a_disk_that_stays_full(made: dict[str, Any], disk: Path) -> None:
    out = disk / "m"
    fault = Fault(lambda: fill(disk), lambda: None, out)
    with pytest.raises(CheckpointError, match=r"disk full while saving .* checkpoint is intact"):
        crystalline.train(made["text"], out, on_event=fault, **SAID)
    assert load_training(out)[1]["progress"]["step"] == 4
    os.unlink(disk / "ballast")
    crystalline.train(out=out, resume=True, threads=2)
    assert fingerprint(out) == made["hash"] and weights(out / "best") == made["best"]


def test_at_the_end_it_waits_for_room(
    made: dict[str, Any], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LOOK_SECONDS", 0.0)
    out, ends = disk / "m", []

    def on_event(event: dict[str, Any]) -> None:
        fault(event)
        if event["event"] == "warning" and "this was the end" in event["message"]:
            os.unlink(disk / "ballast")
            ends.append(event["step"])

    fault = Fault(lambda: fill(disk), lambda: None, out)
    crystalline.train(made["text"], out, on_event=on_event, **SAID)
    assert ends == [STEPS]
    check(made, fault, out, "it is tried again for")


def test_who_does_not_wait_at_the_end_need_not(made: dict[str, Any], disk: Path) -> None:
    """Ctrl-C twice, while it waits for room."""
    out = disk / "m"

    def on_event(event: dict[str, Any]) -> None:
        fault(event)
        if event["event"] == "warning" and "this was the end" in event["message"]:
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler)
            handler(signal.SIGINT, None)  # the first, noted; the second goes to the main thread
            os.kill(os.getpid(), signal.SIGINT)

    fault = Fault(lambda: fill(disk), lambda: None, out)
    with training(made["text"], out, on_event=on_event, **SAID) as trainer:
        trainer.saving._saved_seconds = -1e6  # as if days were to be lost
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert load_training(out)[1]["progress"]["step"] == 4


def test_the_command_on_a_disk_that_stays_full(disk: Path, text_file: Path) -> None:
    out = disk / "m"
    said = ["--out", out, "--quiet", *SMALL]
    assert run("train", text_file, *said, "--steps", 3)[0] == 0
    before = weights(out)
    fill(disk)
    code, stdout, err = run("train", "--resume", "--steps", 9, "--out", out, "--quiet")
    assert (code, stdout, err.count("\n")) == (1, "", 1)
    assert "disk full while saving" in err and "earlier checkpoint is intact" in err
    assert weights(out) == before


def test_warnings_are_shown_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    event = {"event": "warning", "step": 1234, "message": "no room\nin m"}
    Lines()(event)
    assert capsys.readouterr().err == "step 1,234: warning: no room\\nin m\n"
    console = Console(record=True, width=100)
    Screen(console)(event)
    assert console.export_text() == "step 1,234: warning: no room\\nin m\n"


def gone(out: Path) -> None:
    shutil.rmtree(out)


def moved(out: Path) -> None:
    out.rename(out.with_name("moved"))


def emptied(out: Path) -> None:
    for path in out.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("act", [gone, moved, emptied])
def test_a_folder_that_vanishes_is_made_again(
    act: Callable[[Path], None], made: dict[str, Any], tmp_path: Path
) -> None:
    out, data = tmp_path / "m", []
    fault = Fault(lambda: act(out), lambda: None, out)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == FROM:
            data.append(TokenStore.open(out).fingerprint)
        fault(event)
        if event["event"] == "step" and event["step"] == UNTIL:  # it is ours again
            with pytest.raises(UsageError, match="another training runs there"):
                crystalline.train(out=out, resume=True)

    crystalline.train(made["text"], out, on_event=on_event, **SAID)
    assert len(fault.warnings) == 1 and "removed or moved while the training runs; it is made " \
        "again with all that is in memory" in fault.warnings[0]  # fmt: skip
    assert fingerprint(out) == made["hash"] and weights(out / "best") == made["best"]
    assert TokenStore.open(out).fingerprint == data[0]
    assert fault.steps == {6, 8}
    crystalline.train(out=out, resume=True, steps=STEPS + 1)
    if act is moved:
        assert load_training(tmp_path / "moved")[1]["progress"]["step"] == 4
        crystalline.train(out=tmp_path / "moved", resume=True)
        assert fingerprint(tmp_path / "moved") == made["hash"]


@pytest.mark.parametrize("at", range(6))
def test_a_folder_that_vanishes_in_the_middle_of_a_save(
    at: int, made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, state = tmp_path / "m", checkpoint.write_durably, {"armed": False, "count": 0}

    def write_durably(*args: Any) -> Any:
        stamp = real(*args)
        if state["armed"]:
            state["count"] += 1
            if state["count"] == at + 1:
                shutil.rmtree(out)
        return stamp

    def arm() -> None:
        state["armed"] = True

    monkeypatch.setattr(checkpoint, "write_durably", write_durably)
    fault = Fault(arm, lambda: None, out)
    crystalline.train(made["text"], out, on_event=fault, **SAID)
    assert state["count"] > at and len(fault.warnings) >= 2
    assert fingerprint(out) == made["hash"] and weights(out / "best") == made["best"]


@pytest.mark.parametrize("name", ["data", "best"])
def test_a_part_that_vanishes_is_written_again(
    name: str, made: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "m"
    fault = Fault(lambda: shutil.rmtree(out / name), lambda: None, out)
    crystalline.train(made["text"], out, on_event=fault, **SAID)
    check(made, fault, out, f"{name} was removed, and is written again")


def test_another_model_in_its_place_is_left_alone(made: dict[str, Any], tmp_path: Path) -> None:
    out, other = tmp_path / "m", tmp_path / "other"
    crystalline.train(made["text"], other, **SAID | {"steps": 3, "seed": 5})

    def replaced() -> None:
        moved(out)
        other.rename(out)

    theirs = weights(other)
    fault = Fault(replaced, lambda: None, out)
    with pytest.raises(CheckpointError, match="was replaced by another model while this one") as no:
        crystalline.train(made["text"], out, on_event=fault, **SAID)
    assert "\n" not in str(no.value) and weights(out) == theirs
    shutil.rmtree(out)
    (tmp_path / "moved").rename(out)  # what was saved of ours goes on
    crystalline.train(out=out, resume=True)
    assert fingerprint(out) == made["hash"]


def test_a_place_where_no_folder_can_be_made(made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "m"

    def in_the_way() -> None:
        shutil.rmtree(out)
        out.write_text("a file")

    fault = Fault(in_the_way, out.unlink, out.with_name("none"))
    crystalline.train(made["text"], out, on_event=fault, **SAID)
    assert any("cannot be made again" in line for line in fault.warnings)
    assert fingerprint(out) == made["hash"]


def test_who_asks_for_a_checkpoint_is_told_and_the_training_goes_on(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    with training(made["text"], out, **SAID | {"save_steps": None}) as trainer:
        node = trainer.start()
        node.pause()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_durably", no_room)
            with pytest.raises(UsageError, match="disk full while saving"):
                node.checkpoint()
        assert not [c for c in trainer.commands if c["command"] == "CHECKPOINT"]
        node.checkpoint()
        node.resume()
        node.wait()
    assert fingerprint(out) == made["hash"]


def no_room(*args: Any) -> None:
    raise OSError(28, "No space left on device")


def test_the_best_that_could_not_be_written_comes_with_the_next_checkpoint(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, best, found = tmp_path / "m", [], []
    fault = Fault(
        lambda: monkeypatch.setattr(checkpoint, "write_durably", no_room), monkeypatch.undo, out
    )

    def on_event(event: dict[str, Any]) -> None:
        fault(event)
        if event["event"] == "validation" and event["step"] == 7:
            best.append({n: w.copy() for n, w in trainer.weights.named.items()})
        if event["event"] == "step" and event["step"] == 13:
            found.append(load_model(out / "best")[2])

    said = SAID | {"evaluation_interval": 7, "save_steps": 12}
    with training(made["text"], out, on_event=on_event, **said) as trainer:
        trainer.start().wait()
    assert "the best model so far is written with the next checkpoint" in fault.warnings[0]
    assert all((found[0][n] == w).all() for n, w in best[0].items())


def test_the_first_checkpoint_must_succeed(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained yet: better now than after days."""
    monkeypatch.setattr(checkpoint, "write_durably", no_room)
    with pytest.raises(CheckpointError, match="no checkpoint was there before"):
        crystalline.train(made["text"], tmp_path / "m", **SAID)


def test_a_claim_that_is_gone_is_no_error(made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "m"
    crystalline.train(made["text"], out, **SAID)
    with training(out=out, resume=True, steps=STEPS + 1):
        shutil.rmtree(out)
    assert not out.exists() and not (out / MARK).exists()
