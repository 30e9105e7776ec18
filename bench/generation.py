"""Tokens per second of generation, ours and PyTorch's, and the share of the read bandwidth.

    python bench/generation.py --model seed --model m --threads 2

Random weights, greedy, after a prompt of 16 tokens; the least disturbed token counts on both
sides.  The bandwidth is that of a product of one row with a matrix of 256 MiB, in turn with
them; a model's share is (bytes of its weights / seconds a token) / bandwidth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from crystalline._native import PRECISIONS, Team
from crystalline.config import PRESETS, ModelConfig
from crystalline.model import Parameters, initialise
from crystalline.weights import Cache, Weights

PEER = [sys.executable, str(Path(__file__).with_name("torch_generation.py"))]


def fastest(works: list[Callable[[], None]], times: int) -> list[float]:
    """Seconds of the least disturbed call of each, in turn."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(times):
        for mine, work in zip(seconds, works, strict=True):
            begun = time.perf_counter()
            work()
            mine.append(time.perf_counter() - begun)
    return [min(mine) for mine in seconds]


def reading(team: Team, mib: int) -> Callable[[], None]:
    """A work that reads so much from memory: a product of one row."""
    columns = 1024
    rows = mib * 2**18 // columns
    weight = team.weight(np.ones((rows, columns), np.float32))
    x, y = np.ones((1, columns), np.float32), np.empty((1, rows), np.float32)
    return lambda: team.matmul_weight(y, x, weight)


def ours(
    c: ModelConfig, tensors: Parameters, team: Team, precision: str, batch: int, tokens: int,
    read: Callable[[], None],
) -> tuple[float, float, int]:  # fmt: skip
    """Seconds a step, and of ``read`` in turn with it; bytes of weights that a step reads."""
    weights = Weights(c, tensors.named, team, precision)
    caches = [Cache(c, 16 + tokens) for _ in range(batch)]
    keys, values = [k.keys for k in caches], [k.values for k in caches]
    h, logits = np.empty((batch, c.dim), np.float32), np.empty((batch, c.vocab_size), np.float32)
    begin = np.tile(np.arange(16, dtype=np.int32), batch)
    ids, at = np.zeros(batch, np.int32), [16]
    team.decode(
        np.empty((16 * batch, c.dim), np.float32), weights.stack, begin, keys, values,
        np.full(batch, 16), np.zeros(batch, np.int64),
    )  # fmt: skip

    def step() -> None:
        ones = np.ones(batch, np.int64)
        team.decode(h, weights.stack, ids, keys, values, ones, ones * at[0])
        team.matmul_weight(logits, h, weights.head)
        ids[:] = logits.argmax(1)
        at[0] += 1

    size = weights.nbytes if c.tied else weights.nbytes - weights.embedding.nbytes
    seconds, reads = fastest([step, read], tokens)
    return seconds, reads, size


def torch_rate(name: str, precision: str, batch: int, tokens: int, threads: int) -> float:
    words = {"model": name, "precision": precision, "batch": batch, "tokens": tokens,
             "threads": threads}  # fmt: skip
    command = [*PEER, *(f"--{key}={value}" for key, value in words.items())]
    environment = os.environ | {"OMP_WAIT_POLICY": "active"}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(out.stdout.splitlines()[-1])["tokens_per_s"])


@click.command()
@click.option("--model", "names", multiple=True, default=("seed", "m"))
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8))
@click.option("--precision", "precisions", multiple=True, default=PRECISIONS)
@click.option("--tokens", default=48)
@click.option("--threads", default=2)
@click.option("--mib", default=256, help="Of the matrix that measures the bandwidth.")
@click.option("--torch/--no-torch", "peer", default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    names: tuple[str, ...], batches: tuple[int, ...], precisions: tuple[str, ...], tokens: int,
    threads: int, mib: int, peer: bool, as_json: bool,
) -> None:  # fmt: skip
    """One line for each model, precision and batch."""
    team, rows = Team(threads), []
    probe = reading(team, mib)
    for name in names:
        c = PRESETS[name]
        parameters = Parameters(c)
        initialise(parameters, 0)
        for precision in precisions:
            for batch in batches:
                seconds, reads, read = ours(
                    c, parameters, team, precision, batch, tokens, probe
                )
                most = mib * 2**20 / reads
                row = {"model": name, "precision": precision, "batch": batch,
                       "tokens_per_s": batch / seconds, "weight_mib": read / 2**20,
                       "gb_per_s": most / 1e9, "share": read / seconds / most}  # fmt: skip
                if peer and precision != "int8":
                    row["torch"] = torch_rate(name, precision, batch, tokens, threads)
                    row["ratio"] = batch / seconds / row["torch"]
                rows.append(row)
                if not as_json:
                    print(line(row), flush=True)
    if as_json:
        print(json.dumps({"rows": rows}))


def line(row: dict[str, float]) -> str:
    """A row for people."""
    text = (
        f"{row['model']:5} {row['precision']} batch {row['batch']}: {row['tokens_per_s']:8.0f} "
        f"tokens/s, {row['weight_mib']:6.1f} MiB a step, {row['share']:.2f} of "
        f"{row['gb_per_s']:.1f} GB/s"
    )
    return text + (f", {row['ratio']:.2f} times torch" if "ratio" in row else "")


if __name__ == "__main__":
    main()
