"""crystalline train."""

from __future__ import annotations

from typing import Any

import click

from crystalline.commands.common import CPUS, SAMPLES, helps, one_of, options_of
from crystalline.config import LOSSES, PRECISIONS, PRESETS, STRATEGIES

# Name, type, what it does, and what holds when it is not given (which the library decides).
LENGTH_OPTIONS = (
    ("--minutes", float, "Train for so long, all included.", "5, without --steps or --epochs"),
    ("--steps", int, "Train for so many steps.", "chosen for the minutes"),
    ("--epochs", float, "Train for so many passes over the text.", "chosen for the minutes"),
)
SIZE_OPTIONS = (
    ("--vocab-size", int, "Tokens of the vocabulary.", "chosen by the size of the text"),
    ("--dim", int, "Width of the model.", "chosen for the time"),
    ("--layers", int, "Layers.", "chosen for the time"),
    ("--heads", int, "Attention heads.", "chosen by the width"),
    ("--kv-heads", int, "Key/value heads.", "as many as heads"),
    ("--hidden", int, "Width of the feed-forward part.", "8/3 of the model's width"),
    ("--seq-len", int, "Tokens the model sees at once.", "chosen for the time"),
    ("--batch-size", int, "Sequences in a batch.", "chosen by the width"),
    ("--accumulate", int, "Batches that make one step.", "1"),
    ("--lr", float, "Highest learning rate.", "chosen by the width"),
    ("--seed", int, "Decides the first weights and the order of the text.", "0"),
    ("--threads", int, "Threads; they change no bit of the result.", CPUS),
)


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, type=click.Path())
@click.option(
    "--out",
    type=click.Path(),
    default="models/model",
    show_default=True,
    help="Folder for the model.",
)
@options_of(LENGTH_OPTIONS)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help=helps("Sizes to begin with.", "sizes chosen for the time"),
)
@options_of(SIZE_OPTIONS)
@click.option(
    "--loss",
    type=click.Choice(LOSSES),
    help=helps("Train over the whole vocabulary, or over a sample of it for each batch.", "full"),
)
@click.option(
    "--samples", type=int, help=helps("Tokens that the sampled loss compares with.", SAMPLES)
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help=helps("Of what is multiplied: bf16 is faster, on CPUs with AVX512_BF16.", "fp32"),
)
@click.option(
    "--hierarchy-depth",
    type=click.Choice(["auto", "1", "2", "3"]),
    help=helps("How finely the 12 spheres divide their work: 12, 144 or 1728 leaves.", "auto"),
)
@click.option(
    "--work-stealing/--no-work-stealing",
    default=None,
    help=helps("Threads take over what others have not begun.", "they do"),
)
@click.option(
    "--recursive-spawning/--no-recursive-spawning",
    default=None,
    help=helps("With depth auto, spheres get children where threads stay uneven.", "they do"),
)
@click.option(
    "--thread-allocation",
    type=click.Choice(STRATEGIES),
    help=helps("How the spheres are laid out over threads and CPUs.", "auto"),
)
@click.option(
    "--pin/--no-pin",
    default=None,
    help=helps("Keep each thread on its CPU.", "only where all CPUs are used"),
)
@click.option(
    "--val",
    type=click.Path(),
    multiple=True,
    help=helps(
        "Text to measure on and not to learn from; repeatable.",
        "one document in ten, or the last tenth of a single one",
    ),
)
@click.option(
    "--tokenizer",
    type=click.Path(),
    help=helps("A tokenizer.json, or a folder with one.", "learnt from the text"),
)
@click.option(
    "--from",
    "--start-from",
    "start_from",
    type=click.Path(),
    help=helps(
        "A model whose weights and vocabulary training begins from.",
        "what an import left in --out, or else random weights",
    ),
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with what --out holds; PATH is not needed, the text is kept there.",
)
@click.option(
    "--config",
    type=click.Path(),
    metavar="FILE.toml",
    help="These options from a file, with underscores; the command line wins.",
)
@click.option("--quiet", is_flag=True, help="Show nothing but errors.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Write every event to standard output, one JSON object a line.",
)
def train(
    paths: tuple[str, ...],
    out: str,
    resume: bool,
    config: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on text and source code: files, or folders and all below them.

    The model goes to --out as a Hugging Face Llama folder, with what --resume needs and the
    measurements in metrics.jsonl. Ctrl-C stops after the step at hand and keeps everything.

    \b
    crystalline train my_project --minutes 10 --out models/mine
    crystalline train --resume --out models/mine
    """
    one_of(quiet, as_json)
    from crystalline import api
    from crystalline.progress import display

    if not options["val"]:  # an empty list would hide the file's
        options["val"] = None
    if (options["hierarchy_depth"] or "auto") != "auto":
        options["hierarchy_depth"] = int(options["hierarchy_depth"])
    with display(quiet, as_json) as show:
        api.train(paths or None, out, resume=resume, config=config, on_event=show, **options)
