"""Bytes that processes share: one writes, any number read, each sees a write whole or not at all.

A region is a segment of /dev/shm: a page with the header of ``region.h``, then the payload.  It
lives until its creator unlinks it, ends, or dies: then multiprocessing's resource tracker, a
process that outlives the creator, removes it.  Attaching tells the tracker nothing, or it would
remove what is another's (multiprocessing's own attaching does, before Python 3.13).
"""

from __future__ import annotations

import contextlib
import enum
import errno
import mmap
import os
import resource
import secrets
import weakref
from collections.abc import Iterator
from multiprocessing import resource_tracker, shared_memory
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalline import _region
from crystalline.errors import CrystallineError, UsageError

SEGMENTS = "/dev/shm"
PREFIX = "crystalline-"
HEADER = mmap.PAGESIZE  # so that the payload can be mapped without leave to write
WORD = 8
TIMEOUT = 10.0  # seconds to wait for another writer, or for a version that stays

Bytes = NDArray[np.uint8]


class RegionMode(enum.Enum):
    """What an attached region may do with the bytes."""

    READ_ONLY = "read only"
    COPY_ON_WRITE = "copy on write"
    LOCKED_WRITE = "locked write"


class RegionError(CrystallineError):
    """A region is closed, gone, full or held by another."""


class RegionTimeout(RegionError):
    """Another process kept the region for too long."""


class RegionTorn(RegionError):
    """The writer died in the middle of a write; the next write makes the region whole."""


class Counters(NamedTuple):
    """What has happened to a region, in all processes."""

    reads: int
    writes: int
    copies: int
    retries: int


class SharedRegion:
    """``size`` bytes shared under a name.  ``create`` or ``attach`` make one.

    As a context manager it is closed at the end of the block, and unlinked by its creator.  A
    creator that is collected or ends without either unlinks too.  Threads may share one.
    """

    def __init__(
        self, name: str, mode: RegionMode, header: mmap.mmap, payload: mmap.mmap, size: int
    ) -> None:
        self.name, self.mode, self.size = name, mode, size
        self._maps: tuple[mmap.mmap, mmap.mmap] | None = (header, payload)
        self._unlink: weakref.finalize[..., SharedRegion] | None = None
        self._copy: tuple[int, Bytes] | None = None

    @classmethod
    def create(cls, size: int, name: str | None = None) -> SharedRegion:
        """A new region of ``size`` zeroes, to be written under the lock.

        Its memory is reserved at once: what does not fit is an error here, not a signal later.
        Raises UsageError for a size or name that cannot be, RegionError for lack of room.
        """
        if size < 1:
            raise UsageError(f"size is {size}, but a region has 1 byte or more")
        name = _checked(name or f"{PREFIX}{os.getpid()}-{secrets.token_hex(6)}")
        total = HEADER + -(-size // WORD) * WORD
        # SharedMemory would fail too, but leaves its tracker complaining about an unknown name.
        if 0 <= resource.getrlimit(resource.RLIMIT_FSIZE)[0] < total:
            raise RegionError(
                f"{SEGMENTS}/{name}: {total / 2**20:,.1f} MiB are above the file size limit; "
                "raise ulimit -f"
            )
        # The tracker takes a moment to start: it must run before there is something to lose.
        resource_tracker.ensure_running()
        try:
            segment = shared_memory.SharedMemory(name, create=True, size=total)
        except FileExistsError:
            raise UsageError(f"{name}: a region of this name exists; choose another") from None
        except OSError as error:
            raise RegionError(_no_room(name, total, error)) from error
        segment.close()  # it named and registered the segment; the mappings are our own
        undo = contextlib.ExitStack()
        undo.callback(_remove, segment, os.getpid())
        with undo:
            try:
                header, payload = _map(name, RegionMode.LOCKED_WRITE, reserve=total)
            except OSError as error:
                raise RegionError(_no_room(name, total, error)) from error
            _region.format(header, size)
            region = cls(name, RegionMode.LOCKED_WRITE, header, payload, size)
            region._unlink = weakref.finalize(region, _remove, segment, os.getpid())
            undo.pop_all()
        return region

    @classmethod
    def attach(cls, name: str, mode: RegionMode = RegionMode.READ_ONLY) -> SharedRegion:
        """The region of this name.  Raises UsageError where there is none, or something else."""
        path = os.path.join(SEGMENTS, _checked(name))
        try:
            header, payload = _map(name, mode)
        except FileNotFoundError:
            raise UsageError(
                f"{path}: there is no region of this name; check that its creator still runs"
            ) from None
        except OSError as error:
            raise UsageError(f"{path}: cannot be attached ({error.strerror})") from error
        status, size = _region.check(header, len(payload))
        if status != _region.OK:
            raise UsageError(_unfit(path, status, size, len(payload)))
        return cls(name, mode, header, payload, size)

    # --- reading ----------------------------------------------------------------------------------

    def read(self, out: Any = None, *, timeout: float = TIMEOUT) -> tuple[int, Bytes]:
        """A whole version: its number, and its bytes in ``out`` or in a new array.

        ``out`` is a writable contiguous buffer; shorter than the region it gets the first bytes.
        A region that has made its private copy gives that one.  Raises RegionTorn, RegionTimeout.
        """
        target = np.empty(self.size, np.uint8) if out is None else _flat(out, "out", self.size)
        if not target.flags.writeable:
            raise UsageError(f"{self.name}: out cannot be written to; give an array that can")
        header, payload = self._open()
        if self._copy is not None:
            target[...] = self._copy[1][: target.size]
            return self._copy[0], target
        status, version = _region.read(header, payload, target, timeout)
        self._check(status, timeout)
        return version, target

    def writable(self) -> Bytes:
        """The private copy, made at the first call, of a region attached COPY_ON_WRITE."""
        self._allow(RegionMode.COPY_ON_WRITE)
        if self._copy is None:
            self._copy = self.read()
            _region.copied(self._open()[0])
        return self._copy[1]

    # --- writing ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, *, timeout: float = TIMEOUT) -> Iterator[Bytes]:
        """The payload itself, for the only writer there is; readers wait until the block ends.

        However the block ends, its bytes become the next version: after an exception readers see
        what was written up to there.  A process killed inside leaves a torn region, of which the
        next block finds half and has to write all.  Raises RegionTimeout when another writer
        stays; who holds the lock already waits for itself.
        """
        self._allow(RegionMode.LOCKED_WRITE)
        header, payload = self._open()
        self._check(_region.write_begin(header, timeout), timeout)
        view = np.frombuffer(payload, np.uint8, self.size)
        try:
            yield view
        finally:
            view.flags.writeable = False  # what is kept cannot write without the lock
            self._check(_region.write_end(header), timeout)

    def write(self, *parts: Any, timeout: float = TIMEOUT) -> None:
        """One version out of buffers, end to end from the first byte; what lies behind them stays.

        All but the last have a multiple of eight bytes.  COPY_ON_WRITE writes to the private copy.
        """
        flat = [_flat(part, "data", self.size) for part in parts]
        if sum(part.size for part in flat) > self.size:
            sizes = " + ".join(str(part.size) for part in flat)
            raise UsageError(f"{self.name}: data has {sizes} bytes, but room is for {self.size}")
        if any(part.size % WORD for part in flat[:-1]):
            raise UsageError(f"{self.name}: only the last part may have a size not a multiple of 8")
        if self.mode is RegionMode.COPY_ON_WRITE:
            copy, at = self.writable(), 0
            for part in flat:
                copy[at : at + part.size] = part
                at += part.size
            return
        self._allow(RegionMode.LOCKED_WRITE)
        header, payload = self._open()
        self._check(_region.write(header, payload, flat, timeout), timeout)

    # --- state and end ----------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Of the shared bytes: 0 before the first write; odd while one is under way, or torn."""
        return _region.version(self._open()[0])

    @property
    def counters(self) -> Counters:
        """Reads, writes, copies and retries of all processes so far."""
        return Counters(*_region.counters(self._open()[0]))

    def close(self) -> None:
        """Gives the mapping back, once no view of it and no block under the lock is left.  May be
        called again."""
        self._maps = None

    def unlink(self) -> None:
        """Removes the name: nobody can attach any more.  For the creator; may be called again."""
        if self._unlink is None:
            raise UsageError(f"{self.name}: only the creator of a region unlinks it; close it")
        self._unlink()

    def __enter__(self) -> SharedRegion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()
        if self._unlink is not None:
            self._unlink()

    def _open(self) -> tuple[mmap.mmap, mmap.mmap]:
        if self._maps is None:
            raise RegionError(f"{self.name}: the region is closed; attach it again")
        return self._maps

    def _allow(self, mode: RegionMode) -> None:
        if self.mode is not mode:
            raise UsageError(
                f"{self.name}: this region is {self.mode.value}; attach it {mode.value}"
            )

    def _check(self, status: int, timeout: float) -> None:
        if status == _region.OK:
            return
        who = _region.writer(self._open()[0])
        if status == _region.TORN:
            raise RegionTorn(
                f"{self.name}: process {who} died in the middle of a write; "
                "the next write makes the region whole"
            )
        if status == _region.TIMEOUT:
            raise RegionTimeout(
                f"{self.name}: process {who} has written to it for {timeout:g} s; wait for its end"
                if who
                else f"{self.name}: written to too often to be read in {timeout:g} s; try again"
            )
        what = {
            _region.NOT_WRITER: "the lock is not this process's; lock and write in one process",
            _region.NO_IDENTITY: "/proc does not tell who this process is; mount it",
        }[status]
        raise RegionError(f"{self.name}: {what}")


def discard(name: str) -> None:
    """Removes a segment that a dead process left, if the name is one that ``create`` chooses."""
    if name.startswith(PREFIX) and "/" not in name:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(SEGMENTS, name))


def _remove(segment: shared_memory.SharedMemory, creator: int) -> None:
    """Unlinks, in the process that created: its forked children only share the mapping."""
    if os.getpid() != creator:
        return
    try:
        segment.unlink()
    except FileNotFoundError:  # somebody was faster; the tracker must not look for it at the end
        resource_tracker.unregister(f"/{segment.name}", "shared_memory")


def _checked(name: str) -> str:
    if not name or "/" in name or "\0" in name or len(os.fsencode(name)) > 200:
        raise UsageError(f"name is {name!r}; give 1 to 200 characters without a slash")
    return name


def _map(name: str, mode: RegionMode, *, reserve: int = 0) -> tuple[mmap.mmap, mmap.mmap]:
    """Header and payload; only who may write can write the payload, all count in the header."""
    path = os.path.join(SEGMENTS, name)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if reserve:
            os.posix_fallocate(fd, 0, reserve)
        size = os.fstat(fd).st_size - HEADER
        if size < 1:
            raise UsageError(_unfit(path, _region.NO_MAGIC, 0, 0))
        access = mmap.ACCESS_WRITE if mode is RegionMode.LOCKED_WRITE else mmap.ACCESS_READ
        return mmap.mmap(fd, HEADER), mmap.mmap(fd, size, access=access, offset=HEADER)
    finally:
        os.close(fd)


def _flat(data: Any, what: str, most: int) -> Bytes:
    """A buffer as bytes, without copying."""
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if not array.flags.c_contiguous:
        raise UsageError(f"{what} is not contiguous; give np.ascontiguousarray of it")
    if array.nbytes > most:
        raise UsageError(f"{what} has {array.nbytes} bytes, but the region has {most}")
    return array.reshape(-1).view(np.uint8)


def _no_room(name: str, total: int, error: OSError) -> str:
    if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
        return f"{SEGMENTS}/{name}: cannot be made ({error.strerror}); allow it"
    state = os.statvfs(SEGMENTS)
    free = state.f_bavail * state.f_frsize / 2**20
    return (
        f"{SEGMENTS}: no room for a region of {total / 2**20:,.1f} MiB, {free:,.1f} MiB are free; "
        "free some, or mount it larger"
    )


def _unfit(path: str, status: int, size: int, room: int) -> str:
    if status == _region.TRUNCATED:
        return f"{path}: truncated, {room} bytes instead of {size}; create it again"
    if status == _region.BAD_FORMAT:
        return f"{path}: a region of another version of crystalline; use the same in both processes"
    return f"{path}: is no region of crystalline; check the name"
