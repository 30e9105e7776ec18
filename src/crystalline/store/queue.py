"""The documents that wait to be learnt: added by any process, leased by the one that trains.

            add              lease               tokenized               passes
    (text) ─────▶ pending ─────────▶ leased ─────────────▶ tokenized ─────────────▶ trained
                     ▲    ◀─────────  │ ▲    held_out ◀──┘
               retry │     release,   │ └── in time ──┐
                     │     lease over ▼               │
                   dead ◀──────── failed ─────────────┘
                        attempts used up
"""

from __future__ import annotations

import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from crystalline.data.reading import File, shown
from crystalline.errors import StoreError, UsageError
from crystalline.store.database import Database, told
from crystalline.store.documents import (
    BYTES,
    COLUMNS,
    Added,
    Arrival,
    Document,
    Leased,
    Packed,
    Placed,
    document_of,
    in_batches,
    in_groups,
    pack,
    unpack,
)
from crystalline.store.schema import STATES

ATTEMPTS = 3  # failures until a document is dead
AGAIN = 30.0  # seconds until one that failed once is tried again; twice that after the second
LEASE = 60.0  # seconds, unless a heartbeat comes
DOCUMENTS = 512  # leased together
MOST_WEIGHT = 1000
MOST_PRIORITY = 2**31 - 1
WAITING = ("pending", "failed", "dead")  # nobody works on them: may be removed


class Queue(Database):
    """The part of the store that documents pass through."""

    _owner: str | None = None

    @property
    def owner(self) -> str:
        """Whose the leases are that this object takes."""
        if self._owner is None:
            self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        return self._owner

    # --- what any process may do ------------------------------------------------------------------

    def add(
        self,
        arrivals: Iterable[Arrival],
        *,
        priority: int = 0,
        weight: int = 1,
        on_batch: Callable[[Added], None] | None = None,
    ) -> Added:
        """Queues texts.  One that is known, in whatever state, only gets another source.

        Documents of a higher ``priority`` are taken first, and each ``weight`` times in an epoch.
        Texts are written in batches, each whole or not at all, and ``on_batch`` is told the sum so
        far when one is on the disk.  Raises DataError for a text that is empty or cannot be
        written as UTF-8, StoreError where the disk fails; batches before that stay queued.
        """
        _whole("weight", weight, 1, MOST_WEIGHT)
        _whole("priority", priority, -MOST_PRIORITY, MOST_PRIORITY)
        total = Added()
        for batch in in_batches(map(pack, arrivals)):
            with self.transaction() as db:
                now = time.time()
                new = [_insert(db, item, priority, weight, now) for item in batch]
            fresh = sum(item.size for item, is_new in zip(batch, new, strict=True) if is_new)
            count = sum(new)
            total = Added(total.new + count, total.known + len(batch) - count, total.bytes + fresh)
            if on_batch is not None:
                on_batch(total)
        return total

    def retry(self, ids: Sequence[int] | None = None) -> int:
        """Makes failed and dead documents pending again, as if they had never been tried; all of
        them without ``ids``.  Returns how many."""
        return self._each(
            "UPDATE documents SET state = 'pending', attempts = 0, error = NULL, until = NULL "
            "WHERE state IN ('failed', 'dead')", ids
        )  # fmt: skip

    def remove(self, ids: Sequence[int]) -> int:
        """Forgets documents that wait.  Returns how many.

        Raises UsageError, and removes none, if one is being worked on or is part of the model's
        text already.
        """
        with self.transaction() as db:
            for group in in_groups(list(ids)):
                for found, state in db.execute(
                    f"SELECT id, state FROM documents WHERE id IN ({_marks(group)})", group
                ):
                    if state not in WAITING:
                        raise UsageError(_not_removable(found, state))
            return sum(
                db.execute(f"DELETE FROM documents WHERE id IN ({_marks(g)})", g).rowcount
                for g in in_groups(list(ids))
            )

    def clear(self, states: Sequence[str] = WAITING) -> int:
        """Forgets all documents in ``states``, of those that wait.  Returns how many."""
        for state in states:
            if state not in WAITING:
                raise UsageError(
                    f"state is {state!r}, but only {', '.join(WAITING)} can be cleared"
                )
        with self.transaction() as db:
            count = db.execute(
                f"DELETE FROM documents WHERE state IN ({_marks(states)})", states
            ).rowcount
        self.shrink()
        return count

    def shrink(self) -> None:
        """Gives the disk what tokenized and removed texts took."""
        with told(self.path):
            # Not ``execute``, which takes one of its steps and frees one page.
            self.db.executescript("PRAGMA incremental_vacuum")

    def remember(self, files: Iterable[File]) -> None:
        """These files are not to be read again while they stay as they are."""
        with self.transaction() as db:
            for file in files:
                _remember(db, file)

    def remembers(self, file: File) -> bool:
        """Whether the file is as it was when it was read last."""
        return [(file.mtime_ns, file.size)] == self.rows(
            "SELECT mtime_ns, bytes FROM seen WHERE path = ?", (os.fsencode(file.path),)
        )

    # --- what only the holder of the model's lock does --------------------------------------------

    def reclaim(self) -> int:
        """Makes all leases pending: who holds the lock knows that every other owner is dead."""
        return self._each(f"{_RELEASE} WHERE state = 'leased'", None)

    def lease(
        self, documents: int = DOCUMENTS, bytes: int = BYTES, seconds: float = LEASE
    ) -> list[Leased]:
        """Takes the next documents, the highest priority first, then in order of arrival.

        At most ``documents`` and, but for the first, at most ``bytes`` of text.  They are ours for
        ``seconds`` and after every ``heartbeat``; then anybody's.  One whose text is damaged is
        failed on the way.
        """
        now = time.time()
        with self.transaction() as db:
            db.execute(f"{_RELEASE} WHERE state IN ('leased', 'failed') AND until <= ?", (now,))
            ids: list[int] = []
            size = 0
            for found, length in db.execute(
                "SELECT id, bytes FROM documents WHERE state = 'pending' "
                "ORDER BY priority DESC, id LIMIT ?", (documents,)
            ):  # fmt: skip
                size += length
                if ids and size > bytes:
                    break
                ids.append(found)
            db.executemany(
                "UPDATE documents SET state = 'leased', owner = ?, until = ? WHERE id = ?",
                [(self.owner, now + seconds, i) for i in ids],
            )
        taken = []
        for i in ids:
            hash, size, weight, packed, body = self.rows(
                "SELECT hash, bytes, weight, packed, body FROM documents "
                "LEFT JOIN contents ON document = id WHERE id = ?", (i,)
            )[0]  # fmt: skip
            try:
                taken.append(Leased(i, hash.hex(), unpack(hash, packed, body), size, weight))
            except ValueError as error:
                self.failed(i, f"its text in {self.path} is damaged ({error})")
        return taken

    def heartbeat(self, seconds: float = LEASE) -> int:
        """Our leases last ``seconds`` from now.  Returns how many there are."""
        return self._each(
            "UPDATE documents SET until = ? WHERE state = 'leased' AND owner = ?", None,
            time.time() + seconds, self.owner
        )  # fmt: skip

    def release(self, ids: Sequence[int] | None = None) -> int:
        """Gives leases back, all of ours without ``ids``: nothing was wrong with the documents."""
        return self._each(
            f"{_RELEASE} WHERE state = 'leased' AND owner = ?", ids, self.owner
        )

    def tokenized(
        self,
        segment: int,
        placed: Sequence[Placed],
        *,
        fingerprint: str = "",
        held_out: Sequence[int] = (),
    ) -> None:
        """The segment counts from now on, and these documents of it; their texts are let go.

        ``held_out`` are measured on and never trained.  The files must be on the disk before.
        StoreError, and nothing changed, if a document is not leased by us any more or the segment
        counts already.
        """
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM segments WHERE number = ?", (segment,)).fetchone():
                raise StoreError(f"{self.path}: segment {segment} counts already; take the next")
            db.execute(
                "INSERT INTO segments VALUES (?, ?, ?, ?, ?)",
                (segment, len(placed), sum(p.tokens for p in placed), fingerprint, time.time()),
            )
            for p in placed:
                self._settle(
                    db, p.id, "state = 'tokenized', segment = ?, place = ?, first = ?, tokens = ?",
                    segment, p.place, p.first, p.tokens,
                )  # fmt: skip
            for i in held_out:
                self._settle(db, i, "state = 'held_out', segment = ?", segment)
            settled = [*(p.id for p in placed), *held_out]
            db.executemany("DELETE FROM contents WHERE document = ?", [(i,) for i in settled])

    def failed(self, id: int, error: str, *, attempts: int = ATTEMPTS) -> str:
        """A leased document could not be used: tried again later, ``attempts`` times in all.

        Returns its state, ``failed`` or ``dead``.  StoreError if it is not leased by us any more.
        """
        with self.transaction() as db:
            tried = db.execute("SELECT attempts FROM documents WHERE id = ?", (id,)).fetchone()
            count = 1 + (tried[0] if tried else 0)
            state = "dead" if count >= attempts else "failed"
            until = None if state == "dead" else time.time() + AGAIN * 2 ** (count - 1)
            self._settle(db, id, "state = ?, attempts = ?, error = ?, until = ?",
                         state, count, error, until)  # fmt: skip
        return state

    def _settle(self, db: sqlite3.Connection, id: int, change: str, *values: Any) -> None:
        """Ends one of our leases."""
        done = db.execute(
            "UPDATE documents SET owner = NULL, until = NULL, error = NULL, "
            f"{change} WHERE id = ? AND state = 'leased' AND owner = ?",
            (*values, id, self.owner),
        )
        if done.rowcount != 1:
            raise StoreError(
                f"{self.path}: document {id} is not leased by this process any more; nothing was "
                "changed; send heartbeats while it is worked on"
            )

    # --- looking ----------------------------------------------------------------------------------

    def counts(self) -> dict[str, tuple[int, int]]:
        """Of every state: how many documents, and the bytes of their texts."""
        found = {
            state: (count, size)
            for state, count, size in self.rows(
                "SELECT state, count(*), sum(bytes) FROM documents GROUP BY state"
            )
        }
        return {state: found.get(state, (0, 0)) for state in STATES}

    def has_pending(self) -> bool:
        """Whether a document waits, or one that failed is due again."""
        return bool(
            self.rows(
                "SELECT 1 FROM documents WHERE state = 'pending' "
                "OR (state IN ('failed', 'leased') AND until <= ?) LIMIT 1", (time.time(),)
            )
        )  # fmt: skip

    def documents(
        self, state: str | None = None, *, limit: int = 20, after: int = 0
    ) -> list[Document]:
        """Documents with ids above ``after``, in order of arrival; of one state or of all."""
        if state is not None and state not in STATES:
            raise UsageError(f"state is {state!r}, but must be one of {', '.join(STATES)}")
        where = "id > ?" if state is None else "id > ? AND state = ?"
        values: list[Any] = [after, *([] if state is None else [state]), limit]
        return [
            document_of(row)
            for row in self.rows(
                f"SELECT {COLUMNS} FROM documents WHERE {where} ORDER BY id LIMIT ?", values
            )
        ]

    def lacking(self) -> list[tuple[int, int, int]]:
        """Place, weight and epochs of every document that is tokenized and lacks epochs."""
        rows = self.rows(
            "SELECT place, weight, epochs FROM documents WHERE state = 'tokenized' ORDER BY place"
        )
        return [(place, weight, epochs) for place, weight, epochs in rows]

    def segments(self) -> list[int]:
        """The numbers of the segments that count, rising."""
        return [row[0] for row in self.rows("SELECT number FROM segments ORDER BY number")]

    def find(self, name: str) -> Document:
        """The document with this id, whose hash begins so, or that came from this path or URL.

        Raises UsageError if there is none, or several.
        """
        given = name.strip()
        named, where = given.lower(), ""
        values: list[Any] = []
        if named.isdecimal() and len(named) < 19:
            where, values = "id = ?", [int(named)]
        elif 6 <= len(named) <= 64 and set(named) <= set("0123456789abcdef"):
            where = "hash BETWEEN ? AND ?"
            values = [bytes.fromhex(named.ljust(64, fill)) for fill in "0f"]
        found = f"SELECT {COLUMNS} FROM documents WHERE "
        rows = self.rows(found + where, values) if where else []
        if not rows:
            came = "id IN (SELECT document FROM sources WHERE source IN (?, ?)) ORDER BY id"
            rows = self.rows(found + came, (given, os.path.abspath(given)))
        if len(rows) != 1:
            ids = ", ".join(str(row[0]) for row in rows[:10])
            what = f"several documents: {ids}" if rows else "no such document in the queue"
            raise UsageError(
                f"{shown(name)}: {what}; give an id, the first 12 digits of a hash, or a path"
            )
        return document_of(rows[0])

    def _each(self, change: str, ids: Sequence[int] | None, *values: Any) -> int:
        """An UPDATE that ends in a WHERE, of all documents or of ``ids``.  Returns how many."""
        with self.transaction() as db:
            if ids is None:
                return db.execute(change, values).rowcount
            return sum(
                db.execute(f"{change} AND id IN ({_marks(g)})", (*values, *g)).rowcount
                for g in in_groups(list(ids))
            )


_RELEASE = "UPDATE documents SET state = 'pending', owner = NULL, until = NULL"


def _insert(db: sqlite3.Connection, item: Packed, priority: int, weight: int, now: float) -> bool:
    """Whether the document is new."""
    new = db.execute(
        "INSERT INTO documents (hash, bytes, weight, priority, state, added) "
        "VALUES (?, ?, ?, ?, 'pending', ?) ON CONFLICT (hash) DO NOTHING RETURNING id",
        (item.hash, item.size, weight, priority, now),
    ).fetchone()
    (id,) = new or db.execute("SELECT id FROM documents WHERE hash = ?", (item.hash,)).fetchone()
    if new:
        db.execute("INSERT INTO contents VALUES (?, ?, ?)", (id, item.packed, item.body))
    db.execute(
        "INSERT INTO sources VALUES (?, ?, ?, ?, 1) ON CONFLICT (document, source) "
        "DO UPDATE SET last = excluded.last, arrivals = arrivals + 1",
        (id, item.source, now, now),
    )
    if item.file is not None:
        _remember(db, item.file)
    return new is not None


def _remember(db: sqlite3.Connection, file: File) -> None:
    db.execute(
        "INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT (path) "
        "DO UPDATE SET mtime_ns = excluded.mtime_ns, bytes = excluded.bytes",
        (os.fsencode(file.path), file.mtime_ns, file.size),
    )


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(
            f"{name} is {value!r}, but must be a whole number from {low} to {high}; "
            f"choose {max(low, 0)}"
        )


def _not_removable(id: int, state: str) -> str:
    if state == "leased":
        return f"document {id} is being tokenized; remove it when the training has stopped"
    return f"document {id} is {state}: part of the model's text, which keeps what it has learnt"
