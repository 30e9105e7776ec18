"""Batches of fixed shape from stored tokens, the same for the same seed.

A document of n stored tokens makes n - 1 predictions t[i] -> t[i+1], and each is made exactly once
an epoch. They are cut in windows of at most T:

    p = n - 1;   r = (p - 1) mod T + 1, the length of the last window when all others are full
    the first window has f predictions, then come full ones, then the rest:  f, T, ..., T, rest
    f in r .. T gives ceil(p / T) windows; f in 1 .. r - 1 gives one more

f is drawn anew for every document and epoch, so that the cuts wander through the text. A document
draws from one of the two ranges only, so that every epoch has the same number of sequences: from
the larger one, or where a row more of padding would cost much (few windows), from the first.

Randomness is the raw 64-bit stream of PCG64, seeded by (seed, epoch), which NumPy promises never
to change; the order of an epoch is the stable order of such draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crystalline.errors import DataError
from crystalline.shards import Split

NO_LOSS = -1  # the target of padding
MANY_WINDOWS = 16  # a window more in so many costs little

Longs = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]


class _Windows(NamedTuple):
    """Where each sequence begins in the stored tokens, and how many predictions it has."""

    starts: Longs
    lengths: Longs


class Batches:
    """The endless stream of training batches: epoch after epoch, each in an order of its own.

    A batch follows from its place alone, so training resumes anywhere, also with another size: it
    holds sequences first .. first + B - 1 of the stream and may span epochs. Raises DataError for
    a split without documents.
    """

    def __init__(self, split: Split, batch_size: int, seq_len: int, seed: int) -> None:
        if split.documents == 0:
            raise DataError("no document to train on; give at least one that is not held out")
        self._split = split
        self._batch_size = batch_size
        self._seq_len = seq_len
        self._seed = seed % 2**64
        self._predictions = np.diff(split.offsets) - 1
        last = (self._predictions - 1) % seq_len + 1
        more = (self._predictions > MANY_WINDOWS * seq_len) & (2 * (last - 1) > seq_len)
        self._least = np.where(more, 1, last)
        self._most = np.where(more, last - 1, seq_len)
        self._sequences = int((-(-self._predictions // seq_len) + more).sum())
        self._epochs: dict[int, _Windows] = {}

    def sequences_in(self, epochs: float) -> int:
        """How many sequences so many epochs have."""
        whole = int(epochs)
        return whole * self._sequences + round((epochs - whole) * self._sequences)

    def batch(self, first: int) -> tuple[Rows, Rows]:
        """From sequence ``first`` of the stream on: ids int32 (B, T), targets int32 (B, T) with -1
        where padding is not to be learnt."""
        windows = [self._window(first + row) for row in range(self._batch_size)]
        return _gather(self._split, windows, self._batch_size, self._seq_len)

    def epoch_of(self, first: int) -> float:
        """How many epochs lie before sequence ``first``."""
        return first / self._sequences

    def _window(self, sequence: int) -> tuple[int, int]:
        epoch, at = divmod(sequence, self._sequences)
        if epoch not in self._epochs:
            # Batches come in order and span two epochs at times, so the last two are kept.
            for old in list(self._epochs)[:-1]:
                del self._epochs[old]
            self._epochs[epoch] = self._epoch(epoch)
        windows = self._epochs[epoch]
        return int(windows.starts[at]), int(windows.lengths[at])

    def _epoch(self, epoch: int) -> _Windows:
        source = np.random.PCG64(np.random.SeedSequence([self._seed, epoch]))
        choices = (self._most - self._least + 1).astype(np.uint64)
        draws = source.random_raw(len(choices)) % choices
        firsts = self._least + draws.astype(np.int64)
        windows = _cut(self._split.offsets[:-1], self._predictions, firsts, self._seq_len)
        order = np.argsort(source.random_raw(self._sequences), kind="stable")
        return _Windows(windows.starts[order], windows.lengths[order])


def validation_batches(split: Split, batch_size: int, seq_len: int) -> Iterator[tuple[Rows, Rows]]:
    """Every prediction once, in the order of the documents: ids and targets, int32 (B, T).

    Windows begin at each document's start; the last batch is filled up with rows without loss.
    """
    predictions = np.diff(split.offsets) - 1
    firsts = np.full_like(predictions, seq_len)
    windows = _cut(split.offsets[:-1], predictions, firsts, seq_len)
    for a in range(0, len(windows.starts), batch_size):
        rows = slice(a, a + batch_size)
        pairs = zip(windows.starts[rows].tolist(), windows.lengths[rows].tolist(), strict=True)
        yield _gather(split, list(pairs), batch_size, seq_len)


def _cut(begins: Longs, predictions: Longs, firsts: Longs, seq_len: int) -> _Windows:
    """Windows of documents of p > 0 predictions: min(f, p), T, ..., T, rest."""
    firsts = np.minimum(firsts, predictions)
    counts = 1 - (firsts - predictions) // seq_len
    ends = np.cumsum(counts)
    document = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(document)) - (ends - counts)[document]
    # Window k > 0 begins f + (k - 1) T predictions into its document, window 0 at its start.
    inside = np.where(place == 0, 0, firsts[document] + (place - 1) * seq_len)
    stops = np.minimum(firsts[document] + place * seq_len, predictions[document])
    return _Windows(begins[document] + inside, stops - inside)


def _gather(
    split: Split, windows: list[tuple[int, int]], batch_size: int, seq_len: int
) -> tuple[Rows, Rows]:
    ids = np.full((batch_size, seq_len), split.eot, dtype=np.int32)
    targets = np.full((batch_size, seq_len), NO_LOSS, dtype=np.int32)
    for row, (start, length) in enumerate(windows):
        tokens = split.slice(start, start + length + 1)
        ids[row, :length] = tokens[:-1]
        targets[row, :length] = tokens[1:]
    return ids, targets
