"""Rotary positions stretched for longer texts: what a model's configuration says of them.

    linear   every frequency f becomes f / factor
    llama3   with turns = original f / 2 pi, how often f turns in the length first trained for:
             more than ``high`` stay f, fewer than ``low`` become f / factor, and between them
             ((1 - s) / factor + s) f,  s = (turns - low) / (high - low)
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from crystalline.errors import ConfigError

PI = Decimal("3.1415926535897932384626433832795028841971693993751")
KINDS = ("linear", "llama3")

# Field -> Hugging Face's key; linear has the factor alone.
LLAMA3_KEYS = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original": "original_max_position_embeddings",
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched; ``low``, ``high``, ``original`` are llama3's.

    Raises ConfigError at birth for values that mean nothing.
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: float = 8192.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            rule = f"crystalline knows {' and '.join(KINDS)}"
            raise ConfigError(f"rope_scaling is {self.kind!r}, but {rule}; choose a model of these")
        for field, key in LLAMA3_KEYS.items():
            value = getattr(self, field)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            least = 0.0 if field in ("low", "high") else 1.0
            if not number or not math.isfinite(value) or not least <= value <= 1e9:
                raise ConfigError(
                    f"{key} of rope_scaling is {reprlib.repr(value)}, but must be a number from "
                    f"{least:g} to 1e+09; choose {max(least, 4.0):g}"
                )
            object.__setattr__(self, field, float(value))
        if self.low >= self.high:
            raise ConfigError(
                f"low_freq_factor of rope_scaling is {self.low:g}, but must be below "
                f"high_freq_factor {self.high:g}; choose 1 and 4"
            )

    def stretched(self, frequency: Decimal) -> Decimal:
        """The frequency, in radians a position, that takes the place of one."""
        factor = Decimal(self.factor)
        if self.kind == "linear":
            return frequency / factor
        low, high = Decimal(self.low), Decimal(self.high)
        turns = Decimal(self.original) * frequency / (2 * PI)
        share = min(max((turns - low) / (high - low), Decimal(0)), Decimal(1))
        return frequency * ((1 - share) / factor + share)

    def to_hf(self) -> dict[str, Any]:
        """The rope_scaling of a config.json."""
        if self.kind == "linear":
            return {"rope_type": "linear", "factor": self.factor}
        said = {key: getattr(self, field) for field, key in LLAMA3_KEYS.items()}
        said["original_max_position_embeddings"] = int(self.original)
        return {"rope_type": "llama3", **said}


def scaling_from_hf(key: str, rope: object) -> RopeScaling | None:
    """What a rope_scaling or rope_parameters entry means; None for ordinary rotary positions."""
    if rope is None:
        return None
    if not isinstance(rope, Mapping):
        raise ConfigError(f"{key} is {reprlib.repr(rope)}, but must be an object; choose null")
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise ConfigError(
            f"{key} is {reprlib.repr(dict(rope))}, but crystalline turns whole heads; "
            "choose a model without partial_rotary_factor"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in KINDS:
        raise ConfigError(
            f"{key} is {reprlib.repr(kind)}, but crystalline knows default, linear and llama3; "
            "choose a model of these"
        )
    fields = LLAMA3_KEYS if kind == "llama3" else {"factor": "factor"}
    for name in fields.values():
        if name not in rope:
            raise ConfigError(f"{key} is {kind}, but {name} is missing; choose a model with it")
    return RopeScaling(kind, **{field: rope[name] for field, name in fields.items()})
