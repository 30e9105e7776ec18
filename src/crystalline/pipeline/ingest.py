"""From the queue to the tokens of a model: leased, encoded, appended as a segment, told.

A segment counts from the moment that state.db names it.  A crash before leaves documents that are
pending again, and a segment that nobody names, which the next training sweeps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from crystalline.data.segments import append_segment, sweep_segments
from crystalline.data.shards import TokenStore
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import CrystallineError
from crystalline.store import Leased, Placed, Store

DOCUMENTS = 4096  # of one segment, and
BYTES = 32 << 20  # the bytes of their texts, at most


def later_segments(store: Store) -> list[int]:
    """The segments that count beside what the model was created with."""
    return [number for number in store.segments() if number > 0]


def segments_of(folder: str | os.PathLike[str]) -> list[int]:
    """As ``later_segments``, of a model's folder; state.db is not asked where there are none."""
    if not os.path.isdir(os.path.join(folder, "data", "segments")):
        return []
    with Store.open(folder, read_only=True) as store:
        return later_segments(store)


def tidy(folder: str | os.PathLike[str], store: Store) -> None:
    """What a crash left is made good: leases end, segments that do not count go.  Only the holder
    of the model's lock may do so."""
    store.reclaim()
    sweep_segments(folder, later_segments(store))


def ingest(
    folder: str | os.PathLike[str], store: Store, tokenizer: Tokenizer, tokens: TokenStore
) -> tuple[TokenStore, int]:
    """Takes the next documents of the queue into the model's tokens; those, and how many came."""
    taken = store.lease(DOCUMENTS, BYTES)
    if not taken:
        return tokens, 0
    number = max(store.segments(), default=0) + 1
    try:
        segment = append_segment(folder, number, tokenizer, [one.text for one in taken])
        more = tokens.extended([number])
        placed = places(taken, segment.tokens, tokens.train.documents, tokens.train.tokens)
        store.heartbeat()
        store.tokenized(number, placed, fingerprint=more.fingerprint)
    except BaseException:
        # Nobody names the segment, so it goes, and its documents wait again.
        with contextlib.suppress(CrystallineError):
            sweep_segments(folder, later_segments(store))
            store.release()
        raise
    return more, len(taken)


def places(
    taken: Sequence[Leased], lengths: Sequence[int], documents: int, tokens: int
) -> list[Placed]:
    """Where documents lie that come behind so many documents of so many tokens."""
    placed = []
    for i, (one, length) in enumerate(zip(taken, lengths, strict=True)):
        placed.append(Placed(one.id, documents + i, tokens, length))
        tokens += length
    return placed
