"""crystalline import and export."""

from __future__ import annotations

import os

import click

from crystalline.commands.common import one_of
from crystalline.errors import tame


def model_folder(name: str) -> str:
    """The folder of a model: a bare name lies in models/, anything with a / is a path."""
    if os.sep in name or name in (".", ".."):
        return name
    from crystalline.store.models import models_folder

    return os.fspath(models_folder() / name)


def _existing(name: str) -> str:
    """As ``model_folder``, for a model that is there."""
    return name if os.path.isdir(name) else model_folder(name)


QUIET = click.option("--quiet", is_flag=True, help="Show nothing but errors.")
EVENTS = "Write every event to standard output, one JSON object a line."
JSON = click.option("--json", "as_json", is_flag=True, help=EVENTS)


@click.command("import")
@click.argument("source", type=click.Path())
@click.argument("model", metavar="NAME_OR_FOLDER")
@QUIET
@JSON
def import_(source: str, model: str, quiet: bool, as_json: bool) -> None:
    """Take a model from SOURCE: a Hugging Face Llama folder or a GGUF file, tokenizer included.

    \b
    crystalline import SmolLM2-135M-Instruct.Q4_1.gguf smol
    crystalline generate models/smol --prompt "Once upon a time"
    crystalline train my_texts --out models/smol
    """
    one_of(quiet, as_json)
    from crystalline.formats.convert import import_model
    from crystalline.progress import display
    from crystalline.words import short

    with display(quiet, as_json) as show:
        said = import_model(source, model_folder(model), show)
    if quiet or as_json:
        return
    lines = [
        f"imported {short(said['parameters'])} parameters, context {said['context']:,}, vocabulary "
        f"{said['vocab_size']:,}: {tame(said['path'])}"
    ]
    if said["bytes_without_token"]:
        lines.append(
            f"{said['bytes_without_token']} of the 256 bytes have no token in this vocabulary "
            "(control characters and the like): texts lose them"
        )
    click.echo("\n".join(lines), err=True)


@click.command()
@click.argument("model")
@click.argument("target", metavar="FILE_OR_FOLDER", type=click.Path())
@click.option("--to", default="gguf", show_default=True, help="gguf, a file, or hf, a folder.")
@click.option("--type", "kind", default="f32", show_default=True,
              help="How a GGUF file keeps matrices: f32, f16, bf16 or q8_0.")  # fmt: skip
@QUIET
@JSON
def export(model: str, target: str, to: str, kind: str, quiet: bool, as_json: bool) -> None:
    """Write MODEL for others: as a GGUF file for llama.cpp, or as a Hugging Face folder.

    \b
    crystalline export models/mine mine.gguf --type q8_0
    """
    one_of(quiet, as_json)
    from crystalline.formats.convert import export_model
    from crystalline.progress import display
    from crystalline.words import short

    with display(quiet, as_json) as show:
        said = export_model(_existing(model), target, to, kind, show)
    if not quiet and not as_json:
        click.echo(f"exported {short(said['bytes'])}B: {tame(said['path'])}", err=True)
