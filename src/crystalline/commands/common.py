"""What several commands share: options by the table, and their defaults in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

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
