"""The command line: a thin skin over the library, with the same names.

Standard output carries what was asked for: generated text, tables, JSON.  Progress goes to standard
error, live on a terminal and as plain lines elsewhere.  Libraries are imported when a command
needs them, so that --help is quick.
"""

from __future__ import annotations

import click

from crystalline import __version__
from crystalline.commands.bench import bench
from crystalline.commands.convert import export, import_
from crystalline.commands.evaluate import evaluate
from crystalline.commands.lattice import lattice
from crystalline.commands.look import info, spheres
from crystalline.commands.models import models
from crystalline.commands.plan import plan
from crystalline.commands.queue import queue
from crystalline.commands.train import train
from crystalline.commands.write import demo, generate

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=SETTINGS, invoke_without_command=True)
@click.version_option(__version__, prog_name="crystalline")
@click.pass_context
def cli(context: click.Context) -> None:
    """Trains small language models on this computer's CPU, and writes with them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


COMMANDS: tuple[click.Command, ...] = (
    train, generate, info, spheres, demo, bench,
    models, queue, plan, import_, export, evaluate, lattice,
)  # fmt: skip
for command in COMMANDS:
    cli.add_command(command)
