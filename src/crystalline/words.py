"""Numbers and sentences as a reader wants them."""

from __future__ import annotations

from collections.abc import Iterable


def short(n: float) -> str:
    """A count in three digits: 950, 12.3 k, 1.05 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= 0.9995 * size:
            x = n / size
            return f"{x:.{2 if x < 9.995 else 1 if x < 99.95 else 0}f}{unit}"
    return f"{n:.0f}"


def clock(seconds: float) -> str:
    """0:42, 1:05:09 or 2 d 3 h."""
    s = max(0, round(seconds))
    if s >= 86400:
        return f"{s // 86400} d {s % 86400 // 3600} h"
    return f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}" if s >= 3600 else f"{s // 60}:{s % 60:02}"


def plural(n: int, word: str) -> str:
    """1 step, 2,000 steps."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def score(loss: float, bits_per_byte: float | None) -> str:
    """A validation in words."""
    bits = "" if bits_per_byte is None else f", {bits_per_byte:.3f} bits per byte"
    return f"{loss:.3f} nats per token{bits}"


def spans(numbers: Iterable[int], most: int) -> str:
    """Numbers in rising order, three or more neighbours as a range: 0,2,4-7; how many there are
    if that is longer than ``most`` characters."""
    numbers = sorted(set(numbers))
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    said = ",".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs
    )
    return said if len(said) <= most else f"{len(numbers)} of them"
