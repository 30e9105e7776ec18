"""Products with what follows them in one, and with weights kept in a precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import reference as ref
from case import Arrays, Case, Due, Shape, draw, poison
from reference_weights import rounded_weight

from crystalline._native import Team


def _same_bits(want: Arrays) -> Callable[[Arrays], list[Due]]:
    """Two operations in one give what they give one after the other."""

    def due(o: Arrays) -> list[Due]:
        for name, a in want.items():
            assert np.array_equal(o[name], a), f"{name} is not that of two calls"
        return []

    return due


def matmul_swiglu(shape: Shape) -> Case:
    R, F, K = shape
    x, w, gu, act = draw(R, K), draw(2 * F, K, seed=1), poison(R, 2 * F), poison(R, F)
    want, alone = {"gu": gu.copy(), "act": act.copy()}, Team(1)
    alone.matmul(want["gu"], x, w)
    alone.swiglu(want["act"], want["gu"])
    return Case(
        {"x": x, "w": w}, {"gu": gu, "act": act},
        lambda team, a: team.matmul_swiglu(a["gu"], a["act"], a["x"], a["w"]), _same_bits(want),
    )  # fmt: skip


def matmul_dx_swiglu(shape: Shape) -> Case:
    R, F, N = shape
    dy, w, gu, act = draw(R, N), draw(N, F, seed=1), 3 * draw(R, 2 * F, seed=2), poison(R, F)
    want, alone = {"gu": gu.copy(), "act": act.copy()}, Team(1)
    alone.matmul_dx(want["act"], dy, w)
    alone.swiglu_bwd_act(want["gu"], want["act"], want["gu"])
    return Case(
        {"dy": dy, "w": w}, {"gu": gu, "act": act},
        lambda team, a: team.matmul_dx_swiglu(a["gu"], a["act"], a["dy"], a["w"]),
        _same_bits(want),
    )  # fmt: skip


def weight(shape: Shape, precision: str, add: bool = False) -> Case:
    """A product with a weight that is kept in a precision: that of its rounded numbers."""
    R, N, K = shape
    x, w, init = draw(R, K), draw(N, K, seed=1), draw(R, N, seed=2)
    q, scale = rounded_weight(w, precision)
    kept = q * scale[:, None]

    def run(team: Team, a: Arrays) -> None:
        team.matmul_weight(
            a["y"], a["x"], team.weight(a["w"], precision), *([a["init"]] if add else [])
        )

    terms = (np.hstack([x, init]), np.hstack([kept, np.eye(N)])) if add else (x, kept)
    return Case(
        {"x": x, "w": w} | ({"init": init} if add else {}), {"y": poison(R, N)}, run,
        lambda o: [("matmul", o["y"], ref.matmul(*terms), terms, {})],
    )  # fmt: skip


def embedding_weight(shape: Shape, precision: str) -> Case:
    R, N, K = shape
    w, ids = draw(N, K), np.random.default_rng(0).integers(0, N, R, np.int32)
    q, scale = rounded_weight(w, precision)

    def due(o: Arrays) -> list[Due]:
        want = (q.astype(np.float32) * scale.astype(np.float32)[:, None])[ids]
        assert np.array_equal(o["x"], want), "a gather moves bits"
        return []

    return Case(
        {"w": w, "ids": ids}, {"x": poison(R, K)},
        lambda team, a: team.embedding_weight(a["x"], team.weight(a["w"], precision), a["ids"]),
        due,
    )  # fmt: skip
