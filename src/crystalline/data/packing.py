"""Several windows in one row, so that few positions are padding.

Best fit, longest first: a window goes to the row with the least room that still takes it. Windows
of one length are alike, and so are rows filled alike, so both are counted and not looked at one by
one: the work grows with the number of different lengths, not of windows. How many rows there are
follows from the lengths alone; which window lies beside which, from the order they come in.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from crystalline.data.windows import Longs

MUCH_PADDING = 0.1  # of all positions: more is avoided


class _Alike(NamedTuple):
    """Rows that are filled alike: how many, and with how many windows of which lengths."""

    rows: int
    content: tuple[tuple[int, int], ...]  # (length, windows of it)


class Packed(NamedTuple):
    """``order`` puts the windows row by row; row i has those from ``firsts[i]`` to ``firsts[i+1]``.
    ``order`` (windows,), ``firsts`` (rows + 1,)."""

    order: Longs
    firsts: Longs


def packed_rows(lengths: Longs, T: int) -> int:
    """How many rows of T take windows of these lengths (1 .. T)."""
    return sum(alike.rows for alike in _patterns(lengths, T))


def chosen_packing(said: bool | None, predictions: Longs, T: int) -> tuple[bool, str]:
    """Whether documents of so many predictions are packed into rows of T, and why."""
    if said is not None:
        return said, "as asked for"
    full, last = (predictions - 1) // T, (predictions - 1) % T + 1
    rows = int(full.sum()) + np.array([len(last), packed_rows(last, T)])
    padded, packed = (1 - int(predictions.sum()) / (rows * T)).tolist()
    if padded <= MUCH_PADDING:
        return False, f"padding is {padded:.1%} of all positions"
    if rows[1] == rows[0]:
        return False, f"padding is {padded:.1%} of all positions, packed or not"
    return True, f"padding would be {padded:.1%} of all positions, packed it is {packed:.1%}"


def packed(lengths: Longs, T: int) -> Packed:
    """Rows of T for windows of these lengths (1 .. T); of equal ones the first come first."""
    # NumPy sorts short integers in linear time.
    by_length = np.argsort(lengths.astype(np.uint16 if T < 1 << 16 else np.int64), kind="stable")
    next_of = np.cumsum([0, *np.bincount(lengths, minlength=T + 1)]).tolist()
    orders, counts = [by_length[:0]], [by_length[:0]]
    for rows, content in _patterns(lengths, T):
        columns = []
        for length, copies in content:
            a = next_of[length]
            next_of[length] = a + rows * copies
            columns.append(by_length[a : next_of[length]].reshape(rows, copies))
        windows = np.concatenate(columns, axis=1)
        orders.append(windows.reshape(-1))
        counts.append(np.full(rows, windows.shape[1]))
    return Packed(np.concatenate(orders), np.cumsum(np.concatenate([[0], *counts])))


def _patterns(lengths: Longs, T: int) -> list[_Alike]:
    """How rows of T are filled."""
    left = np.bincount(lengths, minlength=T + 1)
    open_rows: dict[int, list[_Alike]] = {}  # by room
    rooms: list[int] = []  # that there are, rising
    content: tuple[tuple[int, int], ...]

    def put(room: int, alike: _Alike) -> None:
        if room not in open_rows:
            insort(rooms, room)
        open_rows.setdefault(room, []).append(alike)

    for length in np.flatnonzero(left)[::-1].tolist():
        windows = int(left[length])
        while windows:
            at = bisect_left(rooms, length)
            if at == len(rooms):  # new rows, as many as it takes
                room, rows, content = T, windows, ()
            else:
                room = rooms[at]
                rows, content = open_rows[room].pop()
                if not open_rows[room]:
                    del open_rows[room], rooms[at]
            each = room // length
            full, rest = divmod(windows, each)
            full, rest = (rows, 0) if full >= rows else (full, rest)
            windows -= full * each + rest
            if full:
                put(room - each * length, _Alike(full, (*content, (length, each))))
            if rest:
                put(room - rest * length, _Alike(1, (*content, (length, rest))))
            if content and rows > full + (rest > 0):
                put(room, _Alike(rows - full - (rest > 0), content))
    return [alike for room in rooms for alike in open_rows[room]]
