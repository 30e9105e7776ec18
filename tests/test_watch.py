"""Files that are dropped into watched folders reach the queue: whole, once, and whatever happens
to the folders meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crystalline.errors import UsageError
from crystalline.pipeline import watch
from crystalline.pipeline.watch import Watcher
from crystalline.store import Store

LONG = 3600.0
LIMIT = 30  # seconds until something that must happen counts as lost
Start = Callable[..., Watcher]


class Seen:
    """The events of a watcher, and the texts in the queue of its model."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.events: list[dict[str, Any]] = []

    def texts(self) -> list[str]:
        """The sources of all documents, in order of arrival."""
        with Store.open(self.model, read_only=True) as store:
            return [
                os.path.basename(store.sources(one.id)[0]["source"])
                for one in store.documents(limit=1000)
            ]

    def wait(self, *names: str) -> None:
        """Until the queue has documents from these files, and no others."""
        self.until(lambda: sorted(self.texts()) == sorted(names))

    def until(self, come: Callable[[], bool]) -> None:
        """Until something is so."""
        end = time.monotonic() + LIMIT
        while not come():
            assert time.monotonic() < end, (self.texts(), self.events)
            time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    model = tmp_path / "model"
    model.mkdir()
    Store.open(model, create=True).close()
    return Seen(model)


@pytest.fixture
def start(folder: Path, seen: Seen) -> Iterator[Start]:
    """A watcher that runs; one scan at the start, so that only events tell of what comes later."""
    running: list[Watcher] = []

    def begin(*folders: Path, **options: Any) -> Watcher:
        options = {"settle": 0.3, "rescan": LONG, "poll": LONG} | options
        given = [str(path) for path in folders or (folder,)]
        watcher = Watcher(seen.model, given, on_event=seen.events.append, **options)
        running.append(watcher.__enter__())
        return watcher

    yield begin
    for watcher in running:
        watcher.__exit__()


def aged(path: Path, text: str, seconds: float = 1000) -> None:
    """A file that was written long ago."""
    path.write_text(text)
    os.utime(path, (time.time() - seconds,) * 2)


def test_what_is_there_is_taken_at_the_start_but_for_what_is_no_text(
    folder: Path, seen: Seen, start: Start
) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    aged(folder / "deep" / "er" / "a.txt", "one")
    aged(folder / "b.txt", "two")
    for name in (".hidden", "c.part", "d.tmp", "e~", "#f#", "g.crdownload"):
        aged(folder / name, f"text of {name}")
    (folder / ".git").mkdir()
    aged(folder / ".git" / "x", "of git")
    (folder / "model").mkdir()
    (folder / "model" / "training.lock").touch()
    aged(folder / "model" / "config.json", "{}")
    (folder / "picture").write_bytes(b"\0\1\2")
    (folder / "empty").touch()
    start()
    seen.wait("a.txt", "b.txt")
    seen.until(lambda: any(e["event"] == "skipped" for e in seen.events))
    time.sleep(0.6)
    seen.wait("a.txt", "b.txt")
    skipped = [e for e in seen.events if e["event"] == "skipped"]
    assert [(os.path.basename(e["path"]), e["reason"]) for e in skipped] == [("picture", "binary")]


def test_a_file_is_taken_when_it_stays_as_it_is(folder: Path, seen: Seen, start: Start) -> None:
    start(settle=3.0)  # so that a busy computer does not make a pause of ours that long
    time.sleep(0.5)
    with open(folder / "slow.txt", "w") as file:
        for n in range(6):
            file.write(f"line {n}\n")
            file.flush()
            time.sleep(0.3)
            assert seen.texts() == []
    seen.wait("slow.txt")
    with Store.open(seen.model) as store:
        assert store.lease()[0].text == "".join(f"line {n}\n" for n in range(6))


def test_a_renamed_file_is_taken_at_once(folder: Path, seen: Seen, start: Start) -> None:
    start(settle=LONG)
    time.sleep(0.5)
    (folder / "a.txt.part").write_text("whole")
    time.sleep(0.5)
    assert seen.texts() == []
    (folder / "a.txt.part").rename(folder / "a.txt")
    seen.wait("a.txt")


def test_a_folder_that_is_moved_in_is_taken_with_all_that_is_in_it(
    folder: Path, tmp_path: Path, seen: Seen, start: Start
) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    aged(tmp_path / "out" / "deep" / "a.txt", "one")
    start()
    time.sleep(0.5)
    (tmp_path / "out").rename(folder / "in")
    seen.wait("a.txt")


def test_nothing_is_read_twice_and_what_changes_is_a_new_document(
    folder: Path, seen: Seen, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = watch.read_file
    monkeypatch.setattr(watch, "read_file", lambda path: read.append(path) or real(path))
    aged(folder / "a.txt", "one")
    (folder / "picture").write_bytes(b"\0\1\2")
    first = start(rescan=0.0)  # scans at every tick
    seen.wait("a.txt")
    seen.until(lambda: len(read) == 2)
    time.sleep(1.0)
    first.__exit__()
    start()  # another process, later
    time.sleep(1.0)
    assert sorted(map(os.path.basename, read)) == ["a.txt", "picture"]
    aged(folder / "a.txt", "another", 500)
    seen.wait("a.txt", "a.txt")


def test_the_same_text_in_two_files_is_one_document(
    folder: Path, seen: Seen, start: Start
) -> None:
    aged(folder / "a.txt", "same")
    aged(folder / "b.txt", "same")
    start()
    seen.until(lambda: bool(seen.events))
    with Store.open(seen.model, read_only=True) as store:
        (one,) = store.documents()
        assert [os.path.basename(s["source"]) for s in store.sources(one.id)] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("how", ["no watch", "a network"])
def test_polling_where_there_are_no_events(
    how: str, folder: Path, seen: Seen, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: Any, **__: Any) -> Iterator[Any]:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr("watchfiles.watch", none_left)
    if how == "a network":
        monkeypatch.setattr(watch, "_file_system", lambda folder: "nfs4")
    start(**({"rescan": 0.5} if how == "no watch" else {"poll": 0.5}))
    time.sleep(0.7)
    aged(folder / "a.txt", "one")
    seen.wait("a.txt")


def test_the_kind_of_a_file_system_is_found(tmp_path: Path) -> None:
    assert watch._file_system("/proc") == "proc"
    assert watch._file_system(str(tmp_path)) != ""
    assert watch._file_system("/nowhere") == ""


def test_a_folder_may_vanish_and_come_back(folder: Path, seen: Seen, start: Start) -> None:
    aged(folder / "a.txt", "one")
    watcher = start()
    seen.wait("a.txt")
    for n in range(3):
        shutil.rmtree(folder)
        if n:
            time.sleep(0.6)
        folder.mkdir()
        aged(folder / f"b{n}.txt", f"again {n}")
        seen.wait("a.txt", *(f"b{k}.txt" for k in range(n + 1)))
        time.sleep(0.6)
        aged(folder / f"c{n}.txt", f"later {n}")
        seen.until(lambda n=n: f"c{n}.txt" in seen.texts())
        with Store.open(seen.model) as store:
            store.remove([one.id for one in store.documents() if store.sources(one.id)[0]["source"]
                          .endswith(f"c{n}.txt")])  # fmt: skip
    assert watcher._thread.is_alive()


def test_a_folder_that_looks_like_the_one_before_it(
    folder: Path, seen: Seen, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems give numbers again: then only the event tells that the folder is another."""
    real = Watcher._present
    first: list[Any] = []

    def always_the_same(self: Watcher) -> Any:
        first.append(first[0] if first else real(self))
        return first[0]

    monkeypatch.setattr(Watcher, "_present", always_the_same)
    start()
    time.sleep(0.7)
    shutil.rmtree(folder)
    folder.mkdir()
    time.sleep(0.7)
    aged(folder / "a.txt", "one")
    seen.wait("a.txt")


def test_files_that_vanish_and_cannot_be_read(folder: Path, seen: Seen, start: Start) -> None:
    start(settle=1.0)
    time.sleep(0.5)
    (folder / "gone.txt").write_text("gone")
    (folder / "link.txt").symlink_to(folder / "nothing")
    time.sleep(0.5)
    (folder / "gone.txt").unlink()
    aged(folder / "stays.txt", "stays")
    seen.wait("stays.txt")
    time.sleep(1.0)
    seen.wait("stays.txt")


def test_it_stops_at_once(folder: Path, seen: Seen, start: Start) -> None:
    for n in range(300):
        aged(folder / f"{n}.txt", f"text {n}")
    watcher = start()
    time.sleep(0.5)
    begun = time.monotonic()
    watcher.__exit__()
    assert not watcher._thread.is_alive()
    assert time.monotonic() - begun < 5
    with Store.open(seen.model, read_only=True) as store:
        assert store.integrity() == []


def test_a_queue_that_cannot_be_written_is_tried_again(
    folder: Path, seen: Seen, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BUSY", 0.2)
    aged(folder / "a.txt", "one")
    with contextlib.closing(sqlite3.connect(seen.model / "state.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        start()
        seen.until(lambda: any(e["event"] == "trouble" for e in seen.events))
        assert "another process has been writing for too long" in seen.events[0]["error"]
    seen.wait("a.txt")


def test_run_ends_with_the_event_of_the_caller(folder: Path, seen: Seen) -> None:
    stop = threading.Event()
    stop.set()
    Watcher(seen.model, [str(folder)]).run(stop)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder to watch; create it first"):
        Watcher(tmp_path, [str(tmp_path / "nowhere")])
