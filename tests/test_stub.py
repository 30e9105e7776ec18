"""The types of the compiled module say what it holds: every name and every argument."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import crystalline
from crystalline import _native

STUB = ast.parse(Path(crystalline.__file__).with_name("_native.pyi").read_text())
IMPORTED = {"np", "UsageError", "arena"}


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
    told = {name for name in told if not name.startswith("_")}  # names for types only
    assert told == public(_native) - IMPORTED


@pytest.mark.parametrize("held", [_native.Pool, _native.Team])
def test_the_classes_have_what_the_stub_says(held: type) -> None:
    (told,) = [n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == held.__name__]
    methods = {node.name: node for node in told.body if isinstance(node, ast.FunctionDef)}
    assert methods.keys() - {"__init__"} == public(held)
    for name, node in methods.items():
        if node.decorator_list or name == "__init__":
            continue
        signature = str(getattr(held, name).__doc__).split("\n")[0]
        inside = re.sub(r"\[[^\]]*\]", "", signature[signature.index("(") + 1 : -1])
        words = [part.split("=")[0].split()[-1] for part in inside.split(", ")]
        assert arguments(node) == [word for word in words if word != "*"], name
