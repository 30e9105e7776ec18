"""Which document gave which tokens, whence it came, and in which passes it was trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crystalline.store.documents import COLUMNS, Document, document_of
from crystalline.store.origins import Origins
from crystalline.store.queue import Queue
from crystalline.store.training import History, Pass

PAGE = 500  # documents looked up together


class Store(Queue, History, Origins):
    """The queue, the history and the provenance of one model: ``Store.open(folder)``."""

    def sources(self, id: int) -> list[dict[str, Any]]:
        """Every path, URL or ``-`` by which a document arrived, with the first and last time."""
        names = ("source", "first", "last", "arrivals")
        rows = self.rows(
            "SELECT source, first, last, arrivals FROM sources WHERE document = ? "
            "ORDER BY first, source",
            (id,),
        )
        return [dict(zip(names, row, strict=True)) for row in rows]

    def provenance(
        self, document: int | None = None, *, after: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Of one document, or of each with an id above ``after``, in order of arrival.

        ``tokens`` is None before it is tokenized; ``passes`` are those that have it in their list,
        with their first and last step (None: under way).
        """
        passes = self.passes()
        last = after if document is None else document - 1
        end = 2**63 - 1 if document is None else document
        while rows := self.rows(
            f"SELECT {COLUMNS} FROM documents WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
            (last, end, PAGE),
        ):
            for row in rows:
                one = document_of(row)
                last = one.id
                yield self._traced(one, passes)

    def _traced(self, one: Document, passes: list[Pass]) -> dict[str, Any]:
        tokens = None
        if one.place is not None:
            tokens = {
                "segment": one.segment, "place": one.place, "first": one.first,
                "number": one.tokens,
            }  # fmt: skip
        return {
            "id": one.id, "hash": one.hash, "bytes": one.bytes, "weight": one.weight,
            "state": one.state, "added": one.added, "sources": self.sources(one.id),
            "tokens": tokens, "epochs": one.epochs,
            "passes": [
                {"pass": p.number, "first_step": p.first_step, "last_step": p.last_step}
                for p in passes
                if one.place is not None and any(a <= one.place < b for a, b in p.places)
            ],
        }  # fmt: skip
