"""The command line: a thin skin over the library, with the same names.

Standard output carries what was asked for: generated text, tables, JSON.  Progress goes to standard
error, live on a terminal and as plain lines elsewhere.  Libraries are imported when a command
needs them, so that --help is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from crystalline import __version__
from crystalline.config import LOSSES, PRECISIONS, PRESETS, STRATEGIES
from crystalline.errors import tame

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
DEMO_PROMPT = "ROMEO:"
CPUS = "as many as this process may use"
SAMPLES = "512, or all if they are fewer"

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
Command = TypeVar("Command", bound=Callable[..., Any])


def _help(words: str, default: str) -> str:
    return f"{words}  [default: {default}]"


def _options(table: Sequence[tuple[str, type, str, str]]) -> Callable[[Command], Command]:
    """The options of a table, in its order.  None stands for what was not said."""

    def decorate(command: Command) -> Command:
        for name, kind, words, default in reversed(table):
            command = click.option(name, type=kind, help=_help(words, default))(command)
        return command

    return decorate


@click.group(context_settings=SETTINGS, invoke_without_command=True)
@click.version_option(__version__, prog_name="crystalline")
@click.pass_context
def cli(context: click.Context) -> None:
    """Trains small language models on this computer's CPU, and writes with them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


@cli.command()
@click.argument("paths", metavar="PATH...", nargs=-1, type=click.Path())
@click.option(
    "--out",
    type=click.Path(),
    default="models/model",
    show_default=True,
    help="Folder for the model.",
)
@_options(LENGTH_OPTIONS)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help=_help("Sizes to begin with.", "sizes chosen for the time"),
)
@_options(SIZE_OPTIONS)
@click.option(
    "--loss",
    type=click.Choice(LOSSES),
    help=_help("Train over the whole vocabulary, or over a sample of it for each batch.", "full"),
)
@click.option(
    "--samples", type=int, help=_help("Tokens that the sampled loss compares with.", SAMPLES)
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help=_help("Of what is multiplied: bf16 is faster, on CPUs with AVX512_BF16.", "fp32"),
)
@click.option(
    "--hierarchy-depth",
    type=click.Choice(["auto", "1", "2", "3"]),
    help=_help("How finely the 12 spheres divide their work: 12, 144 or 1728 leaves.", "auto"),
)
@click.option(
    "--work-stealing/--no-work-stealing",
    default=None,
    help=_help("Threads take over what others have not begun.", "they do"),
)
@click.option(
    "--recursive-spawning/--no-recursive-spawning",
    default=None,
    help=_help("With depth auto, spheres get children where threads stay uneven.", "they do"),
)
@click.option(
    "--thread-allocation",
    type=click.Choice(STRATEGIES),
    help=_help("How the spheres are laid out over threads and CPUs.", "auto"),
)
@click.option(
    "--pin/--no-pin",
    default=None,
    help=_help("Keep each thread on its CPU.", "only where all CPUs are used"),
)
@click.option(
    "--val",
    type=click.Path(),
    multiple=True,
    help=_help(
        "Text to measure on and not to learn from; repeatable.",
        "one document in ten, or the last tenth of a single one",
    ),
)
@click.option(
    "--tokenizer",
    type=click.Path(),
    help=_help("A tokenizer.json, or a folder with one.", "learnt from the text"),
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
    _one_of(quiet, as_json)
    from crystalline import api
    from crystalline.progress import display

    if not options["val"]:  # an empty list would hide the file's
        options["val"] = None
    if (options["hierarchy_depth"] or "auto") != "auto":
        options["hierarchy_depth"] = int(options["hierarchy_depth"])
    with display(quiet, as_json) as show:
        api.train(paths or None, out, resume=resume, config=config, on_event=show, **options)


@cli.command()
@click.argument("folder", type=click.Path())
@click.option(
    "--prompt", default="", help=_help("Text to go on from.", "none: the model begins a text")
)
@_options(SAMPLING_OPTIONS)
@click.option("--stop", multiple=True, help=_help("End before this text; repeatable.", "none"))
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
        _write(model, prompt, as_json, options, {"step": step})
        return
    from crystalline.inference import load

    _write(load(folder, threads, precision), prompt, as_json, options)


@cli.command()
@click.argument("folder", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def info(folder: str, as_json: bool) -> None:
    """Show what is in FOLDER, and check every file of it."""
    from crystalline.info import describe, table

    said = describe(folder)
    if as_json:
        click.echo(json.dumps(said))
        return
    for name, text in table(said):
        click.echo(f"{click.style(f'{name:<11}', bold=True)} {tame(text)}")


@cli.command()
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


@cli.command()
@click.option("--minutes", default=1.5, show_default=True, help="Train for so long.")
@click.option("--out", type=click.Path(), default="models/demo", show_default=True,
              help="Folder for the model; one that is there is used as it is.")  # fmt: skip
def demo(minutes: float, out: str) -> None:
    """Train on the bundled plays of Shakespeare, and write a scene."""
    from crystalline.demo import demo_model
    from crystalline.progress import display

    with display(False, False) as show:
        model = demo_model(out, minutes, show)
    _write(model, DEMO_PROMPT, False, {"max_tokens": 300})


@cli.group()
def bench() -> None:
    """Measure how fast this computer trains."""


@bench.command()
@click.option("--preset", type=click.Choice(list(PRESETS)), default="seed", show_default=True,
              help="Sizes of the model.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 2**20), default=12, show_default=True,
              help="Sequences in a step.")  # fmt: skip
@click.option("--seq", type=click.IntRange(1, 2**20),
              help=_help("Tokens in a sequence.", "those of the preset"))  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
              help="Of what is multiplied.")  # fmt: skip
@click.option("--loss", type=click.Choice(LOSSES), default="full", show_default=True,
              help="Over the whole vocabulary, or over a sample of it.")  # fmt: skip
@click.option("--samples", type=click.IntRange(1),
              help=_help("Tokens that the sampled loss compares with.", SAMPLES))  # fmt: skip
@click.option("--steps", type=click.IntRange(5), default=5, show_default=True,
              help="Steps timed, after two that are not.")  # fmt: skip
@click.option("--threads", type=int, help=_help("Threads.", CPUS))
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def step(preset: str, batch: int, seq: int | None, precision: str, loss: str, samples: int,
         steps: int, threads: int | None, as_json: bool) -> None:  # fmt: skip
    """Time a training step on random tokens: forward, backward, clipping, AdamW."""
    from crystalline.bench import bench_step

    result = bench_step(preset, batch, seq, steps, threads, loss, samples, precision)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{preset}, batch {batch} x {result['seq']}, {precision}, {loss} loss, "
        f"{result['threads']} threads, {result['isa']}: {result['tokens_per_s']:,.0f} tokens/s, "
        f"{result['ms_per_step']:,.1f} ms a step, {result['gflops']:.1f} GFLOP/s, "
        f"peak memory {result['peak_rss_mib']:,.0f} MiB (median of {steps} steps)"
    )


def _one_of(quiet: bool, as_json: bool) -> None:
    if quiet and as_json:
        raise click.UsageError("--quiet and --json exclude each other; choose one.")


def _write(
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
