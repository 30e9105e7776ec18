"""What the store knows of trainings: runs, what happened, the passes over the documents.

The checkpoint is the only truth about training.  The passes here are derived from it, so that one
can ask which documents have been trained; a training that begins sets them straight.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crystalline.store.database import Database

KILLED = "killed"  # the outcome of a run that could not say one


@dataclass(frozen=True)
class Pass:
    """Once over some documents: ranges of places (first, end), and the steps that made it.

    ``last_step`` is None while it is under way.
    """

    number: int
    places: tuple[tuple[int, int], ...]
    first_step: int
    last_step: int | None = None


class History(Database):
    """The part of the store that a training writes."""

    # --- settings ---------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """A value kept by ``set``: ``options``, ``target_epochs``, ``epochs_trained`` ..."""
        rows = self.rows("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else default

    def set(self, **values: Any) -> None:
        """Keeps JSON-able values.  ``target_epochs`` decides which documents are trained."""
        with self.transaction() as db:
            _set(db, values)
            if "target_epochs" in values:
                _epochs(db, 0, _target(db), "")

    # --- runs -------------------------------------------------------------------------------------

    def run_begun(self, step: int, **said: Any) -> int:
        """A run goes on from ``step``.  Returns its number.  Runs that never ended were killed."""
        with self.transaction() as db:
            db.execute("UPDATE runs SET outcome = ? WHERE outcome IS NULL", (KILLED,))
            row = db.execute(
                "INSERT INTO runs (began, first_step, said) VALUES (?, ?, ?) RETURNING id",
                (time.time(), step, json.dumps(said)),
            ).fetchone()
        return int(row[0])

    def run_ended(self, run: int, step: int, outcome: str) -> None:
        """A run has ended after ``step``: done, stopped, or with an error in words."""
        with self.transaction() as db:
            db.execute(
                "UPDATE runs SET ended = ?, last_step = ?, outcome = ? WHERE id = ?",
                (time.time(), step, outcome, run),
            )

    def runs(self) -> list[dict[str, Any]]:
        """All runs, the first one first."""
        names = ("run", "began", "ended", "first_step", "last_step", "outcome", "said")
        rows = self.rows(
            "SELECT id, began, ended, first_step, last_step, outcome, said FROM runs ORDER BY id"
        )
        return [dict(zip(names, (*r[:-1], json.loads(r[-1])), strict=True)) for r in rows]

    def note(self, kind: str, step: int | None = None, run: int | None = None, **said: Any) -> None:
        """Writes down what happened: a setting changed, a layer added, ..."""
        with self.transaction() as db:
            db.execute(
                "INSERT INTO history (run, at, step, kind, said) VALUES (?, ?, ?, ?, ?)",
                (run, time.time(), step, kind, json.dumps(said)),
            )

    def history(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """The last notes, the oldest of them first."""
        names = ("run", "at", "step", "kind", "said")
        rows = self.rows(
            "SELECT run, at, step, kind, said FROM history ORDER BY id DESC LIMIT ?", (limit,)
        )
        return [dict(zip(names, (*r[:-1], json.loads(r[-1])), strict=True)) for r in rows[::-1]]

    # --- passes -----------------------------------------------------------------------------------

    def record_passes(self, passes: Sequence[Pass], *, afresh: bool = False) -> None:
        """The passes are these, all that there are, as the checkpoint just written has them.

        Documents in passes that are done have that many epochs; with ``target_epochs`` (1) of them
        they are trained.  Only what differs from before is worked out, or everything ``afresh``.
        """
        with self.transaction() as db:
            target = _target(db)
            if afresh:
                db.execute("DELETE FROM passes")
                db.execute("UPDATE documents SET epochs = 0 WHERE epochs > 0")
                _epochs(db, 0, target, "")
            before, now = {_pass_of(row) for row in db.execute(_PASSES)}, set(passes)
            for change, sign in ((before - now, -1), (now - before, 1)):
                for one in change:
                    if one.last_step is not None:
                        for place, end in one.places:
                            _epochs(db, sign, target, "AND place >= ?3 AND place < ?4", place, end)
                    db.execute("DELETE FROM passes WHERE number = ?", (one.number,))
                    if sign > 0:
                        db.execute(
                            "INSERT INTO passes VALUES (?, ?, ?, ?)",
                            (one.number, json.dumps(one.places), one.first_step, one.last_step),
                        )
            _set(db, {"epochs_trained": sum(p.last_step is not None for p in passes)})

    def passes(self) -> list[Pass]:
        """The passes as they were recorded last."""
        return [_pass_of(row) for row in self.rows(_PASSES)]


_PASSES = "SELECT number, places, first_step, last_step FROM passes ORDER BY number"


def _pass_of(row: tuple[Any, ...]) -> Pass:
    number, places, first, last = row
    return Pass(number, tuple((a, b) for a, b in json.loads(places)), first, last)


def _set(db: sqlite3.Connection, values: Mapping[str, Any]) -> None:
    db.executemany(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [(key, json.dumps(value)) for key, value in values.items()],
    )


def _target(db: sqlite3.Connection) -> int:
    """Epochs after which a document is trained."""
    row = db.execute("SELECT value FROM meta WHERE key = 'target_epochs'").fetchone()
    return max(1, math.ceil(json.loads(row[0]) or 1)) if row else 1


def _epochs(db: sqlite3.Connection, change: int, target: int, where: str, *values: int) -> None:
    """Changes the epochs of tokenized documents, and with them whether they are trained."""
    db.execute(
        "UPDATE documents SET epochs = epochs + ?1, "
        "state = CASE WHEN epochs + ?1 >= ?2 THEN 'trained' ELSE 'tokenized' END "
        f"WHERE place IS NOT NULL {where}",
        (change, target, *values),
    )
