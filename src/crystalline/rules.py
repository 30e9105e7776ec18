"""What a setting must be: refused in one line with its value, the rule and a value that works."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import NoReturn

from crystalline.errors import ConfigError

INT32_MAX = 2**31 - 1


def refuse(field: str, value: object, rule: str, works: str) -> NoReturn:
    raise ConfigError(f"{field} is {reprlib.repr(value)}, but {rule}; choose {works}")


def whole_number(field: str, value: object, low: int, high: int, works: int) -> int:
    # bool is an int to Python, but `layers = true` is a mistake.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        refuse(field, value, f"must be a whole number from {low} to {high}", f"{works}")
    return value


def real_number(field: str, value: object, low: float, high: float, works: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]  # nan fails here too
        refuse(field, value, f"must be a number from {low:g} to {high:g}", f"{works:g}")
    return float(value)  # type: ignore[arg-type]


def named(field: str, value: object, names: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in names:
        near = nearest_name(str(value), names) or names[0]
        refuse(field, value, f"must be one of {', '.join(names)}", near)
    return value


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=0.5)
    return found[0] if found else None
