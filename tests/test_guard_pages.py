"""No kernel reads or writes one element outside its operands.

Every operand lies against a page that must not be touched: once it ends there, once it begins
there. A touch kills the process, so the work is done in another one, which says what it does next.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from case import Array

from crystalline._native import ISAS, Team, available_isas

PAGE = mmap.PAGESIZE
PROT_NONE = 0
# Sizes with every kind of tail: inside one vector, one past it, past a tile, and whole ones.
WIDTHS = (1, 5, 15, 16, 17, 31, 33, 48)
SHAPES = {
    "matmul": [(R, N, K) for R in (1, 7, 13) for N, K in itertools.product(WIDTHS, (1, 17, 32))],
    "tall": [(577, N, K) for N, K in ((33, 17), (17, 33), (150, 48))],
    "few": [
        (R, N, K)
        for R in (1, 2, 5, 13, 17)
        for N, K in itertools.product((15, 33, 130), (1, 17, 32))
    ],
    "rows": [(R, D) for R in (1, 13) for D in WIDTHS],
    "swiglu": [(R, F) for R in (1, 13) for F in WIDTHS],
    "attention": [
        (B, T, H, K, Dh)
        for B, T, H, K in ((1, 1, 1, 1), (2, 7, 4, 2), (1, 65, 2, 1))
        for Dh in (2, 6, 14, 16, 18, 30, 32, 34, 50)
    ],
    "embedding": [(R, V, D) for R, V in ((1, 1), (7, 3), (13, 40)) for D in WIDTHS],
    "cross_entropy": [(R, D, V) for R in (1, 13) for D in (1, 17, 32) for V in WIDTHS[1:]],
    "muon": [*itertools.product((1, 13, 31), WIDTHS), (49, 97), (50, 48)],
    "flat": [(n,) for n in (*WIDTHS, 143, 145, 1003, 4099)],
}
TOLD = "outside: "  # how the other process says which case it begins


class Guard:
    """Memory between two pages that may not be touched; copies arrays to one of its ends."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.kept: list[mmap.mmap] = []

    def place(self, a: Array) -> Array:
        """A copy of a, its last byte before the page or its first byte behind it."""
        if a.size == 0:
            return a.copy()
        room = -(-a.nbytes // PAGE) * PAGE
        region = mmap.mmap(-1, room + 2 * PAGE)
        self.kept.append(region)  # freed memory would lose its guard
        address = ctypes.addressof(ctypes.c_char.from_buffer(region))
        for page in (address, address + PAGE + room):
            if self.libc.mprotect(page, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        at = PAGE + (room - a.nbytes if self.side == "end" else 0)
        placed = np.frombuffer(region, a.dtype, a.size, at).reshape(a.shape)
        placed[...] = a
        return placed


def run_guarded(cases: str, isa: str, side: str) -> None:
    """What the other process does: every operation, every shape, every operand guarded."""
    team = Team(2, isa)
    for op, (build, grid) in importlib.import_module(cases).BUILDERS.items():
        for shape in SHAPES[grid]:
            sys.stderr.write(f"{TOLD}{op} {shape}\n")
            sys.stderr.flush()
            c, guard = build(shape), Guard(side)
            a = {name: guard.place(x) for name, x in c.arrays().items()}
            c.run(team, a)
            free = c.outputs(team)
            for name, want in free.items():
                assert a[name].tobytes() == want.tobytes(), f"{op} {shape}: {name} depends on place"


@pytest.mark.parametrize("side", ["begin", "end"])
@pytest.mark.parametrize("isa", ISAS)
def test_nothing_outside_is_touched(isa: str, side: str) -> None:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    guarded("kernel_cases", isa, side)


def guarded(cases: str, isa: str, side: str) -> None:
    """Runs the operations of a module of cases in another process; fails when that is killed."""
    code = f"import test_guard_pages as t; t.run_guarded({cases!r}, {isa!r}, {side!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    last = [line for line in done.stderr.splitlines() if line.startswith(TOLD)][-1:]
    others = [line for line in done.stderr.splitlines() if not line.startswith(TOLD)]
    why = f"exit status {done.returncode} (-11: a page outside was touched) in {last} {others}"
    assert done.returncode == 0, why


def test_the_guard_is_one() -> None:
    """The page behind an operand really ends the process that reads it."""
    code = (
        "import ctypes, numpy as np, test_guard_pages as t; a = t.Guard('end').place(np.ones(5));"
        "ctypes.c_char.from_address(a.ctypes.data + a.nbytes).value"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert done.returncode == -11
