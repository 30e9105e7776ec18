"""Every operation of a Team on the shapes of the grids.

The tests run these cases against the reference, for their bits, next to forbidden pages and with
arguments that do not fit. Outputs begin as NaN, so that an entry which is not written is seen;
what an operation adds to begins as half of what it will add, so that one tolerance serves both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import reference as ref
from attention_cases import attention, attention_bwd, attention_cached, rope
from case import EPS, Array, Arrays, Case, Due, Shape, draw, groups_of, poison, start
from momentum_cases import ema, lion_spans, muon_step, sgd_spans
from product_cases import embedding_weight, matmul_dx_swiglu, matmul_swiglu, weight
from sampled_cases import adamw_rest_rows, adamw_rows, head_sampled, squared_norm_rows
from softmax_cases import SOFTMAX
from tolerance import SHAPES

from crystalline._native import Team

# --- Products.


def matmul(shape: Shape, add: bool = False, packed: bool = False) -> Case:
    R, N, K = shape
    x, w = draw(R, K), draw(N, K, seed=1)
    init = draw(R, N, seed=2)

    def run(team: Team, a: Arrays) -> None:
        start = [a["init"]] if add else []
        if not packed:
            team.matmul(a["y"], a["x"], a["w"], *start)
            return
        # The length of the panels depends on the instruction set: they are no array of the case.
        panels = poison(team.packed_len(N, K))
        team.pack_weight(panels, a["w"])
        team.matmul_packed(a["y"], a["x"], panels, *start)

    # Where the chain begins at init, init is one more column of x, times one.
    terms = (np.hstack([x, init]), np.hstack([w, np.eye(N)])) if add else (x, w)
    return Case(
        {"x": x, "w": w} | ({"init": init} if add else {}), {"y": poison(R, N)}, run,
        lambda o: [("matmul", o["y"], ref.matmul(*terms), terms, {})],
    )  # fmt: skip


def matmul_dx(shape: Shape) -> Case:
    R, N, K = shape
    dy, w = draw(R, N), draw(N, K, seed=1)
    return Case(
        {"dy": dy, "w": w}, {"dx": poison(R, K)},
        lambda team, a: team.matmul_dx(a["dx"], a["dy"], a["w"]),
        lambda o: [("matmul", o["dx"], ref.matmul_dx(dy, w), (dy, w.T), {})],
    )  # fmt: skip


def matmul_dw(shape: Shape, add: bool = False, groups: Array | None = None) -> Case:
    R, N, K = shape
    dy, x = draw(R, N), draw(R, K, seed=1)
    want = ref.matmul_dw(dy, x)
    dw = start(want, add)
    return Case(
        {"dy": dy, "x": x, "groups": groups_of(R) if groups is None else groups}, {"dw": dw},
        lambda team, a: team.matmul_dw(a["dw"], a["dy"], a["x"], a["groups"], accumulate=add),
        lambda o: [("matmul", o["dw"], want + dw if add else want, (dy.T, x.T), {})],
    )  # fmt: skip


# --- Rows.


def rmsnorm(shape: Shape) -> Case:
    R, D = shape
    x, w = draw(R, D), draw(D, seed=1)
    y, r = ref.rmsnorm(x, w, EPS)
    return Case(
        {"x": x, "w": w}, {"y": poison(R, D), "rrms": poison(R)},
        lambda team, a: team.rmsnorm(a["y"], a["rrms"], a["x"], a["w"], EPS),
        lambda o: [
            ("rmsnorm.y", o["y"], y, (x, w, EPS), {}),
            ("rmsnorm.rrms", o["rrms"], r, (x, w, EPS), {}),
        ],
    )  # fmt: skip


def rmsnorm_bwd(shape: Shape, add: bool = False, groups: Array | None = None) -> Case:
    R, D = shape
    x, w, dy = draw(R, D), draw(D, seed=1), draw(R, D, seed=2)
    _, r = ref.rmsnorm(x, w, EPS)
    want_dx, want_dw = ref.rmsnorm_backward(dy, x, w, r)
    dx, dw = start(want_dx, add), start(want_dw, add)

    def run(team: Team, a: Arrays) -> None:
        team.rmsnorm_bwd(
            a["dx"], a["dw"], a["dy"], a["x"], a["w"], a["rrms"], a["groups"],
            add=add, accumulate=add,
        )  # fmt: skip

    starts = groups_of(R) if groups is None else groups
    return Case(
        {"dy": dy, "x": x, "w": w, "rrms": r.astype(np.float32), "groups": starts},
        {"dx": dx, "dw": dw}, run,
        lambda o: [
            ("rmsnorm.dx", o["dx"], want_dx + dx if add else want_dx, (dy, x, w, EPS), {}),
            ("rmsnorm.dw", o["dw"], want_dw + dw if add else want_dw, (dy, x, w, EPS), {}),
        ],
    )  # fmt: skip


def swiglu(shape: Shape) -> Case:
    R, F = shape
    gu = 3 * draw(R, 2 * F)
    return Case(
        {"gu": gu}, {"act": poison(R, F)}, lambda team, a: team.swiglu(a["act"], a["gu"]),
        lambda o: [("swiglu.act", o["act"], ref.swiglu(gu), (gu,), {})],
    )  # fmt: skip


def swiglu_bwd(shape: Shape) -> Case:
    R, F = shape
    gu, dact = 3 * draw(R, 2 * F), draw(R, F, seed=1)
    want = ref.swiglu_backward(dact, gu)
    return Case(
        {"gu": gu, "dact": dact}, {"dgu": poison(R, 2 * F)},
        lambda team, a: team.swiglu_bwd(a["dgu"], a["dact"], a["gu"]),
        lambda o: [("swiglu.dgu", o["dgu"], want, (dact, gu), {})],
    )  # fmt: skip


def swiglu_bwd_act(shape: Shape) -> Case:
    R, F = shape
    gu, dact = 3 * draw(R, 2 * F), draw(R, F, seed=1)
    want = ref.swiglu_backward(dact, gu)
    return Case(
        {"gu": gu}, {"dgu": poison(R, 2 * F), "act": dact.copy()},
        lambda team, a: team.swiglu_bwd_act(a["dgu"], a["act"], a["gu"]),
        lambda o: [
            ("swiglu.dgu", o["dgu"], want, (dact, gu), {}),
            ("swiglu.act", o["act"], ref.swiglu(gu), (gu,), {}),
        ],
    )  # fmt: skip


# --- Tables of numbers.


def embedding(shape: Shape) -> Case:
    R, V, D = shape
    w, ids = draw(V, D), np.random.default_rng(0).integers(0, V, R, np.int32)

    def due(o: Arrays) -> list[Due]:
        assert np.array_equal(o["x"], w[ids]), "a gather moves bits"
        return []

    return Case(
        {"w": w, "ids": ids}, {"x": poison(R, D)},
        lambda team, a: team.embedding(a["x"], a["w"], a["ids"]), due,
    )  # fmt: skip


def embedding_bwd(shape: Shape, add: bool = False, groups: Array | None = None) -> Case:
    R, V, D = shape
    dx, ids = draw(R, D), np.random.default_rng(0).integers(0, V, R, np.int32)
    want = ref.embedding_backward(dx, ids, V)
    dw = start(want, add)
    if add:  # a token that is not seen keeps what it has
        unseen = np.setdiff1d(np.arange(V), ids)
        dw[unseen] = draw(len(unseen), D, seed=1)
    starts = groups_of(R) if groups is None else groups
    order, index = np.full(R, -7, np.int32), np.full(V + 1, -7, np.int64)

    def run(team: Team, a: Arrays) -> None:
        team.embedding_bwd(
            a["dw"], a["dx"], a["ids"], a["groups"], a["order"], a["index"], accumulate=add
        )

    return Case(
        {"dx": dx, "ids": ids, "groups": starts}, {"dw": dw, "order": order, "index": index}, run,
        lambda o: [("embedding.dw", o["dw"], want + dw if add else want, (dx, ids, V), {})],
    )  # fmt: skip


def head(
    shape: Shape, gradient: bool = True, add: bool = False, groups: Array | None = None
) -> Case:
    R, D, V = shape
    h, w, rng = draw(R, D), draw(V, D, seed=1), np.random.default_rng(0)
    targets = np.where(rng.random(R) < 0.2, -1, rng.integers(0, V, R)).astype(np.int32)
    scale = 1 / R
    want = ref.linear_cross_entropy(h, w, targets)
    want_dh, want_dw = ref.linear_cross_entropy_backward(h, w, targets, scale)
    dw = start(want_dw, add)

    def run(team: Team, a: Arrays) -> None:
        more = (a["dh"], a["dw"], scale) if gradient else ()
        team.head(a["losses"], a["h"], a["w"], a["targets"], a["groups"], *more, accumulate=add)

    def due(o: Arrays) -> list[Due]:
        inputs = (h, w, targets, scale)
        losses: Due = ("cross_entropy.loss", o["losses"], want, (h, w, targets), {})
        if not gradient:
            return [losses]
        return [
            losses,
            ("cross_entropy.dh", o["dh"], want_dh, inputs, {}),
            ("cross_entropy.dw", o["dw"], want_dw + dw if add else want_dw, inputs, {}),
        ]

    starts = groups_of(R) if groups is None else groups
    writes = {"losses": poison(R)} | ({"dh": poison(R, D), "dw": dw} if gradient else {})
    return Case({"h": h, "w": w, "targets": targets, "groups": starts}, writes, run, due)


def adamw(shape: Shape) -> Case:
    (n,) = shape
    p, g, m, v = draw(n), draw(n, seed=1), draw(n, seed=2), draw(n, seed=3) ** 2
    lr, beta1, beta2, eps, weight_decay, step = 1e-2, 0.9, 0.999, 1e-8, 0.1, 3
    named = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    clip = 0.5  # halving the doubled gradient is exact, so the reference need not know of it
    want = ref.adamw(p, g, m, v, step, **named)

    def run(team: Team, a: Arrays) -> None:
        team.adamw(
            a["p"], a["m"], a["v"], a["grad"], grad_scale=clip, beta1=beta1, beta2=beta2, eps=eps,
            step_size=lr / (1 - beta1**step), decay=1 - lr * weight_decay,
            root_bias2=math.sqrt(1 - beta2**step),
        )  # fmt: skip

    def due(o: Arrays) -> list[Due]:
        got = zip("pmv", want, strict=True)
        return [(f"adamw.{name}", o[name], x, (p, g, m, v, step), named) for name, x in got]

    return Case({"grad": g / np.float32(clip)}, {"p": p, "m": m, "v": v}, run, due)


def adamw_spans(shape: Shape) -> Case:
    """A gap, a span that decays, one that does not, and another gap."""
    (n,) = shape
    p, g, m, v = draw(n), draw(n, seed=1), draw(n, seed=2), draw(n, seed=3) ** 2
    named = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    spans = np.array([(n // 7, n // 2, 1), (n // 2, n - n // 9, 0)], np.int64)
    cuts = [(slice(begin, end), 0.1 * decays) for begin, end, decays in spans]

    def run(team: Team, a: Arrays) -> None:
        team.adamw_spans(
            a["p"], a["m"], a["v"], a["grad"], a["spans"], grad_scale=1.0, beta1=0.9, beta2=0.999,
            eps=1e-8, step_size=1e-2 / (1 - 0.9**3), decay=1 - 1e-2 * 0.1,
            root_bias2=math.sqrt(1 - 0.999**3),
        )  # fmt: skip

    def due(o: Arrays) -> list[Due]:
        found: list[Due] = []
        for cut, decay in cuts:
            inputs, settings = tuple(x[cut] for x in (p, g, m, v)), named | {"weight_decay": decay}
            want = ref.adamw(*inputs, 3, **settings)
            found += [
                (f"adamw.{name}", o[name][cut], x, (*inputs, 3), settings)
                for name, x in zip("pmv", want, strict=True)
            ]
        for at in (slice(0, n // 7), slice(n - n // 9, n)):
            for name, x in (("p", p), ("m", m), ("v", v)):
                assert np.array_equal(o[name][at], x[at])
        return found

    return Case({"grad": g, "spans": spans}, {"p": p, "m": m, "v": v}, run, due)


def squared_norm(shape: Shape) -> Case:
    x = draw(*shape)

    def run(team: Team, a: Arrays) -> None:
        a["total"][0] = team.squared_norm(a["x"])

    def due(o: Arrays) -> list[Due]:
        return [("squared_norm", o["total"], np.array([ref.squared_norm(x)]), (x,), {})]

    return Case({"x": x}, {"total": np.full(1, np.nan)}, run, due)


def exp(shape: Shape) -> Case:
    return Case(
        {"x": 30 * draw(*shape)}, {"y": poison(*shape)}, lambda t, a: t.exp(a["y"], a["x"]),
        lambda o: [],
    )  # fmt: skip


def log(shape: Shape) -> Case:
    return Case(
        {"x": abs(draw(*shape)) + np.float32(1e-30)}, {"y": poison(*shape)},
        lambda t, a: t.log(a["y"], a["x"]), lambda o: [],
    )  # fmt: skip


Builder = Callable[[Shape], Case]
ON = functools.partial
BUILDERS: dict[str, tuple[Builder, str]] = {
    "matmul": (matmul, "matmul"),
    "matmul+": (ON(matmul, add=True), "matmul"),
    "matmul_packed": (ON(matmul, packed=True), "matmul"),
    "matmul_packed+": (ON(matmul, add=True, packed=True), "matmul"),
    "matmul_dx": (matmul_dx, "matmul"),
    "matmul_dw": (matmul_dw, "matmul"),
    "matmul_dw+": (ON(matmul_dw, add=True), "matmul"),
    "matmul tall": (matmul, "tall"),
    "matmul tall+": (ON(matmul, add=True), "tall"),
    "matmul_dx tall": (matmul_dx, "tall"),
    "matmul_dw tall": (matmul_dw, "tall"),
    "matmul_dw tall+": (ON(matmul_dw, add=True), "tall"),
    "matmul_swiglu": (matmul_swiglu, "matmul"),
    "matmul_swiglu tall": (matmul_swiglu, "tall"),
    "matmul_dx_swiglu": (matmul_dx_swiglu, "matmul"),
    "matmul_dx_swiglu tall": (matmul_dx_swiglu, "tall"),
    "rmsnorm": (rmsnorm, "rows"),
    "rmsnorm_bwd": (rmsnorm_bwd, "rows"),
    "rmsnorm_bwd+": (ON(rmsnorm_bwd, add=True), "rows"),
    "swiglu": (swiglu, "swiglu"),
    "swiglu_bwd": (swiglu_bwd, "swiglu"),
    "swiglu_bwd_act": (swiglu_bwd_act, "swiglu"),
    "rope": (rope, "attention"),
    "rope inverse": (ON(rope, inverse=True), "attention"),
    "attention": (attention, "attention"),
    "attention_bwd": (attention_bwd, "attention"),
    "attention_cached": (attention_cached, "attention"),
    "embedding": (embedding, "embedding"),
    "embedding_bwd": (embedding_bwd, "embedding"),
    "embedding_bwd+": (ON(embedding_bwd, add=True), "embedding"),
    "head losses": (ON(head, gradient=False), "cross_entropy"),
    "head": (head, "cross_entropy"),
    "head+": (ON(head, add=True), "cross_entropy"),
    "adamw": (adamw, "flat"),
    "adamw_spans": (adamw_spans, "flat"),
    "squared_norm": (squared_norm, "flat"),
    "matmul few": (matmul, "few"),
    "matmul few+": (ON(matmul, add=True), "few"),
    "matmul_dx few": (matmul_dx, "few"),
    "matmul_packed few": (ON(matmul, packed=True), "few"),
    "matmul_packed few+": (ON(matmul, add=True, packed=True), "few"),
    "matmul_weight fp32": (ON(weight, precision="fp32"), "few"),
    "matmul_weight bf16": (ON(weight, precision="bf16"), "few"),
    "matmul_weight bf16+": (ON(weight, precision="bf16", add=True), "few"),
    "matmul_weight int8": (ON(weight, precision="int8"), "few"),
    "matmul_weight int8+": (ON(weight, precision="int8", add=True), "few"),
    "embedding_weight bf16": (ON(embedding_weight, precision="bf16"), "few"),
    "embedding_weight int8": (ON(embedding_weight, precision="int8"), "few"),
    "exp": (exp, "flat"),
    "log": (log, "flat"),
    "head_sampled losses": (ON(head_sampled, gradient=False), "cross_entropy"),
    "head_sampled": (head_sampled, "cross_entropy"),
    "adamw_rows": (adamw_rows, "rows"),
    "squared_norm_rows": (squared_norm_rows, "rows"),
    "adamw_rest_rows": (adamw_rest_rows, "rows"),
    **SOFTMAX,
    "sgd_spans": (sgd_spans, "flat"),
    "sgd_spans plain": (ON(sgd_spans, nesterov=False), "flat"),
    "lion_spans": (lion_spans, "flat"),
    "ema": (ema, "flat"),
    "muon_step": (muon_step, "muon"),
    "muon_step plain": (ON(muon_step, nesterov=False), "muon"),
}
GRID = [(op, shape) for op, (_, grid) in BUILDERS.items() for shape in SHAPES[grid]]


@functools.cache
def case(op: str, shape: Shape) -> Case:
    """The case of an operation on a shape of its grid."""
    return BUILDERS[op][0](shape)
