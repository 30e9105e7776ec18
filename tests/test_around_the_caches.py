"""What is written around the caches has the bits of what goes through them, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from c_drivers import compiled, run
from case import EPS, Array, draw, poison
from test_guard_pages import Guard
from test_kernel_math import FLAGS

from crystalline._native import ISAS, Team, available_isas

FROM = 1 << 23  # numbers of an output that does not stay in the caches


def available(isa: str) -> str:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    return isa


@pytest.mark.parametrize("isa", ISAS)
def test_every_width_at_every_place_in_a_line(isa: str, tmp_path: Path) -> None:
    flags = (*FLAGS[available(isa)], "-O1", "-ffp-contract=off", "-fno-math-errno")
    done = run(
        compiled(
            "around", ["isa.c"], tmp_path, *flags, f"-DCRY_ISA_{isa}",
            f"-DTABLE=cry_kernels_{isa}",
        )
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{83 * 16 * 6}\n")


def softmax(team: Team, y: Array, x: Array) -> Array:
    team.softmax(y, x)
    return y


def rmsnorm(team: Team, y: Array, x: Array) -> Array:
    rrms = poison(len(x))
    team.rmsnorm(y, rrms, x, draw(x.shape[1], seed=1), EPS)
    return np.append(y, rrms[:, None], axis=1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("op", "R", "D"), [(softmax, FROM // 1003 + 1, 1003), (rmsnorm, FROM // 257 + 1, 257)]
)
@pytest.mark.parametrize("side", ["begin", "end"])
def test_a_large_output_has_the_bits_of_its_parts(
    op: Callable[[Team, Array, Array], Array], R: int, D: int, side: str, isa: str
) -> None:
    """Rows that begin anywhere in a line, next to a page that may not be touched."""
    team, guard, few = Team(2, available(isa)), Guard(side), draw(61, D)
    x = guard.place(np.resize(few, (R, D)))
    got, due = op(team, guard.place(poison(R, D)), x), op(team, poison(61, D), few)
    assert got.tobytes() == np.resize(due, got.shape).tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_in_its_own_place_too(isa: str) -> None:
    """What is read where it is written goes through the caches, and needs no work space."""
    few, R = draw(61, 1003), FROM // 1003 + 1
    team = Team(2, available(isa))
    x = np.resize(few, (R, 1003))
    due = softmax(team, poison(61, 1003), few)
    assert softmax(team, x, x).tobytes() == np.resize(due, x.shape).tobytes()
