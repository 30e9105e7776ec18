"""crystalline models: a folder with a folder for each model."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from crystalline.commands.common import (
    AS_JSON,
    MODELS_DIR,
    columns,
    moment,
    rows_of,
    said_options,
    sure,
)
from crystalline.commands.train import train
from crystalline.config import TrainConfig
from crystalline.errors import CheckpointError, CrystallineError, tame
from crystalline.words import clock, plural, score, short

WAITING = ("pending", "leased", "failed")


@click.group()
def models() -> None:
    """Models by their names: list, show, create, rename, copy, delete, verify."""


@models.command("list")
@MODELS_DIR
@AS_JSON
def list_(models_dir: str | None, as_json: bool) -> None:
    """Show all models, and what waits for them."""
    from crystalline.store.models import model_names, models_folder, summary

    root = models_folder(models_dir)
    found = [_summary(root / name, summary) for name in model_names(root)]
    if as_json:
        click.echo(json.dumps(found))
    elif not found:
        click.echo(f"no models in {tame(str(root))}; make one with crystalline models create NAME")
    else:
        head = ("name", "parameters", "step", "of", "bits/byte", "waiting", "size", "")
        click.echo(columns(head, [_row(one) for one in found], {0, 7}))


def _summary(folder: Path, summary: Any) -> dict[str, Any]:
    """One that is damaged must not hide the others."""
    try:
        return dict(summary(folder))
    except CrystallineError as error:
        return {"name": folder.name, "folder": str(folder), "error": str(error)}


def _row(one: dict[str, Any]) -> list[str]:
    if "error" in one:
        return [one["name"], *[""] * 6, one["error"]]
    best, parameters = one["best_bits_per_byte"], one["parameters"]
    return [
        one["name"],
        "" if parameters is None else short(parameters),
        "" if one["step"] is None else f"{one['step']:,}",
        "" if one["steps"] is None else f"{one['steps']:,}",
        "" if best is None else f"{best:.3f}",
        f"{sum(one['queue'][state] for state in WAITING):,}",
        f"{short(one['bytes'])}B",
        "training" if one["training"] else "",
    ]


@models.command()
@click.argument("name", type=click.Path())
@MODELS_DIR
@AS_JSON
def show(name: str, models_dir: str | None, as_json: bool) -> None:
    """Show one model: sizes, training, queue, runs."""
    from crystalline.store import Store
    from crystalline.store.models import resolve_model, summary

    folder = resolve_model(name, models_dir)
    said = summary(folder)
    with Store.open(folder, read_only=True) as store:
        said |= {"runs": store.runs(), "history": store.history()}
    if as_json:
        click.echo(json.dumps(said))
        return
    click.echo(rows_of(_about(said)))


def _about(said: dict[str, Any]) -> list[tuple[str, str]]:
    sizes = "none yet: it has not been trained"
    if said["parameters"] is not None:
        layers = plural(said["layers"], "layer")
        sizes = f"{said['parameters']:,} parameters: {layers}, width {said['dim']}"
    rows = [("model", said["name"]), ("folder", said["folder"]), ("sizes", sizes)]
    if said["step"] is not None:
        spent = f"{said['tokens']:,} tokens in {clock(said['seconds'])}"
        rows.append(("training", f"step {said['step']:,} of {said['steps']:,}, {spent}"))
    if said["best"] is not None:
        rows.append(("best", score(said["best"], said["best_bits_per_byte"])))
    if said["epochs_trained"] is not None:
        of = f" of {said['target_epochs']:g}" if said["target_epochs"] else ""
        rows.append(("epochs", f"{said['epochs_trained']:,}{of}"))
    if said["options"]:
        options = ", ".join(f"{key} {value}" for key, value in said["options"].items())
        rows.append(("options", options))
    queue = ", ".join(f"{n:,} {state}" for state, n in said["queue"].items() if n)
    rows.append(("queue", queue or "empty"))
    for run in said["runs"][-5:]:
        to = "" if run["last_step"] is None else f" to {run['last_step']:,}"
        how = run["outcome"] or "runs"
        rows.append(("run", f"{moment(run['began'])}: from step {run['first_step']:,}{to}, {how}"))
    state = ", a process holds it" if said["training"] else ""
    rows.append(("size", f"{said['bytes'] / 2**20:,.1f} MiB{state}"))
    return rows


@models.command()
@click.argument("name", type=click.Path())
@click.option("--config", type=click.Path(), metavar="FILE.toml",
              help="These options from a file, with underscores.")  # fmt: skip
@MODELS_DIR
@AS_JSON
def create(
    name: str, config: str | None, models_dir: str | None, as_json: bool, **options: Any
) -> None:
    """Make a model without a checkpoint.

    The options of crystalline train are kept for its first training.
    """
    from crystalline.options import load_toml
    from crystalline.store.models import create_model

    said = {k: v for k, v in said_options(options).items() if v is not None}
    merged = (load_toml(config) if config else {}) | said
    _told(create_model(name, merged, models_dir), as_json)


# The same options as training has, whatever they are.
_NAMES = {field.name for field in fields(TrainConfig)}
create.params += [option for option in train.params if option.name in _NAMES]


def _told(folder: Path, as_json: bool) -> None:
    click.echo(json.dumps({"folder": str(folder)}) if as_json else tame(str(folder)))


@models.command()
@click.argument("name", type=click.Path())
@click.argument("to", type=click.Path())
@MODELS_DIR
@AS_JSON
def rename(name: str, to: str, models_dir: str | None, as_json: bool) -> None:
    """Give a model another name."""
    from crystalline.store.models import rename_model

    _told(rename_model(name, to, models_dir), as_json)


@models.command()
@click.argument("name", type=click.Path())
@click.argument("to", type=click.Path())
@MODELS_DIR
@AS_JSON
def copy(name: str, to: str, models_dir: str | None, as_json: bool) -> None:
    """Copy a model, with its queue and history; it may train meanwhile."""
    from crystalline.progress import display
    from crystalline.store.copying import copy_model

    with display(as_json, False) as on_event:
        folder = copy_model(name, to, models_dir, on_event)
    _told(folder, as_json)


@models.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=click.Path())
@click.option("--yes", is_flag=True, help="Do not ask.")
@MODELS_DIR
@AS_JSON
def delete(names: tuple[str, ...], yes: bool, models_dir: str | None, as_json: bool) -> None:
    """Remove models, for ever."""
    from crystalline.store.models import delete_model, resolve_model

    folders = [resolve_model(name, models_dir) for name in names]
    sure(yes, f"Remove {', '.join(tame(str(folder)) for folder in folders)} for ever?")
    for folder in folders:
        _told(delete_model(folder), as_json)


@models.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=click.Path())
@MODELS_DIR
@AS_JSON
def verify(names: tuple[str, ...], models_dir: str | None, as_json: bool) -> None:
    """Read all of a model: every checksum, state.db, and that they agree."""
    from crystalline.store.models import resolve_model
    from crystalline.store.whole import Check, verify_model

    def tell(check: Check) -> None:
        if not as_json:
            click.echo(f"{check.what:<24} {tame(', '.join(check.problems) or check.detail)}")

    bad = []
    for name in names:
        folder = resolve_model(name, models_dir)
        checks = verify_model(folder, tell)
        if as_json:
            click.echo(json.dumps({"folder": str(folder), "checks": [asdict(c) for c in checks]}))
        bad += [f"{folder}: {check.what}" for check in checks if check.problems]
    if bad:
        raise CheckpointError(f"not whole: {', '.join(bad)}; restore it from a copy")
