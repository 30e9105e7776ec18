"""Sizes for a number of parameters, and the way people write such numbers."""

from __future__ import annotations

import math
import re

from crystalline.config import ModelConfig
from crystalline.errors import ConfigError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
LEAST, MOST = 100_000, 100 * 10**9


def parse_count(text: str) -> int:
    """135000000, 135M, 1.5B.  ConfigError for anything else, and for sizes out of all reason."""
    match = re.fullmatch(r"\s*(\d+(?:[._]\d+)*)\s*([kmbg]?)\s*", text.lower())
    count = 0
    if match and match[1].count(".") <= 1:
        count = round(float(match[1].replace("_", "")) * UNITS[match[2]])
    if not LEAST <= count <= MOST:
        raise ConfigError(
            f"params is {text!r}, but must be a number from 100k to 100B; choose 100M"
        )
    return count


def default_vocabulary(parameters: int) -> int:
    """Where no text says more: larger ones as a model grows, so that tables stay a small part."""
    for least, size in ((1e9, 32000), (6e7, 16384), (1.5e7, 8192), (2e6, 2048)):
        if parameters >= least:
            return size
    return 512


def sizes_for(parameters: int, vocab_size: int | None = None, seq_len: int | None = None,
              ) -> ModelConfig:  # fmt: skip
    """The model of about so many parameters: tied tables, all heads with keys of their own,
    feed-forward 8/3 of the width.

    Width and depth grow together: D / L is 32 at a width of 128, 64 at 768, 110 at 2048, 160 at
    4096, as in the models that others published.  Heads are 32, 64 or 128 wide.  Of the widths that
    heads divide, the one is taken that comes nearest to that shape and, with the feed-forward
    width moved by a quarter at most, within 1 % of the number.  For the smallest models no such
    one exists: what comes nearest to the number is taken.
    """
    V = vocab_size or default_vocabulary(parameters)
    best: tuple[float, int, int, int] | None = None
    for dim in _widths():
        if dim * V > parameters:
            break
        for layers in range(max(1, _depth(dim) // 2), 2 * _depth(dim) + 2):
            hidden, count = _fitted(parameters, V, dim, layers)
            error = abs(count / parameters - 1)
            shape = abs(math.log(layers / _depth(dim)))
            feed = abs(math.log(hidden / (8 * dim / 3)))
            cost = shape + feed + 100 * max(0.0, error - 0.01)
            if best is None or cost < best[0]:
                best = cost, dim, layers, hidden
    if best is None:
        raise ConfigError(
            f"params is {parameters:,}, but a vocabulary of {V:,} takes more in any model; choose "
            f"a smaller vocab_size, or params {32 * V:,}"
        )
    _, dim, layers, hidden = best
    heads = dim // _head(dim)
    return ModelConfig(V, dim, layers, heads, heads, hidden, seq_len or _context(parameters))


def _head(dim: int) -> int:
    return 32 if dim < 384 else 64 if dim < 2048 else 128


def _widths() -> list[int]:
    return [*range(32, 384, 32), *range(384, 2048, 64), *range(2048, 20481, 128)]


def _depth(dim: int) -> int:
    """Layers that go with a width."""
    return max(1, round(dim / (32 * math.pow(dim / 128, 0.45))))


def _fitted(parameters: int, V: int, dim: int, layers: int) -> tuple[int, int]:
    """The feed-forward width that fits the number best, and the parameters there are then."""
    fixed = V * dim + dim + layers * (4 * dim * dim + 2 * dim)
    wanted = (parameters - fixed) / (3 * dim * layers)
    usual = 8 * dim / 3
    hidden = max(16, round(min(max(wanted, 0.75 * usual), 1.25 * usual) / 16) * 16)
    return hidden, fixed + 3 * dim * hidden * layers


def _context(parameters: int) -> int:
    for least, length in ((2e9, 2048), (3e8, 1024), (3e7, 512), (4e6, 256)):
        if parameters >= least:
            return length
    return 64
