"""The command, and how it fails: one line on standard error and an exit code, never a traceback.

0    done                    2    the arguments, paths or settings are wrong
1    anything else           130, 143    stopped by Ctrl-C or by SIGTERM
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence

import click

from crystalline.errors import CrystallineError, Interrupted, tame


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command with ``args`` (default: the process's); returns its exit code."""
    # A process may be born without them, and print would then write to what is there.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream, instead in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # a locale may know fewer characters than a model
            stream.reconfigure(errors=instead)
    try:
        # Imported here, so that Ctrl-C while the libraries load ends as it does later.
        from crystalline.cli import cli
        from crystalline.forecast.clock import process_began

        # The minutes of a command are those of its process, where it is one.
        begun = process_began() if args is None else None
        code = cli.main(args, prog_name="crystalline", standalone_mode=False, obj=begun)
        return code if isinstance(code, int) else 0
    except FAILURES as error:
        if isinstance(error, OSError):
            _silence_stdout()
        message, code = _verdict(error)
        with contextlib.suppress(OSError):  # nobody reads: the exit code still tells
            print(f"crystalline: {tame(message)}", file=sys.stderr, flush=True)
        return code


FAILURES = (
    CrystallineError, click.ClickException, click.Abort, KeyboardInterrupt, MemoryError, OSError,
)  # fmt: skip


def _verdict(error: BaseException) -> tuple[str, int]:
    """What to say, and the exit code."""
    code = 1
    if isinstance(error, click.Abort | KeyboardInterrupt):
        message, code = "stopped", 130
    elif isinstance(error, Interrupted):  # being stopped is no error
        message, code = str(error), error.exit_code
    elif isinstance(error, CrystallineError):
        message, code = f"error: {error}", error.exit_code
    elif isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        path = context.command_path if context else "crystalline"
        message, code = f"error: {error.format_message()} See {path} --help", error.exit_code
    elif isinstance(error, OSError) and error.errno != errno.ENOMEM:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        message = f"error: {name}{error.strerror or error}; check the disk and permissions"
    else:
        detail = f" ({error})" if isinstance(error, MemoryError) and str(error) else ""
        message = f"error: out of memory{detail}; choose smaller sizes, or free some memory"
    return message, code


def _silence_stdout() -> None:
    """What standard output refused once it would refuse again, loudly, when Python flushes it."""
    with contextlib.suppress(OSError, ValueError):
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
