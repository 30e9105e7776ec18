"""Whether code parses: by tree-sitter's grammars, and by Python itself where it is Python."""

from __future__ import annotations

import ast
import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crystalline.errors import UsageError

Judge = Callable[[str], bool]


@dataclass(frozen=True)
class Language:
    """How pieces of code begin, and which files hold it."""

    name: str
    prompts: tuple[str, ...]
    suffixes: tuple[str, ...]


LANGUAGES = {
    "c": Language("C", ("int main", "struct", "#include", "void function"), (".c", ".h")),
    "python": Language("Python", ("def", "class", "import"), (".py",)),
}


def judges(language: str) -> dict[str, Judge]:
    """By name, what says whether a text parses.  UsageError without the packages for it."""
    found: dict[str, Judge] = {"tree-sitter": _tree_sitter(language)}
    if language == "python":
        found["python"] = compiles
    return found


def _tree_sitter(language: str) -> Judge:
    grammar = f"tree_sitter_{language}"
    try:
        core: Any = importlib.import_module("tree_sitter")
        table: Any = importlib.import_module(grammar)
    except ImportError as error:
        package = (error.name or grammar).replace("_", "-")
        raise UsageError(
            f"--code {language} needs {package}, which is not installed; "
            "pip install 'crystalline[code]'"
        ) from error
    try:
        parser = core.Parser(core.Language(table.language()))
    except ValueError as error:  # grammars of another age than the parser
        raise UsageError(
            f"--code {language}: tree-sitter and {grammar.replace('_', '-')} do not fit together "
            f"({error}); pip install --upgrade 'crystalline[code]'"
        ) from error

    def parses(text: str) -> bool:
        # True too where the parser had to add what is missing, such as a closing brace.
        return not parser.parse(text.encode()).root_node.has_error

    return parses


def compiles(text: str) -> bool:
    """Whether Python's own parser takes the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes and the like
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def whole_lines(text: str) -> str:
    """The text up to the end of its last complete line; nothing if no line is."""
    return text[: text.rfind("\n") + 1]


def beginnings(text: str, prompt: str) -> list[int]:
    """Where lines begin with a prompt and its last word is not the beginning of a longer one; for
    the empty prompt every line that is not blank."""
    if not prompt:
        return [found.start() for found in re.finditer(r"^(?=.*\S)", text, re.MULTILINE)]
    return [found.start() for found in re.finditer(rf"^{re.escape(prompt)}(?!\w)", text, re.M)]
