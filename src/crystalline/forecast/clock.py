"""Since when this process runs: what a command was given in minutes counts from there."""

from __future__ import annotations

import os
import time


def process_began() -> float:
    """When this process was started, on the clock of ``time.monotonic``."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            # The name of the program may hold blanks and brackets: what follows it does not.
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic()
    return time.monotonic() - max(age, 0.0)
