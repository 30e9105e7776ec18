"""crystalline queue: what waits to be learnt by a model, and what became of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from crystalline.commands.common import AS_JSON, MODELS_DIR, columns, moment, rows_of, sure
from crystalline.errors import tame
from crystalline.words import plural, short

MODEL = click.argument("model", type=click.Path())


@click.group()
def queue() -> None:
    """Documents that a model is to learn: add, look, retry, remove.

    MODEL is a name in the folder of models, or a path. DOCUMENT is an id, the beginning of a hash,
    or the path it came from.
    """


def _open(model: str, models_dir: str | None, write: bool = False) -> Any:
    from crystalline.store import Store
    from crystalline.store.models import resolve_model

    return Store.open(resolve_model(model, models_dir), create=write, read_only=not write)


@queue.command()
@MODEL
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--priority", type=int, default=0, show_default=True, help="Higher ones come first.")
@click.option("--weight", type=int, default=1, show_default=True, help="Times in an epoch.")
@click.option("--url", help="Where a single text came from, instead of its path.")
@MODELS_DIR
@AS_JSON
def add(model: str, paths: tuple[str, ...], priority: int, weight: int, url: str | None,
        models_dir: str | None, as_json: bool) -> None:  # fmt: skip
    """Queue the texts in files and folders; - is standard input.

    A text that the model knows already is not queued again, but where it came from is noted. It may
    be done while the model trains, and by several processes at once.
    """
    from crystalline.pipeline.gather import queue_paths
    from crystalline.progress import display, left_out

    with _open(model, models_dir, write=True) as store, display(as_json, False) as on_event:
        done = queue_paths(
            store, paths, priority=priority, weight=weight, source=url, on_event=on_event
        )
    skipped = [asdict(one) for one in done.skipped]
    if as_json:
        click.echo(json.dumps({**done.added._asdict(), "skipped": skipped}))
        return
    for line in left_out(skipped):
        click.echo(line, err=True)
    known = f", {plural(done.added.known, 'text')} known already" if done.added.known else ""
    click.echo(f"queued {plural(done.added.new, 'text')}, {short(done.added.bytes)}B{known}")


@queue.command("list")
@MODEL
@click.option("--state", help="Only these: pending, leased, tokenized, trained, failed, ...")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True,
              help="Documents shown at most.")  # fmt: skip
@click.option("--after", type=int, default=0, show_default=True, help="Only ids above this one.")
@MODELS_DIR
@AS_JSON
def list_(model: str, state: str | None, limit: int, after: int, models_dir: str | None,
          as_json: bool) -> None:  # fmt: skip
    """Show how many documents are in which state, and the first of them."""
    with _open(model, models_dir) as store:
        counts = store.counts()
        found = store.documents(state, limit=limit, after=after)
        sources = [store.sources(one.id)[0]["source"] for one in found]
    if as_json:
        said = {name: {"documents": n, "bytes": size} for name, (n, size) in counts.items()}
        documents = [
            asdict(one) | {"source": source} for one, source in zip(found, sources, strict=True)
        ]
        click.echo(json.dumps({"states": said, "documents": documents}))
        return
    total = sum(n for n, _ in counts.values())
    if not total:
        click.echo("the queue is empty; fill it with crystalline queue add MODEL PATH")
        return
    states = ", ".join(f"{n:,} {name} ({short(size)}B)" for name, (n, size) in counts.items() if n)
    click.echo(f"{plural(total, 'document')}: {states}")
    if found:
        head = ("id", "hash", "state", "bytes", "priority", "weight", "tokens", "epochs", "source")
        click.echo(columns(head, map(_row, found, sources), {1, 2, 8}))
    if len(found) == limit:
        last = found[-1].id if found else after
        click.echo(f"--after {last} shows those that follow, --limit more of them at once")


def _row(one: Any, source: str) -> list[str]:
    tokens = "" if one.tokens is None else f"{one.tokens:,}"
    numbers = (f"{one.bytes:,}", str(one.priority), str(one.weight), tokens, str(one.epochs))
    return [str(one.id), one.hash[:12], one.state, *numbers, source]


@queue.command()
@MODEL
@click.argument("document")
@MODELS_DIR
@AS_JSON
def show(model: str, document: str, models_dir: str | None, as_json: bool) -> None:
    """Show one document: its state, where it came from, what went wrong."""
    with _open(model, models_dir) as store:
        one = store.find(document)
        (traced,) = store.provenance(one.id)
    if as_json:
        click.echo(json.dumps(asdict(one) | traced))
        return
    again = f", tried again at {moment(one.until)}" if one.state == "failed" and one.until else ""
    held = f" by {one.owner} until {moment(one.until)}" if one.owner and one.until else ""
    rows = [
        ("document", f"{one.id}, {one.bytes:,} bytes, added {moment(one.added)}"),
        ("SHA-256", one.hash),
        ("state", f"{one.state}{held}{again}"),
        ("order", f"priority {one.priority}, weight {one.weight}"),
    ]
    if one.error:
        rows.append(("error", f"{one.error} ({plural(one.attempts, 'attempt')})"))
    click.echo(rows_of([*rows, *_trace(traced)]))


def _trace(traced: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for source in traced["sources"]:
        times = f", {source['arrivals']:,} times until {moment(source['last'])}"
        more = times if source["arrivals"] > 1 else ""
        rows.append(("from", f"{source['source']}, {moment(source['first'])}{more}"))
    if tokens := traced["tokens"]:
        rows.append(
            ("tokens", f"{tokens['number']:,} from {tokens['first']:,} on: place "
             f"{tokens['place']:,}, segment {tokens['segment']}")
        )  # fmt: skip
    for one in traced["passes"]:
        to = "under way" if one["last_step"] is None else f"to {one['last_step']:,}"
        rows.append(("epoch", f"pass {one['pass']}: from step {one['first_step']:,}, {to}"))
    return rows


@queue.command()
@MODEL
@click.argument("documents", metavar="[DOCUMENT]...", nargs=-1)
@MODELS_DIR
@AS_JSON
def retry(model: str, documents: tuple[str, ...], models_dir: str | None, as_json: bool) -> None:
    """Try failed and dead documents again, all without DOCUMENT."""
    with _open(model, models_dir, write=True) as store:
        ids = [store.find(name).id for name in documents]
        _told("retried", store.retry(ids if documents else None), as_json)


@queue.command()
@MODEL
@click.argument("documents", metavar="DOCUMENT...", nargs=-1, required=True)
@MODELS_DIR
@AS_JSON
def remove(model: str, documents: tuple[str, ...], models_dir: str | None, as_json: bool) -> None:
    """Forget documents that wait; what is part of the model's text stays."""
    with _open(model, models_dir, write=True) as store:
        _told("removed", store.remove([store.find(name).id for name in documents]), as_json)


@queue.command()
@MODEL
@click.option("--state", "states", multiple=True,
              help="Only these: pending, failed or dead; repeatable.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
@MODELS_DIR
@AS_JSON
def clear(model: str, states: tuple[str, ...], yes: bool, models_dir: str | None,
          as_json: bool) -> None:  # fmt: skip
    """Forget all documents that wait."""
    from crystalline.store.queue import WAITING

    with _open(model, models_dir, write=True) as store:
        chosen = states or WAITING
        count = sum(n for state, (n, _) in store.counts().items() if state in chosen)
        sure(yes or not count, f"Forget {plural(count, 'document')} of {tame(model)}?")
        _told("removed", store.clear(chosen), as_json)


def _told(what: str, count: int, as_json: bool) -> None:
    click.echo(json.dumps({what: count}) if as_json else f"{what} {plural(count, 'document')}")


@queue.command()
@MODEL
@click.argument("document", required=False)
@click.option("--after", type=int, default=0, show_default=True, help="Only ids above this one.")
@MODELS_DIR
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object for each document.")
def provenance(model: str, document: str | None, after: int, models_dir: str | None,
               as_json: bool) -> None:  # fmt: skip
    """Show which documents gave which tokens, and in which epochs they were trained."""
    with _open(model, models_dir) as store:
        one = store.find(document).id if document else None
        for traced in store.provenance(one, after=after):
            if as_json:
                click.echo(json.dumps(traced))
                continue
            head = [("document", f"{traced['id']}, {traced['state']}"), ("SHA-256", traced["hash"])]
            click.echo(rows_of([*head, *_trace(traced)]))
