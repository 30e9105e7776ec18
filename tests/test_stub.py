"""The types of the compiled modules say what they hold: every name and every argument."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest

import crystalline
from crystalline import _native, _queue, _sieve

IMPORTED = {
    "np", "UsageError", "arena", "CrystallineError", "QueueAlone", "QueueClosed", "QueueCorrupt",
}  # fmt: skip
CLASSES = [
    (_native, name)
    for name in (
        "Pool", "Products", "Softmaxes", "Rows", "Attends", "Narrow", "Generates", "Sparse",
        "Momenta", "Team", "Weight", "Stack",
    )
] + [(_queue, "MessageQueue"), (_queue, "SphereMessage"), (_sieve, "Sieve")]  # fmt: skip


def stub(module: ModuleType) -> ast.Module:
    name = module.__name__.removeprefix("crystalline.")
    return ast.parse(Path(crystalline.__file__).with_name(f"{name}.pyi").read_text())


def arguments(node: ast.FunctionDef) -> list[str]:
    a = node.args
    names = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    return [name.arg for name in names]


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


@pytest.mark.parametrize("module", [_native, _queue, _sieve])
def test_the_module_holds_what_the_stub_says(module: ModuleType) -> None:
    told = {
        node.target.id if isinstance(node, ast.AnnAssign) else node.name
        for node in stub(module).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name))
    }
    assert {name for name in told if not name.startswith("_")} == public(module) - IMPORTED


@pytest.mark.parametrize(("module", "held_name"), CLASSES)
def test_a_class_has_what_the_stub_says(module: ModuleType, held_name: str) -> None:
    held = getattr(module, held_name)
    (told,) = [n for n in stub(module).body if isinstance(n, ast.ClassDef) and n.name == held_name]
    methods = {node.name: node for node in told.body if isinstance(node, ast.FunctionDef)}
    assert methods.keys() - {"__init__", "__len__"} == public(held)
    for name, node in methods.items():
        if node.decorator_list or name.startswith("__"):
            continue
        signature = str(getattr(held, name).__doc__).split("\n")[0]
        inside = re.sub(r"\[[^\]]*\]", "", signature[signature.index("(") + 1 : -1])
        words = [part.split("=")[0].split()[-1] for part in inside.split(", ")]
        assert arguments(node) == [word for word in words if word != "*"], name
