"""What the queue is told and tells: texts that arrive, documents as they stand, leases."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from crystalline.data.reading import File
from crystalline.errors import DataError

ROWS = 2000  # documents written in one transaction, or
BYTES = 16 << 20  # so many bytes of their texts

T = TypeVar("T")


@dataclass(frozen=True)
class Arrival:
    """A text and where it came from: a path, a URL or ``-``.

    ``file`` is remembered, so that a watcher need not read it again while it stays as it is.
    """

    text: str
    source: str
    file: File | None = None


class Added(NamedTuple):
    """What an ``add`` did: documents that are new, those that were known, bytes of the new ones."""

    new: int = 0
    known: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Document:
    """A document of the queue.  ``hash`` is the SHA-256 of its text as UTF-8, in hex."""

    id: int
    hash: str
    bytes: int
    weight: int
    priority: int
    state: str
    attempts: int
    error: str | None
    owner: str | None
    until: float | None
    added: float
    segment: int | None
    place: int | None
    first: int | None
    tokens: int | None
    epochs: int


COLUMNS = ", ".join(Document.__dataclass_fields__)


def document_of(row: tuple[Any, ...]) -> Document:
    """A row of COLUMNS."""
    return Document(row[0], row[1].hex(), *row[2:])


@dataclass(frozen=True)
class Leased:
    """A document that is ours to tokenize, until the lease ends."""

    id: int
    hash: str
    text: str
    bytes: int
    weight: int


class Placed(NamedTuple):
    """Where a document's tokens lie: its number in the model's text, its first token, how many.

    ``tokens`` counts what is stored for it, the end-of-text tokens around it included.
    """

    id: int
    place: int
    first: int
    tokens: int


class Packed(NamedTuple):
    """A text as it is kept until it is tokenized."""

    hash: bytes
    size: int
    packed: bool
    body: bytes
    source: str
    file: File | None


def pack(arrival: Arrival) -> Packed:
    """Compressed lightly, where that makes it smaller.  DataError for half a surrogate pair."""
    try:
        data = arrival.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{arrival.source}: character {error.start} is half a surrogate pair, which UTF-8 "
            "cannot hold; give text that is whole"
        ) from None
    if not data:
        raise DataError(f"{arrival.source}: empty; give some text")
    body = zlib.compress(data, 1)
    smaller = len(body) < len(data)
    digest = hashlib.sha256(data).digest()
    kept = body if smaller else data
    return Packed(digest, len(data), smaller, kept, arrival.source, arrival.file)


def unpack(wanted: bytes, packed: bool, body: bytes | None) -> str:
    """The text again.  ValueError if it is not the one with the hash ``wanted``."""
    if body is None:
        raise ValueError("missing")
    try:
        data = zlib.decompress(body) if packed else body
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if hashlib.sha256(data).digest() != wanted:
        raise ValueError("its hash differs")
    return data.decode()


def in_batches(items: Iterable[Packed]) -> Iterator[list[Packed]]:
    """At most ROWS of them, or about BYTES, at a time."""
    batch: list[Packed] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.body)
        if len(batch) >= ROWS or size >= BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_groups(items: list[T], most: int = 500) -> Iterator[list[T]]:
    """At most ``most`` at a time: a statement takes only so many values."""
    for start in range(0, len(items), most):
        yield items[start : start + most]
