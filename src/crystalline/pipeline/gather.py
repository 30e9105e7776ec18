"""Files, folders and standard input, on their way to a model's queue."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crystalline.data.reading import (
    MAX_FILE_BYTES,
    File,
    Skipped,
    Unusable,
    decode,
    find_files,
    nothing_usable,
    read_file,
    shown,
)
from crystalline.errors import DataError
from crystalline.store import Added, Arrival, Store
from crystalline.store.meter import Meter, OnEvent

STDIN = "-"

@dataclass(frozen=True)
class Gathered:
    """What was queued, and what was left out, with the reason."""

    added: Added
    skipped: list[Skipped]


def queue_paths(
    store: Store,
    paths: Sequence[str],
    *,
    priority: int = 0,
    weight: int = 1,
    source: str | None = None,
    on_event: OnEvent | None = None,
) -> Gathered:
    """Queues every text in files and folders; ``-`` is standard input.

    ``source`` is written down as where a single text came from, instead of its path.  After two
    seconds ``on_event`` is told of the progress, in bytes.  Raises DataError for a path that does
    not exist and where no text is found, StoreError where the disk fails.
    """
    named = [path for path in paths if path != STDIN]
    found, skipped = find_files(named) if named else ([], [])
    if source is not None and len(found) + (STDIN in paths) != 1:
        raise DataError(f"{source}: is the source of one text, but several are given; give one")
    meter = Meter("queue", sum(file.size for file in found), on_event)
    arrivals = _arrivals(found, STDIN in paths, skipped, source, meter)
    added = store.add(arrivals, priority=priority, weight=weight)
    if added.new + added.known == 0:
        raise DataError(nothing_usable(paths, skipped))
    return Gathered(added, skipped)


def _arrivals(
    found: Sequence[File],
    standard_input: bool,
    skipped: list[Skipped],
    source: str | None,
    meter: Meter,
) -> Iterator[Arrival]:
    if standard_input:
        yield Arrival(_standard_input(), source or STDIN)
    for file in found:
        try:
            text, _ = read_file(file.path)
            yield Arrival(text, source or shown(os.path.abspath(file.path)))
        except Unusable as error:
            skipped.append(Skipped(shown(file.path), str(error)))
        meter.add(file.size)


def _standard_input() -> str:
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"-: more than {MAX_FILE_BYTES / 2**20:.0f} MiB; cut it with split -C")
    try:
        return decode(data)
    except Unusable as error:
        raise DataError(f"-: cannot train on it, {error}") from None
