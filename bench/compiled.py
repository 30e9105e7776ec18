"""The benches' small C programs, compiled when they are first asked for."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import click

BUILT = Path(__file__).parent.parent / "build" / "bench"


def cpu_model() -> str:
    """As the machine calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def program(source: Path, *flags: str) -> Path:
    """The program of a C file, compiled again when the file, the flags or the CPU changed.

    Raises ClickException with the reason where there is no compiler or it refuses.
    """
    compiler = os.environ.get("CC", "cc")
    if not shutil.which(compiler):
        raise click.ClickException(
            f"{source.name}: no C compiler {compiler!r} found; install gcc, or set CC to yours"
        )
    key = source.read_text() + " ".join([compiler, *flags, cpu_model()])
    built = BUILT / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not built.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        fresh = built.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [compiler, *flags, "-o", str(fresh), str(source), "-pthread"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            why = next((line for line in done.stderr.splitlines() if "error" in line), "no reason")
            raise click.ClickException(f"{source.name}: {compiler} refuses it: {why}")
        fresh.rename(built)
    return built
