"""What each stage brings on this machine, for one training step of the seed model.

The scalar stage is plain C, ``scalar_step.c``: our own portable kernels round like the vector ones
to the bit, which costs them far more than a plain loop would, so they are no measure.  Its products
are timed on a slice of the tokens, and the step is its arithmetic at that speed; what is not a
product (norms, softmax, the optimizer) is counted as done for nothing, so the factors that
follow err on the low side.
"""

from __future__ import annotations

import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from compiled import program
from rich.table import Table
from undisturbed import alternate

from compare import steps
from compare.contest import OURS, Contender, Settings
from compare.workers import Crew, WorkerError, watched

ROWS = 48  # tokens of the scalar stage's slice
TARGETS = "SIMD 2 to 4 times, 12 threads 8 to 10 times, all stages 16 to 40 times"
Stage = dict[str, Any]


def scalar_tokens_per_s(preset: str) -> float:
    """Tokens a second of plain loops on one thread."""
    from scaling import products

    from crystalline.config import PRESETS
    from crystalline.training.plan import flops_per_token

    c = PRESETS[preset]
    shapes = [*products(c), (c.vocab_size, c.dim, 1)]
    flags = ("-O2", "-fno-tree-vectorize", "-ffp-contract=off")
    built = program(Path(__file__).parent.parent / "scalar_step.c", *flags)
    command = [str(built), str(ROWS), *(str(n) for shape in shapes for n in shape)]
    best = 0.0
    for _ in range(3):  # the best of three: others' work can only slow it
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds, gflop = map(float, out.split())
        best = max(best, gflop / seconds)
    return 1e9 * best / flops_per_token(c)


def measured(s: Settings, preset: str) -> dict[str, float]:
    """Tokens a second of our steps by name, each stage with those before it, alternating."""
    kinds = {"AVX2, 1 thread": ("avx2", 1, "fp32", "full")}
    if s.isa == "avx512":
        kinds["AVX-512, 1 thread"] = ("avx512", 1, "fp32", "full")
    kinds[f"{s.threads} threads"] = (s.isa, s.threads, "fp32", "full")
    last = s.precisions[-1]
    if last == "bf16":
        kinds["bf16"] = (s.isa, s.threads, last, "full")
    kinds["sampled softmax"] = (s.isa, s.threads, last, "sampled")
    crews = {n: Crew(replace(s, threads=n)) for n in {1, s.threads}}
    try:
        works, amount = {}, 0.0
        for name, (isa, n, precision, loss) in kinds.items():
            contender = Contender(name, OURS, (("CRYSTALLINE_ISA", isa),))
            contest = steps.contest(s, preset, precision, loss, None)
            amount = contest.amount
            crews[n].prepare(contender, contest)
            works[name] = crews[n].workers[contender].ask
        taken = alternate(works, s.samples, watched, s.tries)
    except WorkerError as error:
        raise click.ClickException(f"--self: {error}") from None
    finally:
        for crew in crews.values():
            crew.close()
    return {
        name: amount / statistics.median(a["seconds"] for a in of.results)
        for name, of in taken.items()
    }


def stages(s: Settings) -> list[Stage]:
    """The stages in order: name, tokens/s, factor over the one before and over the first."""
    preset = "nano" if s.quick else "seed"
    speeds = {"plain scalar loops, 1 thread (extrapolated)": scalar_tokens_per_s(preset)}
    speeds |= measured(s, preset)
    made: list[Stage] = []
    first = before = next(iter(speeds.values()))
    for name, speed in speeds.items():
        made.append(
            {"stage": name, "tokens_per_s": speed, "over_last": speed / before,
             "over_first": speed / first}
        )  # fmt: skip
        before = speed
    return made


def table(made: list[Stage], s: Settings) -> Table:
    """For people, with what was once hoped for."""
    shown = Table(
        title=f"one step of the {'nano' if s.quick else 'seed'} model", title_justify="left",
        caption=f"hoped for once: {TARGETS}",
    )  # fmt: skip
    for name in ("stage", "tokens/s", "over the last", "over the first"):
        shown.add_column(name, justify="left" if name == "stage" else "right")
    for m in made:
        shown.add_row(
            m["stage"], f"{m['tokens_per_s']:.0f}", f"{m['over_last']:.2f}",
            f"{m['over_first']:.1f}",
        )  # fmt: skip
    return shown
