"""crystalline generate and demo: what the models write."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from crystalline.commands.common import CPUS, helps, options_of
from crystalline.errors import tame

DEMO_PROMPT = "ROMEO:"
SAMPLING_OPTIONS = (
    ("--max-tokens", int, "Most tokens to make.", "200"),
    ("--temperature", float, "0 takes the likeliest token; more is more adventurous.", "0.8"),
    ("--top-k", int, "Choose among so many of the likeliest tokens; 0 is all.", "0"),
    ("--top-p", float, "Choose among the likeliest that together have this probability.", "1.0"),
    ("--min-p", float, "Leave out tokens below this share of the likeliest one.", "0.0"),
    ("--repetition-penalty", float, "Above 1, avoid tokens that were there before.", "1.0"),
    ("--seed", int, "The same seed gives the same text, on any number of threads.", "0"),
    ("--threads", int, "Threads; they change no character of the text.", CPUS),
)


@click.command()
@click.argument("folder", type=click.Path())
@click.option(
    "--prompt", default="", help=helps("Text to go on from.", "none: the model begins a text")
)
@options_of(SAMPLING_OPTIONS)
@click.option("--stop", multiple=True, help=helps("End before this text; repeatable.", "none"))
@click.option("--precision", default="fp32", show_default=True,
              help="How the weights are kept: fp32, bf16 or int8.")  # fmt: skip
@click.option(
    "--live", is_flag=True, help="Write with the weights of the training that runs there now."
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object: prompt and text.")
def generate(
    folder: str, prompt: str, precision: str, live: bool, as_json: bool, threads: int | None,
    **options: Any,
) -> None:  # fmt: skip
    """Write with the model in FOLDER, as it comes, after the prompt.

    The prompt is repeated in front, in bold on a terminal; --json keeps the two apart.
    """
    options = {k: v for k, v in options.items() if v is not None}
    if live:
        from crystalline.spheres.live import load_live

        model, step = load_live(folder, threads, precision)
        click.echo(click.style(f"weights of step {step:,}", dim=True), err=True)
        write(model, prompt, as_json, options, {"step": step})
        return
    from crystalline.inference.model import load
    from crystalline.store.models import folder_of

    write(load(folder_of(folder), threads, precision), prompt, as_json, options)


@click.command()
@click.option("--minutes", default=1.5, show_default=True, help="Train for so long.")
@click.option("--out", type=click.Path(), default="models/demo", show_default=True,
              help="Folder for the model; one that is there is used as it is.")  # fmt: skip
def demo(minutes: float, out: str) -> None:
    """Train on the bundled plays of Shakespeare, and write a scene."""
    from crystalline.demo import demo_model
    from crystalline.progress import display

    with display(False, False) as show:
        model = demo_model(out, minutes, show)
    write(model, DEMO_PROMPT, False, {"max_tokens": 300})


def write(
    model: Any,
    prompt: str,
    as_json: bool,
    options: dict[str, Any],
    said: dict[str, Any] | None = None,
) -> None:
    """The prompt and what the model makes of it, to standard output; JSON has ``said`` too."""
    pieces = model.stream(prompt, **options)
    if as_json:
        click.echo(json.dumps({"prompt": prompt, "text": "".join(pieces), **(said or {})}))
        return
    terminal = sys.stdout.isatty()
    click.echo(click.style(prompt, bold=True) if terminal and prompt else prompt, nl=False)
    for piece in pieces:
        # A model may have learnt what would steer the terminal.
        click.echo(tame(piece, "\n\t") if terminal else piece, nl=False)
    click.echo()
