"""A training that cannot fit is refused before it takes memory, with the nearest one that can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from crystalline._native import Team
from crystalline.config import ModelConfig, parameter_count
from crystalline.errors import ConfigError
from crystalline.forecast.machine import available
from crystalline.forecast.memory import MIB, arenas

if TYPE_CHECKING:
    from crystalline.training.plan import Recipe


def check_memory(
    c: ModelConfig, recipe: Recipe, team: Team, more: int = 0, length: int | None = None
) -> int:
    """Bytes that the blocks of a training take, and ``more`` beside them; ConfigError where this
    machine, or the control group of this process, has less."""
    need, have = sum(arenas(c, recipe, team, length).values()) + more, available()
    if need > have:
        raise ConfigError(
            f"batch_size is {recipe.batch_size} and dim {c.dim}, which needs {need / MIB:,.0f} MiB,"
            f" but {have / MIB:,.0f} MiB are available; "
            f"choose {nearest(c, recipe, team, have - more)}"
        )
    return need


def nearest(c: ModelConfig, recipe: Recipe, team: Team, room: int) -> str:
    """What fits into ``room`` bytes, in words: the same step in smaller batches or else shorter
    sequences, and a narrower model."""
    offers = []
    # Where not even the weights and what belongs to them fit, only a smaller model does.
    if 12 * parameter_count(c) < room:
        offers = [_smaller_batch(c, recipe, team, room) or _shorter(c, recipe, team, room)]
    offers = [offer for offer in (*offers, _narrower(c, recipe, team, room)) if offer]
    if not offers and recipe.batch_size > 1:
        least = replace(recipe, batch_size=1, accumulate=recipe.sequences)
        if narrower := _narrower(c, least, team, room):
            offers = [f"batch_size 1 (accumulate {recipe.sequences}) and {narrower}"]
    if not offers:
        return "other sizes: no model of this kind fits; or free some memory"
    return f"what fits: {', or '.join(offers)}"


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
    T = (recipe.seq_len or c.seq_len) // 2
    while T >= 8:
        shorter = replace(recipe, seq_len=T) if recipe.seq_len else recipe
        if _need(c if recipe.seq_len else replace(c, seq_len=T), shorter, team) <= room:
            return f"seq_len {T}"
        T //= 2
    return ""


def _narrower(c: ModelConfig, recipe: Recipe, team: Team, room: int) -> str:
    """The widest model of as many layers, with heads as wide as they are; or else the one with
    fewer layers, or with a narrower feed-forward part."""

    def narrowed(heads: int, kv_heads: int) -> ModelConfig:
        dim = heads * c.head_dim
        hidden = max(2, c.hidden * dim // c.dim // 2 * 2)
        return replace(c, dim=dim, heads=heads, kv_heads=kv_heads, hidden=hidden)

    def fits(c: ModelConfig) -> bool:
        # Weights, gradients and a moment alone say most often no, and that at once.
        return 12 * parameter_count(c) < room and _need(c, recipe, team) <= room

    K, dim = c.kv_heads, c.head_dim
    # Fewer heads that share keys, or where none do or that is not enough, fewer keys.
    if more := _largest(lambda n: fits(narrowed(n * K, K)), c.heads // K):
        return f"dim {more * K * dim}"
    if heads := _largest(lambda n: fits(narrowed(n, n)), K):
        return f"dim {heads * dim}" + (f" with kv_heads {heads}" if c.heads > K else "")
    if layers := _largest(lambda n: fits(replace(c, layers=n)), c.layers):
        return f"layers {layers}"
    half = _largest(lambda n: fits(replace(c, hidden=2 * n)), -(-c.hidden // 2))
    return f"hidden {2 * half}" if half else ""


def _largest(fits: Callable[[int], bool], over: int) -> int:
    """The largest number below ``over`` that fits; 0 where none does."""
    fit = 0
    while over - fit > 1:
        middle = (fit + over) // 2
        if fits(middle):
            fit = middle
        else:
            over = middle
    return fit
