"""crystalline plan."""

from __future__ import annotations

import json
from typing import Any

import click

from crystalline.commands.common import SAMPLES, helps, options_of
from crystalline.commands.train import LENGTH_OPTIONS, SIZE_OPTIONS
from crystalline.config import LOSSES, OPTIMIZERS, PRECISIONS, PRESETS


@click.command()
@click.argument("paths", metavar="[PATH...]", nargs=-1, type=click.Path())
@click.option("--params", metavar="NUMBER",
              help=helps("So many parameters, as 100M or 1.5B.", "sizes as told"))  # fmt: skip
@options_of(LENGTH_OPTIONS)
@click.option("--preset", type=click.Choice(list(PRESETS)),
              help=helps("Sizes to begin with.", "sizes chosen for the time"))  # fmt: skip
@options_of(SIZE_OPTIONS)
@click.option("--loss", type=click.Choice(LOSSES),
              help=helps("Over the whole vocabulary, or over a sample of it.", "full"))  # fmt: skip
@click.option("--samples", type=int,
              help=helps("Tokens that the sampled loss compares with.", SAMPLES))  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS),
              help=helps("Of what is multiplied.", "fp32"))  # fmt: skip
@click.option("--optimizer", type=click.Choice(OPTIMIZERS),
              help=helps("What makes new weights of gradients.", "adamw"))  # fmt: skip
@click.option("--ema", type=float,
              help=helps("Keep an average of the weights with this decay.", "none"))  # fmt: skip
@click.option("--processes", type=int, default=1, show_default=True,
              help="Processes that share the 12 groups: 1, 2, 3, 4, 6 or 12.")  # fmt: skip
@click.option("--val", type=click.Path(), multiple=True,
              help=helps("Text to measure on.", "a tenth"))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def plan(
    paths: tuple[str, ...], params: str | None, processes: int, as_json: bool, **options: Any
) -> None:  # fmt: skip
    """Tell what a training takes before it starts: memory, speed, time, disk.

    PATH is the text, if there is one already. Without a length, time is that of 20 tokens for each
    parameter. Speed is measured by training a little, in a few seconds.

    \b
    crystalline plan my_project --minutes 10
    crystalline plan --params 100M --precision bf16
    """
    from rich.console import Console

    from crystalline.forecast.planning import forecast
    from crystalline.forecast.table import view
    from crystalline.options import train_config

    options["val"] = options["val"] or None
    said = train_config(options, "plan")
    f = forecast(paths, params=params, processes=processes, options=said)
    if as_json:
        click.echo(json.dumps(f))
        return
    Console(highlight=False).print(view(f))
