"""What stealing does for uneven work: sequences of a long-tailed length, with it and without.

    python bench/stealing.py --threads 2 --samples 7

Attention forward and backward over 48 sequences, whose lengths follow a Pareto law up to 1024 (its
work grows with their squares), and a training step of a model on such sequences, up to 256.  With
and without stealing alternate; medians.  The excess of a piece of work is what the busiest thread
has to do beyond the mean, max busy / mean busy - 1.  Stealing "improves by more than 20 %" when the
excess falls by at least a fifth and the time falls too.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from stepping import Clock, Measured, Stepper, lasting
from undisturbed import Samples, alternate

from crystalline._native import Team
from crystalline.config import PRESETS
from crystalline.spheres.crew import Crew, make_crew

SEQUENCES, LONGEST, LONGEST_OF_STEP = 48, 1024, 256
HEADS, WIDTH = 8, 32
FALL = 0.2  # of the excess, from which on it counts


def long_tailed(longest: int) -> NDArray[np.int64]:
    """Lengths of 48 documents: most short, some cut at ``longest``; always the same."""
    drawn = np.random.default_rng(12).pareto(1.1, SEQUENCES) * longest / 16 + longest / 32
    return np.clip(drawn.astype(np.int64), 1, longest)


def attention_work(team: Team) -> Callable[[], Measured]:
    """Attention over the sequences, forward and backward."""
    rng, R, D = np.random.default_rng(0), SEQUENCES * LONGEST, HEADS * WIDTH
    qkv = rng.standard_normal((R, 3 * D), np.float32)
    out, lse = np.zeros((R, D), np.float32), np.zeros(R * HEADS, np.float32)
    dqkv, lengths, shape = np.zeros_like(qkv), long_tailed(LONGEST), (LONGEST, HEADS, HEADS)

    def work() -> Measured:
        clock = Clock(team)
        with clock:
            team.attention(out, lse, qkv, *shape, lengths)
            team.attention_bwd(dqkv, out, out, qkv, lse, *shape, lengths)
        return clock.measured

    return work


def step_work(team: Team) -> Callable[[], Measured]:
    """A training step on the sequences."""
    config = replace(PRESETS["nano"], seq_len=LONGEST_OF_STEP)
    return Stepper(team, config, SEQUENCES, long_tailed(LONGEST_OF_STEP)).step


def compared(taken: dict[Any, Samples]) -> dict[str, Any]:
    """With stealing and without: medians, and what they say."""
    rows: dict[str, dict[str, float]] = {}
    for steal, s in taken.items():
        balance = statistics.median(m.imbalance for m in s.results)
        rows["on" if steal else "off"] = {
            "ms": 1e3 * statistics.median(m.seconds for m in s.results),
            "max_over_mean_busy": balance, "excess": balance - 1.0,
            "samples": len(s.results), "dropped": s.dropped, "noisy": s.noisy,
        }  # fmt: skip
    on, off = rows["on"], rows["off"]
    excess = on["excess"] / off["excess"] if off["excess"] > 0 else 1.0
    time = on["ms"] / off["ms"]
    better = excess <= 1.0 - FALL and time < 1.0
    return rows | {"excess_ratio": excess, "time_ratio": time, "improves": better}


@click.command()
@click.option("--threads", multiple=True, type=click.IntRange(2), help="again for more of them")
@click.option("--samples", default=7)
@click.option("--json", "as_json", is_flag=True)
def main(threads: tuple[int, ...], samples: int, as_json: bool) -> None:
    """Measures and prints a table."""
    results = []
    for n in threads or (2,):
        crews: dict[Any, Crew] = {s: make_crew(n, steal=s, recursive=False) for s in (False, True)}
        for name, make in (("attention", attention_work), ("training step", step_work)):
            works: dict[Any, Any] = {s: lasting(make(crew.team)) for s, crew in crews.items()}
            result = {"work": name, "threads": n} | compared(alternate(works, samples))
            results.append(result)
            if as_json:
                continue
            for how in ("off", "on"):
                r = result[how]
                print(
                    f"{name:14} {n:3} threads, stealing {how:3}: {r['ms']:8.1f} ms, max/mean busy "
                    f"{r['max_over_mean_busy']:.3f}, {r['samples']} samples, "
                    f"{r['dropped']} dropped{', NOISY' if r['noisy'] else ''}",
                    flush=True,
                )
            print(
                f"{'':14} excess {result['excess_ratio']:.2f} and time {result['time_ratio']:.3f} "
                f"of those without: "
                f"{'improves' if result['improves'] else 'does not improve'} by a fifth",
                flush=True,
            )
    if as_json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
