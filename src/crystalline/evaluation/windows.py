"""How a text is cut for measuring, and what one batch of windows costs the model.

A text of n stored tokens makes p = n - 1 predictions.  Window k sees the tokens from k S on, T of
them at most, and is asked for the predictions that no window before it was asked for:

    stride S = T    windows side by side, as a training's own validation cuts them
    stride S < T    each but the first has T - S tokens of context that it is not asked for
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from crystalline.data.batches import NO_LOSS
from crystalline.decoder.decoder import Decoder

Row = NDArray[np.int32]


def windows(tokens: Row, seq_len: int, stride: int) -> Iterator[tuple[Row, Row]]:
    """ids and targets, int32 (n,) with n at most ``seq_len``; every prediction is asked once."""
    p, asked = len(tokens) - 1, 0
    for begin in range(0, p, stride):
        end = min(begin + seq_len, p)
        targets = tokens[begin + 1 : end + 1].copy()
        targets[: asked - begin] = NO_LOSS
        yield tokens[begin:end], targets
        asked = end
        if end == p:
            return


def window_nats(decoder: Decoder, positions: Row | None = None) -> list[float]:
    """The loss of each window of the decoder's last batch, in the order in which they came.

    ``positions`` (B, T) is 0 where a window begins; None: each sequence is one.  What a window's
    tokens cost is added exactly and rounded once: however windows are put together to batches, and
    on however many threads, the bits are the same.
    """
    shape = decoder.B, decoder.T
    losses = np.empty(shape, np.float32)
    losses[decoder.order] = decoder.space.a["losses"].reshape(shape)
    each = losses.reshape(-1).tolist()
    starts = np.arange(0, len(each), decoder.T) if positions is None else _zeros(positions)
    return [math.fsum(each[a:b]) for a, b in pairwise([*starts.tolist(), len(each)])]


def _zeros(positions: Row) -> NDArray[np.int64]:
    return np.flatnonzero(positions.reshape(-1) == 0)
