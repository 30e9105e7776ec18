"""Which model and recipe are best for so many seconds, on a machine that others disturb.

    python bench/ladder.py speeds SPEEDS.json "dim=128 layers=4" "dim=192 layers=5" ...
    python bench/ladder.py run SPEEDS.json --seconds 90 RESULTS.jsonl

The first measures how fast each candidate trains (one short sample after the other, the fastest
counts; run it when the machine is quiet).  The second trains each on Tiny Shakespeare, last tenth
held out, for as many *steps* as it makes in those seconds, however long that takes now, and writes
the bits per byte it reaches.  A candidate is any options of `crystalline train`.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from crystalline.api import training
from crystalline.config import TrainConfig
from crystalline.demo import bundled_text
from crystalline.forecast.speed import measure
from crystalline.options import train_config
from crystalline.team import make_team
from crystalline.training.plan import Budget, choose_model, choose_recipe

OVERHEAD = 4.0  # seconds of a run that are not steps: start, vocabulary, validations, checkpoints
VOCABULARY = 1024  # that train chooses for this text


def options_of(candidate: str) -> dict[str, Any]:
    """dim=128 lr=3e-3 optimizer=muon, as options."""
    said: dict[str, Any] = {}
    known = {field.name for field in fields(TrainConfig)}
    for part in candidate.split():
        name, _, value = part.partition("=")
        if name not in known or not value:
            raise click.UsageError(f"{part!r} is no option=value of training")
        try:
            said[name] = json.loads(value)
        except ValueError:
            said[name] = value
    return said


@click.group()
def main() -> None:
    """Measure speeds, or train for equal seconds."""


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("candidates", nargs=-1)
@click.option("--samples", default=5)
def speeds(file: Path, candidates: tuple[str, ...], samples: int) -> None:
    """Seconds a step of each, added to FILE."""
    table = json.loads(file.read_text()) if file.exists() else {}
    team = make_team(2)
    for candidate in candidates:
        said = train_config(options_of(candidate) | {"steps": 1}, "ladder")
        budget = Budget(said, 400_000)
        c = choose_model(budget, said.vocab_size or VOCABULARY)
        recipe = choose_recipe(budget, c)
        paces = [measure(c, recipe, team, 0.3) for _ in range(samples)]
        pace = min(p.step(recipe) for p in paces)
        table[candidate] = min(pace, table.get(candidate, pace))
        tokens = recipe.sequences * c.seq_len
        click.echo(f"{candidate}: {1e3 * pace:.1f} ms a step, {tokens / pace:,.0f} tokens/s")
        file.write_text(json.dumps(table, indent=1))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--seconds", type=float, default=90.0)
@click.option("--only", default="", help="Of the candidates this one.")
@click.option("--repeat", default=1, help="Seeds.")
def run(file: Path, results: Path, seconds: float, only: str, repeat: int) -> None:
    """Bits per byte of each candidate in FILE after equal seconds, added to RESULTS."""
    table: dict[str, float] = json.loads(file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "tinyshakespeare.txt"
        text.write_bytes(bundled_text())
        for candidate, pace in table.items():
            if only and only != candidate:
                continue
            for seed in range(repeat):
                steps = max(1, round((seconds - OVERHEAD) / pace))
                said = {"vocab_size": VOCABULARY, "seed": seed} | options_of(candidate)
                row = train_one(text, Path(folder) / str(time.monotonic_ns()), steps, said)
                row = {"seconds": seconds, "candidate": candidate, "seed": seed} | row
                with open(results, "a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
                click.echo(
                    f"{seconds:g} s {candidate}: {row['bits_per_byte']:.3f} (best "
                    f"{row['best']:.3f} at {row['best_step']} of {steps}), "
                    f"{row['passes']:.1f} passes, decay {row['weight_decay']:g}"
                )


def train_one(text: Path, out: Path, steps: int, said: dict[str, Any]) -> dict[str, Any]:
    """What a training of so many steps reaches."""
    # One thread: others disturb it least, and it changes no bit.
    with training(text, out, steps=steps, threads=1, **said) as trainer:
        trainer.run()
        p, r = trainer.progress, trainer.recipe
        assert p.validation is not None
        return {
            "bits_per_byte": p.validation["bits_per_byte"], "best": p.best_bits_per_byte,
            "best_step": p.best_step, "steps": p.step, "weight_decay": r.weight_decay, "lr": r.lr,
            "passes": trainer.batches.epoch_of(p.sequences),
        }  # fmt: skip


if __name__ == "__main__":
    main()
