"""The softmax family of a Team on the shapes of the grids; see kernel_cases.py."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import reference_softmax as ref
from case import Array, Arrays, Case, Shape, draw, poison

from crystalline._native import Team


def logits_of(R: int, V: int) -> Array:
    """Logits as a trained model has them: most far below the largest."""
    return 5 * draw(R, V)


def along(op: str, shape: Shape, in_place: bool = False) -> Case:
    """softmax or log_softmax, into new memory or over x itself."""
    x = logits_of(*shape)

    def run(team: Team, a: Arrays) -> None:
        getattr(team, op)(a["y"], a["y"] if in_place else a["x"])

    return Case(
        {} if in_place else {"x": x}, {"y": x if in_place else poison(*shape)}, run,
        lambda o: [(f"{op}.y", o["y"], getattr(ref, op)(x), (x,), {})],
    )  # fmt: skip


def backward(op: str, shape: Shape) -> Case:
    x, dy = logits_of(*shape), draw(*shape, seed=1)
    y = getattr(ref, op)(x).astype(np.float32)

    def run(team: Team, a: Arrays) -> None:
        getattr(team, f"{op}_bwd")(a["dx"], a["dy"], a["y"])

    want = getattr(ref, f"{op}_backward")(dy, y)
    return Case(
        {"dy": dy, "y": y}, {"dx": poison(*shape)}, run,
        lambda o: [(f"{op}.dx", o["dx"], want, (dy, y), {})],
    )  # fmt: skip


def logsumexp(shape: Shape) -> Case:
    x = logits_of(*shape)
    return Case(
        {"x": x}, {"y": poison(shape[0])}, lambda team, a: team.logsumexp(a["y"], a["x"]),
        lambda o: [("logsumexp", o["y"], ref.logsumexp(x), (x,), {})],
    )  # fmt: skip


def targets_of(R: int, V: int) -> Array:
    rng = np.random.default_rng(R)
    return np.where(rng.random(R) < 0.2, -1, rng.integers(0, V, R)).astype(np.int32)


def cross_entropy(shape: Shape) -> Case:
    z, t = logits_of(*shape), targets_of(*shape)
    return Case(
        {"z": z, "t": t}, {"losses": poison(shape[0])},
        lambda team, a: team.cross_entropy(a["losses"], a["z"], a["t"]),
        lambda o: [("cross_entropy.of_logits", o["losses"], ref.cross_entropy(z, t), (z, t), {})],
    )  # fmt: skip


def cross_entropy_bwd(shape: Shape, in_place: bool = False) -> Case:
    z, t, d = logits_of(*shape), targets_of(*shape), draw(shape[0], seed=1)

    def run(team: Team, a: Arrays) -> None:
        team.cross_entropy_bwd(a["dz"], a["d"], a["dz"] if in_place else a["z"], a["t"])

    want = ref.cross_entropy_backward(d, z, t)
    return Case(
        {"t": t, "d": d} | ({} if in_place else {"z": z}),
        {"dz": z if in_place else poison(*shape)}, run,
        lambda o: [("cross_entropy.dz", o["dz"], want, (d, z, t), {})],
    )  # fmt: skip


ON = functools.partial
SOFTMAX: dict[str, tuple[Callable[[Shape], Case], str]] = {
    "softmax": (ON(along, "softmax"), "rows"),
    "softmax in place": (ON(along, "softmax", in_place=True), "rows"),
    "softmax_bwd": (ON(backward, "softmax"), "rows"),
    "log_softmax": (ON(along, "log_softmax"), "rows"),
    "log_softmax in place": (ON(along, "log_softmax", in_place=True), "rows"),
    "log_softmax_bwd": (ON(backward, "log_softmax"), "rows"),
    "logsumexp": (logsumexp, "rows"),
    "cross_entropy": (cross_entropy, "rows"),
    "cross_entropy_bwd": (cross_entropy_bwd, "rows"),
    "cross_entropy_bwd in place": (ON(cross_entropy_bwd, in_place=True), "rows"),
}
