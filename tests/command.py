"""Running the command as a user does, on a model that trains in a second."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from crystalline.cli import cli

COMMAND = [sys.executable, "-m", "crystalline"]
# One thread: a model this small spends its time waiting for the second.
SMALL = (
    "--dim", "32", "--layers", "1", "--seq-len", "16", "--batch-size", "4", "--vocab-size", "300",
    "--threads", "1",
)  # fmt: skip
LIMIT = 60  # seconds until a command counts as hung


def environment() -> dict[str, str]:
    """The process's, but for what would colour or widen the output."""
    noise = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES")
    return {k: v for k, v in os.environ.items() if k not in noise} | {"TERM": "xterm-256color"}


def start(*args: Any, **options: Any) -> subprocess.Popen[str]:
    """A command that runs beside the test."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    return subprocess.Popen([*COMMAND, *map(str, args)], text=True, **{**pipes, **options})


def run(*args: Any, **options: Any) -> tuple[int, str, str]:
    """A whole command: exit code, standard output, standard error."""
    process = start(*args, **options)
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def weights(folder: Path) -> bytes:
    """The model's file."""
    return (folder / "model.safetensors").read_bytes()


def invoke(*args: Any) -> str:
    """What a command that succeeds writes to standard output, run in this process."""
    result = CliRunner().invoke(cli, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(lines: list[str], head: str) -> list[list[str]]:
    """The cells below the first line that begins with a word, until an empty one."""
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == [head])
    block = lines[at + 1 :]
    return [line.split() for line in block[: block.index("") if "" in block else None]]
