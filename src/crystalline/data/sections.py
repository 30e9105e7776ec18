"""A section: what is trained of one pass at one sequence length, in an order of its own.

A pass is one section, unless its sequence length is changed under way: what is left of it is then
cut anew, and is its next section.

Randomness is the raw 64-bit stream of PCG64, seeded by (seed, pass) or (seed, pass, section), which
NumPy promises never to change; an order is the stable order of such draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crystalline.data.packing import packed, packed_rows
from crystalline.data.windows import Longs, Spans, Windows, cut, draws, joined, padded_rows


@dataclass(frozen=True)
class Table:
    """The windows row by row: row i holds those from ``firsts[i]`` to ``firsts[i + 1]``."""

    windows: Windows
    firsts: Longs  # (rows + 1,)

    def row(self, i: int) -> list[tuple[int, int]]:
        """Start and length of each window of row i."""
        a, b = int(self.firsts[i]), int(self.firsts[i + 1])
        starts, lengths, _ = self.windows
        return list(zip(starts[a:b].tolist(), lengths[a:b].tolist(), strict=True))

    def after(self, row: int) -> Spans:
        """What the rows from ``row`` on hold."""
        a = int(self.firsts[row])
        return joined(Windows(*(column[a:] for column in self.windows)))


@dataclass(frozen=True)
class Section:
    """Sequences from ``begin`` of the stream on: ``spans`` in rows of ``T``."""

    begin: int
    T: int
    spans: Spans
    packing: bool
    seeds: Sequence[int]

    @cached_property
    def rows(self) -> int:
        """How many there are, if all are trained at this length."""
        if not self.packing:
            return padded_rows(self.spans.predictions, self.T)
        return packed_rows(self._windows(self._source()).lengths, self.T)

    @property
    def drawn(self) -> bool:
        """Whether the number of rows depends on the draws."""
        return self.packing and bool((self.spans.predictions > self.T).any())

    @cached_property
    def table(self) -> Table:
        """Every row."""
        source = self._source()
        windows = self._windows(source)
        order = _shuffled(len(windows.starts), source)
        firsts = np.arange(len(order) + 1)
        if self.packing:  # alike are those that come first; then rows are put in an order
            rows_of, firsts = packed(windows.lengths[order], self.T)
            rows = _shuffled(len(firsts) - 1, source)
            counts = np.diff(firsts)[rows]
            ends = np.cumsum(counts)
            # Window k of the new order is as far behind its row's first as it was before.
            moved = np.repeat(firsts[:-1][rows] - (ends - counts), counts)
            moved += np.arange(len(order))
            order, firsts = order[rows_of[moved]], np.concatenate([[0], ends])
        return Table(Windows(*(column[order] for column in windows)), firsts)

    def _source(self) -> np.random.PCG64:
        return np.random.PCG64(np.random.SeedSequence(self.seeds))

    def _windows(self, source: np.random.PCG64) -> Windows:
        least, most = draws(self.spans.predictions, self.T, self.packing)
        choices = (most - least + 1).astype(np.uint64)
        drawn = source.random_raw(len(choices)) % choices
        return cut(self.spans, least + drawn.astype(np.int64), self.T)


def _shuffled(count: int, source: np.random.PCG64) -> Longs:
    return np.argsort(source.random_raw(count), kind="stable")
