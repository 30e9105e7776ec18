"""What the lattice does to training: its embedding, its rotary positions, lambda correction.

    python bench/lattice.py --steps 2000 --seeds 5 --out lattice.json
    python bench/lattice.py --text my_texts --tokens 6000000 --seeds 3 --only rope -- --dim 128

Trains the seed model (or what the options behind ``--`` say) by `crystalline train` on a folder, by
default the interpreter's own library (12 MB of Python): for each seed once with each kind, all with
the same vocabulary and for equal tokens.  A seed decides the weights that are drawn and the order
of the text, so kinds are compared seed by seed.  What is told is the last validation, over all that
is held out: mean and standard deviation over the seeds, and of the differences to the baseline
their mean with its standard error.  With ``--out`` every run is written down when it ends, and what
stands there is not trained again.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))
from sampled import library

BASELINE = "baseline"
OFF = {"--init": "normal", "--rope": "standard", "--lambda-correction": "0"}
KINDS: dict[str, dict[str, str]] = {  # what differs from OFF
    BASELINE: {},
    "init": {"--init": "lattice"},
    "rope": {"--rope": "lattice"},
    "lambda": {"--lambda-correction": "on"},
    "init + rope": {"--init": "lattice", "--rope": "lattice"},
    "all": {"--init": "lattice", "--rope": "lattice", "--lambda-correction": "on"},
}
Run = dict[str, Any]


def trained(text: Path, out: Path, kind: str, seed: int, steps: int, rest: Sequence[str]) -> Run:
    """One training: its last validation, tokens and seconds."""
    options = [part for pair in (OFF | KINDS[kind]).items() for part in pair]
    command = [sys.executable, "-m", "crystalline", "train", str(text), "--out", str(out),
               "--seed", str(seed), "--steps", str(steps), "--json", *options, *rest]  # fmt: skip
    begun = time.monotonic()
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    events = [json.loads(line) for line in child.stdout.splitlines()]
    validations = [e for e in events if e["event"] == "validation"]
    return {
        "kind": kind, "seed": seed, "steps": steps, "loss": validations[-1]["loss"],
        "bits_per_byte": validations[-1]["bits_per_byte"],
        "validation_tokens": validations[-1]["tokens"],
        "tokens": sum(e["tokens"] for e in events if e["event"] == "step"),
        "seconds": time.monotonic() - begun,
    }  # fmt: skip


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def summary(runs: Sequence[Run]) -> list[Run]:
    """A row per kind, with differences to the baseline of the same seed."""
    base = {run["seed"]: run["loss"] for run in runs if run["kind"] == BASELINE}
    rows = []
    for kind in KINDS:
        mine = [run for run in runs if run["kind"] == kind]
        if not mine:
            continue
        losses = [run["loss"] for run in mine]
        paired = [run["loss"] - base[run["seed"]] for run in mine if run["seed"] in base]
        rows.append({
            "kind": kind, "seeds": len(mine), "loss": statistics.fmean(losses),
            "spread": spread(losses), "bits": statistics.fmean(r["bits_per_byte"] for r in mine),
            "pairs": len(paired), "difference": statistics.fmean(paired) if paired else None,
            "error": spread(paired) / max(1, len(paired)) ** 0.5,
            "better": sum(d < 0 for d in paired),
        })  # fmt: skip
    return rows


def span(counts: Sequence[int]) -> str:
    """The least and the most, or the one that all are: a seed's order may pad a step less."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def markdown(runs: Sequence[Run]) -> str:
    """The table."""
    lines = [
        "| | validation loss | spread | bits per byte | less the baseline | better |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary(runs):
        less = better = ""
        if row["kind"] != BASELINE and row["pairs"]:
            less = f"{row['difference']:+.4f} ± {row['error']:.4f}"
            better = f"{row['better']} of {row['pairs']}"
        lines.append(
            f"| {row['kind']} | {row['loss']:.4f} | {row['spread']:.4f} | {row['bits']:.4f} "
            f"| {less} | {better} |"
        )
    trained, held = (span([run[name] for run in runs]) for name in ("tokens", "validation_tokens"))
    seeds = len({run["seed"] for run in runs})
    return "\n".join([*lines, "", f"{seeds} seeds; {trained} tokens trained, {held} held out."])


def batch_tokens(text: Path, folder: Path, vocab_size: int | None, rest: Sequence[str]) -> int:
    """Tokens of a step, by a training of one, which leaves the vocabulary for all in ``folder``."""
    command = [sys.executable, "-m", "crystalline", "train", str(text), "--out", str(folder),
               "--steps", "1", "--json", *rest]  # fmt: skip
    command += ["--vocab-size", str(vocab_size)] if vocab_size else []
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    plan = next(e for e in map(json.loads, child.stdout.splitlines()) if e["event"] == "plan")
    return int(plan["batch_size"] * plan["accumulate"] * plan["length"])


@click.command()
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
@click.option("--text", type=click.Path(exists=True, path_type=Path), help="File or folder.")
@click.option("--steps", type=int, help="Of each training.")
@click.option("--tokens", type=int, help="Of each training, in place of --steps.")
@click.option("--seeds", default=5, help="0, 1, ... so many.")
@click.option("--only", multiple=True, type=click.Choice(list(KINDS)), help="And the baseline.")
@click.option("--threads", default=2)
@click.option("--preset", default="seed")
@click.option("--vocab-size", type=int, help="Of the vocabulary, if not the preset's.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON of the runs; goes on with it.")
def main(
    text: Path | None, rest: tuple[str, ...], steps: int | None, tokens: int | None, seeds: int,
    only: tuple[str, ...], threads: int, preset: str, vocab_size: int | None, out: Path | None,
) -> None:  # fmt: skip
    """Trains seed by seed and prints the table."""
    if (steps is None) == (tokens is None):
        raise click.UsageError("give --steps or --tokens")
    kinds = [kind for kind in KINDS if not only or kind in (BASELINE, *only)]
    runs: list[Run] = json.loads(out.read_text()) if out and out.exists() else []
    done = {(run["kind"], run["seed"]) for run in runs}
    said = ["--preset", preset, "--threads", str(threads), *rest]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if text is None:
            text = place / "text"
            library(text)
        each = batch_tokens(text, place / "first", vocab_size, said)
        steps = steps or max(1, round((tokens or 0) / each))
        if {run["steps"] for run in runs} - {steps}:
            raise click.UsageError(f"{out} has runs of other steps than {steps}; name another")
        said += ["--tokenizer", str(place / "first")]
        for seed in range(seeds):
            for kind in kinds:
                if (kind, seed) in done:
                    continue
                runs.append(trained(text, place / "model", kind, seed, steps, said))
                shutil.rmtree(place / "model")
                click.echo(f"seed {seed}, {kind}: {runs[-1]['loss']:.4f}", err=True)
                if out:
                    out.write_text(json.dumps(runs, indent=1))
    click.echo(markdown(runs))


if __name__ == "__main__":
    main()
