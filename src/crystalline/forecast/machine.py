"""What this machine has left for a training: memory, and shared memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
SHARED = "/dev/shm"


def available() -> int:
    """Bytes of memory that may still be taken: what the system calls available, or what the limits
    of the control groups around this process leave, if that is less."""
    return max(0, min([int(psutil.virtual_memory().available), *_rooms(_own_groups())]))


def resident() -> int:
    """Bytes of memory that this process holds already."""
    return int(psutil.Process().memory_info().rss)


def most_resident() -> int:
    """The most bytes of memory that this process has held.  (``ru_maxrss`` would count those of the
    process that began it.)"""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resident()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def shared_room() -> int:
    """Bytes left where memory is shared with other processes."""
    try:
        return shutil.disk_usage(SHARED).free
    except OSError:
        return 0


# --- control groups -------------------------------------------------------------------------------


def _own_groups(root: Path = CGROUPS, listed: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The folders of the groups that hold this process, with those around them."""
    try:
        lines = listed.read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            base = root / "memory"  # version 1
        elif number == "0":
            base = root / "unified" if (root / "unified").is_dir() else root
        else:
            continue
        # Inside a container the path may be that outside, but the mount is the group itself.
        inner = Path(path.strip().lstrip("/"))
        folders += [base / inner, *(base / above for above in inner.parents)]
    return list(dict.fromkeys(folders))


def _rooms(folders: list[Path]) -> Iterator[int]:
    """What each group's limit leaves.  Pages of files that nobody has mapped can be dropped, so
    they count as free."""
    for folder in folders:
        for limit, usage, idle in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                most = (folder / limit).read_text().strip()
                used = int((folder / usage).read_text())
                stat = (folder / "memory.stat").read_text().split()
            except (OSError, ValueError):
                continue
            if most.isdecimal() and int(most) < 1 << 60:  # version 1 writes a huge number for none
                dropped = int(stat[stat.index(idle) + 1]) if idle in stat else 0
                yield int(most) - used + dropped
