"""The passes of a stream of sequences: which documents each takes, and where it begins.

The stream numbers its sequences through, from 0. What is known of it is short: which documents the
passes take, one after the other, and from which sequences on another length holds. All else follows
from that, so any place may be asked for at any time. How many sequences a pass has is looked up
when it is needed, and passes alike are counted together: a stream has no end, or a million passes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from crystalline.data.sections import Section
from crystalline.data.windows import Longs, Spans

KEPT = 2  # passes whose rows stay in memory: a batch may hold the end of one and the next


@dataclass(frozen=True)
class _Listed:
    """``times`` passes over the same documents (places, rising, repeated by weight); None: without
    end."""

    documents: Longs
    times: int | None


@dataclass(frozen=True)
class _Run:
    """``times`` passes from ``number`` on, of so many rows each; the first begins at ``begin``."""

    number: int
    begin: int
    rows: int
    times: int | None

    @property
    def next(self) -> tuple[int, int] | None:
        """Number and first sequence of the pass behind them; None: there is none."""
        if self.times is None:
            return None
        return self.number + self.times, self.begin + self.times * self.rows


class Passes:
    """``spans`` gives the predictions of documents; ``T`` is the length of sequence 0."""

    def __init__(
        self, spans: Callable[[Longs], Spans], T: int, seed: int, packing: bool
    ) -> None:
        self._spans, self._seed, self._packing = spans, seed, packing
        self._listed: list[_Listed] = []
        self._lengths = [(0, T)]  # from which sequence on, how long
        self._runs: list[_Run] = []  # what is known so far
        self._sections: dict[int, list[Section]] = {}

    # --- what there is ----------------------------------------------------------------------------

    @property
    def count(self) -> int | None:
        """How many passes there are; None: without end."""
        if self._listed and self._listed[-1].times is None:
            return None
        return sum(listed.times or 0 for listed in self._listed)

    @property
    def listed(self) -> list[Longs]:
        """What passes take, that of passes alike once."""
        return [listed.documents for listed in self._listed]

    @property
    def length(self) -> int:
        """The length of sequences from now on."""
        return self._lengths[-1][1]

    def length_at(self, sequence: int) -> int:
        """The length of a sequence."""
        at = bisect_right(self._lengths, sequence, key=lambda change: change[0]) - 1
        return self._lengths[at][1]

    def documents(self, number: int) -> Longs:
        """What pass ``number`` takes; IndexError where there is none."""
        return self._listed_at(number)[0]

    def number_of(self, sequence: int) -> int:
        """The number of the pass that a sequence lies in, of the next one after the last."""
        run = self._run(sequence=sequence)
        if run is None:
            return self.count or 0
        return run.number + (sequence - run.begin) // run.rows

    def begin(self, number: int) -> int:
        """The first sequence of a pass; for one that is not there, where the last one ends."""
        run = self._run(number=number)
        if run is None:
            return self._next()[1]
        return run.begin + (number - run.number) * run.rows

    def section_at(self, sequence: int) -> Section | None:
        """The section that a sequence lies in; None behind the last pass."""
        if self._run(sequence=sequence) is None:
            return None
        number = self.number_of(sequence)
        sections = self._sections_of(number, self.begin(number))
        return sections[bisect_right(sections, sequence, key=lambda s: s.begin) - 1]

    # --- shares of a pass -------------------------------------------------------------------------

    def sequence_at(self, epochs: float) -> int:
        """The first sequence after so many passes; of a part of a pass, to the nearest."""
        number = int(epochs)
        begin, share = self.begin(number), epochs - number
        if not share or self._run(number=number) is None:
            return begin
        parts = self._parts(number)
        section, done = [part for part in parts if part[1] <= share][-1]
        return section.begin + round((share - done) / (1 - done) * section.rows)

    def epochs_at(self, sequence: int) -> float:
        """How many passes lie before a sequence: the inverse."""
        number = self.number_of(sequence)
        if self._run(number=number) is None:
            return float(number)
        parts = self._parts(number)
        section, done = [part for part in parts if part[0].begin <= sequence][-1]
        return number + done + (1 - done) * (sequence - section.begin) / section.rows

    def _parts(self, number: int) -> list[tuple[Section, float]]:
        """The sections of a pass, with the share of it that lies before each."""
        sections, done = self._sections_of(number, self.begin(number)), 0.0
        parts = [(sections[0], done)]
        for section, after in pairwise(sections):
            done += (1 - done) * (after.begin - section.begin) / section.rows
            parts.append((after, done))
        return parts

    # --- what changes -----------------------------------------------------------------------------

    def append(self, documents: Longs, times: int | None) -> None:
        """More passes, behind all others."""
        if self.count is None:
            raise ValueError("these passes have no end; close them before one is appended")
        if not len(documents) or times == 0:
            raise ValueError("a pass takes one document or more")
        self._listed.append(_Listed(np.sort(documents), times))

    def close(self, sequence: int) -> None:
        """No pass begins at ``sequence`` or later, until one is appended."""
        left = self._begun(sequence)
        self._forget(left)
        kept = []
        for listed in self._listed:
            times = left if listed.times is None else min(left, listed.times)
            left -= times
            if times:
                kept.append(replace(listed, times=times))
        self._listed = kept

    def change_length(self, sequence: int, T: int) -> None:
        """Another length from ``sequence`` on; ValueError before a change that was made."""
        last = self._lengths[-1][0]
        if sequence < last or T < 1:
            raise ValueError(f"length {T} from {sequence} on; it was changed at {last} already")
        begun = self._begun(sequence)
        under_way = begun > 0 and self.begin(begun) > sequence
        self._forget(begun - under_way)
        self._lengths = [change for change in self._lengths if change[0] < sequence]
        if not self._lengths or self.length != T:
            self._lengths.append((sequence, T))

    def _begun(self, sequence: int) -> int:
        """How many passes begin before a sequence."""
        if sequence <= 0:
            return 0
        number = self.number_of(sequence - 1)
        return number if self._run(number=number) is None else number + 1

    def _forget(self, passes: int) -> None:
        """What is known of all passes but so many."""
        self._sections = {n: s for n, s in self._sections.items() if n < passes}
        kept = []
        for run in self._runs:
            times = passes - run.number
            if times > 0:
                known = times if run.times is None else min(times, run.times)
                kept.append(replace(run, times=known))
        self._runs = kept

    # --- where passes begin -----------------------------------------------------------------------

    def _next(self) -> tuple[int, int]:
        """Number and first sequence of the pass behind those that are known."""
        following = self._runs[-1].next if self._runs else (0, 0)
        assert following is not None
        return following

    def _run(self, *, number: int = -1, sequence: int = -1) -> _Run | None:
        """The run with a pass, or with a sequence; None where there is none."""
        while not self._runs or self._runs[-1].times is not None:
            known = self._next()
            if number < known[0] and sequence < known[1]:
                break
            if not self._extend(*known):
                return None
        if number >= 0:
            return self._runs[bisect_right(self._runs, number, key=lambda run: run.number) - 1]
        return self._runs[bisect_right(self._runs, sequence, key=lambda run: run.begin) - 1]

    def _extend(self, number: int, begin: int) -> bool:
        """Finds how many sequences the next passes have; False where there are none."""
        if self.count is not None and number >= self.count:
            return False
        _, times = self._listed_at(number)
        sections = self._sections_of(number, begin)
        rows = sections[-1].begin + sections[-1].rows - begin
        if len(sections) > 1 or sections[0].drawn:
            times = 1
        else:  # all are alike, up to the next change
            changes = [(first - begin) // rows for first, _ in self._lengths if first > begin]
            times = min([times, *changes] if times is not None else changes, default=None)
        last = self._runs[-1] if self._runs else None
        if last is not None and last.rows == rows and last.times is not None and times is not None:
            self._runs[-1] = replace(last, times=last.times + times)
        else:
            self._runs.append(_Run(number, begin, rows, times))
        return True

    def _listed_at(self, number: int) -> tuple[Longs, int | None]:
        """What pass ``number`` takes, and how many passes from it on take the same."""
        left = number
        for listed in self._listed:
            if listed.times is None:
                return listed.documents, None
            if left < listed.times:
                return listed.documents, listed.times - left
            left -= listed.times
        raise IndexError(f"there is no pass {number}, as there are {self.count}")

    def _sections_of(self, number: int, begin: int) -> list[Section]:
        if number not in self._sections:
            for old in list(self._sections)[: 1 - KEPT]:
                del self._sections[old]
            spans = self._spans(self._listed_at(number)[0])
            sections = [self._section(begin, self.length_at(begin), spans, number)]
            for first, T in self._lengths:
                last = sections[-1]
                if begin < first < last.begin + last.rows:
                    left = last.table.after(first - last.begin)
                    sections.append(self._section(first, T, left, number, len(sections)))
            self._sections[number] = sections
        return self._sections[number]

    def _section(self, begin: int, T: int, spans: Spans, *number: int) -> Section:
        return Section(begin, T, spans, self._packing, (self._seed, *number))

    # --- in a checkpoint --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For JSON; ``restore`` takes it."""
        return {
            "passes": [[_ranges(listed.documents), listed.times] for listed in self._listed],
            "lengths": [list(change) for change in self._lengths],
            # These follow from the others, but not at once.
            "rows": [[run.times, run.rows] for run in self._runs if run.times is not None],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """As it was when ``state`` was taken."""
        self._listed = [_Listed(_places(ranges), times) for ranges, times in state["passes"]]
        self._lengths = [(int(first), int(T)) for first, T in state["lengths"]]
        self._runs, self._sections = [], {}
        for times, rows in state["rows"]:
            self._runs.append(_Run(*self._next(), rows, times))


def _ranges(documents: Longs) -> list[list[int]]:
    """Rising places as [first, end, how often]."""
    places, often = np.unique(documents, return_counts=True)
    heads = np.flatnonzero((np.diff(places, prepend=-2) != 1) | (np.diff(often, prepend=-1) != 0))
    ends = [*heads[1:].tolist(), len(places)]
    return [
        [int(places[a]), int(places[b - 1]) + 1, int(often[a])]
        for a, b in zip(heads.tolist(), ends, strict=True)
    ]


def _places(ranges: list[list[int]]) -> Longs:
    return np.concatenate([np.repeat(np.arange(a, b), often) for a, b, often in ranges])
