"""A training that cannot fit is refused before it takes memory, with the nearest one that can."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from crystalline._native import Team
from crystalline.config import ModelConfig
from crystalline.errors import ConfigError
from crystalline.forecast.machine import available
from crystalline.forecast.memory import MIB, arenas

if TYPE_CHECKING:
    from crystalline.plan import Recipe


def check_memory(c: ModelConfig, recipe: Recipe, team: Team, more: int = 0) -> int:
    """Bytes that the blocks of a training take, and ``more`` beside them; ConfigError where this
    machine, or the control group of this process, has less."""
    need, have = _need(c, recipe, team) + more, available()
    if need > have:
        raise ConfigError(
            f"batch_size is {recipe.batch_size} and dim {c.dim}, which needs {need / MIB:,.0f} MiB,"
            f" but {have / MIB:,.0f} MiB are available; {nearest(c, recipe, team, have - more)}"
        )
    return need


def nearest(c: ModelConfig, recipe: Recipe, team: Team, room: int) -> str:
    """What fits into ``room`` bytes, in words: the same step in smaller batches, shorter sequences,
    a narrower model."""
    offers = [
        offer
        for offer in (
            _smaller_batch(c, recipe, team, room),
            _shorter(c, recipe, team, room),
            _narrower(c, recipe, team, room),
        )
        if offer
    ]
    if not offers:
        return "no model of this kind fits; free some memory"
    # A batch that fits changes no result that matters: then one word on the model is enough.
    if len(offers) == 3:
        del offers[1]
    return f"fits: {', or '.join(offers)}"


def _need(c: ModelConfig, recipe: Recipe, team: Team) -> int:
    return sum(arenas(c, recipe, team).values())


def _smaller_batch(c: ModelConfig, recipe: Recipe, team: Team, room: int) -> str:
    """The largest batch that fits; with so many accumulated that a step stays what it is."""
    total = recipe.sequences
    sizes = {total // n for n in range(1, int(total**0.5) + 1) if total % n == 0}
    sizes |= {total // size for size in sizes}
    for size in sorted((s for s in sizes if s < recipe.batch_size), reverse=True):
        smaller = replace(recipe, batch_size=size, accumulate=total // size)
        if _need(c, smaller, team) <= room:
            return f"batch_size {size} (accumulate {total // size})"
    return ""


def _shorter(c: ModelConfig, recipe: Recipe, team: Team, room: int) -> str:
    T = c.seq_len // 2
    while T >= 8:
        if _need(replace(c, seq_len=T), recipe, team) <= room:
            return f"seq_len {T}"
        T //= 2
    return ""


def _narrower(c: ModelConfig, recipe: Recipe, team: Team, room: int) -> str:
    """The widest model of as many layers, with heads as wide as they are."""
    step = c.head_dim * (c.heads // c.kv_heads)
    for dim in range(c.dim - step, 0, -step):
        heads = dim // c.head_dim
        hidden = max(2, c.hidden * dim // c.dim // 2 * 2)
        kv_heads = heads // (c.heads // c.kv_heads)
        less = replace(c, dim=dim, heads=heads, kv_heads=kv_heads, hidden=hidden)
        if _need(less, recipe, team) <= room:
            return f"dim {dim}"
    return ""
