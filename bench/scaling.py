"""One training step on more and more threads: speed, and where the threads' time goes.

    python bench/scaling.py --threads 1,2,4 --steps 7

The numbers of threads alternate, the figures are medians, and samples during which others used the
machine are dropped.  The columns:

speed-up, eff.  over one thread, and per thread
barrier         thread time waited at the ends of parallel regions / (threads x step)
in regions      the same / (threads x time inside regions)
outside         share of the step outside regions, where one thread works
max/mean        busy time of the busiest thread / mean over threads
reduction       share of the step spent in the tree of the 12 groups and in the gradient's norm
scratch         bytes for each of the 12 spheres beyond the arenas of weights and activations

Reduction.  The tree is taken inside the product that makes a weight's gradient, tile by tile, and
has no clock of its own.  So each such product of the model is run with its 12 groups and with one
group of all the rows, which has the same arithmetic and no tree, and the difference of the medians
counts; where noise makes it negative, it counts as zero.  The head sums its groups through memory
rather than in registers, so the whole head is run both ways.  (With one group its blocks are also
longer, which makes its products a little faster: the difference errs on the high side.)  To this
comes the whole time of the squared norm.  The trees over norm gains and embedding rows, vectors
where these are matrices, are not in it.

Scratch.  Counted are the team's work space, shared (packed panels, a block of logits, the head's
partial sums) and per thread (attention), as ``Team.work_bytes`` tells after a step, and the tables
that say who takes what, ``SphereHierarchy.scratch_bytes``; together, divided by 12.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Hashable
from typing import Any

import click
import numpy as np
from stepping import Measured, Stepper, lasting
from undisturbed import Samples, alternate, repeated

from crystalline._native import Team, usable_cpus
from crystalline.config import PRESETS, ModelConfig, parameter_count
from crystalline.decoder.decoder import group_starts
from crystalline.spheres.crew import Crew, make_crew

BATCH = 12
COUNTS = (1, 2, 4, 6, 8, 12, 16, 24, 48)
Row = dict[str, Any]


def products(c: ModelConfig) -> list[tuple[int, int, int]]:
    """Shapes (N, K) of the layers' weights as they are multiplied, and how many there are."""
    E = (c.heads + 2 * c.kv_heads) * c.head_dim
    shapes = [(E, c.dim), (c.dim, c.heads * c.head_dim), (2 * c.hidden, c.dim), (c.dim, c.hidden)]
    return [(N, K, c.layers) for N, K in shapes]


def reduction_seconds(team: Team, c: ModelConfig, samples: int) -> float:
    """The tree's and the norm's time in one step; see above."""
    R, D, V = BATCH * c.seq_len, c.dim, c.vocab_size
    rng = np.random.default_rng(0)
    tree, flat = group_starts(BATCH) * c.seq_len, np.array([0] + [R] * 12, np.int64)
    works: dict[Hashable, Callable[[], Any]] = {}

    def both(name: Any, call: Callable[[Any], None]) -> None:
        works[name, "tree"] = repeated(lambda: call(tree))
        works[name, "flat"] = repeated(lambda: call(flat))

    for N, K, _ in products(c):
        dy, x = (rng.standard_normal((R, n), np.float32) for n in (N, K))
        dw = np.empty((N, K), np.float32)
        both((N, K), lambda g, dw=dw, dy=dy, x=x: team.matmul_dw(dw, dy, x, g))
    h, w = (rng.standard_normal((n, D), np.float32) * np.float32(0.1) for n in (R, V))
    dh, dw, losses = np.empty_like(h), np.empty_like(w), np.empty(R, np.float32)
    targets = rng.integers(0, V, R, dtype=np.int32)
    both("head", lambda g: team.head(losses, h, w, targets, g, dh, dw, 1.0 / R))
    gradient = np.zeros(parameter_count(c), np.float32)
    works["norm"] = repeated(lambda: team.squared_norm(gradient))

    taken = alternate(works, samples)
    median = {name: statistics.median(s.results) for name, s in taken.items()}
    times = {(N, K): layers for N, K, layers in products(c)} | {"head": 1}
    trees = [n * max(0.0, median[k, "tree"] - median[k, "flat"]) for k, n in times.items()]
    return float(sum(trees) + median["norm"])


def row(crew: Crew, c: ModelConfig, taken: Samples, reduction: float) -> Row:
    """The figures of one number of threads."""
    results: list[Measured] = taken.results
    n = crew.team.threads

    def median(of: Callable[[Measured], float]) -> float:
        return statistics.median(of(m) for m in results)

    seconds = median(lambda m: m.seconds)
    return {
        "threads": n,
        "ms_per_step": 1e3 * seconds,
        "tokens_per_s": BATCH * c.seq_len / seconds,
        "barrier_share": median(lambda m: m.waited / (n * 1e9 * m.seconds)),
        "barrier_share_in_regions": median(lambda m: m.waited / (n * m.inside)),
        "outside_share": median(lambda m: 1.0 - m.inside / (1e9 * m.seconds)),
        "max_over_mean_busy": median(lambda m: m.imbalance),
        "reduction_share": reduction / seconds,
        "scratch_per_sphere": (crew.team.work_bytes + crew.hierarchy.scratch_bytes) // 12,
        "depth": crew.hierarchy.depth,
        "pinned": crew.team.cpus is not None,
        "samples": len(results), "dropped": taken.dropped, "noisy": taken.noisy,
    }  # fmt: skip


def measure(crews: dict[int, Crew], c: ModelConfig, steps: int) -> list[Row]:
    """A row for each number of threads."""
    steppers = {n: lasting(Stepper(crew.team, c, BATCH).step) for n, crew in crews.items()}
    taken = alternate(dict(steppers), steps)
    rows = [
        row(crew, c, taken[n], reduction_seconds(crew.team, c, steps)) for n, crew in crews.items()
    ]
    for r in rows:
        if rows[0]["threads"] == 1:
            r["speed_up"] = rows[0]["ms_per_step"] / r["ms_per_step"]
            r["efficiency"] = r["speed_up"] / r["threads"]
    return rows


def counts(_: Any, __: Any, said: str | None) -> list[int]:
    """What --threads says, or all of COUNTS that there are CPUs for."""
    if said is None:
        return [n for n in COUNTS if n <= usable_cpus()]
    try:
        return sorted({int(n) for n in said.split(",")})
    except ValueError:
        raise click.BadParameter(f"{said!r} is no list of numbers like 1,2,4") from None


@click.command()
@click.option("--threads", callback=counts, help="such as 1,2,4; as many as there are CPUs for")
@click.option("--preset", default="seed", type=click.Choice(list(PRESETS)))
@click.option("--steps", default=7, help="samples of each number of threads")
@click.option("--pin/--no-pin", default=None, help="threads stay on their CPUs")
@click.option("--no-stealing", is_flag=True)
@click.option("--depth", default="auto", type=click.Choice(["auto", "1", "2", "3"]))
@click.option("--json", "as_json", is_flag=True)
def main(
    threads: list[int], preset: str, steps: int, pin: bool | None, no_stealing: bool, depth: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Measures and prints a table."""
    c = PRESETS[preset]
    at = depth if depth == "auto" else int(depth)
    crews = {n: make_crew(n, depth=at, pin=pin, steal=not no_stealing) for n in threads}
    rows = measure(crews, c, steps)
    if as_json:
        isa = next(iter(crews.values())).team.isa
        print(json.dumps({"preset": preset, "batch": BATCH, "isa": isa, "rows": rows}))
        return
    print(
        "threads  ms/step  tokens/s  speed-up  eff.  barrier  in regions  outside  max/mean  "
        "reduction  scratch KiB"
    )
    for r in rows:
        print(
            f"{r['threads']:7} {r['ms_per_step']:8.1f} {r['tokens_per_s']:9.0f} "
            f"{r.get('speed_up', float('nan')):9.2f} {r.get('efficiency', float('nan')):5.2f} "
            f"{r['barrier_share']:8.2%} {r['barrier_share_in_regions']:11.2%} "
            f"{r['outside_share']:8.2%} {r['max_over_mean_busy']:9.3f} "
            f"{r['reduction_share']:10.2%} {r['scratch_per_sphere'] / 1024:12.0f}"
            f"{'  NOISY' if r['noisy'] else ''}"
        )
    print(
        f"{preset}, {BATCH} x {c.seq_len} tokens; {sum(r['samples'] for r in rows)} samples, "
        f"{sum(r['dropped'] for r in rows)} dropped because others were using the machine"
    )


if __name__ == "__main__":
    main()
