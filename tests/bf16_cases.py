"""Every operation on bf16, on the shapes of the grids.

The reference reads the operands as they are after rounding, so that float32's rules hold for the
products; what an operation rounds on its way out may be half a unit of bf16 away.
"""

from __future__ import annotations

import functools

import numpy as np
import reference as ref
from attention_cases import THETA, rope_tables
from case import EPS, Array, Arrays, Case, Due, Shape, draw, groups_of, poison, start
from kernel_cases import Builder
from tolerance import SHAPES as WHOLE
from window_cases import windows

from crystalline._native import Team

HALF = 2.0**-8  # relative; half a unit of a bf16 number's last place is at most this
HALF_FP16 = 2.0**-11  # the same of a normal fp16 number; the others' half unit is 2^-25, which is
HALF_FP16_LEAST = 2.0**-39  # this beside the 2^14 that a chunk's largest exponential is kept as


def even(n: int) -> int:
    """Sums on bf16 have an even number of terms."""
    return n + n % 2


def rounded(x: Array) -> Array:
    """float32 to bf16, to the nearest, to even, by integers: the upper halves."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(x: Array) -> Array:
    """bf16 to float32, exactly."""
    return (x.astype(np.uint32) << 16).view(np.float32)


def near(got: Array, want: Array, more: float = 0.0) -> None:
    """got (bf16) is want after rounding, give or take ``more``."""
    assert np.all(abs(widened(got) - want) <= HALF * abs(want) * 1.01 + more), "not rounded"


def poison_bf16(*shape: int) -> Array:
    return np.full(shape, 0x7FC0, np.uint16)  # not a number


def matmul_bf16(shape: Shape, add: bool = False, narrow: bool = False) -> Case:
    R, N, K = shape[0], shape[1], even(shape[2])
    x, w, init = rounded(draw(R, K)), draw(N, K, seed=1), draw(R, N, seed=2)
    terms = (widened(x), widened(rounded(w)))
    if add:
        terms = (np.hstack([terms[0], init]), np.hstack([terms[1], np.eye(N)]))

    def due(o: Arrays) -> list[Due]:
        if narrow:
            near(o["y"], ref.matmul(*terms), 1e-4 * K**0.5)
            return []
        return [("matmul", o["y"], ref.matmul(*terms), terms, {})]

    return Case(
        {"x": x, "w": w} | ({"init": init} if add else {}),
        {"y": poison_bf16(R, N) if narrow else poison(R, N)},
        lambda team, a: team.matmul_bf16(a["y"], a["x"], a["w"], a.get("init")), due,
    )  # fmt: skip


def matmul_dx_bf16(shape: Shape) -> Case:
    R, N, K = shape[0], even(shape[1]), shape[2]
    dy, w = rounded(draw(R, N)), draw(N, K, seed=1)
    terms = (widened(dy), widened(rounded(w)).T)
    return Case(
        {"dy": dy, "w": w}, {"dx": poison(R, K)},
        lambda team, a: team.matmul_dx_bf16(a["dx"], a["dy"], a["w"]),
        lambda o: [("matmul", o["dx"], ref.matmul(*terms), terms, {})],
    )  # fmt: skip


def matmul_dw_bf16(shape: Shape, add: bool = False, groups: Array | None = None) -> Case:
    R, N, K = shape
    dy, x = rounded(draw(R, N)), rounded(draw(R, K, seed=1))
    want = ref.matmul_dw(widened(dy), widened(x))
    dw = start(want, add)
    return Case(
        {"dy": dy, "x": x, "groups": groups_of(R) if groups is None else groups}, {"dw": dw},
        lambda team, a: team.matmul_dw_bf16(a["dw"], a["dy"], a["x"], a["groups"], accumulate=add),
        lambda o: [
            ("matmul", o["dw"], want + dw if add else want, (widened(dy).T, widened(x).T), {})
        ],
    )  # fmt: skip


def head_bf16(
    shape: Shape, gradient: bool = True, add: bool = False, groups: Array | None = None
) -> Case:
    R, D, V = shape[0], even(shape[1]), shape[2]
    h, w, rng = rounded(draw(R, D)), draw(V, D, seed=1), np.random.default_rng(0)
    targets = np.where(rng.random(R) < 0.2, -1, rng.integers(0, V, R)).astype(np.int32)
    scale = 1 / R
    operands = (widened(h), widened(rounded(w)), targets)
    want = ref.linear_cross_entropy(*operands)
    want_dh, want_dw = ref.linear_cross_entropy_backward(*operands, scale)
    dw = start(want_dw, add)

    def run(team: Team, a: Arrays) -> None:
        more = (a["dh"], a["dw"], scale) if gradient else ()
        given = (a["h"], a["w"], a["targets"], a["groups"])
        team.head_bf16(a["losses"], *given, *more, accumulate=add)

    def due(o: Arrays) -> list[Due]:
        losses: Due = ("cross_entropy.loss", o["losses"], want, operands, {})
        if gradient:  # each operand dz is rounded, by HALF at most, from an exponential in fp16
            dz = scale * np.exp(ref.log_softmax(ref.matmul(*operands[:2])))
            dz[np.arange(R), targets] += scale
            off = (HALF + HALF_FP16) * dz + HALF_FP16_LEAST * scale
            off[targets < 0] = 0
            assert np.all(abs(o["dh"] - want_dh) <= off @ abs(operands[1]))
            want_dw_all = want_dw + dw if add else want_dw
            assert np.all(abs(o["dw"] - want_dw_all) <= off.T @ abs(operands[0]))
        return [losses]

    starts = groups_of(R) if groups is None else groups
    writes = {"losses": poison(R)} | ({"dh": poison(R, D), "dw": dw} if gradient else {})
    return Case({"h": h, "w": w, "targets": targets, "groups": starts}, writes, run, due)


def rmsnorm_bf16(shape: Shape) -> Case:
    R, D = shape
    x, w = draw(R, D), draw(D, seed=1)
    y, r = ref.rmsnorm(x, w, EPS)

    def due(o: Arrays) -> list[Due]:
        near(o["y"], y)
        return [("rmsnorm.rrms", o["rrms"], r, (x, w, EPS), {})]

    return Case(
        {"x": x, "w": w}, {"y": poison_bf16(R, D), "rrms": poison(R)},
        lambda team, a: team.rmsnorm_bf16(a["y"], a["rrms"], a["x"], a["w"], EPS), due,
    )  # fmt: skip


def swiglu_bf16(shape: Shape) -> Case:
    R, F = shape
    gu = rounded(3 * draw(R, 2 * F))

    def due(o: Arrays) -> list[Due]:
        near(o["act"], ref.swiglu(widened(gu)))
        return []

    return Case(
        {"gu": gu}, {"act": poison_bf16(R, F)},
        lambda team, a: team.swiglu_bf16(a["act"], a["gu"]), due,
    )  # fmt: skip


def to_bf16(shape: Shape) -> Case:
    x = draw(*shape)

    def due(o: Arrays) -> list[Due]:
        assert np.array_equal(o["y"], rounded(x))
        return []

    return Case(
        {"x": x}, {"y": poison_bf16(*shape)}, lambda team, a: team.to_bf16(a["y"], a["x"]), due
    )


def swiglu_bwd_act_bf16(shape: Shape) -> Case:
    R, F = shape
    gu, dact = rounded(3 * draw(R, 2 * F)), rounded(draw(R, F, seed=1))

    def due(o: Arrays) -> list[Due]:
        near(o["dgu"], ref.swiglu_backward(widened(dact), widened(gu)), 1e-5)
        near(o["act"], ref.swiglu(widened(gu)))
        return []

    return Case(
        {"gu": gu}, {"dgu": poison_bf16(R, 2 * F), "act": dact.copy()},
        lambda team, a: team.swiglu_bwd_act_bf16(a["dgu"], a["act"], a["gu"]), due,
    )  # fmt: skip


def from_bf16(shape: Shape) -> Case:
    x = rounded(draw(*shape))

    def due(o: Arrays) -> list[Due]:
        assert np.array_equal(o["y"], widened(x))
        return []

    return Case(
        {"x": x}, {"y": poison(*shape)}, lambda team, a: team.from_bf16(a["y"], a["x"]), due
    )


def rope_bf16(shape: Shape, back: bool = False, at: bool = False) -> Case:
    """bf16 to float32 forward, float32 to bf16 backward; ``at`` the positions of windows."""
    B, T, H, K, Dh = shape
    exact = draw(B * T, (H + 2 * K) * Dh)
    x = exact if back else rounded(exact)
    cosine, sine = rope_tables(T, Dh, THETA)
    positions = windows(B, T)[0] if at else None
    name, turn = ("dx", ref.rotary_backward) if back else ("y", ref.rotary)

    def due(o: Arrays) -> list[Due]:
        given, got = exact if back else widened(x), o[name]
        given, got = (a.reshape(B, T, H + 2 * K, Dh) for a in (given, got))
        rest = rounded(given[:, :, H + K :]) if back else given[:, :, H + K :]
        assert np.array_equal(got[:, :, H + K :].reshape(rest.shape), rest), "a head too many"
        turned = given[:, :, : H + K]
        want = turn(turned, THETA, positions)
        if back:
            near(got[:, :, : H + K], want, 1e-5)
            return []
        return [("rotary", got[:, :, : H + K], want, (turned, THETA, positions), {})]

    def run(team: Team, a: Arrays) -> None:
        operands = (a[name], a["x"], a["cosine"], a["sine"], H + K)
        if at:
            (team.rope_bwd_at_bf16 if back else team.rope_at_bf16)(*operands, a["positions"])
        else:
            (team.rope_bwd_bf16 if back else team.rope_bf16)(*operands, T)

    empty = (poison_bf16 if back else poison)(*x.shape)
    reads = {"x": x, "cosine": cosine, "sine": sine}
    if positions is not None:
        reads["positions"] = positions.reshape(-1)
    return Case(reads, {name: empty}, run, due)


ON = functools.partial
BUILDERS: dict[str, tuple[Builder, str]] = {
    "matmul_bf16": (matmul_bf16, "matmul"),
    "matmul_bf16+": (ON(matmul_bf16, add=True), "matmul"),
    "matmul_bf16 narrow": (ON(matmul_bf16, narrow=True), "matmul"),
    "matmul_dx_bf16": (matmul_dx_bf16, "matmul"),
    "matmul_dw_bf16": (matmul_dw_bf16, "matmul"),
    "matmul_dw_bf16+": (ON(matmul_dw_bf16, add=True), "matmul"),
    "matmul_bf16 tall": (matmul_bf16, "tall"),
    "matmul_bf16 narrow tall": (ON(matmul_bf16, narrow=True), "tall"),
    "matmul_dx_bf16 tall": (matmul_dx_bf16, "tall"),
    "matmul_dw_bf16 tall": (matmul_dw_bf16, "tall"),
    "head_bf16 losses": (ON(head_bf16, gradient=False), "cross_entropy"),
    "head_bf16": (head_bf16, "cross_entropy"),
    "head_bf16+": (ON(head_bf16, add=True), "cross_entropy"),
    "rmsnorm_bf16": (rmsnorm_bf16, "rows"),
    "swiglu_bf16": (swiglu_bf16, "swiglu"),
    "to_bf16": (to_bf16, "flat"),
    "swiglu_bwd_act_bf16": (swiglu_bwd_act_bf16, "swiglu"),
    "from_bf16": (from_bf16, "flat"),
    "rope_bf16": (rope_bf16, "attention"),
    "rope_bwd_bf16": (ON(rope_bf16, back=True), "attention"),
    "rope_at_bf16": (ON(rope_bf16, at=True), "attention"),
    "rope_bwd_at_bf16": (ON(rope_bf16, back=True, at=True), "attention"),
}
GRID = [(op, shape) for op, (_, grid) in BUILDERS.items() for shape in WHOLE[grid]]
