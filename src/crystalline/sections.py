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

from crystalline.packing import packed, packed_rows
from crystalline.windows import Longs, Spans, Windows, cut, cuts, joined


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
            return int(cuts(self.spans.predictions, self.T).windows.sum())
        return packed_rows(self._windows(self._source()).lengths, self.T)

    @property
    def drawn(self) -> bool:
        """Whether the number of rows depends on the draws."""
        return self.packing and bool((self.spans.predictions > self.T).any())

    @cached_property
    def table(self) -> Table:
        """Every row."""
        source = self._source()
        windows = _shuffled(self._windows(source), source)
        if not self.packing:
            return Table(windows, np.arange(len(windows.starts) + 1))
        order, firsts = packed(windows.lengths, self.T)
        rows = np.argsort(source.random_raw(len(firsts) - 1), kind="stable")
        counts = np.diff(firsts)[rows]
        ends = np.cumsum(counts)
        # Window k of the new order is the (k - begin of its row)-th of that row as it was packed.
        within = np.arange(len(order)) - np.repeat(ends - counts, counts)
        order = order[np.repeat(firsts[:-1][rows], counts) + within]
        return Table(Windows(*(c[order] for c in windows)), np.concatenate([[0], ends]))

    def _source(self) -> np.random.PCG64:
        return np.random.PCG64(np.random.SeedSequence(self.seeds))

    def _windows(self, source: np.random.PCG64) -> Windows:
        least, most, _ = cuts(self.spans.predictions, self.T)
        choices = (most - least + 1).astype(np.uint64)
        draws = source.random_raw(len(choices)) % choices
        return cut(self.spans, least + draws.astype(np.int64), self.T)


def _shuffled(windows: Windows, source: np.random.PCG64) -> Windows:
    order = np.argsort(source.random_raw(len(windows.starts)), kind="stable")
    return Windows(*(column[order] for column in windows))
