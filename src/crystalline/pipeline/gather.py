"""Files, folders and standard input, on their way to a model's queue."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from crystalline.data import (
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

STDIN = "-"
QUIET_SECONDS = 2.0  # what is done sooner needs no progress
TOLD_EVERY = 0.25  # seconds between two progress events

OnEvent = Callable[[dict[str, Any]], None]


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
    arrivals = _arrivals(found, STDIN in paths, skipped, source, _Meter(found, on_event))
    added = store.add(arrivals, priority=priority, weight=weight)
    if added.new + added.known == 0:
        raise DataError(nothing_usable(paths, skipped))
    return Gathered(added, skipped)


def _arrivals(
    found: Sequence[File],
    standard_input: bool,
    skipped: list[Skipped],
    source: str | None,
    meter: _Meter,
) -> Iterator[Arrival]:
    if standard_input:
        yield Arrival(_standard_input(), source or STDIN)
    for file in found:
        meter.add(file.size)
        try:
            text, _ = read_file(file.path)
        except Unusable as error:
            skipped.append(Skipped(shown(file.path), str(error)))
            continue
        yield Arrival(text, source or shown(os.path.abspath(file.path)))


def _standard_input() -> str:
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"-: more than {MAX_FILE_BYTES / 2**20:.0f} MiB; cut it with split -C")
    try:
        return decode(data)
    except Unusable as error:
        raise DataError(f"-: cannot train on it, {error}") from None


class _Meter:
    """Tells how far the reading is, once it takes long."""

    def __init__(self, found: Sequence[File], on_event: OnEvent | None) -> None:
        self.total, self.done = sum(file.size for file in found), 0
        self.on_event = on_event
        self.begun = self.told = time.monotonic()

    def add(self, size: int) -> None:
        """The text before was read; the next has ``size`` bytes."""
        now = time.monotonic()
        if self.on_event and now - self.begun > QUIET_SECONDS and now - self.told > TOLD_EVERY:
            self.told = now
            eta = (now - self.begun) * (self.total - self.done) / max(self.done, 1)
            self.on_event({"event": "progress", "phase": "queue", "done": self.done,
                           "total": self.total, "eta": eta})  # fmt: skip
        self.done += size
