"""What several commands share: options by the table, and their defaults in words."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from crystalline.errors import tame

CPUS = "as many as this process may use"
SAMPLES = "512, or all if they are fewer"
Command = TypeVar("Command", bound=Callable[..., Any])


def helps(words: str, default: str) -> str:
    return f"{words}  [default: {default}]"


def options_of(table: Sequence[tuple[str, type, str, str]]) -> Callable[[Command], Command]:
    """The options of a table, in its order.  None stands for what was not said."""

    def decorate(command: Command) -> Command:
        for name, kind, words, default in reversed(table):
            command = click.option(name, type=kind, help=helps(words, default))(command)
        return command

    return decorate


def one_of(quiet: bool, as_json: bool) -> None:
    if quiet and as_json:
        raise click.UsageError("--quiet and --json exclude each other; choose one.")


def said_options(options: dict[str, Any]) -> dict[str, Any]:
    """What the command line gave, as TrainConfig takes it."""
    if not options["val"]:  # an empty list would hide the file's
        options["val"] = None
    if (options["hierarchy_depth"] or "auto") != "auto":
        options["hierarchy_depth"] = int(options["hierarchy_depth"])
    return options


MODELS_DIR = click.option(
    "--models-dir", type=click.Path(),
    help=helps("The folder of models.", "$CRYSTALLINE_MODELS, or models"),
)  # fmt: skip
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int]) -> str:
    """A table: columns as wide as they must be, those in ``left`` begin at their left edge."""
    cells = [list(head), *([tame(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    flush = set(left)
    lines = [
        "  ".join(
            cell.ljust(width) if i in flush else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([click.style(lines[0], bold=True), *lines[1:]])


def rows_of(rows: Iterable[tuple[str, str]]) -> str:
    """A name and a text in each line."""
    return "\n".join(f"{click.style(f'{name:<11}', bold=True)} {tame(text)}" for name, text in rows)


def moment(seconds: float) -> str:
    """A time of the clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def sure(yes: bool, question: str) -> None:
    """Asks on a terminal; elsewhere --yes has to be said."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Say --yes to do it.")
    click.confirm(question, abort=True, err=True)
