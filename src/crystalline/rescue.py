"""Files of a folder that stay readable when somebody removes them, and can be written again.

A file that is open lives until it is closed, whatever becomes of its name.  A training keeps the
files open that it could not make anew: the tokens, and the best model.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from crystalline.files import CHUNK, make_folder, sync_folder, write_durably

LAST = "index.json"  # of a folder of tokens: where it lies, the others are whole


class Rescue:
    """Keeps the files below some subfolders of ``root`` open."""

    def __init__(self, root: Path, *names: str) -> None:
        self.root = root
        self._held: dict[str, dict[str, int]] = {name: {} for name in names}
        for name in names:
            self.look(name)

    def look(self, name: str) -> None:
        """Keeps what lies in a subfolder now, and no longer what lay there before.  What cannot be
        opened, or is removed just now, is not kept."""
        found = {}
        for parent, _, files in os.walk(self.root / name):
            for file in files:
                path = os.path.join(parent, file)
                with contextlib.suppress(OSError):
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    found[os.path.relpath(path, self.root / name)] = fd
        self._let_go(name)
        self._held[name] = found

    def restore(self) -> list[str]:
        """Writes the subfolders anew of which a file is missing; their names.  Raises OSError."""
        lost = [name for name, held in self._held.items() if not self._whole(name, held)]
        for name in lost:
            beside = f"{self.root / name}.new"
            shutil.rmtree(beside, ignore_errors=True)
            held = self._held[name]
            for file in sorted(held, key=lambda path: (os.path.basename(path) == LAST, path)):
                make_folder(os.path.dirname(os.path.join(beside, file)))
                write_durably(os.path.join(beside, file), _pieces(held[file]))
                sync_folder(os.path.dirname(os.path.join(beside, file)))
            shutil.rmtree(self.root / name, ignore_errors=True)
            os.rename(beside, self.root / name)
            sync_folder(os.fspath(self.root))
            self.look(name)
        return lost

    def close(self) -> None:
        """Lets all go."""
        for name in self._held:
            self._let_go(name)

    def _whole(self, name: str, held: dict[str, int]) -> bool:
        return all(os.path.exists(self.root / name / file) for file in held)

    def _let_go(self, name: str) -> None:
        for fd in self._held[name].values():
            os.close(fd)
        self._held[name] = {}


def _pieces(fd: int) -> Iterator[bytes]:
    at = 0
    while piece := os.pread(fd, CHUNK, at):
        yield piece
        at += len(piece)
