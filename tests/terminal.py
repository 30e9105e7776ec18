"""A command on a terminal, which a test reads and answers."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Callable
from typing import Any

from command import LIMIT, start

OnOutput = Callable[[Any, bytes], None]


def on_terminal(after: OnOutput, *args: Any, width: int = 100, height: int = 40) -> tuple[int, str]:
    """The exit code of a command and all it shows; ``after`` is called with the process and what
    it has shown so far whenever that has grown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    process: subprocess.Popen[str] = start(*args, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the last process has closed the other end
            chunk = b""
        if not chunk:
            break
        shown += chunk
        after(process, shown)
    os.close(ours)
    return process.wait(LIMIT), shown.decode()
