"""The command, and how it fails: one line on standard error and an exit code, never a traceback.

0    done                    2    the arguments, paths or settings are wrong
1    anything else           130, 143    stopped by Ctrl-C or by SIGTERM
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

import click

from crystalline.errors import CrystallineError, Interrupted, tame


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command with ``args`` (default: the process's); returns its exit code."""
    try:
        # Imported here, so that Ctrl-C while the libraries load ends as it does later.
        from crystalline.cli import cli  # noqa: PLC0415

        code = cli.main(args, prog_name="crystalline", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except CrystallineError as error:
        # Being stopped is no error, and its message is whole as it stands.
        kind = "" if isinstance(error, Interrupted) else "error: "
        return _say(f"{kind}{error}", error.exit_code)
    except click.Abort:
        return _say("stopped", 130)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "crystalline"
        return _say(f"error: {error.format_message()} See {path} --help", error.exit_code)
    except MemoryError as error:
        return _say(f"error: {_no_memory(str(error))}", 1)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return _say(f"error: {_no_memory('')}", 1)
        _silence_stdout()
        name = os.fsdecode(error.filename) + ": " if isinstance(error.filename, str | bytes) else ""
        return _say(f"error: {name}{error.strerror or error}; check the disk and permissions", 1)


def _no_memory(detail: str) -> str:
    return f"out of memory{f' ({detail})' if detail else ''}; choose smaller sizes or free some"


def _silence_stdout() -> None:
    """What standard output refused once it would refuse again, loudly, when Python flushes it."""
    with contextlib.suppress(OSError, ValueError):
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody reads: the exit code still tells
        print(f"crystalline: {tame(message)}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
