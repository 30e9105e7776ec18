"""How fast the abacus counts primes, against primesieve on one thread.

    apt-get install primesieve-bin
    python bench/sieve.py --rounds 9

Both count the primes of the same ranges in turn, A B A B.  The times are primesieve's own, without
its start and its printing, and of ours likewise that of ``Abacus(lo, hi).count()`` in a process
that runs; both make their base primes anew each time.  A round during which other programs used
more than a tenth of a CPU is taken again, up to four times, and else counted as noisy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import time
from typing import Any

import click
from undisturbed import MOST_BY_OTHERS, TRIES, cpu_seconds

from crystalline.lattice.abacus import Abacus

# From, to: the first is what is asked.
RANGES = [(0, 10**9), (10**12, 10**12 + 10**9), (10**15, 10**15 + 10**9)]
BAR = 4.0  # times primesieve's time, at most


def _ours(lo: int, hi: int) -> tuple[float, int]:
    begun = time.perf_counter()
    count = Abacus(lo, hi).count()
    return time.perf_counter() - begun, count


def _theirs(program: str, lo: int, hi: int) -> tuple[float, int]:
    said = subprocess.check_output([program, str(lo), str(hi), "-t1", "--time"], text=True)
    seconds, primes = (re.search(rf"{word}: *([\d.]+)", said) for word in ("Seconds", "Primes"))
    if seconds is None or primes is None:
        raise click.ClickException(f"{program} did not print its seconds and primes: {said!r}")
    return float(seconds[1]), int(primes[1])


def _round(program: str, lo: int, hi: int) -> tuple[tuple[float, float], int, float]:
    """Seconds of ours and theirs, the primes of both, and the CPUs that others used meanwhile."""
    def own() -> float:
        return sum(os.times()[:4])

    machine, used, begun = cpu_seconds(), own(), time.perf_counter()
    (ours, count), (theirs, right) = _ours(lo, hi), _theirs(program, lo, hi)
    wall = time.perf_counter() - begun
    others = max(0.0, cpu_seconds() - machine - (own() - used)) / wall
    if count != right:
        raise click.ClickException(f"{lo} to {hi}: {count} primes, primesieve counts {right}")
    return (ours, theirs), count, others


def _row(program: str, lo: int, hi: int, rounds: int) -> dict[str, Any]:
    taken, noisy, count = [], 0, 0
    for _ in range(rounds):
        tries = [_round(program, lo, hi)]
        while tries[-1][2] > MOST_BY_OTHERS and len(tries) < TRIES:
            tries.append(_round(program, lo, hi))
        seconds, count, others = min(tries, key=lambda t: t[2])
        noisy += others > MOST_BY_OTHERS
        taken.append(seconds)
    ours, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
    ratios = sorted(a / b for a, b in taken)
    return {"lo": lo, "hi": hi, "primes": count, "seconds": ours, "primesieve": theirs,
            "ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1],
            "noisy": noisy, "rounds": rounds}  # fmt: skip


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--program", default="primesieve", show_default=True)
@click.option("--only", type=click.IntRange(1, len(RANGES)), default=len(RANGES),
              help="The first so many ranges.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of the table.")
def main(rounds: int, program: str, only: int, as_json: bool) -> None:
    """Measures, and compares with what is asked."""
    if shutil.which(program) is None:
        raise click.ClickException(f"there is no {program}; apt-get install primesieve-bin")
    rows = [_row(program, lo, hi, rounds) for lo, hi in RANGES[:only]]
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'from':>8}{'numbers':>9}{'primes':>10}{'ours s':>9}{'theirs s':>9}"
          f"{'ratio':>7}{'least':>7}{'most':>7}{'noisy':>7}")  # fmt: skip
    for row in rows:
        print(f"{row['lo']:8.0e}{row['hi'] - row['lo']:9.0e}{row['primes']:10}{row['seconds']:9.3f}"
              f"{row['primesieve']:9.3f}{row['ratio']:7.2f}{row['least']:7.2f}{row['most']:7.2f}"
              f"{row['noisy']:4}/{row['rounds']}")  # fmt: skip
    print(f"Asked: 0 to 1e9 in at most {BAR:.0f} times primesieve's time: {rows[0]['ratio']:.2f}.")


if __name__ == "__main__":
    main()
