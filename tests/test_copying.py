"""A copy is a whole model, also of one that trains; what is not whole is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, invoke
from conftest import prose
from test_kill import SCRIPT
from test_training import fingerprint

import crystalline
from crystalline.__main__ import main
from crystalline.checkpoints.checkpoint import load_model
from crystalline.data.reading import Piece, collect
from crystalline.data.shards import TokenStore, write_shards
from crystalline.errors import CheckpointError, UsageError
from crystalline.store import Arrival, Pass, Placed, Store, copying
from crystalline.store import meter as meter_module
from crystalline.store.copying import checkpoints_of, copy_model
from crystalline.store.whole import verify_model

STEPS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").write_text("some words, and some more words to learn from\n" * 40)
    words = ("--steps", "3", "--quiet", *SMALL)
    invoke("train", folder / "text", "--out", folder / "m", *words)
    return folder / "m"


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A trained model with a queue, a segment of a document that came later, and a pass."""
    folder = Path(shutil.copytree(made, tmp_path / "model"))
    (tmp_path / "late.txt").write_text("something new to learn\n" * 9)
    pieces = [Piece(source) for source in collect(tmp_path / "late.txt")[0]]
    write_shards(tmp_path / "beside", load_model(folder)[1], pieces, [])
    (folder / "data" / "segments").mkdir()
    os.rename(tmp_path / "beside" / "data", folder / "data" / "segments" / "000001")
    train = TokenStore.open(folder).train
    with Store.open(folder, create=True) as store:
        store.add([Arrival(piece.read(), "/late.txt") for piece in pieces])
        (one,) = store.lease()
        tokens = os.path.getsize(folder / "data/segments/000001/train-00000.bin") // 2
        store.tokenized(1, [Placed(one.id, train.documents, train.tokens, tokens)])
        store.add([Arrival("waits " * 100, "/waits.txt"), Arrival("x", "/x.txt")])
        store.record_passes([Pass(0, ((0, train.documents),), 0, 2)])
    return folder


def problems(folder: Path) -> dict[str, str]:
    """What verify finds, by the part it is in."""
    return {check.what: ", ".join(check.problems) for check in verify_model(folder)
            if check.problems}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """All files that a copy is to have, but for state.db, which is another file with the same."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("state.db", "training.lock"))
    }


def test_a_copy_has_all_there_is(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "best", model / "checkpoints" / "step-00000002")
    (model / "checkpoints" / ".step-00000001.new").mkdir()
    for name in ("model.safetensors.new", "data.new", ".hidden"):
        (model / name).touch()
    before = contents(model)
    copy = copy_model(model, tmp_path / "copy")
    assert contents(model) == before
    gone = {"model.safetensors.new", "data.new", ".hidden"}
    assert contents(copy) == {name: data for name, data in before.items() if name not in gone}
    with Store.open(model) as ours, Store.open(copy) as theirs:
        assert list(theirs.provenance()) == list(ours.provenance())
        assert theirs.lease()[0].text == "waits " * 100 and ours.counts()["leased"] == (0, 0)
    assert problems(copy) == {} and len(checkpoints_of(copy)) == 3
    with pytest.raises(UsageError, match="copy: exists already; choose another name"):
        copy_model(model, copy)


def test_a_copy_can_be_trained_on(made: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        copy_model(made, tmp_path / name)
        crystalline.train(out=tmp_path / name, resume=True, steps=5)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


def test_copies_made_while_it_trains_are_whole_and_end_in_the_same_bits(tmp_path: Path) -> None:
    text = tmp_path / "prose.txt"
    text.write_text(prose(4000))
    out, names = tmp_path / "m", iter(range(100))
    command = [sys.executable, "-c", SCRIPT, str(out), str(text), str(STEPS), "50"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    copies = []
    while not (out / "checksums.json").exists() and child.poll() is None:
        time.sleep(0.01)
    while child.poll() is None:  # which saves after every step
        copies.append(copy_model(out, tmp_path / f"copy-{next(names)}"))
    _, error = child.communicate()
    assert child.returncode == 0, error
    steps = []
    for copy in copies:
        assert problems(copy) == {}
        steps.append(json.loads((copy / "training_state.json").read_text())["progress"]["step"])
    assert steps == sorted(steps) and steps[0] < STEPS
    crystalline.train(out=copies[0], resume=True)
    assert fingerprint(copies[0]) == fingerprint(out)
    print(f"{len(copies)} copies, of steps {steps}")


def test_a_kept_checkpoint_may_vanish_meanwhile(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Path(shutil.copytree(model / "best", model / "checkpoints" / "step-00000002"))
    real = copying._copy_checkpoint

    def vanishing(source: Path, *rest: Any) -> None:
        if source == model:
            shutil.rmtree(kept)
            shutil.copytree(model / "best", kept.with_name("step-00000003"))
        real(source, *rest)

    monkeypatch.setattr(copying, "_copy_checkpoint", vanishing)
    copy = copy_model(model, tmp_path / "copy")
    assert [path.name for path in checkpoints_of(copy)] == ["copy", "best"]
    assert problems(copy) == {}


def test_a_damaged_original_is_not_copied(model: Path, tmp_path: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        copy_model(model, tmp_path / "copy")
    assert not list(tmp_path.glob("*copy*"))


def test_long_copies_tell_how_far_they_are(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_module, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(meter_module, "TOLD_EVERY", 0.0)
    events: list[dict[str, Any]] = []
    copy_model(model, tmp_path / "copy", on_event=events.append)
    assert {e["phase"] for e in events} == {"copy"} and events[-1]["eta"] >= 0
    done = [e["done"] for e in events]
    assert done == sorted(done) and 0 < done[-1] <= events[-1]["total"]


# --- verify ---------------------------------------------------------------------------------------


def test_a_whole_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [check.what for check in verify_model(model)] == [
        "state.db", "data", "data/segments/000001", "passes", "checkpoint", "best"
    ]  # fmt: skip
    assert problems(model) == {}
    assert main(["models", "verify", str(model)]) == 0
    assert "all checksums agree" in capsys.readouterr().out


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "part"),
    [("model.safetensors", "checkpoint"), ("optimizer.safetensors", "checkpoint"),
     ("tokenizer.json", "checkpoint"), ("best/model.safetensors", "best"),
     ("data/train-00000.bin", "data"), ("data/val-offsets.bin", "data"),
     ("data/segments/000001/train-00000.bin", "data/segments/000001"),
     ("data/segments/000001/index.json", "data/segments/000001")],
)  # fmt: skip
@pytest.mark.parametrize("how", [flip, Path.unlink], ids=["flipped", "missing"])
def test_a_damaged_file_is_found(model: Path, name: str, part: str, how: Any) -> None:
    how(model / name)
    found = problems(model)
    assert list(found) == [part] and name in found[part]


@pytest.mark.parametrize(
    ("change", "part"),
    [("UPDATE contents SET body = x'00'", "state.db"),
     ("DELETE FROM contents", "state.db"),
     ("INSERT INTO contents VALUES (1, 0, x'00')", "state.db"),
     ("UPDATE documents SET tokens = tokens + 1 WHERE place > 0", "data/segments/000001"),
     ("UPDATE documents SET place = place + 1 WHERE place > 0", "data/segments/000001"),
     ("UPDATE documents SET first = first + 1 WHERE segment = 1", "data/segments/000001"),
     ("UPDATE documents SET first = first + 1 WHERE segment = 0", "data"),
     ("UPDATE segments SET fingerprint = 'x' WHERE number = 1", "data/segments/000001"),
     ("INSERT INTO segments VALUES (2, 0, 0, '', 0)", "data/segments/000002")],
)  # fmt: skip
def test_parts_that_do_not_agree_are_found(model: Path, change: str, part: str) -> None:
    with Store.open(model) as store, store.transaction() as db:
        db.execute(change)
    assert list(problems(model)) == [part]


def test_a_damaged_database_is_found(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(model) as store:
        store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = store.rows("SELECT rootpage FROM sqlite_master WHERE name = 'documents_turn'")[0]
    with open(model / "state.db", "r+b") as file:
        file.seek(page * 4096 - 60)  # entries are at the end of a page
        file.write(b"\xff" * 50)
    assert "state.db" in problems(model)
    assert main(["models", "verify", str(model), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["checks"][0]["problems"]
    assert err.startswith(f"crystalline: error: not whole: {model}: state.db") and "\n" in err


def test_passes_that_the_checkpoint_does_not_have_are_told(model: Path) -> None:
    with Store.open(model) as store:
        store.record_passes([Pass(0, ((0, 1),), 0, 9)])
    (check,) = [check for check in verify_model(model) if check.what == "passes"]
    assert "up to step 9, but the checkpoint is of step 3" in check.detail
