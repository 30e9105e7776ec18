"""The cases of the sampled loss and of updates that touch few rows of a table."""

from __future__ import annotations

import math

import numpy as np
import reference as ref
from case import Array, Arrays, Case, Due, Shape, draw, groups_of, poison
from sampled_reference import sampled_cross_entropy, sampled_cross_entropy_backward

from crystalline._native import Team

HYPER = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
STEP = 3


def some_rows(V: int, n: int, seed: int = 0) -> Array:
    """n of V rows, rising."""
    return np.sort(np.random.default_rng([seed, V, n]).permutation(V)[:n]).astype(np.int32)


def head_sampled(
    shape: Shape, gradient: bool = True, groups: Array | None = None, S: int | None = None
) -> Case:
    R, D, V = shape
    S = max(1, V // 3) if S is None else S
    h, w, rng = draw(R, D), draw(V, D, seed=1), np.random.default_rng(0)
    targets = np.where(rng.random(R) < 0.2, -1, rng.integers(0, V, R)).astype(np.int32)
    groups = groups_of(R) if groups is None else groups
    samples, scale = np.stack([some_rows(V, S, g) for g in range(12)]), 1 / R
    log_expected = np.log(rng.uniform(0.01, 1, V)).astype(np.float32)
    inputs = (h, w, targets, np.repeat(samples, np.diff(groups), 0), log_expected)
    want = sampled_cross_entropy(*inputs)
    want_dh, want_dw = sampled_cross_entropy_backward(*inputs, scale)
    touched = np.zeros(V, bool)
    touched[samples[np.diff(groups) > 0]] = touched[targets[targets >= 0]] = True
    dw = (want_dw / 2).astype(np.float32)  # it is added to
    dw[~touched] = np.nan  # these are nobody's

    def run(team: Team, a: Arrays) -> None:
        more = (a["dh"], a["dw"], scale, a["order"], a["index"]) if gradient else ()
        team.head_sampled(
            a["losses"], a["h"], a["w"], a["targets"], a["groups"], a["samples"],
            a["log_expected"], *more,
        )  # fmt: skip

    def due(o: Arrays) -> list[Due]:
        losses: Due = ("sampled.loss", o["losses"], want, inputs, {})
        if not gradient:
            return [losses]
        assert np.isnan(o["dw"][~touched]).all(), "a row that is not touched was written"
        got, total = np.where(touched[:, None], o["dw"], 0), want_dw + np.nan_to_num(dw)
        return [
            losses, ("sampled.dh", o["dh"], want_dh, (*inputs, scale), {}),
            ("sampled.dw", got, total, (*inputs, scale), {}),
        ]  # fmt: skip

    writes = {"losses": poison(R)}
    if gradient:
        writes |= {
            "dh": poison(R, D), "dw": dw, "order": np.full(R, -7, np.int32),
            "index": np.full(V + 1, -7, np.int64),
        }  # fmt: skip
    reads = {"h": h, "w": w, "targets": targets, "samples": samples, "log_expected": log_expected}
    return Case(reads | {"groups": groups}, writes, run, due)


def adamw_rows(shape: Shape) -> Case:
    V, D = shape
    rows = some_rows(V, -(-V // 2))
    p, g, m, v = draw(V, D), draw(V, D, seed=1), draw(V, D, seed=2), draw(V, D, seed=3) ** 2
    want = ref.adamw(p[rows], g[rows], m[rows], v[rows], STEP, **HYPER)
    g[np.setdiff1d(np.arange(V), rows)] = np.nan  # nobody has set these

    def run(team: Team, a: Arrays) -> None:
        lr, beta1, beta2 = HYPER["lr"], HYPER["beta1"], HYPER["beta2"]
        team.adamw_rows(
            a["p"], a["m"], a["v"], a["grad"], a["rows"], grad_scale=1.0, beta1=beta1,
            beta2=beta2, eps=HYPER["eps"], step_size=lr / (1 - beta1**STEP),
            decay=1 - lr * HYPER["weight_decay"], root_bias2=math.sqrt(1 - beta2**STEP),
        )  # fmt: skip

    def due(o: Arrays) -> list[Due]:
        inputs = (p[rows], g[rows], m[rows], v[rows], STEP)
        for name, before in zip("pmv", (p, m, v), strict=True):
            others = np.delete(o[name], rows, 0)
            assert np.array_equal(others, np.delete(before, rows, 0)), f"{name}: other rows"
        return [
            (f"adamw.{name}", o[name][rows], x, inputs, HYPER)
            for name, x in zip("pmv", want, strict=True)
        ]

    return Case({"grad": g, "rows": rows}, {"p": p, "m": m, "v": v}, run, due)


def squared_norm_rows(shape: Shape) -> Case:
    V, D = shape
    x, rows = draw(V, D), some_rows(V, -(-V // 2))
    x[np.setdiff1d(np.arange(V), rows)] = np.nan

    def run(team: Team, a: Arrays) -> None:
        a["total"][0] = team.squared_norm_rows(a["x"], a["rows"])

    def due(o: Arrays) -> list[Due]:
        want = np.array([ref.squared_norm(x[rows])])
        return [("squared_norm", o["total"], want, (x[rows],), {})]

    return Case({"x": x, "rows": rows}, {"total": np.full(1, np.nan)}, run, due)


def adamw_rest_rows(shape: Shape) -> Case:
    V, D = shape
    rows, steps = some_rows(V, -(-V // 2)), 9
    p, m, v = draw(V, D), draw(V, D, seed=1), draw(V, D, seed=2) ** 2
    m[rows[0]] = 0.0  # never touched
    past = np.stack(
        [1 - 0.1 * abs(draw(steps)), 0.01 * abs(draw(steps, seed=1)), abs(draw(steps)) + 0.1], 1
    ).astype(np.float32)
    last = np.random.default_rng(V).integers(0, steps + 1, V, np.int32)
    named = {"beta1": HYPER["beta1"], "beta2": HYPER["beta2"], "eps": HYPER["eps"]}

    def due(o: Arrays) -> list[Due]:
        # Row by row and step by step by the dense update: not a bound, the very bits.
        alone, nothing = Team(1, "portable"), np.zeros(D, np.float32)
        want = {name: a.copy() for name, a in zip("pmv", (p, m, v), strict=True)}
        for row in rows:
            for decay, step_size, root_bias2 in past[last[row] :].tolist():
                alone.adamw(
                    *(a[row] for a in want.values()), nothing, grad_scale=1.0, decay=decay,
                    step_size=step_size, root_bias2=root_bias2, **named,
                )  # fmt: skip
        for name, a in want.items():
            assert np.array_equal(o[name], a), name
        assert np.array_equal(o["last"], np.where(np.isin(np.arange(V), rows), steps, last))
        return []

    def run(team: Team, a: Arrays) -> None:
        state = (a["p"], a["m"], a["v"])
        team.adamw_rest_rows(*state, a["rows"], a["last"], a["past"], **named)

    writes = {"p": p, "m": m, "v": v, "last": last}
    return Case({"rows": rows, "past": past}, writes, run, due)
