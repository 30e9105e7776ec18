"""Batches of fixed shape from stored tokens, the same for the same seed.

The stream of sequences is endless, or ends after so many passes; a batch is any B that follow each
other in it. A sequence is a row of T positions that holds one window of a document, or with
packing several. docs/batches.md defines all these words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline.data.packing import packed
from crystalline.data.passes import Passes
from crystalline.data.shards import Split
from crystalline.data.windows import Longs, Spans, cut
from crystalline.errors import DataError

NO_LOSS = -1  # the target of padding

Ints = npt.NDArray[np.int32]


class Batch(NamedTuple):
    """``ids`` int32 (B, T), ``targets`` int32 (B, T) with -1 where padding is not to be learnt, and
    with packing ``positions`` int32 (B, T): the place of each token in its window, where 0 begins
    one. Without, a row is one window. Padding goes on counting."""

    ids: Ints
    targets: Ints
    positions: Ints | None = None


class Batches:
    """The stream of training batches: pass after pass, each in an order of its own.

    A batch follows from its place alone, so training resumes anywhere, also with another size: it
    holds sequences first .. first + B - 1 of the stream and may span passes.

    A pass takes all documents that ``split`` has now, and passes never end, unless ``passes`` lists
    the documents of each (their places, repeated by weight): the stream ends behind the last.
    ``state`` is what ``state()`` gave, in place of ``passes``. ``seq_len`` holds from sequence 0 on
    and ``batch_size`` may be assigned at any time. Raises DataError for a split without documents
    where all are to be taken, and for documents that it does not have.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seq_len: int,
        seed: int,
        *,
        packing: bool = False,
        passes: Iterable[Iterable[int]] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.split, self.batch_size, self.packing = split, batch_size, packing
        self._passes = Passes(self._spans, seq_len, seed % 2**64, packing)
        self._limit: float | None = None
        self._end: int | None = None
        self._end_known = False
        if state is not None:
            self._limit = state["epochs"]
            self._passes.restore(state)
            for places in self._passes.listed:
                self._check(places)
        elif passes is None:
            self.append_pass(times=None)
        else:
            for documents in passes:
                self.append_pass(documents)

    @property
    def seq_len(self) -> int:
        """Positions of a row from now on."""
        return self._passes.length

    # --- the stream -------------------------------------------------------------------------------

    def batch(self, first: int) -> Batch:
        """From sequence ``first`` of the stream on; rows behind its end are padding.

        ValueError where the rows would not be of one length.
        """
        T = self._passes.length_at(first)
        last = first + self.batch_size - 1
        if self._passes.length_at(last) != T:
            raise ValueError(f"the sequence length changes between sequences {first} and {last}")
        return _gather(self.split, map(self._row, range(first, first + self.batch_size)),
                       (self.batch_size, T), self.packing)  # fmt: skip

    def _row(self, sequence: int) -> list[tuple[int, int]]:
        if self.end is not None and sequence >= self.end:
            return []
        section = self._passes.section_at(sequence)
        return [] if section is None else section.table.row(sequence - section.begin)

    @property
    def end(self) -> int | None:
        """How many sequences there are; None: without end."""
        if not self._end_known:
            count = self._passes.count
            ends = [self._passes.begin(count)] if count is not None else []
            if self._limit is not None:
                ends.append(max(1, self._passes.sequence_at(self._limit)))
            self._end, self._end_known = min(ends, default=None), True
        return self._end

    # --- epochs -----------------------------------------------------------------------------------

    @property
    def passes(self) -> int | None:
        """How many passes are listed; None: without end."""
        return self._passes.count

    def sequences_in(self, epochs: float) -> int:
        """How many sequences so many epochs have, from the first on."""
        return self._passes.sequence_at(epochs)

    def epoch_of(self, first: int) -> float:
        """How many epochs lie before sequence ``first``."""
        return self._passes.epochs_at(first)

    def pass_of(self, first: int) -> int:
        """The number, from 0, of the pass that a sequence lies in; ``passes`` behind the last."""
        return self._passes.number_of(first)

    def begin(self, number: int) -> int:
        """The first sequence of a pass; ``begin(passes)`` is where the last one ends."""
        return self._passes.begin(number)

    def documents(self, number: int) -> Longs:
        """The places of a pass's documents, rising, repeated by weight."""
        return self._passes.documents(number)

    # --- changes ----------------------------------------------------------------------------------

    def limit(self, epochs: float | None) -> None:
        """The stream ends after so many epochs; None: only where its passes do."""
        self._limit, self._end_known = epochs, False

    def grow(self, split: Split) -> None:
        """More documents behind those there are. Those that are there stay; passes too."""
        if not np.array_equal(split.offsets[: len(self.split.offsets)], self.split.offsets):
            raise ValueError("a split grows at its end; these are other documents")
        self.split = split

    def close(self, first: int) -> None:
        """No pass begins at sequence ``first`` or later: what lists none ends behind the pass under
        way, and listed passes that have not begun are dropped."""
        self._passes.close(first)
        self._end_known = False

    def append_pass(
        self, documents: Iterable[int] | None = None, times: int | None = 1
    ) -> None:
        """So many passes over these documents (places, repeated by weight; None: all that there are
        now), behind all others; ``times`` None: without end. ValueError behind such."""
        if documents is None:
            if self.split.documents == 0:
                raise DataError("no document to train on; give at least one that is not held out")
            places = np.arange(self.split.documents)
        else:
            places = np.fromiter(documents, np.int64)
            self._check(places)
        self._passes.append(places, times)
        self._end_known = False

    def change_length(self, first: int, T: int) -> None:
        """Rows of T from sequence ``first`` on, where nothing has been taken yet: what is left of
        the pass under way is cut anew. ValueError before an earlier change."""
        self._passes.change_length(first, T)
        self._end_known = False

    def state(self) -> dict[str, Any]:
        """All that was listed and changed, for JSON; the constructor takes it."""
        return {**self._passes.state(), "epochs": self._limit}

    def _check(self, places: Longs) -> None:
        if len(places) and not 0 <= places.min() <= places.max() < self.split.documents:
            raise DataError(
                f"a pass takes documents {places.min()} to {places.max()}, but the data has "
                f"{self.split.documents}; restore the data from a copy"
            )

    def _spans(self, documents: Longs) -> Spans:
        begins = self.split.offsets[documents]
        return Spans(begins, self.split.offsets[documents + 1] - begins - 1)


def validation_batches(
    split: Split, batch_size: int, seq_len: int, packing: bool = False
) -> Iterator[Batch]:
    """Every prediction once, in the order of the documents.

    Windows begin at each document's start; with packing they are the same, and rows come in the
    order of their longest. The last batch is filled up with rows without loss.
    """
    predictions = np.diff(split.offsets) - 1
    spans = Spans(split.offsets[:-1], predictions)
    starts, lengths, _ = cut(spans, np.full_like(predictions, seq_len), seq_len)
    order, firsts = packed(lengths, seq_len) if packing else (None, np.arange(len(starts) + 1))
    if order is not None:
        starts, lengths = starts[order], lengths[order]
    rows = np.argsort(starts[firsts[:-1]], kind="stable")
    for a in range(0, len(rows), batch_size):
        windows = [
            list(zip(starts[i:j].tolist(), lengths[i:j].tolist(), strict=True))
            for row in rows[a : a + batch_size].tolist()
            for i, j in [firsts[row : row + 2].tolist()]
        ]
        yield _gather(split, windows, (batch_size, seq_len), packing)


def _gather(
    split: Split,
    rows: Iterable[list[tuple[int, int]]],
    shape: tuple[int, int],
    packing: bool,
) -> Batch:
    """The windows (start, length) of each row, one behind the other."""
    ids = np.full(shape, split.eot, dtype=np.int32)
    targets = np.full(shape, NO_LOSS, dtype=np.int32)
    positions = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)) if packing else None
    for row, windows in enumerate(rows):
        at = 0
        for start, length in windows:
            tokens = split.slice(start, start + length + 1)
            ids[row, at : at + length] = tokens[:-1]
            targets[row, at : at + length] = tokens[1:]
            if positions is not None:
                positions[row, at:] = np.arange(shape[1] - at)
            at += length
    return Batch(ids, targets, positions)
