"""The format of training_state.json: its number, and how older ones become the present one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from crystalline.errors import CheckpointError

FORMAT = 3


def migrated(state: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A state in the present format; CheckpointError where it is of a newer one, or of none."""
    number = state.get("format", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CheckpointError(f"{where}: format is {number!r}, but must be a number from 1 on")
    if number > FORMAT:
        raise CheckpointError(
            f"{where}: format is {number}, written by a newer crystalline; this one reads up to "
            f"{FORMAT}: install a newer one, the model alone can be used with this"
        )
    new = copy.deepcopy(dict(state))
    try:
        for n in range(number, FORMAT):
            STEPS[n](new)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: {error} does not fit format {number}; restore it from a copy, or train again"
        ) from error
    return new | {"format": FORMAT}


def _to_2(state: dict[str, Any]) -> None:
    """Early stopping, and which step's weights lie in the model's file.  A state of format 1 may
    be older than the place in the text, which followed from the step, and than commands."""
    progress, recipe = state["progress"], state["recipe"]
    progress.setdefault("sequences", progress["step"] * recipe["batch_size"] * recipe["accumulate"])
    # What counts against patience is known from the best on only.
    progress.setdefault("mark", progress.get("best"))
    state.setdefault("commands", [])
    state.setdefault("options", {})
    state.setdefault("model_step", progress["step"])


def _to_3(state: dict[str, Any]) -> None:
    """The lattice.  Crossings are counted from here on."""
    before = {"init": "normal", "lambda_correction": 0.0, "boundary_counters": True}
    state["recipe"] = before | state["recipe"]
    state["progress"].setdefault("crossings", [0] * 12)


STEPS: dict[int, Callable[[dict[str, Any]], None]] = {1: _to_2, 2: _to_3}
