"""crystalline train."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from crystalline.commands.common import (
    CPUS,
    MODELS_DIR,
    SAMPLES,
    helps,
    one_of,
    options_of,
    said_options,
)
from crystalline.config import (
    DEFAULT_INIT,
    DEFAULT_LAMBDA_CORRECTION,
    DEFAULT_ROPE,
    INITS,
    LOSSES,
    OPTIMIZERS,
    PRECISIONS,
    PRESETS,
    ROPES,
    SCHEDULES,
    STRATEGIES,
)


def number_or_on(text: str) -> float | str:
    """What --lambda-correction says; the library refuses what is neither."""
    try:
        return float(text)
    except ValueError:
        return text


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

LEARNING_OPTIONS = (
    ("--warmup", float, "Share of the training in which the learning rate rises.", "0.05"),
    ("--floor", float, "The learning rate at the end, as a share of its peak.", "0.02"),
    ("--decay", float, "Share of the training in which it falls, with schedule wsd.", "0.2"),
    ("--clip", float, "Hold the gradient's norm to this; 0 leaves it as it is.", "1"),
    ("--weight-decay", float, "Decay of the layers' matrices.", "chosen by the passes"),
    ("--embedding-decay", float, "Decay of embedding and output weight.", "as --weight-decay"),
    ("--norm-decay", float, "Decay of the norms' gains.", "0"),
    ("--ema", float, "Keep an average of the weights with this decay; 0 keeps none.", "0"),
)

KEEPING_OPTIONS = (
    ("--evaluation-interval", int, "Validate after every so many steps; 0: 8 times, evenly.", "0"),
    ("--save-steps", int, "Write a checkpoint after every so many steps.", "by the time it takes"),
    ("--save-minutes", float, "And when so many minutes have passed.", "by the time it takes"),
    ("--keep", int, "Keep so many of the last checkpoints, for --at.", "0: the present one alone"),
    ("--milestones", int, "Keep one for ever after every so many steps.", "0: none"),
    ("--patience", int, "End after so many validations without a better one.", "0: never"),
    ("--min-delta", float, "What is better must be so by more than this (nats).", "0"),
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
    "--optimizer",
    type=click.Choice(OPTIMIZERS),
    help=helps("What makes new weights of gradients.", "muon where minutes are said, else adamw"),
)
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    help=helps("The course of the learning rate.", "cosine"),
)
@options_of(LEARNING_OPTIONS)
@click.option(
    "--init",
    type=click.Choice(INITS),
    help=helps("The first embedding: drawn by chance, or the lattice's.", DEFAULT_INIT),
)
@click.option(
    "--rope",
    type=click.Choice(ROPES),
    help=helps("Frequencies of the rotary positions; lattice cannot be exported.", DEFAULT_ROPE),
)
@click.option(
    "--lambda-correction",
    type=number_or_on,
    metavar="NUMBER|on",
    help=helps(
        "Multiply gradients by 1 less this; on is 3/144000, 0 is off.",
        f"{DEFAULT_LAMBDA_CORRECTION:g}",
    ),
)
@click.option(
    "--boundary-counters/--no-boundary-counters",
    default=None,
    help=helps("Count where neighbouring tokens lie on both sides of 144000.", "they are counted"),
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
    "--packing/--no-packing",
    default=None,
    help=helps("Put several short documents into one sequence.", "where padding would be much"),
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
    "--at",
    type=int,
    metavar="STEP",
    help=helps("With --resume: go back to a checkpoint that was kept.", "the last one"),
)
@options_of(KEEPING_OPTIONS)
@click.option(
    "--config",
    type=click.Path(),
    metavar="FILE.toml",
    help="These options from a file, with underscores; the command line wins.",
)
@click.option(
    "--watch",
    type=click.Path(),
    multiple=True,
    help=helps("With a model: queue and train what comes into this folder; repeatable.", "none"),
)
@click.option(
    "--flush", is_flag=True, help="With a model: train also what does not fill a whole step."
)
@MODELS_DIR
@click.option("--quiet", is_flag=True, help="Show nothing but errors.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Write every event to standard output, one JSON object a line.",
)
@click.pass_obj
def train(
    begun: float | None,
    /,
    paths: tuple[str, ...],
    out: str,
    resume: bool,
    at: int | None,
    config: str | None,
    watch: tuple[str, ...],
    flush: bool,
    models_dir: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on text and source code: files, or folders and all below them.

    The model goes to --out as a Hugging Face Llama folder, with what --resume needs and the
    measurements in metrics.jsonl. Ctrl-C stops after the step at hand and keeps everything.
    --resume goes on to the same bits as never having stopped; what is said with it (--steps,
    --epochs, --lr, --batch-size, more --layers ...) holds from there on.

    Where PATH is a model instead, its folder or its name, it is trained on what waits in its queue,
    every document for --epochs epochs.

    \b
    crystalline train my_project --minutes 10 --out models/mine
    crystalline train --resume --out models/mine
    crystalline queue add mine notes.txt
    crystalline train mine --flush
    crystalline train mine --watch inbox
    """
    one_of(quiet, as_json)
    from crystalline import api
    from crystalline.pipeline.fed import feed, model_to_feed
    from crystalline.progress import display

    options = said_options(options)
    context = click.get_current_context()
    elsewhere = context.get_parameter_source("out") is ParameterSource.COMMANDLINE
    model = None
    if (watch or flush) and (resume or elsewhere):
        raise click.UsageError("--watch and --flush go with a model and its queue; name it alone.")
    if not (resume or elsewhere):
        model = model_to_feed(paths, models_dir, bool(watch) or flush)
    with display(quiet, as_json) as show:
        if model is not None:
            feed(model, watch=watch, flush=flush, config=config, on_event=show, **options)
            return
        said = {"resume": resume, "at": at, "config": config, "begun": begun, **options}
        with api.training(paths or None, out, on_event=show, **said) as trainer:
            trainer.run()
