"""crystalline eval."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from crystalline.commands.common import CPUS, helps
from crystalline.config import PRECISIONS
from crystalline.errors import tame
from crystalline.evaluation.parsing import LANGUAGES
from crystalline.words import plural

if TYPE_CHECKING:
    from crystalline.evaluation.code import CodeEvaluation
    from crystalline.evaluation.score import Evaluation, Score

SHOWN = 3  # pieces of code that are shown


@click.command("eval")
@click.argument("folder", metavar="MODEL", type=click.Path())
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@click.option("--per-document", is_flag=True, help="Show every text beside all together.")
@click.option("--seq-len", type=int,
              help=helps("Tokens the model sees at once.", "as many as it knows"))  # fmt: skip
@click.option("--stride", type=int,
              help=helps("Tokens between the beginnings of two windows; fewer than --seq-len give "
                         "more context and take longer.", "--seq-len"))  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS),
              help=helps("Of what is multiplied.", "that of its training"))  # fmt: skip
@click.option("--code", type=click.Choice(list(LANGUAGES)),
              help="Instead, let the model write code, and see how much of it parses.")  # fmt: skip
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True,
              help="Pieces of code.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=200, show_default=True,
              help="Most tokens of a piece of code.")  # fmt: skip
@click.option("--temperature", type=float, default=0.8, show_default=True,
              help="How adventurous code is written.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Decides which code is written, and which is taken beside it.")  # fmt: skip
@click.option("--threads", type=int, help=helps("Threads; they change no figure.", CPUS))
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def evaluate(
    folder: str, paths: tuple[str, ...], code: str | None, per_document: bool, as_json: bool,
    threads: int | None, seq_len: int | None, stride: int | None, precision: str | None,
    **writing: Any,
) -> None:  # fmt: skip
    """Measure MODEL on texts: files, or folders and all below them; without PATH on the text that
    its training held out.

    Loss (nats per token), perplexity, and bits per byte, in which models of different vocabularies
    can be compared. With --code the share of what it writes that parses, beside the share of real
    code cut to the same lengths.

    \b
    crystalline eval models/mine book.txt more_texts
    crystalline eval models/mine my_project --code c
    """
    from crystalline.commands.waiting import Waiting
    from crystalline.store.models import folder_of

    folder = folder_of(folder)
    if code is not None:
        from crystalline.evaluation.code import evaluate_code

        with Waiting("writing code") as waiting:
            written = evaluate_code(
                folder, paths, code, threads=threads, on_progress=waiting, **writing
            )
        click.echo(json.dumps({"model": folder, **written.described()}) if as_json else
                   "\n".join(code_lines(written)))  # fmt: skip
        return
    from crystalline.evaluation.score import evaluate as measure

    with Waiting("measuring") as waiting:
        measured = measure(
            folder, paths, seq_len=seq_len, stride=stride, precision=precision, threads=threads,
            on_progress=waiting,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"model": folder, **described(measured, per_document)}))
        return
    click.echo("\n".join(score_lines(measured, per_document)))
    if measured.skipped:
        click.echo(f"skipped {len(measured.skipped):,}, such as {tame(measured.skipped[0].path)} "
                   f"({tame(measured.skipped[0].reason)})", err=True)  # fmt: skip


def described(measured: Evaluation, per_document: bool) -> dict[str, Any]:
    """JSON-able."""
    said = {
        "total": measured.total.described(), "documents": len(measured.documents),
        "seq_len": measured.seq_len, "stride": measured.stride, "precision": measured.precision,
        "skipped": len(measured.skipped),
    }  # fmt: skip
    if per_document:
        said["per_document"] = [one.described() for one in measured.documents]
    return said


def score_lines(measured: Evaluation, per_document: bool) -> list[str]:
    """The scores as a table, the sum of all last."""
    head = ("text", "bytes", "tokens", "nats/token", "perplexity", "bits/byte")
    single = len(measured.documents) == 1
    each = [_row(one, tame(one.name)) for one in measured.documents if per_document or single]
    return _columns([head, *each, *([] if single else [_row(measured.total, "all")])])


def _row(one: Score, name: str) -> tuple[str, ...]:
    return (name, f"{one.bytes:,}", f"{one.tokens:,}", f"{one.loss:.4f}", f"{one.perplexity:,.2f}",
            f"{one.bits_per_byte:.4f}")  # fmt: skip


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Names to the left, figures to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def code_lines(e: CodeEvaluation) -> list[str]:
    """Shares by prompt and in all, and some pieces as they were judged."""
    names = {"tree-sitter": "parses", "python": "compiles"}
    rows = [["prompt", "pieces"]]
    rows[0] += [f"{side} {names[j]}" for j in e.judges for side in ("written", "real")]
    for prompt, n in [*e.prompts().items(), (None, len(e.generated))]:
        passed = [e.count(side, j, prompt) for j in e.judges for side in (e.generated, e.real)]
        rows.append([prompt or "all", str(n), *(f"{100 * count / n:.0f} %" for count in passed)])
    lines = [
        *_columns(rows), "",
        f"pieces of at most {e.max_tokens} tokens, temperature {e.temperature:g}, seed {e.seed}, "
        f"cut at the last complete line; real code from {plural(e.documents, 'text')}, "
        f"{e.same_start} of {len(e.real)} pieces from lines with the same prompt",
    ]  # fmt: skip
    for piece in e.generated[:SHOWN]:
        verdict = "parses" if piece.parses["tree-sitter"] else "does not parse"
        lines += ["", f"--- {piece.prompt} ({verdict})", tame(piece.text.rstrip("\n"), "\n\t")]
    return lines
