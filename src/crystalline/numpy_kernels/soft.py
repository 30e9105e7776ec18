"""Part of crystalline.kernels: the softmax family along the last axis, exp and log."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from crystalline.numpy_kernels.arrays import Floats, Ids, apart, floats, ids, last, output, rows
from crystalline.team import shared_team

Threads = int | None
Isa = str | None


def _elementwise(op: str, x: ArrayLike, out: Any, threads: Threads, isa: Isa) -> Floats:
    a = floats(op, "x", x)
    y = output(op, "out", out, a.shape)
    with shared_team(threads, isa) as team:
        getattr(team, op)(y.reshape(-1), apart(a, y, same=True).reshape(-1))
    return y


def exp(x: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None) -> Floats:
    """e^x of any shape, within 2 ulp; 0 below -87.34, infinity above 88.73."""
    return _elementwise("exp", x, out, threads, isa)


def log(x: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None) -> Floats:
    """Natural logarithm, any shape, within 2 ulp; -infinity of 0, NaN below."""
    return _elementwise("log", x, out, threads, isa)


def _along_rows(op: str, x: ArrayLike, out: Any, threads: Threads, isa: Isa) -> Floats:
    a = floats(op, "x", x)
    V = last(op, "x", a, 0)
    y = output(op, "out", out, a.shape)
    if y.size:
        with shared_team(threads, isa) as team:
            getattr(team, op)(rows(y, V), rows(apart(a, y, same=True), V))
    return y


def _along_rows_backward(
    op: str, dy: ArrayLike, y: ArrayLike, out: Any, threads: Threads, isa: Isa
) -> Floats:
    a = floats(op, "y", y)
    V = last(op, "y", a, 0)
    d = floats(op, "dy", dy, a.shape)
    dx = output(op, "out", out, a.shape)
    if dx.size:
        d, a = (rows(apart(b, dx, same=True), V) for b in (d, a))
        with shared_team(threads, isa) as team:
            getattr(team, op.replace("backward", "bwd"))(rows(dx, V), d, a)
    return dx


def softmax(x: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None) -> Floats:
    """exp(x - max) over its sum, x (..., V). A row of -infinity only, or with infinity, is NaN."""
    return _along_rows("softmax", x, out, threads, isa)


def softmax_backward(
    dy: ArrayLike, y: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None
) -> Floats:
    """dx (..., V) from dy and the forward's result y, both (..., V): y (dy - sum y dy)."""
    return _along_rows_backward("softmax_backward", dy, y, out, threads, isa)


def log_softmax(
    x: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None
) -> Floats:
    """x - logsumexp(x), x (..., V); special values as softmax."""
    return _along_rows("log_softmax", x, out, threads, isa)


def log_softmax_backward(
    dy: ArrayLike, y: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None
) -> Floats:
    """dx (..., V) from dy and the forward's result y, both (..., V): dy - exp(y) sum dy."""
    return _along_rows_backward("log_softmax_backward", dy, y, out, threads, isa)


def logsumexp(x: ArrayLike, *, out: Any = None, threads: Threads = None, isa: Isa = None) -> Floats:
    """log of the sum of exp(x), x (..., V) -> (...). A row of -infinity alone gives -infinity, one
    with +infinity gives that. Raises ValueError when V is 0."""
    a = floats("logsumexp", "x", x)
    V = last("logsumexp", "x", a)
    y = output("logsumexp", "out", out, a.shape[:-1])
    if y.size:
        with shared_team(threads, isa) as team:
            team.logsumexp(y.reshape(-1), rows(apart(a, y), V))
    return y


def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """Losses (...) in nats of targets (...) under softmax(logits (..., V)); 0 where it is -1."""
    z = floats("cross_entropy", "logits", logits)
    V = last("cross_entropy", "logits", z)
    t = _shaped("cross_entropy", "targets", ids("cross_entropy", "targets", targets, -1, V), z)
    losses = output("cross_entropy", "out", out, z.shape[:-1])
    if losses.size:
        with shared_team(threads, isa) as team:
            team.cross_entropy(
                losses.reshape(-1), rows(apart(z, losses), V), apart(t, losses).reshape(-1)
            )
    return losses


def cross_entropy_backward(
    dlosses: ArrayLike, logits: ArrayLike, targets: ArrayLike, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """dlogits (..., V) = (softmax(logits) - [target]) dlosses (...), zero where target is -1."""
    op = "cross_entropy_backward"
    z = floats(op, "logits", logits)
    V = last(op, "logits", z)
    t = _shaped(op, "targets", ids(op, "targets", targets, -1, V), z)
    d = floats(op, "dlosses", dlosses, z.shape[:-1])
    dz = output(op, "out", out, z.shape)
    if dz.size:
        with shared_team(threads, isa) as team:
            team.cross_entropy_bwd(
                rows(dz, V), apart(d, dz).reshape(-1), rows(apart(z, dz, same=True), V),
                apart(t, dz).reshape(-1),
            )  # fmt: skip
    return dz


def _shaped(op: str, name: str, a: Ids, of: Floats) -> Ids:
    """a, whose shape must be that of ``of`` without its last axis."""
    if a.shape != of.shape[:-1]:
        raise ValueError(f"{op}: {name} has shape {a.shape}, but must have {of.shape[:-1]}")
    return a
