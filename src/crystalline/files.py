"""Writing files so that a crash, a full disk or a lying disk is noticed and nothing old is lost.

A file is written under another name, forced to the disk, read back from it and compared; only then
may a caller rename it into place. Everything that asks the operating system for more than plain
reading is in this module.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

CHUNK = 8 << 20  # bytes hashed and written at a time: bounds what a failed write leaves unchecked


class Stamp(NamedTuple):
    """What a file must be: its length in bytes and the SHA-256 of its contents."""

    size: int
    sha256: str


Manifest = dict[str, Stamp]  # by file name


def stamp_of_file(path: str) -> Stamp:
    """Read a whole file, in pieces, for its stamp."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Stamp(file.tell(), digest.hexdigest())


def write_durably(path: str, chunks: Iterable[bytes | memoryview]) -> Stamp:
    """Write bytes to ``path``, force them to the disk, and check them by reading them back.

    Chunks are bytes or views of bytes and are never joined, so memory does not grow with the file.
    The name itself is durable only after ``sync_folder``. Raises OSError, also for other bytes read
    than written.
    """
    digest = hashlib.sha256()
    size = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), CHUNK):
                piece = memoryview(chunk)[start : start + CHUNK]
                digest.update(piece)
                size += len(piece)
                while piece:
                    piece = piece[os.write(fd, piece) :]
        os.fsync(fd)
        # Without this the check would read the page cache, which always agrees with us.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    written = Stamp(size, digest.hexdigest())
    if stamp_of_file(path) != written:
        raise OSError(f"{path}: the disk returned other bytes than were written")
    return written


def sync_folder(path: str) -> None:
    """Make the names in a folder durable: creations, renames and removals so far."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: str) -> None:
    """Create a folder and its parents, each durable in its parent; an existing one is fine."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    make_folder(parent)
    os.makedirs(path, exist_ok=True)
    sync_folder(parent)


def remove(path: str) -> None:
    """Remove a file that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold a folder against other processes; waits for them. The lock ends with the process."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Some network file systems have no locks; there, two savers at once are the user's care.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The text of a manifest: canonical, and with a checksum of itself."""
    files = {name: stamp._asdict() for name, stamp in manifest.items()}
    own = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return (json.dumps({"files": files, "sha256": own}, indent=2) + "\n").encode()


def parse_manifest(data: bytes) -> Manifest | None:
    """What ``manifest_bytes`` wrote, or None if a single bit of it has changed."""
    try:
        manifest = {name: Stamp(**stamp) for name, stamp in json.loads(data)["files"].items()}
        return manifest if manifest_bytes(manifest) == data else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
