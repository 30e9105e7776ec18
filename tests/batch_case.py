"""Documents whose tokens tell their place, and what must become of them in batches."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from crystalline.data.batches import NO_LOSS, Batch, Batches
from crystalline.data.shards import Split

EOT = 0
Row = list[list[tuple[int, int]]]  # a sequence: its windows of predictions (token, target)


def make_split(sizes: Iterable[int]) -> Split:
    """Documents of these sizes whose token i is i + 1, so that a prediction names its place."""
    rows, offsets = [], [0]
    for size in sizes:
        begin = offsets[-1]
        rows.append([EOT, *range(begin + 1, begin + 1 + size), EOT])
        offsets.append(begin + size + 2)
    tokens = np.array([t for row in rows for t in row], dtype="<u4")
    third = len(tokens) // 3
    parts = [tokens[:third], tokens[third : 2 * third], tokens[2 * third :]]
    return Split([part for part in parts if len(part)], np.array(offsets), sum(offsets), EOT)


def wanted(split: Split, documents: Iterable[int] | None = None) -> Counter[tuple[int, int]]:
    """Each prediction (token, target) of documents, with how often it occurs."""
    made: Counter[tuple[int, int]] = Counter()
    for d in range(split.documents) if documents is None else documents:
        tokens = split.slice(int(split.offsets[d]), int(split.offsets[d + 1])).tolist()
        made.update(pairwise(tokens))
    return made


def made(row: Row) -> Counter[tuple[int, int]]:
    """The predictions of a sequence."""
    return Counter(pair for window in row for pair in window)


def rows_of(batches: Iterable[Batch], seq_len: int) -> Iterator[Row]:
    """The rows of batches one by one, each checked for its form: windows, then padding."""
    for ids, targets, positions in batches:
        assert ids.dtype == targets.dtype == np.int32
        assert ids.shape == targets.shape
        assert ids.shape[1] == seq_len
        places = np.tile(np.arange(seq_len, dtype=np.int32), (len(ids), 1))
        if positions is not None:
            assert positions.dtype == np.int32 and positions.shape == ids.shape
            places = positions
        for row, target, place in zip(ids.tolist(), targets.tolist(), places.tolist(), strict=True):
            n = sum(t != NO_LOSS for t in target)
            assert target[n:] == [NO_LOSS] * (seq_len - n)
            assert row[n:] == [EOT] * (seq_len - n)
            begins = [t for t in range(seq_len) if place[t] == 0]
            assert place == [t - max(b for b in begins if b <= t) for t in range(seq_len)]
            assert begins[-1] < max(n, 1)  # padding begins no window
            windows = []
            for a, b in zip(begins, [*begins[1:], n], strict=True):
                assert row[a + 1 : b] == target[a : max(b - 1, a)]
                windows.append(list(zip(row[a:b], target[a:b], strict=True)))
            yield [window for window in windows if window]


def sequences(batches: Batches, count: int, seq_len: int, first: int = 0) -> list[Row]:
    """``count`` sequences of the stream from ``first`` on, in batches of its size."""
    places = range(first, first + count, batches.batch_size)
    return list(rows_of((batches.batch(place) for place in places), seq_len))[:count]


def digest(batches: Iterable[Any]) -> str:
    """Ids and targets of batches as one hash."""
    sha = hashlib.sha256()
    for batch in batches:
        sha.update(batch[0].tobytes() + batch[1].tobytes())
    return sha.hexdigest()[:32]
