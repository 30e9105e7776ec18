"""Part of crystalline.kernels: matrix products and the output projection with its loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from crystalline.numpy_kernels.arrays import (
    Floats,
    Ids,
    apart,
    floats,
    ids,
    last,
    output,
    outputs,
    rows,
    starts,
)
from crystalline.team import shared_team

Pair = tuple[Floats, Floats]
Threads = int | None
Isa = str | None


def _matrix(op: str, name: str, x: ArrayLike) -> Floats:
    a = floats(op, name, x)
    if a.ndim != 2:
        raise ValueError(f"{op}: {name} has shape {a.shape}, but must be a matrix")
    return a


def _inner(op: str, left: str, a: int, right: str, b: int) -> None:
    if a != b:
        raise ValueError(f"{op}: {left} is {a}, but {right} is {b}")


def matmul(
    a: ArrayLike, b: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None
) -> Floats:
    """a (..., K) @ b (K, N) -> (..., N); each entry one chain of fused multiply-adds in k order."""
    x, w = floats("matmul", "a", a), _matrix("matmul", "b", b)
    K, N = w.shape
    _inner("matmul", "the last axis of a", last("matmul", "a", x, 0), "rows of b", K)
    y = output("matmul", "out", out, (*x.shape[:-1], N))
    if K == 0:
        y.fill(0)
    elif y.size:
        with shared_team(threads, isa) as team:
            team.matmul_dx(rows(y, N), rows(apart(x, y), K), apart(w, y))
    return y


def matmul_backward(
    dc: ArrayLike, a: ArrayLike, b: ArrayLike, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Pair:  # fmt: skip
    """da (..., K) = dc (..., N) @ b (K, N).T and db (K, N) = a.T @ dc, summed over all rows."""
    op = "matmul_backward"
    x, w = floats(op, "a", a), _matrix(op, "b", b)
    K, N = w.shape
    _inner(op, "the last axis of a", last(op, "a", x, 0), "rows of b", K)
    d = floats(op, "dc", dc, (*x.shape[:-1], N))
    da, db = outputs(op, out, da=x.shape, db=w.shape)
    x, w, d = apart(x, da, db), apart(w, da, db), apart(d, da, db)
    _products(da, db, d, w, x, K, N, swapped=True, threads=threads, isa=isa)
    return da, db


def linear(
    x: ArrayLike, w: ArrayLike, init: ArrayLike | None = None, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """x (..., K) @ w (N, K).T + init (..., N): the layer of a network; chains begin at init."""
    a, b = floats("linear", "x", x), _matrix("linear", "w", w)
    N, K = b.shape
    _inner("linear", "the last axis of x", last("linear", "x", a, 0), "columns of w", K)
    y = output("linear", "out", out, (*a.shape[:-1], N))
    begin = None if init is None else floats("linear", "init", init, y.shape)
    if K == 0:
        y[...] = 0 if begin is None else begin
    elif y.size:
        c = None if begin is None else rows(apart(begin, y, same=True), N)
        with shared_team(threads, isa) as team:
            team.matmul(rows(y, N), rows(apart(a, y), K), apart(b, y), c)
    return y


def linear_backward(
    dy: ArrayLike, x: ArrayLike, w: ArrayLike, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Pair:  # fmt: skip
    """dx (..., K) = dy (..., N) @ w (N, K) and dw (N, K) = dy.T @ x, summed over all rows."""
    op = "linear_backward"
    a, b = floats(op, "x", x), _matrix(op, "w", w)
    N, K = b.shape
    _inner(op, "the last axis of x", last(op, "x", a, 0), "columns of w", K)
    d = floats(op, "dy", dy, (*a.shape[:-1], N))
    dx, dw = outputs(op, out, dx=a.shape, dw=b.shape)
    a, b, d = apart(a, dx, dw), apart(b, dx, dw), apart(d, dx, dw)
    _products(dx, dw, d, b, a, K, N, swapped=False, threads=threads, isa=isa)
    return dx, dw


def _products(
    dx: Floats, dw: Floats, d: Floats, w: Floats, x: Floats, K: int, N: int, *,
    swapped: bool, threads: Threads, isa: Isa,
) -> None:  # fmt: skip
    """Both gradients of a product; ``swapped``: w is (K, N), not (N, K)."""
    R = math.prod(x.shape[:-1])
    if not (R and N and K):
        dx.fill(0)
        dw.fill(0)
        return
    dx, x, d = rows(dx, K), rows(x, K), rows(d, N)
    with shared_team(threads, isa) as team:
        if swapped:
            team.matmul(dx, d, w)
            team.matmul_dw(dw, x, d, starts(R))
        else:
            team.matmul_dx(dx, d, w)
            team.matmul_dw(dw, d, x, starts(R))


def head_operands(
    op: str, h: ArrayLike, w: ArrayLike, targets: ArrayLike
) -> tuple[Floats, Floats, Ids]:
    """What an output projection with a loss takes, checked."""
    x, b = floats(op, "h", h), _matrix(op, "w", w)
    V, D = b.shape
    _inner(op, "the last axis of h", last(op, "h", x), "columns of w", D)
    t = ids(op, "targets", targets, -1, V)
    if t.shape != x.shape[:-1]:
        raise ValueError(f"{op}: targets has shape {t.shape}, but must have {x.shape[:-1]}")
    if V == 0 and t.size:
        raise ValueError(f"{op}: w has shape {b.shape}, but needs a row or more")
    return x, b, t


def linear_cross_entropy(
    h: ArrayLike, w: ArrayLike, targets: ArrayLike, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """Losses (...) in nats of targets (...) under softmax(h (..., D) @ w (V, D).T), 0 where target
    is -1; logits are never stored whole."""
    op = "linear_cross_entropy"
    x, b, t = head_operands(op, h, w, targets)
    losses = output(op, "out", out, t.shape)
    if losses.size:
        x, b, t = apart(x, losses), apart(b, losses), apart(t, losses)
        with shared_team(threads, isa) as team:
            team.head(losses.reshape(-1), rows(x, x.shape[-1]), b, t.reshape(-1), starts(t.size))
    return losses


def linear_cross_entropy_backward(
    h: ArrayLike, w: ArrayLike, targets: ArrayLike, scale: float = 1.0, *,
    losses: Any = None, out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Pair:  # fmt: skip
    """dh (..., D) and dw (V, D) of ``scale`` times the sum of the losses; float32 ``losses`` (...)
    gets those too: forward and backward in one, no logit is computed twice."""
    op = "linear_cross_entropy_backward"
    x, b, t = head_operands(op, h, w, targets)
    told = output(op, "losses", losses, t.shape)
    dh, dw = outputs(op, out, dh=x.shape, dw=b.shape)
    if any(np.may_share_memory(told, a) for a in (dh, dw)):
        raise ValueError(f"{op}: losses overlaps a gradient; give it memory of its own")
    if t.size == 0:
        dw.fill(0)
        return dh, dw
    x, b, t = (apart(a, told, dh, dw) for a in (x, b, t))
    D = x.shape[-1]
    with shared_team(threads, isa) as team:
        team.head(
            told.reshape(-1), rows(x, D), b, t.reshape(-1), starts(t.size), rows(dh, D), dw, scale
        )
    return dh, dw
