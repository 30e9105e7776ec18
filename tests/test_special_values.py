"""Denormal, infinite and NaN inputs, for every kernel, as docs/numpy_kernels.md tells.

A NaN spoils what depends on it and nothing else; infinities follow IEEE arithmetic; what is below
the least normal number counts as zero, and a result below it is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from case import Array, draw
from test_kernels_for_numpy import NAMES, calls, results

import crystalline.kernels as ck
from crystalline._native import ISAS, available_isas

INF, NAN = np.inf, np.nan
DENORMAL = np.float32(1e-40)
R, D, V = 6, 5, 19
# The last axis is not looked at as a whole: an entry depends on entries, not on a row.
BY_ENTRY = {"exp", "log"}
MOVES = {"embedding"}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    if request.param not in available_isas():
        pytest.skip(f"this CPU cannot run {request.param}, only {', '.join(available_isas())}")
    return str(request.param)


def single_arguments(name: str) -> list[int]:
    """The places of the float32 arguments."""
    args = calls(R, D, V)[name]
    return [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype == np.float32]


@pytest.mark.parametrize("name", NAMES)
def test_a_denormal_is_a_zero(name: str, isa: str) -> None:
    for i in single_arguments(name):
        if name in MOVES:
            continue
        for sign in (1, -1):
            with_zero, with_denormal = (list(calls(R, D, V)[name]) for _ in range(2))
            for args, value in ((with_zero, sign * 0.0), (with_denormal, sign * DENORMAL)):
                args[i] = args[i].copy()
                args[i].flat[1::3] = value
            want, got = (results(name, tuple(a), isa=isa) for a in (with_zero, with_denormal))
            for a, b in zip(got, want, strict=True):
                assert np.array_equal(a, b, equal_nan=True), (i, sign)
                assert not np.any((a != 0) & (abs(a) < np.finfo(np.float32).tiny))


@pytest.mark.parametrize("name", NAMES)
def test_nan_reaches_a_result_and_spares_the_other_rows(name: str, isa: str) -> None:
    """The last row of the first axis of one argument is spoilt."""
    for i in single_arguments(name):
        whole = list(calls(R, D, V)[name])
        clean = results(name, tuple(whole), isa=isa)
        whole[i] = whole[i].copy()
        whole[i][-1] = NAN
        got = results(name, tuple(whole), isa=isa)
        if name.startswith("embedding") or (name.startswith("rope") and i > 0):
            continue  # a row of the table that nobody asks for
        assert any(np.isnan(a).any() for a in got), i
        if name in ("exp", "log", "softmax", "log_softmax", "logsumexp", "cross_entropy", "swiglu"):
            (a,), (b,) = got, clean
            assert a[:-1].tobytes() == b[:-1].tobytes() and np.isnan(a[-1]).any()


@pytest.mark.parametrize(
    ("op", "x", "want"),
    [
        ("softmax", [-INF, 0, 0], [0, 0.5, 0.5]), ("softmax", [-INF] * 3, [NAN] * 3),
        ("softmax", [INF, 0, 0], [NAN] * 3), ("softmax", [NAN, 0, 0], [NAN] * 3),
        ("softmax", [3e38, -3e38, 0], [1, 0, 0]),
        ("log_softmax", [-INF, 0, -INF], [-INF, 0, -INF]), ("log_softmax", [INF, 0, 0], [NAN] * 3),
        ("log_softmax", [-INF] * 3, [NAN] * 3), ("log_softmax", [NAN, 0, 0], [NAN] * 3),
        ("logsumexp", [-INF] * 3, -INF), ("logsumexp", [INF, 0, -INF], INF),
        ("logsumexp", [-INF, 2, -INF], 2), ("logsumexp", [INF, NAN, 0], NAN),
        ("logsumexp", [3e38, 3e38, 0], 3e38), ("logsumexp", [-3e38] * 2, -3e38),
        ("exp", [-INF, INF, NAN], [0, INF, NAN]), ("log", [0, -1, INF], [-INF, NAN, INF]),
        ("swiglu", [INF, 1], [INF]), ("swiglu", [NAN, 1], [NAN]), ("swiglu", [-200, 1], [0]),
        ("swiglu", [-INF, 1], [NAN]), ("swiglu", [1, -INF], [-INF]),
    ],
)  # fmt: skip
def test_special_rows(op: str, x: list[float], want: Any, isa: str) -> None:
    got = getattr(ck, op)(np.array([x] * 5, np.float32), isa=isa)
    due = np.array([want] * 5, np.float32)
    assert np.allclose(got, due, rtol=1e-6, atol=1e-36, equal_nan=True), got[0]


def test_cross_entropy_of_infinite_logits(isa: str) -> None:
    z = np.array([[-INF, 0, 0], [-INF, 0, 0], [INF, 0, 0], [NAN, 0, 0]], np.float32)
    losses = ck.cross_entropy(z, [1, 0, 1, -1], isa=isa)
    assert np.allclose(losses, [np.log(2), INF, INF, 0])
    dz = ck.cross_entropy_backward(np.ones(4, np.float32), z, [1, 0, 1, -1], isa=isa)
    assert np.allclose(dz[0], [0, -0.5, 0.5]) and np.isnan(dz[2]).all() and not dz[3].any()


def test_norms_and_products_of_what_is_not_finite(isa: str) -> None:
    one = np.ones(3, np.float32)
    for x, want in (([INF, 1, 1], [NAN, 0, 0]), ([NAN, 1, 1], [NAN] * 3), ([0, 0, 0], [0] * 3)):
        got = ck.rmsnorm(np.array(x, np.float32), one, isa=isa)
        assert np.array_equal(got, np.array(want, np.float32), equal_nan=True)
    assert np.array_equal(ck.rmsnorm(1e30 * one, one, isa=isa), 0 * one)  # the squares overflow
    with_inf = np.array([[INF, 1], [1, 1]], np.float32)
    got = ck.matmul(with_inf, np.array([[0, 1], [1, 1]], np.float32), isa=isa)
    assert np.array_equal(got, np.array([[NAN, INF], [1, 2]], np.float32), equal_nan=True)
    assert ck.squared_norm(np.array([INF, 1], np.float32), isa=isa) == INF
    assert np.isnan(ck.squared_norm(np.array([INF, NAN], np.float32), isa=isa))


def test_adamw_keeps_what_is_not_finite_to_its_own_entry(isa: str) -> None:
    p, m, v, g = draw(40), np.zeros(40, np.float32), np.zeros(40, np.float32), draw(40, seed=1)
    clean = [a.copy() for a in (p, m, v)]
    ck.adamw(*clean, g, lr=0.1, step=1, isa=isa)
    g[7], g[21], g[33] = NAN, INF, DENORMAL
    ck.adamw(p, m, v, g, lr=0.1, step=1, isa=isa)
    spoilt: Array = np.isin(np.arange(40), (7, 21, 33))
    for got, want in zip((p, m, v), clean, strict=True):
        assert got[~spoilt].tobytes() == want[~spoilt].tobytes()
    assert np.isnan(p[[7, 21]]).all() and m[33] == 0 and np.isfinite(p[33])
