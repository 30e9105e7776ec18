"""How a text is cut for measuring, and what one batch of windows costs the model.

A text of n stored tokens makes p = n - 1 predictions.  Window k sees the tokens from k S on, T of
them at most, and is asked for the predictions that no window before it was asked for:

    stride S = T    windows side by side, as a training's own validation cuts them
    stride S < T    each but the first has T - S tokens of context that it is not asked for
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from crystalline.batches import NO_LOSS
from crystalline.model import Decoder

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


def sequence_nats(decoder: Decoder) -> NDArray[np.float64]:
    """The summed losses (B,) of the last batch's sequences, in the order in which they came.

    Each sum goes from left to right and knows nothing of the other sequences: however windows are
    put together to batches, and on however many threads, the bits are the same.
    """
    losses = decoder.space.a["losses"].reshape(decoder.B, decoder.T)
    sums = np.empty(decoder.B)
    sums[decoder.order] = np.add.accumulate(losses, 1, np.float64)[:, -1]
    return sums
