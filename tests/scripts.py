"""Processes that run beside a test: a script, told to go on by a line, ended by a watchdog."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

LIMIT = 100  # seconds until a script counts as hung
TESTS = str(Path(__file__).parent)


class Script:
    """``code`` with ``args`` as sys.argv[1:]; killed after LIMIT seconds, which fails its test."""

    def __init__(self, code: str, *args: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": TESTS + os.pathsep + os.environ.get("PYTHONPATH", "")},
        )  # fmt: skip
        self.watchdog = threading.Timer(LIMIT, self.process.kill)
        self.watchdog.start()

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.end(kill=True)[2]
        return line

    def end(self, *, kill: bool = False) -> tuple[int, str, str]:
        """Exit code, output and errors, after the end of its standard input or of itself."""
        if kill:
            self.process.kill()
        out, err = self.process.communicate(timeout=LIMIT)
        self.watchdog.cancel()
        return self.process.returncode, out, err

    def well(self) -> str:
        """What else it printed, once it has ended in order and without a word of complaint."""
        code, out, err = self.end()
        assert (code, err) == (0, ""), err
        return out

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.end(kill=True)


# How a script begins that is given the name of a region.
BEGIN = """
import os, signal, sys, time
import numpy as np
from crystalline.spheres.region import *
region = SharedRegion.attach(sys.argv[1], RegionMode.LOCKED_WRITE)
"""
# Reads until a version; every version is uniform, and tells its number.
READS = BEGIN + """
region = SharedRegion.attach(sys.argv[1])
out, last = np.empty(region.size, np.uint8), 0
print("reads", flush=True)
while last < int(sys.argv[2]):
    version, _ = region.read(out, timeout=30)
    assert version >= last and not version % 2
    assert (out == out[0]).all() and out[0] == version // 2 % 251, (version, out[:9])
    last = version
"""
