"""Part of crystalline.kernels: what else a decoder and its training are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystalline.decoder.positions import window_starts
from crystalline.numpy_kernels.arrays import (
    Floats,
    apart,
    floats,
    ids,
    last,
    output,
    outputs,
    rows,
    starts,
    whole,
)
from crystalline.optimizers.adamw import power
from crystalline.team import shared_team

Pair = tuple[Floats, Floats]
Threads = int | None
Isa = str | None


def rmsnorm(
    x: ArrayLike, w: ArrayLike, eps: float = 1e-5, *,
    rrms: Any = None, out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """x / sqrt(mean(x^2) + eps) * w, x (..., D), w (D) (Zhang and Sennrich 2019). ``rrms`` (...),
    if given, gets 1 / sqrt(mean(x^2) + eps), which the backward needs."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"rmsnorm: eps is {eps}, but must be 0 or more; give 1e-5")
    a = floats("rmsnorm", "x", x)
    D = last("rmsnorm", "x", a)
    g = floats("rmsnorm", "w", w, (D,))
    y, r = output("rmsnorm", "out", out, a.shape), output("rmsnorm", "rrms", rrms, a.shape[:-1])
    if np.may_share_memory(y, r):
        raise ValueError("rmsnorm: rrms overlaps out; give it memory of its own")
    if y.size:
        a, g = apart(a, y, r), apart(g, y, r)
        with shared_team(threads, isa) as team:
            team.rmsnorm(rows(y, D), r.reshape(-1), rows(a, D), g, eps)
    return y


def rmsnorm_backward(
    dy: ArrayLike, x: ArrayLike, w: ArrayLike, rrms: ArrayLike, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Pair:  # fmt: skip
    """dx (..., D) and dw (D), summed over all rows, from dy and what the forward had and gave."""
    op = "rmsnorm_backward"
    a = floats(op, "x", x)
    D = last(op, "x", a)
    d, g = floats(op, "dy", dy, a.shape), floats(op, "w", w, (D,))
    r = floats(op, "rrms", rrms, a.shape[:-1])
    dx, dw = outputs(op, out, dx=a.shape, dw=(D,))
    if dx.size == 0:
        dw.fill(0)
        return dx, dw
    d, a, g, r = (apart(b, dx, dw) for b in (d, a, g, r))
    with shared_team(threads, isa) as team:
        team.rmsnorm_bwd(rows(dx, D), dw, rows(d, D), rows(a, D), g, r.reshape(-1), starts(r.size))
    return dx, dw


def _turned(
    op: str, x: ArrayLike, cosine: ArrayLike, sine: ArrayLike, position: int, positions: Any,
    out: Any, threads: Threads, isa: Isa,
) -> Floats:  # fmt: skip
    a, c = floats(op, "x", x), floats(op, "cosine", cosine)
    position = whole(op, "position", position)
    if a.ndim < 3 or a.shape[-1] % 2:
        raise ValueError(f"{op}: x has shape {a.shape}, but must be (..., T, H, Dh), Dh even")
    T, H, Dh = a.shape[-3:]
    least = 1 if positions is not None else T
    if c.ndim != 2 or c.shape[1] != Dh // 2 or not 0 <= position <= c.shape[0] - least:
        raise ValueError(
            f"{op}: cosine has shape {c.shape}, but for {T} rows from position {position} must "
            f"be ({max(position, 0) + least} or more, {Dh // 2})"
        )
    s = floats(op, "sine", sine, c.shape)
    y = output(op, "out", out, a.shape)
    c, s, at = apart(c, y), apart(s, y), None
    if positions is not None:
        at = apart(ids(op, "positions", positions, 0, c.shape[0] - position), y)
        if at.shape != a.shape[:-2]:
            raise ValueError(f"{op}: positions has shape {at.shape}, but must have {a.shape[:-2]}")
    np.copyto(y, a)
    if y.size:
        inverse = op == "rope_backward"
        with shared_team(threads, isa) as team:
            if at is None:
                team.rope(rows(y, H * Dh), c, s, H, T, position, inverse)
            else:
                team.rope_at(rows(y, H * Dh), c[position:], s[position:], H, at.ravel(), inverse)
    return y


def rope(
    x: ArrayLike, cosine: ArrayLike, sine: ArrayLike, position: int = 0, *,
    positions: ArrayLike | None = None,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """x (..., T, H, Dh) with entries i and i + Dh/2 of every head turned by the angles of positions
    ``position``, ``position`` + 1, ... (Su et al. 2021); tables by ``rope_tables(positions, Dh,
    theta)``. With ``positions`` (..., T), whole numbers, row t is at ``position`` +
    ``positions[..., t]`` instead."""
    return _turned("rope", x, cosine, sine, position, positions, out, threads, isa)


def rope_backward(
    dy: ArrayLike, cosine: ArrayLike, sine: ArrayLike, position: int = 0, *,
    positions: ArrayLike | None = None,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """dx from dy: the rotation back, the same arguments otherwise."""
    return _turned("rope_backward", dy, cosine, sine, position, positions, out, threads, isa)


def _packed(op: str, q: ArrayLike, k: ArrayLike, v: ArrayLike) -> Floats:
    """qkv (B, T, H + 2 K, Dh) of q (B, T, H, Dh), k and v (B, T, K, Dh)."""
    a, b = floats(op, "q", q), floats(op, "k", k)
    c = floats(op, "v", v, b.shape)
    if a.ndim != 4 or b.ndim != 4 or (*a.shape[:2], a.shape[3]) != (*b.shape[:2], b.shape[3]):
        raise ValueError(
            f"{op}: q has shape {a.shape} and k {b.shape}, but they must be (B, T, H, Dh) and "
            "(B, T, K, Dh)"
        )
    if 0 in (*a.shape[1:], b.shape[2]) or a.shape[2] % b.shape[2]:
        raise ValueError(
            f"{op}: q has shape {a.shape}, k {b.shape}; T, H, K, Dh must be positive and K divide H"
        )
    return np.concatenate([a, b, c], axis=2)


def _windows(op: str, positions: ArrayLike, B: int, T: int) -> NDArray[np.int64]:
    """The starts of the windows, and B T."""
    at = ids(op, "positions", positions, 0, T)
    if at.shape != (B, T):
        raise ValueError(f"{op}: positions has shape {at.shape}, but must have {(B, T)}")
    return window_starts(at, f"{op}: positions")


def _lse_places(begin: NDArray[np.int64], B: int, H: int) -> NDArray[np.int64]:
    """(B, H, T): where the kernels have an entry of lse, each window's being (H, its rows)."""
    sizes = np.diff(begin)
    first, size = np.repeat(begin[:-1], sizes), np.repeat(sizes, sizes)
    row, head = np.arange(len(size)), np.arange(H)[:, None]
    places: NDArray[np.int64] = first * (H - 1) + row + head * size
    return places.reshape(H, B, -1).transpose(1, 0, 2)


def attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, *, positions: ArrayLike | None = None,
    lse: Any = None, out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """softmax(q k^T / sqrt(Dh)) v where the key is not after the query (Vaswani et al. 2017): q
    (B, T, H, Dh), k and v (B, T, K, Dh) -> (B, T, H, Dh); K divides H, and query head h reads
    key head h // (H / K) (Ainslie et al. 2023). ``lse`` (B, H, T), if given, gets the logarithms
    of the sums, which the backward needs. Memory grows with T, not with its square.

    ``positions`` (B, T), whole numbers, cuts the sequences into windows (packed documents): one
    begins at every 0, positions rise by one in it, and it attends to itself alone, with the bits
    that it has as a sequence of its own."""
    qkv = _packed("attention", q, k, v)
    B, T, H, Dh = np.shape(q)
    K = np.shape(k)[2]
    begin = None if positions is None else _windows("attention", positions, B, T)
    y = output("attention", "out", out, (B, T, H, Dh))
    told = output("attention", "lse", lse, (B, H, T))
    if np.may_share_memory(y, told):
        raise ValueError("attention: lse overlaps out; give it memory of its own")
    if y.size:
        flat, packed = rows(y, H * Dh), rows(qkv, (H + 2 * K) * Dh)
        with shared_team(threads, isa) as team:
            if begin is None:
                team.attention(flat, told.reshape(-1), packed, T, H, K)
            else:
                windowed = np.empty(told.size, np.float32)
                team.attention_windows(flat, windowed, packed, begin, H, K)
                told[...] = windowed[_lse_places(begin, B, H)]
    return y


def attention_backward(
    dy: ArrayLike, q: ArrayLike, k: ArrayLike, v: ArrayLike, y: ArrayLike, lse: ArrayLike, *,
    positions: ArrayLike | None = None,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """dq (B, T, H, Dh), dk and dv (B, T, K, Dh) from dy, what the forward had, ``positions``
    included, and what it gave: y (B, T, H, Dh) and lse (B, H, T) (Dao 2023)."""
    op = "attention_backward"
    qkv = _packed(op, q, k, v)
    B, T, H, Dh = shape = np.shape(q)
    K = np.shape(k)[2]
    begin = None if positions is None else _windows(op, positions, B, T)
    d, a = floats(op, "dy", dy, shape), floats(op, "y", y, shape)
    told = floats(op, "lse", lse, (B, H, T))
    dq, dk, dv = outputs(op, out, dq=shape, dk=np.shape(k), dv=np.shape(k))
    if B:
        dqkv, wide = np.empty_like(qkv), (H + 2 * K) * Dh
        given = (rows(d, H * Dh), rows(a, H * Dh), rows(qkv, wide))
        with shared_team(threads, isa) as team:
            if begin is None:
                team.attention_bwd(rows(dqkv, wide), *given, told.reshape(-1), T, H, K)
            else:
                windowed = np.empty(told.size, np.float32)
                windowed[_lse_places(begin, B, H)] = told
                team.attention_windows_bwd(rows(dqkv, wide), *given, windowed, begin, H, K)
        dq[...], dk[...], dv[...] = np.split(dqkv, [H, H + K], axis=2)
    return dq, dk, dv


def swiglu(gu: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None) -> Floats:
    """silu(gate) * up (Shazeer 2020), gu (..., 2 F) gate then up -> (..., F)."""
    a = floats("swiglu", "gu", gu)
    wide = last("swiglu", "gu", a, 0)
    if wide % 2:
        raise ValueError(f"swiglu: gu has shape {a.shape}, but its last axis must be even")
    y = output("swiglu", "out", out, (*a.shape[:-1], wide // 2))
    if y.size:
        with shared_team(threads, isa) as team:
            team.swiglu(rows(y, wide // 2), rows(apart(a, y), wide))
    return y


def swiglu_backward(
    dact: ArrayLike, gu: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None
) -> Floats:
    """dgu (..., 2 F) from dact (..., F) and the forward's gu (..., 2 F)."""
    op = "swiglu_backward"
    d = floats(op, "dact", dact)
    F = last(op, "dact", d, 0)
    a = floats(op, "gu", gu, (*d.shape[:-1], 2 * F))
    dgu = output(op, "out", out, a.shape)
    if dgu.size:
        d, a = apart(d, dgu), apart(a, dgu, same=True)
        with shared_team(threads, isa) as team:
            team.swiglu_bwd(rows(dgu, 2 * F), rows(d, F), rows(a, 2 * F))
    return dgu


def embedding(
    w: ArrayLike, tokens: ArrayLike, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """w (V, D)[tokens (...)] -> (..., D), tokens from 0 to V - 1."""
    a = floats("embedding", "w", w)
    if a.ndim != 2:
        raise ValueError(f"embedding: w has shape {a.shape}, but must be (V, D)")
    t = ids("embedding", "tokens", tokens, 0, len(a))
    x = output("embedding", "out", out, (*t.shape, a.shape[1]))
    if x.size:
        a, t = apart(a, x), apart(t, x)
        with shared_team(threads, isa) as team:
            team.embedding(rows(x, a.shape[1]), a, t.reshape(-1))
    return x


def embedding_backward(
    dx: ArrayLike, tokens: ArrayLike, V: int, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """dw (V, D): for every token the sum of the rows of dx (..., D) where it stands; else zero."""
    op = "embedding_backward"
    d = floats(op, "dx", dx)
    D = last(op, "dx", d)
    if (V := whole(op, "V", V)) < 0:
        raise ValueError(f"{op}: V is {V}, but must be 0 or more")
    t = ids(op, "tokens", tokens, 0, V)
    if t.shape != d.shape[:-1]:
        raise ValueError(f"{op}: tokens has shape {t.shape}, but must have {d.shape[:-1]}")
    dw = output(op, "out", out, (V, D))
    if t.size == 0:
        dw.fill(0)
        return dw
    d, t = apart(d, dw), apart(t, dw).reshape(-1)
    order, index = np.empty(t.size, np.int32), np.empty(V + 1, np.int64)
    with shared_team(threads, isa) as team:
        team.embedding_bwd(dw, rows(d, D), t, starts(t.size), order, index)
    return dw


def squared_norm(x: ArrayLike, *, threads: Threads = None, isa: Isa = None) -> float:
    """The sum of x^2 over an array of any shape, its parts added up in float64."""
    a = floats("squared_norm", "x", x)
    with shared_team(threads, isa) as team:
        return team.squared_norm(a.reshape(-1))


def adamw(
    p: Floats, m: Floats, v: Floats, grad: ArrayLike, *,
    lr: float, step: int, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8,
    weight_decay: float = 0.0, grad_scale: float = 1.0,
    threads: Threads = None, isa: Isa = None,
) -> None:  # fmt: skip
    """One update of p, in place, with decoupled decay (Loshchilov and Hutter 2019).

    p and its moments m, v are float32, C-contiguous, of one shape, zero-filled moments before the
    first ``step``, which is 1; grad has that shape and is multiplied by ``grad_scale``, which is
    where clipping goes: min(1, most / sqrt(squared_norm(grad))).
    """
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"adamw: {name} is {beta}, but must be from 0 to below 1")
    if (step := whole("adamw", "step", step)) < 1:
        raise ValueError(f"adamw: step is {step}, but steps count from 1")
    if any(a is None for a in (p, m, v)):
        raise TypeError("adamw: p, m and v are changed in place, so all three must be given")
    shape = np.shape(p)
    p, m, v = outputs("adamw", (p, m, v), p=shape, m=shape, v=shape)
    g = apart(floats("adamw", "grad", grad, shape), p, m, v)
    bias1, bias2 = 1 - power(beta1, step), 1 - power(beta2, step)
    with shared_team(threads, isa) as team:
        team.adamw(
            p.reshape(-1), m.reshape(-1), v.reshape(-1), g.reshape(-1), grad_scale=grad_scale,
            beta1=beta1, beta2=beta2, step_size=lr / bias1, eps=eps, decay=1 - lr * weight_decay,
            root_bias2=math.sqrt(bias2),
        )  # fmt: skip
