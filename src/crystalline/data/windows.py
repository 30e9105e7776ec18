"""Documents cut in windows: at most T predictions of one document, in one piece.

A document of n stored tokens makes n - 1 predictions t[i] -> t[i+1], and each is made exactly once
a pass. They are cut in windows of at most T:

    p = n - 1;   r = (p - 1) mod T + 1, the length of the last window when all others are full
    the first window has f predictions, then come full ones, then the rest:  f, T, ..., T, rest
    f in r .. T gives ceil(p / T) windows; f in 1 .. r - 1 gives one more

f is drawn anew for every document and pass, so that the cuts wander through the text. A document
draws from one of the two ranges only, so that every pass has the same number of windows: from the
larger one, or where a row more of padding would cost much (few windows), from the first. Where
windows are packed, one more costs nothing: a document that takes several draws f in 1 .. T.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MANY_WINDOWS = 16  # a window more in so many costs little

Longs = npt.NDArray[np.int64]


class Spans(NamedTuple):
    """Runs of predictions, each of one document: where they begin in the stored tokens, and how
    many they are (one at least)."""

    begins: Longs
    predictions: Longs


class Windows(NamedTuple):
    """Where each window begins in the stored tokens, how many predictions it has, and of which
    span it is."""

    starts: Longs
    lengths: Longs
    spans: Longs


def draws(predictions: Longs, T: int, packing: bool) -> tuple[Longs, Longs]:
    """The least and the largest first window of spans of so many predictions."""
    if packing:
        return np.where(predictions > T, 1, T), np.full_like(predictions, T)
    last = (predictions - 1) % T + 1
    more = _one_more(predictions, T)
    return np.where(more, 1, last), np.where(more, last - 1, T)


def padded_rows(predictions: Longs, T: int) -> int:
    """How many windows spans of so many predictions give that are not packed."""
    return int((-(-predictions // T) + _one_more(predictions, T)).sum())


def _one_more(predictions: Longs, T: int) -> npt.NDArray[np.bool_]:
    return (predictions > MANY_WINDOWS * T) & (2 * ((predictions - 1) % T) > T)


def cut(spans: Spans, firsts: Longs, T: int) -> Windows:
    """Windows of each span of p predictions: min(f, p), T, ..., T, rest."""
    begins, predictions = spans
    firsts = np.minimum(firsts, predictions)
    counts = 1 - (firsts - predictions) // T
    ends = np.cumsum(counts)
    span = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(span)) - (ends - counts)[span]
    # Window k > 0 begins f + (k - 1) T predictions into its span, window 0 at its start.
    inside = np.where(place == 0, 0, firsts[span] + (place - 1) * T)
    stops = np.minimum(firsts[span] + place * T, predictions[span])
    return Windows(begins[span] + inside, stops - inside, span)


def joined(windows: Windows) -> Spans:
    """The windows as spans again: those that follow each other in one span become one."""
    order = np.lexsort((windows.starts, windows.spans))
    starts, lengths, spans = (column[order] for column in windows)
    new = np.ones(len(starts), bool)
    new[1:] = (spans[1:] != spans[:-1]) | (starts[1:] != starts[:-1] + lengths[:-1])
    heads = np.flatnonzero(new)
    return Spans(starts[heads], np.add.reduceat(lengths, heads) if len(heads) else lengths)
