"""One SQLite file in a model's folder: opened, brought up to date, and written in transactions.

WAL lets readers read while one process writes; synchronous=FULL means that what a call has returned
from is on the disk.  A connection belongs to the thread that opened it and does not survive fork.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self
from urllib.parse import quote

from crystalline.data.reading import shown
from crystalline.errors import StoreError
from crystalline.files import sync_folder
from crystalline.store.schema import APPLICATION, FORMAT, STEPS

NAME = "state.db"
MOVED = "the model was renamed or deleted meanwhile; name it again"
WAIT = 60.0  # seconds for another writer; each holds the file for a fraction of one
CACHE_KIB = 64 << 10
WAL_PAGES = 4000  # of 4 KiB, after which they are copied into the file itself

PathLike = str | os.PathLike[str]


_one_thread = threading.RLock()


def _before_fork() -> None:
    _one_thread.acquire()


def _after_fork_in_parent() -> None:
    _one_thread.release()


def _after_fork_in_child() -> None:
    global _one_thread  # noqa: PLW0603
    _one_thread = threading.RLock()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


class Database:
    """The open file.  ``transaction`` writes, ``rows`` reads."""

    def __init__(self, path: str, db: sqlite3.Connection) -> None:
        self.path, self.db = path, db
        self._file = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            status = os.stat(self.path)
            return status.st_dev, status.st_ino
        return None

    @classmethod
    def open(
        cls, folder: PathLike, *, create: bool = False, read_only: bool = False, wait: float = WAIT
    ) -> Self:
        """The store of the model in ``folder``; one of an older format is brought up to date.

        Without ``create`` a folder that has none is a StoreError, but with ``read_only`` it reads
        as an empty one.  ``wait`` is how many seconds another writer is waited for.  Raises
        StoreError where the file is damaged, not ours, of a newer format or may not be used.
        """
        path = os.path.join(os.fspath(folder), NAME)
        with told(path):
            if not os.path.exists(path):
                if read_only:
                    path, db = ":memory:", sqlite3.connect(":memory:", isolation_level=None)
                    _upgrade(path, db)
                    return cls(path, db)
                if not create:
                    raise StoreError(f"{shown(path)}: the file is missing; queue a text first")
                if not os.path.isdir(folder):
                    raise StoreError(f"{shown(os.fspath(folder))}: no such folder; create it first")
            if not read_only:
                return cls(path, _writable(path, wait))
            db = _readable(path, wait)
            if _version(path, db) < FORMAT:
                db.close()
                _writable(path, wait).close()
                db = _readable(path, wait)
            return cls(path, db)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file back."""
        with told(self.path):
            self.db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written in the block, or nothing of it; on the disk when the block is left.

        Raises StoreError, after which the file is as it was.
        """
        with told(self.path):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                if self._identity() != self._file:  # SQLite would go on writing to a deleted file
                    raise StoreError(f"{shown(self.path)}: {MOVED}")
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite may have done so itself
                    self.db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a query gives; never waits for a writer."""
        with told(self.path):
            return self.db.execute(sql, values).fetchall()

    def again(self, folder: PathLike) -> Self:
        """All that is in this database, in a folder that has none; this one is closed.

        For one whose file was removed: what is open can still be read.
        """
        path = os.path.join(os.fspath(folder), NAME)
        with told(path), contextlib.closing(sqlite3.connect(path)) as copy:
            self.db.backup(copy)
        self.close()
        return self.open(folder)

    def integrity(self) -> list[str]:
        """What is wrong with the file itself; nothing if it is whole."""
        problems = [str(row[0]) for row in self.rows("PRAGMA integrity_check")]
        broken = self.rows("PRAGMA foreign_key_check")
        problems += [f"a row of {row[0]} refers to none of {row[2]}" for row in broken]
        return [p for p in problems if p != "ok"]


def _writable(path: str, wait: float) -> sqlite3.Connection:
    new = not os.path.exists(path)
    db = sqlite3.connect(path, timeout=wait, isolation_level=None)
    try:
        if _version(path, db) == 0:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _use_wal(db, wait)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * 4096}")
        _upgrade(path, db)
        if new:
            sync_folder(os.path.dirname(os.path.abspath(path)))
        return db
    except BaseException:
        db.close()
        raise


def _use_wal(db: sqlite3.Connection, wait: float) -> None:
    """Two processes that make the file at once may refuse each other this, without waiting."""
    until = time.monotonic() + wait
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _readable(path: str, wait: float) -> sqlite3.Connection:
    """Where nothing may be written beside the file it is read alone, if all is in it."""
    uri = f"file:{quote(os.path.abspath(os.fsencode(path)))}?mode=ro"
    for flags in ("", "&immutable=1"):
        db = sqlite3.connect(uri + flags, uri=True, timeout=wait, isolation_level=None)
        try:
            _version(path, db)
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return db
        except sqlite3.OperationalError as error:
            db.close()
            wal = path + "-wal"
            pending = os.path.exists(wal) and os.path.getsize(wal) > 0
            closed = error.sqlite_errorcode & 0xFF in (
                sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY
            )  # fmt: skip
            # A full disk has no room for the file that readers share.
            full = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
            barred = closed and not os.access(os.path.dirname(wal) or ".", os.W_OK)
            if flags or pending or not (full or barred):
                raise
        except BaseException:
            db.close()
            raise
    raise AssertionError


def _version(path: str, db: sqlite3.Connection) -> int:
    """The format; 0 of a file that holds nothing yet.  StoreError if it is not one of ours."""
    version, application = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("user_version", "application_id")
    )
    if application != APPLICATION:
        if application or version or db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise StoreError(f"{shown(path)}: another program's database; move it elsewhere")
        return 0
    if version > FORMAT:
        raise StoreError(
            f"{shown(path)}: format {version}, but this version of crystalline knows formats up to "
            f"{FORMAT}; use a newer crystalline"
        )
    return version


def _upgrade(path: str, db: sqlite3.Connection) -> None:
    """Takes the steps that are missing, all of them or none."""
    if _version(path, db) == FORMAT:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in STEPS[_version(path, db) :]:  # another process may have been quicker
            for statement in step.split(";\n"):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {FORMAT}")
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """Says in one line what SQLite found wrong.

    One thread of a process is in SQLite at a time, and none while the process forks: the child
    would wait for ever for a mutex that nobody there holds.
    """
    try:
        with _one_thread:
            yield
    except sqlite3.ProgrammingError:
        raise  # our own mistake
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        raise StoreError(f"{shown(path)}: {_reason(code, error)}") from error


def _reason(code: int, error: sqlite3.Error) -> str:
    reasons = {
        sqlite3.SQLITE_FULL: "the disk is full; free some space; nothing of this was written",
        sqlite3.SQLITE_READONLY: "may not be written; allow it, or use a copy",
        sqlite3.SQLITE_PERM: "may not be used; allow it, or use a copy",
        sqlite3.SQLITE_BUSY: "another process has been writing for too long; try again later",
        sqlite3.SQLITE_CORRUPT: "damaged; restore the model from a copy",
        sqlite3.SQLITE_NOTADB: "not a database; restore the model from a copy",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that the folder may be read and written",
        sqlite3.SQLITE_IOERR: (
            f"the disk failed or is full ({error}); check it; nothing of this was written"
        ),
        sqlite3.SQLITE_TOOBIG: "the text is larger than a database can hold; cut it",
    }
    return reasons.get(code & 0xFF, f"cannot be used ({error}); check the disk and permissions")
