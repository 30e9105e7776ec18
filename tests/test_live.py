"""What a running training shows: weights of one step, a board; and what is left when it dies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import invoke, run
from conftest import TINY, prose, segments_left
from scripts import Script

import crystalline
from crystalline import _region
from crystalline.data.reading import collect
from crystalline.errors import UsageError
from crystalline.spheres.live import LIVE, Broadcast, LiveTraining, load_live
from crystalline.spheres.region import SEGMENTS

pytestmark = pytest.mark.usefixtures("segments")

UNIT = 2.0**-20  # of a weight: every one is the step in these units
# A training's stand-in: a tiny model's folder, and weights that change as fast as they can.
TRAINS = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from crystalline.checkpoints.checkpoint import load_model
from crystalline.decoder.decoder import Parameters
from crystalline.spheres.live import Broadcast
folder = Path(sys.argv[1])
config, tokenizer, _ = load_model(folder)
parameters, step, ended = Parameters(config), 0, threading.Event()
show = Broadcast(folder, parameters.flat.size, 1000)
def publish():
    global step
    step += 1
    parameters.flat[:] = step * 2.0**-20
    show.publish(parameters.flat, step, step * 100)
    show.show({"step": step, "tokens": step * 100, "text": "x" * (step % 300)})
publish()
print(parameters.flat.size, flush=True)
"""
RUNS = TRAINS + """
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
while not ended.is_set():
    publish()
show.close()
"""
WAITS = TRAINS + "sys.stdin.read()\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    (folder / "prose.txt").write_text(prose(4000))
    crystalline.train(folder / "prose.txt", folder / "m", steps=1, **TINY)
    return folder / "m"


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A model's folder of the test's own, with what resuming needs."""
    return Path(shutil.copytree(model, tmp_path / "m"))


@pytest.fixture
def training(folder: Path) -> Iterator[Script]:
    """A training that publishes without rest; ended in order."""
    with Script(RUNS, folder) as script:
        script.line()
        yield script
        script.well()
    assert not (folder / LIVE).exists()


def killed(folder: Path, before: str = "") -> None:
    """A training that showed itself, and was killed after ``before``."""
    with Script(TRAINS + before + "\nos.kill(os.getpid(), signal.SIGKILL)", folder) as script:
        script.line()
        assert script.end()[0] == -9
    assert (folder / LIVE).exists()


READS = """
import sys
import numpy as np
from crystalline.spheres.live import LiveTraining
with LiveTraining.attach(sys.argv[1]) as live:
    out, last = np.empty(live.parameters, np.float32), 0
    for _ in range(int(sys.argv[2])):
        step, version = live.weights(out)
        assert step >= last and version > 0 and version % 2 == 0
        assert (out == np.float32(step * 2.0**-20)).all(), (step, out.min(), out.max())
        said = live.board()
        assert said["tokens"] == 100 * said["step"] and len(said["text"]) == said["step"] % 300
        assert said["step"] >= step - 1
        last = step
    assert live.alive
"""


def test_thousands_of_snapshots_under_load_are_each_of_one_step(
    folder: Path, training: Script
) -> None:
    readers = [Script(READS, folder, 3000) for _ in range(2)]
    for reader in readers:
        reader.well()
    with LiveTraining.attach(folder) as live:
        assert live.weights(np.empty(live.parameters, np.float32))[0] > 100


def test_the_model_writes_with_the_weights_of_now(folder: Path, training: Script) -> None:
    loaded, step = load_live(folder, threads=1)
    row = np.empty((1, loaded.config.dim), np.float32)
    loaded.team.embedding_weight(row, loaded._weights.embedding, np.zeros(1, np.int32))
    assert (row == np.float32(step * UNIT)).all()
    said = json.loads(invoke("generate", folder, "--live", "--json", "--max-tokens", "3"))
    assert said.keys() == {"prompt", "text", "step"} and said["step"] >= step
    code, out, err = run("generate", folder, "--live", "--prompt", "the", "--max-tokens", "3")
    assert code == 0 and out.startswith("the")
    assert err.startswith("weights of step ") and err.count("\n") == 1
    plain = json.loads(invoke("generate", folder, "--json", "--max-tokens", "3"))
    assert plain.keys() == {"prompt", "text"}


def refused(folder: Path, wanted: str) -> None:
    code, out, err = run("generate", folder, "--live")
    assert (code, out) == (2, "") and err == f"crystalline: error: {folder}: {wanted}\n", err


NONE = "no training runs there now; crystalline train begins one"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        "[1]",
        '{"format": 1}',
        '{"format":1,"pid":1,"start":1,"parameters":1,"weights":"a","board":"b","problem":null}',
        '{"format":1,"pid":0,"start":0,"parameters":1,"weights":"a","board":"b","problem":null}',
        '{"format":2,"pid":1,"start":1,"parameters":1,"weights":"a","board":"b","problem":null}',
    ],
)
def test_where_no_training_runs(text: str | None, folder: Path) -> None:
    if text is not None:
        (folder / LIVE).write_text(text)
    with pytest.raises(UsageError, match=f"^{folder}: {NONE}$"):
        LiveTraining.attach(folder)
    with Broadcast(folder, 1, 10) as show:
        assert show.problem is None


def test_what_a_killed_training_left_harms_nothing(folder: Path) -> None:
    killed(folder)
    refused(folder, NONE)
    assert json.loads(invoke("generate", folder, "--json", "--max-tokens", "3"))
    assert json.loads(invoke("info", folder, "--json"))["verified"]
    (folder.parent / "more.txt").write_text("text")
    assert [s.path for s in collect(folder.parent)[0]] == [str(folder.parent / "more.txt")]
    crystalline.train(out=folder, resume=True, steps=3)
    (folder / (LIVE + ".new")).write_text("half")
    with Broadcast(folder, 3, 100) as show:
        show.publish(np.arange(3, dtype=np.float32), 5, 6)
        with LiveTraining.attach(folder) as live:
            assert live.alive and live.weights(np.empty(3, np.float32)) == (5, 2)
    assert not (folder / LIVE).exists() and not (folder / (LIVE + ".new")).exists()


def test_the_next_training_removes_what_no_tracker_did(folder: Path) -> None:
    killed(folder, """
from multiprocessing import resource_tracker as r
os.kill(r._resource_tracker._pid, signal.SIGKILL)
os.waitpid(r._resource_tracker._pid, 0)
""")
    names = [json.loads((folder / LIVE).read_text())[k] for k in ("weights", "board")]
    assert set(names) <= set(os.listdir(SEGMENTS))
    refused(folder, NONE)
    with Broadcast(folder, 1, 10):
        assert segments_left() and not set(names) & set(os.listdir(SEGMENTS))


def test_a_reader_notices_the_end(folder: Path) -> None:
    with Script(WAITS, folder) as script:
        out = np.empty(int(script.line()), np.float32)
        with LiveTraining.attach(folder) as live:
            assert live.alive and live.weights(out) == (1, 2)
            script.well()  # without a close: only live.json stays
            # What is mapped stays; the name is gone.
            assert not live.alive and live.weights(out) == (1, 2)
            with pytest.raises(UsageError, match=NONE):
                LiveTraining.attach(folder)


def test_weights_whose_writer_died_are_not_used(folder: Path) -> None:
    dies = WAITS + """
with show._weights.locked() as view:
    view[100:] = 1
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with Script(dies, folder) as script:
        out = np.empty(int(script.line()), np.float32)
        with LiveTraining.attach(folder) as live:
            assert script.end()[0] == -9
            with pytest.raises(UsageError, match=NONE):
                live.weights(out)
            assert live.board()["step"] == 1 and not live.alive


def test_without_room_for_the_weights_the_board_still_shows(folder: Path) -> None:
    state = os.statvfs(SEGMENTS)
    with Broadcast(folder, state.f_blocks * state.f_frsize, 100) as show:
        show.parameters = 2  # so that the test need not have so many
        show.publish(np.zeros(2, np.float32), 1, 1)
        show.show({"step": 1})
        problem = "the weights cannot be shown live: /dev/shm: no room for a region of "
        assert show.problem is not None and show.problem.startswith(problem)
        with LiveTraining.attach(folder) as live:
            assert live.board() == {"step": 1}
        refused(folder, show.problem)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    with Broadcast(tmp_path / "absent", 2, 100) as show:
        assert "live.json: cannot be written (No such file" in str(show.problem)
        show.publish(np.zeros(2, np.float32), 1, 1)
        show.show({})


def test_a_snapshot_is_whole_or_refused(folder: Path) -> None:
    with Broadcast(folder, 2, 20) as show, LiveTraining.attach(folder) as live:
        assert live.board() == {}
        show.show({"ab": [1.5, None]})
        with pytest.raises(UsageError, match="is 21 bytes of JSON, but room is for 20"):
            show.show({"a": "x" * 13})
        assert live.board() == {"ab": [1.5, None]}
        show.show({"a": "x" * 12})
        assert live.board() == {"a": "x" * 12}


def test_wrong_arguments_are_named(folder: Path) -> None:
    with Broadcast(folder, 2, 20) as show, LiveTraining.attach(folder) as live:
        with pytest.raises(UsageError, match="has shown no weights yet; try again"):
            live.weights(np.empty(2, np.float32))
        with pytest.raises(ValueError, match=r"is float64 \(2,\), but must be float32 \(2,\)"):
            show.publish(np.zeros(2), 1, 1)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"has 2 parameters, .* into float32 \(3,\)"):
            live.weights(np.empty(3, np.float32))
        show.publish(np.zeros(2, np.float32), 1, 1)
        with pytest.raises(UsageError, match=r"has 2 parameters, .* into float32"):
            load_live(folder)


def test_a_segment_that_is_gone_under_a_live_training(folder: Path) -> None:
    with Broadcast(folder, 2, 20):
        name = json.loads((folder / LIVE).read_text())["weights"]
        os.unlink(f"{SEGMENTS}/{name}")
        with pytest.raises(UsageError, match="there is no region of this name"):
            LiveTraining.attach(folder)


def test_a_forked_child_closes_nothing(folder: Path) -> None:
    with Broadcast(folder, 2, 20) as show:
        child = os.fork()
        if child == 0:
            show.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        show.show({"a": 1})
        with LiveTraining.attach(folder) as live:
            assert live.board() == {"a": 1}
        show.close()
        show.close()
        show.publish(np.zeros(2, np.float32), 1, 1)
    assert not (folder / LIVE).exists()


def test_who_is_dead_has_no_start() -> None:
    assert _region.process_start(os.getpid()) > 0
    assert _region.process_start(2**22) == 0
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # a zombie still
    assert _region.process_start(child) == 0
    os.waitpid(child, 0)


WITHOUT_MAIN_THREAD = """
import ctypes, os, sys, threading
print("here", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
ctypes.CDLL(None).syscall(60, 0)  # exit, which ends one thread
"""


def test_who_lives_in_another_thread_than_the_first_is_not_dead() -> None:
    with Script(WITHOUT_MAIN_THREAD) as script:
        script.line()
        stat = Path(f"/proc/{script.process.pid}/stat")
        while stat.read_text().rsplit(")")[-1].split()[0] != "Z":
            pass
        assert _region.process_start(script.process.pid) > 0
        script.well()
