"""The machine's physical peaks: multiply-adds, and bandwidth level by level.

    python bench/peak.py --threads 2

Measured by ``peak.c``, the best of many short samples.  FMA counts two operations, vdpbf16ps four
for each pair of lanes; read, copy and triad count all bytes that they read and write.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import click
from compiled import cpu_model, program
from rich.console import Console
from rich.table import Table

ARITHMETIC = {"avx512": "fma512", "avx2": "fma256", "bf16": "bf16"}
MOVES = ("read", "copy", "triad")
SECONDS = 0.4  # for each figure
# Loops stay loops: a copy made a call of memcpy would be the C library's choice of stores.
FLAGS = ("-O3", "-march=native", "-fno-tree-loop-distribute-patterns")


def measure(kind: str, threads: int, bytes_in_all: int = 0, seconds: float = SECONDS) -> float:
    """10^9 operations or bytes a second; 0 where the CPU lacks the instructions.

    ``bytes_in_all`` is the working set of a move, over all arrays and threads.
    """
    peak = program(Path(__file__).with_name("peak.c"), *FLAGS)
    command = [str(peak), kind, str(threads), str(seconds), str(bytes_in_all)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def caches() -> dict[str, int]:
    """Bytes of the data caches by level; L1 and L2 are those of one core."""
    sizes = {}
    for at in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (at / "type").read_text().strip() != "Instruction":
            size = (at / "size").read_text().strip()
            unit = {"K": 1 << 10, "M": 1 << 20}[size[-1]]
            sizes["L" + (at / "level").read_text().strip()] = int(size[:-1]) * unit
    return sizes


def working_sets(threads: int) -> dict[str, int]:
    """Bytes in all that lie well inside each level and well outside the one before."""
    of, sets = caches(), {}
    for level in ("L1", "L2"):
        if level in of:
            sets[level] = of[level] // 2 * threads
    if of.get("L3", 0) > 2 * of.get("L2", 0) * threads:
        sets["L3"] = max(of["L3"] // 2, int(1.5 * of.get("L2", 0) * threads))
    return sets | {"DRAM": max(8 * max(of.values(), default=0), 1 << 28)}


def peaks(threads: int, seconds: float = SECONDS) -> dict[str, Any]:
    """All peaks: ``arithmetic[isa][threads]`` GFLOP/s and ``bandwidth[level][move][threads]`` GB/s,
    on one thread and on ``threads``; ``left_out`` names what this CPU lacks."""
    counts = sorted({1, threads})
    arithmetic = {
        isa: {str(n): measure(kind, n, 0, seconds) for n in counts}
        for isa, kind in ARITHMETIC.items()
    }
    return {
        "cpu": cpu_model(), "threads": threads, "caches": caches(),
        "arithmetic": {isa: of for isa, of in arithmetic.items() if of["1"] > 0},
        "left_out": [isa for isa, of in arithmetic.items() if of["1"] == 0],
        "bandwidth": {
            level: {
                move: {str(n): measure(move, n, working_sets(n)[level], seconds) for n in counts}
                for move in MOVES
            }
            for level in working_sets(threads)
        },
    }  # fmt: skip


def table(found: dict[str, Any]) -> Table:
    """The peaks as one looks at them."""
    counts = sorted({1, found["threads"]})
    shown = Table(title=f"peaks of {found['cpu']}", title_justify="left")
    shown.add_column("")
    for n in counts:
        shown.add_column(f"{n} thread{'s' * (n > 1)}", justify="right")
    names = {"avx512": "FMA, AVX-512", "avx2": "FMA, AVX2", "bf16": "vdpbf16ps"}
    for isa, of in found["arithmetic"].items():
        shown.add_row(f"{names[isa]}, GFLOP/s", *(f"{of[str(n)]:.0f}" for n in counts))
    for level, moves in found["bandwidth"].items():
        for move, of in moves.items():
            shown.add_row(f"{level} {move}, GB/s", *(f"{of[str(n)]:.1f}" for n in counts))
    return shown


@click.command()
@click.option("--threads", default=2, type=click.IntRange(1, 1024))
@click.option("--seconds", default=SECONDS, help="for each figure")
@click.option("--json", "as_json", is_flag=True)
def main(threads: int, seconds: float, as_json: bool) -> None:
    """Measures and prints a table."""
    found = peaks(threads, seconds)
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    console.print(table(found))
    for isa in found["left_out"]:
        console.print(f"this CPU lacks {isa}: left out")


if __name__ == "__main__":
    main()
