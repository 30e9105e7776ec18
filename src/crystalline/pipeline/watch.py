"""Folders that are watched: files dropped into them are queued when they are complete.

The truth is a scan of everything, at the start and every few minutes; events of the file system
only make it quicker.  A file is complete when its size and time stay as they are for a moment, or
when it was renamed: then the last thing that happened to it was no writing.  What was read once is
not read again while it stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from crystalline.data.reading import MODEL_MARKS, File, Unusable, find_files, read_file, shown
from crystalline.errors import DataError, UsageError
from crystalline.store import Arrival, Store

SETTLE = 2.0  # seconds without a change until a file is complete
OLD = 60.0  # seconds since its last change that make a file complete at first sight
RESCAN = 180.0  # seconds between two scans of everything, where there are events, and
POLL = 10.0  # where there are none
TICK = 0.25  # seconds between two looks at what is not complete yet
STEP = 100  # milliseconds between two looks for events
BUSY = 5.0  # seconds another writer of the queue is waited for, until the next try
TEMPORARY = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".swp", "~", "#")
# What other computers do to files on these, the system here does not tell.
NO_EVENTS = ("nfs", "cifs", "smb", "9p", "fuse", "virtiofs", "vboxsf", "afs", "ceph", "lustre")

OnEvent = Callable[[dict[str, Any]], None]
Identity = tuple[int, int] | None


@dataclass
class _Look:
    """A file that is perhaps still being written, and since when it has been so."""

    file: File
    since: float


@dataclass
class Watcher:
    """Watches ``folders`` for the model in ``model``, in a thread of its own: a context manager.

    ``on_event`` is called in that thread with a dict, key ``event``: ``watch`` after files were
    queued (new, known, bytes), ``skipped`` for one that is no text (path, reason), ``trouble`` with
    what kept the queue from being written (error): it is tried again.  Raises UsageError for a
    folder that is not there at the start; later it may vanish and come back.
    """

    model: Path
    folders: Sequence[str]
    priority: int = 0
    weight: int = 1
    settle: float = SETTLE
    rescan: float = RESCAN
    poll: float = POLL
    on_event: OnEvent | None = None
    _looks: dict[str, _Look] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        for folder in self.folders:
            if not os.path.isdir(folder):
                raise UsageError(f"{shown(folder)}: no such folder to watch; create it first")
        self.folders = [os.path.abspath(folder) for folder in self.folders]
        self._thread = threading.Thread(
            target=self.run, args=(self._stop,), name="watch", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def run(self, stop: threading.Event) -> None:
        """Watches in the thread of the caller, until ``stop`` is set."""
        while not stop.is_set():
            try:
                with Store.open(self.model, create=True, wait=BUSY) as store:
                    while not stop.is_set():
                        self._round(store, stop)
            except Exception as error:  # whatever it is: the files are still there
                self._tell({"event": "trouble", "error": str(error)})
                stop.wait(BUSY)

    def _round(self, store: Store, stop: threading.Event) -> None:
        """From one scan of everything to the next."""
        roots = self._present()
        told = _gives_events([folder for folder, identity in roots.items() if identity])
        end = time.monotonic() + (self.rescan if told else self.poll)
        scanned = False
        with contextlib.closing(_hints([f for f in roots if roots[f]], stop)) as hints:
            for paths in hints:
                if not scanned:  # after the events have begun, so that nothing falls in between
                    scanned = True
                    self._look_below(store, [f for f in roots if roots[f]])
                for path in paths:
                    if self._wanted(path):
                        self._look_below(store, [path])
                self._take(store, stop)
                gone = not paths.isdisjoint(roots)  # a folder itself was removed or made
                if gone or self._present() != roots or time.monotonic() > end:
                    return

    def _present(self) -> dict[str, Identity]:
        """Every folder, and which one it is, as others may come in its place."""
        found: dict[str, Identity] = dict.fromkeys(self.folders)
        for folder in self.folders:
            with contextlib.suppress(OSError):
                status = os.stat(folder)
                found[folder] = status.st_dev, status.st_ino
        return found

    def _wanted(self, path: str) -> bool:
        """Whether a scan of everything would come to a path: hidden ones and models are not."""
        root = next((f for f in self.folders if path.startswith(f + os.sep)), None)
        if root is None:
            return False
        parts = path[len(root) + 1 :].split(os.sep)
        above = [os.path.join(root, *parts[:n]) for n in range(1, len(parts))]
        return not any(part.startswith(".") for part in parts) and not any(
            os.path.exists(os.path.join(folder, mark)) for folder in above for mark in MODEL_MARKS
        )

    def _look_below(self, store: Store, paths: Sequence[str]) -> None:
        """Notes every file that is not known as it is."""
        try:
            found, _ = find_files(paths)
        except DataError:  # it has vanished
            return
        for file in found:
            if file.size == 0 or file.path.endswith(TEMPORARY) or store.remembers(file):
                continue
            look = self._looks.get(file.path)
            if look is None or look.file != file:
                self._looks[file.path] = _Look(file, time.monotonic())

    def _take(self, store: Store, stop: threading.Event) -> None:
        """Queues what is complete by now."""
        ready = [path for path, look in list(self._looks.items()) if self._complete(path, look)]
        if not ready:
            return
        done: list[str] = []
        refused: list[File] = []
        arrivals = self._read(ready, stop, done, refused)
        added = store.add(arrivals, priority=self.priority, weight=self.weight)
        store.remember(refused)
        for path in done:
            self._looks.pop(path, None)
        if added.new + added.known:
            self._tell({"event": "watch", **added._asdict()})

    def _complete(self, path: str, look: _Look) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            del self._looks[path]  # it has vanished
            return False
        now, file = time.monotonic(), File(path, status.st_size, status.st_mtime_ns)
        if file != look.file:
            self._looks[path] = _Look(file, now)
            return False
        age = now - look.since
        renamed = status.st_ctime_ns > status.st_mtime_ns and age >= TICK / 2
        return age >= self.settle or renamed or time.time() - status.st_mtime >= OLD

    def _read(
        self, paths: Iterable[str], stop: threading.Event, done: list[str], refused: list[File]
    ) -> Iterator[Arrival]:
        for path in paths:
            if stop.is_set():
                return
            look = self._looks[path]
            try:
                text, file = read_file(path)
                if file != look.file:
                    look.file, look.since = file, time.monotonic()
                    continue
                yield Arrival(text, shown(path), file)
            except Unusable as error:
                if str(error).startswith("changing"):
                    look.since = time.monotonic()
                    continue
                if not str(error).startswith("unreadable"):  # which may pass
                    refused.append(look.file)
                if path not in self._refused:
                    self._refused.add(path)
                    told = {"event": "skipped", "path": shown(path), "reason": str(error)}
                    self._tell(told)
            done.append(path)

    def _tell(self, event: dict[str, Any]) -> None:
        if self.on_event is not None:
            self.on_event(event)


def _hints(
    folders: Sequence[str], stop: threading.Event
) -> Generator[set[str], None, None]:
    """Paths to which something happened; every TICK, also if nothing did."""
    try:
        if folders:
            from watchfiles import watch

            for changes in watch(
                *folders, watch_filter=None, debounce=int(1000 * TICK), step=STEP, stop_event=stop,
                rust_timeout=int(1000 * TICK), yield_on_timeout=True, raise_interrupt=False,
                ignore_permission_denied=True,
            ):  # fmt: skip
                yield {path for _, path in changes}
            return
    except (OSError, RuntimeError):  # no watch is left, or a folder has just vanished
        pass
    yield set()
    while not stop.wait(TICK):
        yield set()


def _gives_events(folders: Sequence[str]) -> bool:
    """Whether the system tells of all that happens there."""
    return not any(_file_system(folder).startswith(NO_EVENTS) for folder in folders)


def _file_system(folder: str) -> str:
    """The kind of file system, "" if the system does not say."""
    try:
        device = os.stat(folder).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                if before.split()[2] == wanted:
                    return after.split()[0]
    except (OSError, IndexError):
        pass
    return ""
