"""crystalline bench."""

from __future__ import annotations

import json

import click

from crystalline.commands.common import CPUS, SAMPLES, helps
from crystalline.config import LOSSES, OPTIMIZERS, PRECISIONS, PRESETS


@click.group()
def bench() -> None:
    """Measure how fast this computer trains."""


@bench.command()
@click.option("--preset", type=click.Choice(list(PRESETS)), default="seed", show_default=True,
              help="Sizes of the model.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 2**20), default=12, show_default=True,
              help="Sequences in a step.")  # fmt: skip
@click.option("--seq", type=click.IntRange(1, 2**20),
              help=helps("Tokens in a sequence.", "those of the preset"))  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
              help="Of what is multiplied.")  # fmt: skip
@click.option("--loss", type=click.Choice(LOSSES), default="full", show_default=True,
              help="Over the whole vocabulary, or over a sample of it.")  # fmt: skip
@click.option("--samples", type=click.IntRange(1),
              help=helps("Tokens that the sampled loss compares with.", SAMPLES))  # fmt: skip
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", show_default=True,
              help="What makes new weights of gradients.")  # fmt: skip
@click.option("--steps", type=click.IntRange(5), default=5, show_default=True,
              help="Steps timed, after two that are not.")  # fmt: skip
@click.option("--threads", type=int, help=helps("Threads.", CPUS))
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def step(preset: str, batch: int, seq: int | None, precision: str, loss: str, samples: int,
         optimizer: str, steps: int, threads: int | None, as_json: bool) -> None:  # fmt: skip
    """Time a training step on random tokens: forward, backward, clipping, optimizer."""
    from crystalline.bench import bench_step

    result = bench_step(
        preset, batch, seq, steps, threads, loss, samples, precision, optimizer
    )
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{preset}, batch {batch} x {result['seq']}, {precision}, {loss} loss, "
        f"{optimizer}, "
        f"{result['threads']} threads, {result['isa']}: {result['tokens_per_s']:,.0f} tokens/s, "
        f"{result['ms_per_step']:,.1f} ms a step, {result['gflops']:.1f} GFLOP/s, "
        f"peak memory {result['peak_rss_mib']:,.0f} MiB (median of {steps} steps)"
    )
