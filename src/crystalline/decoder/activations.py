"""The arrays that the decoder's steps work in: which there are, and where in memory they lie.

Kept from forward to backward is what is dear to compute again.  The norms' outputs and the inside
of the feed-forward are not: backward makes them anew, with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalline.config import ModelConfig, parameter_spans
from crystalline.decoder.memory import arena

LINE = 16  # floats; places begin on a line of the cache
OF_ATTENTION = ("x", "r1", "qkv", "att", "lse")  # what a layer keeps for the backward of attention
NARROW = ("qkv", "att", "gu")  # what it keeps in bf16, if that is the precision


@dataclass(frozen=True)
class Array:
    """One array of float32, or bf16 as uint16.  Arrays of one place share its memory: a step that
    writes one of them is done with the others."""

    name: str
    shape: tuple[int, ...]
    place: str
    bf16: bool = False

    @property
    def floats(self) -> int:
        """The float32 numbers that its room could hold, in whole lines."""
        numbers = math.prod(self.shape)
        return -(-(-(-numbers // 2) if self.bf16 else numbers) // LINE) * LINE


@dataclass(frozen=True)
class Layout:
    """Where the places begin: in a block of so many ``floats``, or in that of the gradients."""

    own: dict[str, int]
    lent: dict[str, int]
    floats: int


def decoder_arrays(
    c: ModelConfig, B: int, T: int, training: bool, bf16: bool, sampled: bool
) -> list[Array]:
    """Every array of a decoder for B sequences of T tokens, those of the layers in the order in
    which backward lets go of them, last first.

    Without training each layer writes over the arrays of the one before.  With ``bf16`` what only
    feeds products, or costs much room, is bf16: see layers_bf16.py.
    """
    R, D, F = B * T, c.dim, c.hidden
    E = (c.heads + 2 * c.kv_heads) * c.head_dim
    arrays: list[Array] = []
    for layer in range(c.layers if training else 1):
        arrays += [
            Array(f"{layer}.{name}", shape, f"{layer}.{name}", bf16 and name in NARROW)
            for name, shape in (
                ("x", (R, D)), ("r1", (R,)), ("qkv", (R, E)), ("att", (R, D)),
                ("lse", (R * c.heads,)), ("mid", (R, D)), ("r2", (R,)), ("gu", (R, 2 * F)),
            )
        ]  # fmt: skip
    arrays += [Array("x", (R, D), "x"), Array("r", (R,), "r"), Array("losses", (R,), "losses"),
               Array("act", (R, F), "act", bf16)]  # fmt: skip
    if bf16:
        arrays += [Array("h", (R, D), "narrow", True), Array("qkv", (R, E), "qkv"),
                   Array("att", (R, D), "att")]  # fmt: skip
    if sampled or not bf16:  # the sampled loss has a head of float32 in either precision
        arrays.append(Array("h", (R, D), "dx"))
    if training:
        arrays += [Array("dx", (R, D), "dx"), Array("dh", (R, D), "dh"),
                   Array("dqkv", (R, E), "act")]  # fmt: skip
    if training and bf16:
        arrays += [Array("dx", (R, D), "narrow", True), Array("dqkv", (R, E), "qkv", True)]
    return arrays


def layout(arrays: Iterable[Array], c: ModelConfig, lend: bool) -> Layout:
    """Places one behind the other; with ``lend`` what fits into the gradients' memory is there."""
    sizes: dict[str, int] = {}
    for array in arrays:
        sizes[array.place] = max(sizes.get(array.place, 0), array.floats)
    lent = _lent(sizes, c) if lend else {}
    own, end = {}, 0
    for place, floats in sizes.items():
        if place not in lent:
            own[place], end = end, end + floats
    return Layout(own, lent, end)


def _lent(sizes: dict[str, int], c: ModelConfig) -> dict[str, int]:
    """Backward goes down through the gradients' memory, from the last layer's to the first one's,
    and down through what the layers keep: what it needs next may lie below what it writes next.

    The tables' gradients are left out: with tied weights the head writes them first, and the
    sampled loss adds to them.
    """
    spans = parameter_spans(c)
    bottom = spans["model.layers.0.input_layernorm.weight"][0]
    free, lent = spans["model.norm.weight"][0], {}
    for place, floats in reversed(sizes.items()):
        limit = _first_gradient(place, spans)
        if limit is not None:
            begin = (min(free, limit) - floats) // LINE * LINE
            if begin >= bottom:
                lent[place] = free = begin
    return lent


def _first_gradient(place: str, spans: dict[str, tuple[int, int]]) -> int | None:
    """Where the gradients of the step begin that lets go of a place; None where none does."""
    layer, _, name = place.partition(".")
    if name:
        norm = "input_layernorm" if name in OF_ATTENTION else "post_attention_layernorm"
        return spans[f"model.layers.{layer}.{norm}.weight"][0]
    return spans["model.norm.weight"][0] if place == "x" else None


def views(
    arrays: Iterable[Array], where: Layout, gradients: NDArray[np.float32] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays by name, those of float32 and those of bf16, in memory of their own and (flat)
    that of the gradients."""
    block = arena(where.floats)
    wide: dict[str, Any] = {}
    narrow: dict[str, Any] = {}
    for a in arrays:
        begin, of = where.own.get(a.place), block
        if begin is None:
            assert gradients is not None
            begin, of = where.lent[a.place], gradients
        room = of[begin : begin + a.floats].view(np.uint16 if a.bf16 else np.float32)
        (narrow if a.bf16 else wide)[a.name] = room[: math.prod(a.shape)].reshape(a.shape)
    return wide, narrow
