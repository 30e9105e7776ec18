"""The sampled loss against the full one: the output layer alone, or whole trainings.

    python bench/sampled.py --threads 2
    python bench/sampled.py --quality --minutes 5

The first times the output layer of 3072 tokens of width 256: with the full loss, and AdamW on the
whole weight; with 512 samples, the draw of them, rows caught up, loss, gradients, and AdamW on the
rows touched.  Tokens are drawn by Zipf's law, as those of a text; ``--uniform`` draws all equally
often, which touches most rows.  The second trains the seed model with the full loss, with the
sampled one, and with the full one in bf16 (where the CPU has it) for equal tokens on the
interpreter's own library (12 MB of Python) and prints what each reaches, measured over the whole
vocabulary on all that is held out, and how long its steps took.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from undisturbed import alternate, repeated

import crystalline
from crystalline._native import Team
from crystalline.decoder.candidates import Candidates
from crystalline.decoder.decoder import group_order
from crystalline.decoder.sparse import SparseTable
from crystalline.team import make_team

TOKENS, D, SAMPLES = 3072, 256, 512
SIZES: dict[str, Any] = {"preset": "seed"}  # of the model that --quality trains
KINDS: dict[str, dict[str, Any]] = {  # what it trains; the first is what the others are held to
    "full": {}, "sampled": {"loss": "sampled"}, "bf16": {"precision": "bf16"},
}  # fmt: skip
SHARES = {"full": 1.0, "sampled": 0.65, "bf16": 0.6}  # about the time of each
HYPER = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
NUMBERS = {"grad_scale": 1.0, "decay": 0.9999, "step_size": 1e-4, "root_bias2": 1.0}


class Layer:
    """An output layer of V words with its gradient and moments, and a batch for it."""

    def __init__(self, team: Team, V: int, uniform: bool) -> None:
        rng = np.random.default_rng(0)
        law = np.ones(V) if uniform else 1 / np.arange(1, V + 1)
        self.team, self.V, self.turn = team, V, 0
        self.targets = [
            rng.choice(V, TOKENS, p=law / law.sum()).astype(np.int32) for _ in range(50)
        ]
        self.h = rng.standard_normal((TOKENS, D), np.float32)
        self.w = 0.05 * rng.standard_normal((V, D), np.float32)
        self.dw, self.m, self.v = (np.zeros((V, D), np.float32) for _ in range(3))
        self.losses, self.dh = np.zeros(TOKENS, np.float32), np.zeros((TOKENS, D), np.float32)
        self.groups = group_order(12)[1] * (TOKENS // 12)
        counts = np.round(1e6 * law).astype(np.int64)
        self.candidates = Candidates(counts, SAMPLES, 0, team)
        self.table = SparseTable(self.w, self.m, self.v, team, **HYPER)
        self.work = np.empty(TOKENS, np.int32), np.empty(V + 1, np.int64)

    def full(self) -> None:
        """Forward, backward and update over the whole vocabulary."""
        self.team.head(
            self.losses, self.h, self.w, self.targets[0], self.groups, self.dh, self.dw, 1 / TOKENS
        )
        flat = [a.reshape(-1) for a in (self.w, self.m, self.v, self.dw)]
        self.team.adamw(*flat, **HYPER, **NUMBERS)

    def sampled(self) -> None:
        """The same over samples, with all that a step of training does for it."""
        self.turn += 1
        targets, drawn = self.targets[self.turn % 50], self.candidates.draw(self.turn)
        seen = np.zeros(self.V, np.bool_)
        seen[targets] = seen[drawn] = True
        self.table.begin(np.flatnonzero(seen).astype(np.int32), self.dw)
        self.team.head_sampled(
            self.losses, self.h, self.w, targets, self.groups, drawn,
            self.candidates.log_expected, self.dh, self.dw, 1 / TOKENS, *self.work,
        )  # fmt: skip
        self.table.update(self.dw, **NUMBERS)


def time_layers(
    sizes: list[int], threads: int, samples: int, uniform: bool
) -> list[dict[str, Any]]:
    """Both losses for each vocabulary, in alternation."""
    rows = []
    for V in sizes:
        layer = Layer(make_team(threads), V, uniform)
        works: dict[Any, Callable[[], Any]] = {
            "full": repeated(layer.full), "sampled": repeated(layer.sampled)
        }
        taken = alternate(works, samples)
        full, sampled = (statistics.median(taken[name].results) for name in ("full", "sampled"))
        rows.append({
            "V": V, "full_ms": 1e3 * full, "sampled_ms": 1e3 * sampled, "ratio": full / sampled,
            "noisy": any(t.noisy for t in taken.values()),
        })  # fmt: skip
    return rows


def library(folder: Path) -> int:
    """The standard library's .py files without its tests, copied; their bytes."""
    root, size = Path(sysconfig.get_paths()["stdlib"]), 0
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if {"test", "tests", "idle_test", "site-packages"} & set(name.parts):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / name)
        size += file.stat().st_size
    return size


def train(
    text: Path, out: Path, kind: str, steps: int, threads: int, **more: Any
) -> dict[str, Any]:
    """One training of the seed model; its last validation, and the seconds of its steps."""
    events: list[dict[str, Any]] = []
    crystalline.train(
        text, out, steps=steps, threads=threads, on_event=events.append,
        **SIZES, **KINDS[kind], **more,
    )  # fmt: skip
    stepped = [e for e in events if e["event"] == "step"]
    last = [e for e in events if e["event"] == "validation"][-1]
    return {
        "kind": kind, "validation": last["loss"], "validation_tokens": last["tokens"],
        "tokens": sum(e["tokens"] for e in stepped),
        "seconds": sum(e["seconds"] for e in stepped),
        "step_seconds": min(e["seconds"] for e in stepped),
    }  # fmt: skip


def compare_quality(minutes: float, steps: int | None, threads: int) -> dict[str, Any]:
    """Trains with all; without ``steps`` so many that all takes about ``minutes``."""
    kinds = [k for k in KINDS if k != "bf16" or make_team(1).has_bf16]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = library(folder / "text")
        begun = time.monotonic()
        trial = train(folder / "text", folder / "trial", "full", 2, threads)
        more = {"tokenizer": folder / "trial"}
        if steps is None:
            # The trainings and their validations.
            seconds = 60 * minutes - (time.monotonic() - begun)
            share = sum(SHARES[kind] for kind in kinds)
            steps = max(8, int(0.7 * seconds / share / trial["step_seconds"]))
        runs = [
            train(folder / "text", folder / kind, kind, steps, threads, **more) for kind in kinds
        ]
    for run in runs:
        run["gap"] = run["validation"] / runs[0]["validation"] - 1
        run["time"] = run["seconds"] / runs[0]["seconds"]
    return {"bytes": size, "steps": steps, "runs": runs}


@click.command()
@click.option("--vocabulary", multiple=True, default=[10000, 50000], type=int)
@click.option("--threads", default=2)
@click.option("--samples", default=7, help="Timed of each.")
@click.option("--uniform", is_flag=True, help="All words equally often.")
@click.option("--quality", is_flag=True, help="Train with each of them.")
@click.option("--minutes", default=10.0, help="Of --quality, in all.")
@click.option("--steps", type=int, help="Of each training, in place of --minutes.")
@click.option("--json", "as_json", is_flag=True)
def main(vocabulary: list[int], threads: int, samples: int, uniform: bool, quality: bool,
         minutes: float, steps: int | None, as_json: bool) -> None:  # fmt: skip
    """Times the output layer, or with --quality trains."""
    if quality:
        result = compare_quality(minutes, steps, threads)
        if as_json:
            print(json.dumps(result))
            return
        for run in result["runs"]:
            print(
                f"{run['kind']:8} validation {run['validation']:.4f} over "
                f"{run['validation_tokens']:,} tokens, after {result['steps']:,} steps of "
                f"{run['tokens']:,} tokens in {run['seconds']:.0f} s: "
                f"{100 * run['gap']:+.2f} %, {run['time']:.2f} of the time"
            )
        return
    rows = time_layers(list(vocabulary), threads, samples, uniform)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"V {row['V']:6}: full {row['full_ms']:8.1f} ms, {SAMPLES} samples "
            f"{row['sampled_ms']:6.2f} ms, {row['ratio']:.1f} times faster"
            + (" (others used the machine all the time)" if row["noisy"] else "")
        )


if __name__ == "__main__":
    main()
