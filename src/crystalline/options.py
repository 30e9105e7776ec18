"""Options as users say them, in TOML, on the command line or as keywords, to a TrainConfig."""

from __future__ import annotations

import os
import reprlib
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import msgspec

from crystalline.config import REAL_RULES, WHOLE_RULES, TrainConfig
from crystalline.errors import ConfigError
from crystalline.rules import nearest_name, refuse

LISTED = 25  # options that an error names; crystalline train --help has them all


def train_config(options: Mapping[str, object], where: str) -> TrainConfig:
    """A TrainConfig from named options (TOML, command line or keywords); None counts as not said.

    Raises ConfigError that begins with ``where`` for an unknown name, with the nearest known one,
    for a value of the wrong type, and for one that breaks a rule.
    """
    types = get_type_hints(TrainConfig)
    known = [field.name for field in fields(TrainConfig)]
    values: dict[str, Any] = {}
    try:
        for name, value in options.items():
            if name not in types:
                near = nearest_name(name, known)
                first = ", ".join(known[:LISTED])
                hint = f"did you mean {near}?" if near else f"the options are {first} ..."
                raise ConfigError(f"unknown option {reprlib.repr(name)}; {hint}")
            if value is not None:
                values[name] = _convert(name, value, types[name])
        return TrainConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


_WANTED = {
    "preset": ("the name of a preset", "'seed'"),
    "hierarchy_depth": ("1, 2, 3 or 'auto'", "'auto'"),
    "thread_allocation": ("the name of a strategy", "'auto'"),
    "work_stealing": ("true or false", "true"),
    "recursive_spawning": ("true or false", "true"),
    "pin": ("true or false", "true"),
    "val": ("a path or a list of paths", "['held_out.txt']"),
    "tokenizer": ("a path", "'tokenizer.json'"),
    "loss": ("the name of a loss", "'full'"),
    "precision": ("the name of a precision", "'fp32'"),
    "packing": ("true or false", "true"),
    "init": ("the name of an initialisation", "'normal'"),
    "rope": ("the name of a kind of rotary positions", "'standard'"),
    "boundary_counters": ("true or false", "true"),
    "optimizer": ("the name of an optimizer", "'adamw'"),
    "schedule": ("the name of a schedule", "'cosine'"),
    "start_from": ("the path of a model's folder", "'models/base'"),
}


def _convert(name: str, value: object, wanted: Any) -> Any:
    if name == "val":  # one path is as good as a list of one
        value = [value] if isinstance(value, str | os.PathLike) else value
        if isinstance(value, list | tuple):
            value = [os.fspath(v) if isinstance(v, os.PathLike) else v for v in value]
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        if name in _WANTED:
            kind, works = _WANTED[name]
        elif name in REAL_RULES:
            kind, works = "a number", f"{REAL_RULES[name][2]:g}"
        else:
            kind, works = "a whole number", f"{WHOLE_RULES[name][2]}"
        refuse(name, value, f"must be {kind}", works)


def load_toml(path: str | os.PathLike[str]) -> dict[str, object]:
    """The top-level table of a TOML file; ConfigError names the file and, where known, the line."""
    where = os.fspath(path)
    try:
        with open(where, "rb") as file:
            data = file.read()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{where}: cannot be read ({reason}); give a TOML file") from error
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{where}: line {line} is not UTF-8; save the file as UTF-8") from error
    except ValueError as error:  # TOMLDecodeError, and integers too long for Python
        raise ConfigError(f"{where}: not valid TOML: {error}; correct it there") from error
