"""One training at a time in a folder, and never in a folder that holds somebody's other files."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from crystalline.errors import CheckpointError, UsageError

MARK = "training.lock"  # in every folder that a training has begun in
COMMITTED = ("checksums.json", "commit.json")  # one of them is where a checkpoint is


class Claim:
    """A folder held by the descriptor of its mark, which is locked."""

    def __init__(self, folder: Path, mark: int) -> None:
        self.folder, self._mark = folder, mark

    def holds(self) -> bool:
        """Whether the folder is still the one that was claimed, not removed and not replaced."""
        try:
            found = os.stat(self.folder / MARK)
        except OSError:
            return False
        return os.path.samestat(os.fstat(self._mark), found)

    def again(self) -> None:
        """Claims the folder anew, made if need be, after ``holds`` said no.

        Raises CheckpointError where it has become another model's, OSError where it cannot be made.
        """
        if any((self.folder / name).exists() for name in (*COMMITTED, MARK)):
            raise CheckpointError(
                f"{self.folder}: was replaced by another model while this one trained; "
                "move that one away"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = _marked(self.folder, os.O_EXCL)
        try:
            _lock(mark)
        except BlockingIOError:  # somebody was quicker
            os.close(mark)
            raise
        os.close(self._mark)
        self._mark = mark

    def release(self) -> None:
        """Gives the folder back; one in which nothing was written is removed."""
        with contextlib.suppress(OSError):  # it may be gone
            if os.listdir(self.folder) == [MARK]:
                os.unlink(self.folder / MARK)
                self.folder.rmdir()
        # A forked child may live on with its copy of the descriptor, which would keep the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(self._mark, fcntl.LOCK_UN)
        os.close(self._mark)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Claim]:
    """Holds ``folder``, made if need be, until the end of the block or of the process.

    Raises UsageError where another training holds it, where it cannot be made, and where it has
    files but neither the mark nor a model: they are not ours to write over.  A folder in which
    nothing was written meanwhile is removed again.
    """
    if str(folder) in ("", ".") or "\0" in str(folder):
        raise UsageError(f"out is {str(folder)!r}; name a folder for the model, as models/NAME")
    try:
        if folder.is_dir() and {MARK, *COMMITTED}.isdisjoint(names := os.listdir(folder)) and names:
            raise UsageError(
                f"{folder}: holds files that are not a model's; choose another out, or an empty one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        mark = _marked(folder)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot keep a model there ({error.strerror}); choose another out"
        ) from error
    try:
        _lock(mark)
    except BlockingIOError:
        os.close(mark)
        raise UsageError(f"{folder}: another training runs there; choose another out") from None
    process, claim = os.getpid(), Claim(folder, mark)
    try:
        yield claim
    finally:
        if os.getpid() == process:  # the folder of a forked copy is its parent's
            claim.release()


def _marked(folder: Path, more: int = 0) -> int:
    return os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | more, 0o644)


def _lock(mark: int) -> None:
    """Raises BlockingIOError where another process holds it."""
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # some network file systems have no locks
