"""A disk that is full and one that may only be read, in earnest: a small one of our own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]

FULL = """
import os, sys
from pathlib import Path
from crystalline.errors import StoreError
from crystalline.store import Added, Arrival, Store
folder = Path(sys.argv[1])
(folder / "others").write_bytes(bytes(3 << 20))
with Store.open(folder, create=True) as store:
    assert store.add([Arrival("one", "a"), Arrival("two", "b")]).new == 2
    before = list(store.db.iterdump())
    for n in range(3):
        try:
            store.add([Arrival("three", "c"), Arrival(os.urandom(8 << 20).hex(), "-")])
        except StoreError as error:
            print(error)
        assert list(store.db.iterdump()) == before
    assert len(store.lease()) == 2
    try:
        for n in range(1000):
            store.note("filling", n, words="x" * 3000)
        raise AssertionError
    except StoreError as error:
        print(error)
    (folder / "others").unlink()
    assert store.integrity() == [] and store.counts()["leased"][0] == 2
    assert store.add([Arrival("three", "c")]) == Added(1, 0, 5)
"""

READ_ONLY = """
import os, subprocess, sys
from crystalline.__main__ import main
from crystalline.store import Arrival, Store
folder = sys.argv[1]
with Store.open(folder, create=True) as store:
    store.add([Arrival("one", "a")])
if sys.argv[2] == "killed":
    child = os.fork()
    if child == 0:
        store = Store.open(folder)
        store.add([Arrival("two", "b")])  # lies in state.db-wal when the process ends
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.getsize(folder + "/state.db-wal")
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
for words in (["queue", "list", folder], ["models", "verify", folder],
              ["queue", "add", folder, os.__file__]):
    print(main(words), flush=True)
"""


def on_a_disk_of_its_own(tmp_path: Path, code: str, *args: str, size: str) -> tuple[str, str]:
    """What the code prints, with a folder as its first argument that is a disk of ``size``."""
    able = shutil.which("unshare") is not None
    if not able or subprocess.run(ALLOWED, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a test mount a disk of its own")
    mounted = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    command = [
        "unshare", "-rm", "sh", "-c", mounted, str(tmp_path), sys.executable, "-c", code,
        str(tmp_path), *args,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_full_disk(tmp_path: Path) -> None:
    out, err = on_a_disk_of_its_own(tmp_path, FULL, size="6m")
    assert err == ""
    lines = out.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith(f"{tmp_path}/state.db: the disk is full; free some space")


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_disk_that_may_only_be_read(tmp_path: Path, how: str) -> None:
    out, err = on_a_disk_of_its_own(tmp_path, READ_ONLY, how, size="6m")
    n = 1 if how == "closed" else 2
    assert f": {n} pending" in out and "document: whole" in out.replace("documents", "document")
    assert [line for line in out.splitlines() if line.isdecimal()] == ["0", "0", "1"]
    said = "cannot be opened; check that the folder may be read and written"
    said = said if how == "closed" else "may not be written; allow it, or use a copy"
    assert err == f"crystalline: error: {tmp_path}/state.db: {said}\n"
