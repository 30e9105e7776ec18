"""What a training of files begins with: each text once, and written down in state.db."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from crystalline.data.reading import Piece, Skipped, Source, shown
from crystalline.data.shards import TokenStore
from crystalline.errors import UsageError
from crystalline.store import Origin, Store

FILES = "files"  # the origin of a model that was not made of its queue


def refuse_fed(folder: str | os.PathLike[str]) -> None:
    """UsageError where the text of a model's queue would be written over."""
    with Store.open(folder, read_only=True) as store:
        if store.segments() and store.get("origin") != FILES:
            raise UsageError(
                f"{shown(os.fspath(folder))}: is made of its queue; go on with crystalline train "
                f"{shown(os.fspath(folder))}, or choose another out"
            )


class Texts:
    """The hashes of texts, by path."""

    def __init__(self) -> None:
        self._hashes: dict[str, tuple[bytes, int]] = {}

    def once(
        self, sources: Sequence[Source], known: Sequence[Source] = ()
    ) -> tuple[list[Source], list[Skipped]]:
        """The sources whose text is met for the first time, here and in ``known``; the others are
        skipped: a text is learnt once an epoch, and not learnt where it is held out."""
        first: dict[bytes, str] = {}
        for source in known:
            first.setdefault(self._hash(source)[0], source.path)
        kept, skipped = [], []
        for source in sources:
            digest = self._hash(source)[0]
            other = first.setdefault(digest, source.path)
            if other is source.path or os.path.realpath(other) == os.path.realpath(source.path):
                kept.append(source)
            else:
                skipped.append(Skipped(shown(source.path), f"same text as {shown(other)}"))
        return kept, skipped

    def write_down(
        self, folder: str | os.PathLike[str], train: Sequence[Piece], held_out: Sequence[Piece]
    ) -> None:
        """Tells the model's state.db which text gave which tokens.  A text of which a part is held
        out is a document to learn."""
        tokens = TokenStore.open(folder, verify=False)
        offsets = tokens.train.offsets.tolist()
        origins = []
        for place, piece in enumerate(train):
            first, end = offsets[place : place + 2]
            origins.append(self._origin(piece, (place, first, end - first)))
        learnt = {piece.source.path for piece in train}
        origins += [self._origin(p, None) for p in held_out if p.source.path not in learnt]
        with Store.open(folder, create=True) as store:
            store.created_with(origins, tokens.fingerprint)
            store.set(origin=FILES)

    def _origin(self, piece: Piece, tokens: tuple[int, int, int] | None) -> Origin:
        digest, size = self._hash(piece.source)
        return Origin(digest, size, shown(os.path.abspath(piece.source.path)), tokens)

    def _hash(self, source: Source) -> tuple[bytes, int]:
        if source.path not in self._hashes:
            data = source.read().encode()
            self._hashes[source.path] = hashlib.sha256(data).digest(), len(data)
        return self._hashes[source.path]
