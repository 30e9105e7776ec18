"""The types of the compiled module say what it holds: every name and every argument."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import crystalline
from crystalline import _native

STUB = ast.parse(Path(crystalline.__file__).with_name("_native.pyi").read_text())
IMPORTED = {"UsageError", "arena"}


def arguments(node: ast.FunctionDef) -> list[str]:
    a = node.args
    names = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    return [name.arg for name in names]


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_module_holds_what_the_stub_says() -> None:
    told = {
        node.target.id if isinstance(node, ast.AnnAssign) else node.name
        for node in STUB.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name))
    }
    assert told == public(_native) - IMPORTED


def test_the_team_has_what_the_stub_says() -> None:
    (team,) = [node for node in STUB.body if isinstance(node, ast.ClassDef)]
    methods = {node.name: node for node in team.body if isinstance(node, ast.FunctionDef)}
    assert methods.keys() - {"__init__"} == public(_native.Team)
    for name, node in methods.items():
        if node.decorator_list or name == "__init__":
            continue
        signature = str(getattr(_native.Team, name).__doc__).split("\n")[0]
        inside = re.sub(r"\[[^\]]*\]", "", signature[signature.index("(") + 1 : -1])
        words = [part.split("=")[0].split()[-1] for part in inside.split(", ")]
        assert arguments(node) == [word for word in words if word != "*"], name
