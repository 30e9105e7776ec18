"""Files of a folder that stay readable when somebody removes them, and can be written again.

A file that is open lives until it is closed, whatever becomes of its name.  A training keeps the
files open that it could not make anew: the tokens, and the best model.  Small ones, of which there
may be very many, are kept in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from crystalline.files import CHUNK, make_folder, sync_folder, write_durably

LAST = "index.json"  # of a folder of tokens: where it lies, the others are whole


SMALL = 64 << 10  # bytes of a file that is kept in memory


class Held(NamedTuple):
    """A file as it was, to be told from another of its name, and how it can be read."""

    stamp: tuple[int, int, int]
    content: int | bytes


class Rescue:
    """Keeps the files below some subfolders of ``root`` readable."""

    def __init__(self, root: Path, *names: str) -> None:
        self.root = root
        self._held: dict[str, dict[str, Held]] = {name: {} for name in names}
        self._partial: set[str] = set()  # subfolders of which a file could not be kept
        for name in names:
            self.look(name)

    def look(self, name: str) -> None:
        """Keeps what lies in a subfolder now, and no longer what lay there before."""
        before, found = self._held[name], dict[str, Held]()
        self._partial.discard(name)
        for parent, _, files in os.walk(self.root / name):
            for file in files:
                path = os.path.join(parent, file)
                place = os.path.relpath(path, self.root / name)
                try:
                    found[place] = _kept(path, before.get(place))
                except OSError:  # no room for another open file, or it is being removed
                    self._partial.add(name)
        for place, held in before.items():
            if found.get(place) != held:
                _let_go(held)
        self._held[name] = found

    def restore(self) -> list[str]:
        """Writes the subfolders anew of which a file is missing; their names.  Raises OSError.

        One that could not be kept whole stays as it is.
        """
        lost = [name for name, held in self._held.items() if not self._whole(name, held)]
        if bad := self._partial.intersection(lost):
            raise OSError(f"{', '.join(sorted(bad))} was damaged, and was not all kept open")
        for name in lost:
            beside = f"{self.root / name}.new"
            shutil.rmtree(beside, ignore_errors=True)
            held = self._held[name]
            for file in sorted(held, key=lambda path: (os.path.basename(path) == LAST, path)):
                make_folder(os.path.dirname(os.path.join(beside, file)))
                write_durably(os.path.join(beside, file), _pieces(held[file].content))
                sync_folder(os.path.dirname(os.path.join(beside, file)))
            shutil.rmtree(self.root / name, ignore_errors=True)
            os.rename(beside, self.root / name)
            sync_folder(os.fspath(self.root))
            self.look(name)
        return lost

    def close(self) -> None:
        """Lets all go."""
        for name, files in self._held.items():
            for held in files.values():
                _let_go(held)
            self._held[name] = {}

    def _whole(self, name: str, held: dict[str, Held]) -> bool:
        return all(os.path.exists(self.root / name / file) for file in held)


def _kept(path: str, before: Held | None) -> Held:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        stamp = status.st_ino, status.st_mtime_ns, status.st_size
        if before is not None and before.stamp == stamp:
            return before
        if status.st_size <= SMALL:
            return Held(stamp, b"".join(_pieces(fd)))
        return Held(stamp, os.dup(fd))
    finally:
        os.close(fd)


def _let_go(held: Held) -> None:
    if isinstance(held.content, int):
        os.close(held.content)


def _pieces(content: int | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    at = 0
    while piece := os.pread(content, CHUNK, at):
        yield piece
        at += len(piece)
