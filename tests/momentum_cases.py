"""Cases of the optimizers with a momentum, and of the average of weights."""

from __future__ import annotations

import numpy as np
import reference_optim as optim
from case import Array, Arrays, Case, Due, Shape, draw

from crystalline._native import Team

JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
SGD = {"lr": 1e-2, "momentum": 0.9}
LION = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99}
CLIP = 0.5  # halving the doubled gradient is exact, so the reference need not know of it


def _spans(n: int) -> Array:
    """A gap, a span that decays, one that does not, and another gap."""
    return np.array([(n // 7, n // 2, 1), (n // 2, n - n // 9, 0)], np.int64)


def _judged(
    op: str, before: dict[str, Array], o: Arrays, spans: Array, want: dict[int, Arrays]
) -> list[Due]:
    """What is due in the spans; the gaps keep their bits.  ``want`` is by whether it decays."""
    found: list[Due] = []
    n = len(before["p"])
    for begin, end, decays in spans:
        cut = slice(begin, end)
        for name in "pm":
            inputs = tuple(before[x][cut] for x in "pgm")
            due = want[int(decays)][name][cut]
            found.append((f"{op}.{name}", o[name][cut], due, inputs, {}))
    for gap in (slice(0, n // 7), slice(n - n // 9, n)):
        for name in "pm":
            assert np.array_equal(o[name][gap], before[name][gap])
    return found


def sgd_spans(shape: Shape, nesterov: bool = True) -> Case:
    (n,) = shape
    p, g, m, spans = draw(n), draw(n, seed=1), draw(n, seed=2), _spans(n)
    named = SGD | {"nesterov": nesterov}
    want = {
        decays: dict(zip("pm", optim.sgd(p, g, m, **named, weight_decay=0.1 * decays), strict=True))
        for decays in (0, 1)
    }

    def run(team: Team, a: Arrays) -> None:
        team.sgd_spans(
            a["p"], a["m"], a["grad"], a["spans"], grad_scale=CLIP, momentum=SGD["momentum"],
            nesterov=nesterov, step_size=SGD["lr"], decay=1 - SGD["lr"] * 0.1,
        )  # fmt: skip

    before = {"p": p, "g": g, "m": m}
    return Case(
        {"grad": g / np.float32(CLIP), "spans": spans}, {"p": p, "m": m}, run,
        lambda o: _judged("sgd", before, o, spans, want),
    )  # fmt: skip


def lion_spans(shape: Shape) -> Case:
    (n,) = shape
    p, g, m, spans = draw(n), draw(n, seed=1), draw(n, seed=2), _spans(n)
    g[::5], m[::5] = 0.0, 0.0  # there the sign is 0
    want = {
        decays: dict(zip("pm", optim.lion(p, g, m, **LION, weight_decay=0.1 * decays), strict=True))
        for decays in (0, 1)
    }

    def run(team: Team, a: Arrays) -> None:
        team.lion_spans(
            a["p"], a["m"], a["grad"], a["spans"], grad_scale=CLIP, beta1=LION["beta1"],
            beta2=LION["beta2"], step_size=LION["lr"], decay=1 - LION["lr"] * 0.1,
        )  # fmt: skip

    before = {"p": p, "g": g, "m": m}
    return Case(
        {"grad": g / np.float32(CLIP), "spans": spans}, {"p": p, "m": m}, run,
        lambda o: _judged("lion", before, o, spans, want),
    )  # fmt: skip


def ema(shape: Shape) -> Case:
    average, p = draw(*shape), draw(*shape, seed=1)
    want = optim.ema(average, p, decay=0.9)
    return Case(
        {"p": p}, {"average": average}, lambda team, a: team.ema(a["average"], a["p"], 0.1),
        lambda o: [("ema", o["average"], want, (average, p), {"decay": 0.9})],
    )  # fmt: skip


def muon_step(shape: Shape, nesterov: bool = True) -> Case:
    """The matrix, a gap, its transpose's shape with a gradient of zero, and its momentum zero."""
    rows, columns = shape
    size, gap = rows * columns, 5
    n = 2 * size + gap
    p, g, m = draw(n), draw(n, seed=1), draw(n, seed=2)
    g[size + gap :], m[size + gap :] = 0.0, 0.0
    matrices = np.array([(0, rows, columns), (size + gap, columns, rows)], np.int64)
    named = {
        "step_size": 0.02, "momentum": 0.95, "nesterov": nesterov, "decay": 0.99,
        "coefficients": JORDAN,
    }  # fmt: skip
    first = tuple(x[:size].reshape(shape) for x in (p, g, m))
    want_p, want_m = optim.muon(*first, **named)

    def run(team: Team, a: Arrays) -> None:
        team.muon_step(
            a["p"], a["m"], a["grad"], a["matrices"], a["step_sizes"], a["coefficients"],
            grad_scale=CLIP, momentum=0.95, nesterov=nesterov, decay=0.99,
        )  # fmt: skip

    def due(o: Arrays) -> list[Due]:
        assert np.array_equal(o["p"][size : size + gap], p[size : size + gap])
        assert np.array_equal(o["m"][size : size + gap], m[size : size + gap])
        assert np.array_equal(o["p"][size + gap :], np.float32(0.99) * p[size + gap :])
        got = {name: o[name][:size].reshape(shape) for name in "pm"}
        decayed = {"momentum": 0.95, "nesterov": nesterov}
        return [
            ("muon.p", got["p"], want_p, first, named),
            ("muon.m", got["m"], want_m, first, decayed),
        ]

    reads = {
        "grad": g / np.float32(CLIP), "matrices": matrices,
        "step_sizes": np.array([0.02, 0.03], np.float32),
        "coefficients": np.array(JORDAN, np.float32),
    }  # fmt: skip
    return Case(reads, {"p": p, "m": m}, run, due)
