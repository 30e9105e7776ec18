"""crystalline info and spheres: what is in a folder, and what happens there."""

from __future__ import annotations

import json

import click

from crystalline.errors import tame


@click.command()
@click.argument("folder", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def info(folder: str, as_json: bool) -> None:
    """Show what is in FOLDER, and check every file of it."""
    from crystalline.checkpoints.info import describe, table
    from crystalline.store.models import folder_of

    said = describe(folder_of(folder))
    if as_json:
        click.echo(json.dumps(said))
        return
    for name, text in table(said):
        click.echo(f"{click.style(f'{name:<11}', bold=True)} {tame(text)}")


@click.command()
@click.argument("folder", type=click.Path())
@click.option("--once", is_flag=True, help="Show them as they are now, and end.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object, and end.")
def spheres(folder: str, once: bool, as_json: bool) -> None:
    """Watch the 12 spheres of the training in FOLDER.

    From another terminal, until the training ends or you press Ctrl-C, which it does not notice.
    Times are shares of each sphere's own: busy on its tasks, waiting at barriers for others, idle
    between them; norm is its share of the squared gradient norm.
    """
    if as_json:
        from crystalline.spheres.live import LiveTraining

        with LiveTraining.attach(folder) as training:
            click.echo(json.dumps(training.board()))
        return
    from crystalline.progress import watch

    watch(folder, once)
