"""Who dies, forks or ends around a shared region: nothing is left behind, nothing complains."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scripts import BEGIN, LIMIT, READS, Script

from crystalline.errors import UsageError
from crystalline.spheres.region import (
    PREFIX,
    SEGMENTS,
    RegionError,
    RegionTorn,
    SharedRegion,
    discard,
)

pytestmark = pytest.mark.usefixtures("segments")

# Dies in the middle of a write; says so before.
DIES = BEGIN + """
with region.locked() as view:
    view[: len(view) // 2] = 9
    print("inside", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


# --- those who die --------------------------------------------------------------------------------


def test_a_writer_killed_in_the_middle_is_noticed_and_taken_over() -> None:
    with SharedRegion.create(1001) as region:
        region.write(np.full(1001, 1, np.uint8))
        with Script(DIES, region.name) as script:
            script.line()
            pid = script.process.pid
            assert script.end()[0] == -9
        assert region.version == 3
        with pytest.raises(RegionTorn, match=f"process {pid} died in the middle of a write"):
            region.read()
        with SharedRegion.attach(region.name) as late, pytest.raises(RegionTorn):
            late.read()
        region.write(np.full(1001, 2, np.uint8))
        version, content = region.read()
        assert version == region.version == 4 and (content == 2).all()


def test_a_killed_writer_is_noticed_by_who_waited_for_it() -> None:
    holds = BEGIN + """
with region.locked():
    print("inside", flush=True)
    time.sleep(1000)
"""
    with SharedRegion.create(9) as region, Script(holds, region.name) as script:
        script.line()
        errors: list[Exception] = []

        def read() -> None:
            try:
                region.read(timeout=LIMIT)
            except RegionError as error:
                errors.append(error)

        threads = [threading.Thread(target=f) for f in (read, lambda: region.write(b"9" * 9))]
        threads[0].start()
        script.end(kill=True)
        threads[0].join(LIMIT)
        threads[1].start()
        threads[1].join(LIMIT)
        assert len(errors) == 1 and isinstance(errors[0], RegionTorn)
        assert region.read()[1].tobytes() == b"9" * 9


def test_a_killed_reader_leaves_no_trace() -> None:
    with SharedRegion.create(10_001) as region:
        with Script(READS, region.name, 10**9) as reader:
            reader.line()
            for i in range(500):
                region.write(np.full(region.size, (i + 1) % 251, np.uint8))
            reader.end(kill=True)
        region.write(np.full(region.size, 7, np.uint8))
        assert region.read()[0] == 1002


NO_DESCRIPTORS = BEGIN + """
import contextlib
from crystalline.spheres.region import RegionError
kept = []
with contextlib.suppress(OSError):
    while True:
        kept.append(os.open("/dev/null", os.O_RDONLY))
said = []
for act in (region.read, lambda **how: region.write(b"54321", **how)):
    try:
        said.append(repr(act(timeout=0.1)))
    except RegionError as error:
        said.append(str(error))
for descriptor in kept:
    os.close(descriptor)
print(said)
"""


def test_a_living_writer_is_waited_for_by_who_cannot_look_whether_it_lives() -> None:
    with SharedRegion.create(5) as region:
        region.write(b"12345")
        with region.locked(), Script(NO_DESCRIPTORS, region.name) as script:
            said = script.well()
        assert f"process {os.getpid()} has written to it for 0.1 s" in said, said
        assert "/proc does not tell who this process is" in said, said
        assert region.read()[1].tobytes() == b"12345"


LEAVES = BEGIN + """
class Enough(Exception):
    pass

def stop(*_):
    raise Enough

signal.signal(signal.SIGALRM, stop)
print("here", flush=True)
sys.stdin.readline()
signal.setitimer(signal.ITIMER_REAL, 0.15)
try:
    with region.locked():
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
except Enough:
    pass
print("on it goes", flush=True)
sys.stdin.read()
"""


def test_a_signal_while_waiting_does_not_leave_the_region_locked() -> None:
    with SharedRegion.create(5) as region, Script(LEAVES, region.name) as script:
        script.line()
        with region.locked():
            assert script.process.stdin is not None
            script.process.stdin.write("\n")
            script.process.stdin.flush()
            time.sleep(0.18)  # the signal comes in the slice of the wait in which the lock does
        script.line()
        region.write(b"12345", timeout=5.0)
        script.well()


# --- children -------------------------------------------------------------------------------------


def test_a_forked_child_reads_and_cannot_end_the_parents_write() -> None:
    with SharedRegion.create(5) as region:
        region.write(b"12345")
        lock = region.locked()
        with lock as view:
            view[:] = 7
            child = os.fork()
            if child == 0:
                try:
                    lock.__exit__(None, None, None)
                except RegionError as error:
                    region.unlink()  # is the parent's to do
                    os._exit(0 if "not this process's" in str(error) else 1)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert region.version == 3
        child = os.fork()
        if child == 0:
            os._exit(0 if region.read()[1].tobytes() == b"\7" * 5 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        SharedRegion.attach(region.name).close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_that_share_the_tracker(method: str, tmp_path: Path) -> None:
    path = tmp_path / "family.py"
    path.write_text(f"""
import multiprocessing
from crystalline.spheres.region import RegionMode, SharedRegion

def child(name):
    with SharedRegion.attach(name, RegionMode.LOCKED_WRITE) as region:
        with region.locked() as view:
            view[:] += 1

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    with SharedRegion.create(3) as region:
        for _ in range(2):
            process = context.Process(target=child, args=(region.name,))
            process.start()
            process.join(50)
            assert process.exitcode == 0
        print(region.read())
""")
    ran = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("(4, array([2, 2, 2]")


# --- the segment's life ---------------------------------------------------------------------------

CREATES = """
import os, sys
from crystalline.spheres.region import SharedRegion
region = SharedRegion.create(100)
region.write(b"mine")
print(region.name, flush=True)
sys.stdin.read()
"""


def test_a_reader_that_ends_takes_nothing_along() -> None:
    reads = BEGIN + "print(region.read()[1][:4].tobytes().decode())"
    with Script(CREATES) as creator:
        name = creator.line()
        for _ in range(2):
            assert Script(reads, name).well() == "mine\n"
        with SharedRegion.attach(name) as region:
            assert region.read()[1][:4].tobytes() == b"mine"
        creator.well()
    with pytest.raises(UsageError, match="no region of this name; check that its creator"):
        SharedRegion.attach(name)


def test_the_tracker_cleans_up_after_a_killed_creator() -> None:
    with Script(CREATES) as creator:
        name = creator.line()
        region = SharedRegion.attach(name)
        creator.end(kill=True)  # comes back when the tracker too has closed standard error
    assert name not in os.listdir(SEGMENTS)
    assert region.read()[1][:4].tobytes() == b"mine"


@pytest.mark.parametrize(
    "end",
    [
        "",
        "del region",
        "region.close(); region.close(); region.unlink(); region.unlink()",
        "view = region.read()[1]; kept = region.locked(); inside = kept.__enter__()",
        "os.unlink('/dev/shm/' + region.name); region.unlink()",
        "region.__exit__(None, None, None); region.unlink()",
    ],
)
def test_every_end_of_a_creator_is_clean_and_silent(end: str) -> None:
    script = Script(CREATES + end)
    name = script.line()
    script.well()
    assert name not in os.listdir(SEGMENTS)


def test_what_does_not_fit_is_an_error_at_once() -> None:
    state = os.statvfs(SEGMENTS)
    with pytest.raises(RegionError, match=r"/dev/shm: no room for a region of [\d,.]+ MiB, "):
        SharedRegion.create(2 * state.f_blocks * state.f_frsize)


def test_only_our_own_leftovers_are_discarded(tmp_path: Path) -> None:
    with SharedRegion.create(1) as region:
        for name in ("", "other", f"{PREFIX}../x", f"{PREFIX}absent"):
            discard(name)
        discard(region.name)
        assert region.name not in os.listdir(SEGMENTS)
