"""One training at a time in a folder, and never in a folder that holds somebody's other files."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from crystalline.errors import UsageError

MARK = "training.lock"  # in every folder that a training has begun in
MODEL = "checksums.json"  # in every folder that holds a model


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds ``folder``, made if need be, until the end of the block or of the process.

    Raises UsageError where another training holds it, where it cannot be made, and where it has
    files but neither the mark nor a model: they are not ours to write over.  A folder in which
    nothing was written meanwhile is removed again.
    """
    if str(folder) in ("", ".") or "\0" in str(folder):
        raise UsageError(f"out is {str(folder)!r}; name a folder for the model, as models/NAME")
    try:
        if folder.is_dir() and {MARK, MODEL}.isdisjoint(names := os.listdir(folder)) and names:
            raise UsageError(
                f"{folder}: holds files that are not a model's; choose another out, or an empty one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        mark = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot keep a model there ({error.strerror}); choose another out"
        ) from error
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(mark)
        raise UsageError(f"{folder}: another training runs there; choose another out") from None
    except OSError:
        pass  # some network file systems have no locks
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == process:  # the folder of a forked copy is its parent's
            _release(folder, mark)


def _release(folder: Path, mark: int) -> None:
    if os.listdir(folder) == [MARK]:
        os.unlink(folder / MARK)
        with contextlib.suppress(OSError):
            folder.rmdir()
    # A forked child may live on with its copy of the descriptor, which would keep the lock.
    with contextlib.suppress(OSError):
        fcntl.flock(mark, fcntl.LOCK_UN)
    os.close(mark)
