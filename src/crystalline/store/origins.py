"""Documents that a model was created with: known to state.db without having been in its queue."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from crystalline.store.database import Database


@dataclass(frozen=True)
class Origin:
    """A text that training began with: the SHA-256 of its UTF-8 form, its bytes, where it came
    from, and where its tokens lie (place, first, how many); None where it is held out."""

    hash: bytes
    bytes: int
    source: str
    tokens: tuple[int, int, int] | None


class Origins(Database):
    """The part of the store that knows what a model was created with."""

    def created_with(self, origins: Sequence[Origin], fingerprint: str) -> None:
        """These documents are segment 0, in the place of what was there.

        One that waits in the queue is the same document, and waits no more.
        """
        now = time.time()
        with self.transaction() as db:
            db.execute("DELETE FROM documents WHERE segment = 0")
            db.execute("DELETE FROM segments WHERE number = 0")
            placed = [o.tokens for o in origins if o.tokens is not None]
            db.execute(
                "INSERT INTO segments VALUES (0, ?, ?, ?, ?)",
                (len(placed), sum(tokens for *_, tokens in placed), fingerprint, now),
            )
            for origin in origins:
                place, first, tokens = origin.tokens or (None, None, None)
                state = "held_out" if origin.tokens is None else "tokenized"
                (id,) = db.execute(
                    "INSERT INTO documents "
                    "(hash, bytes, weight, priority, state, added, segment, place, first, tokens) "
                    "VALUES (?, ?, 1, 0, ?, ?, 0, ?, ?, ?) ON CONFLICT (hash) DO UPDATE SET "
                    "state = excluded.state, segment = 0, place = excluded.place, "
                    "first = excluded.first, tokens = excluded.tokens, owner = NULL, until = NULL "
                    "RETURNING id",
                    (origin.hash, origin.bytes, state, now, place, first, tokens),
                ).fetchone()
                db.execute("DELETE FROM contents WHERE document = ?", (id,))
                db.execute(
                    "INSERT INTO sources (document, source, first, last) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET last = excluded.last, arrivals = arrivals + 1",
                    (id, origin.source, now, now),
                )
