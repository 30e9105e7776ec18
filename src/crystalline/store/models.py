"""The folder of models: a folder for each, found by its name.

A change of a whole model needs the lock that a training holds while it runs, and is one rename.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crystalline.checkpoints.checkpoint import CHECKSUMS, COMMIT, NEW, STATE
from crystalline.checkpoints.claim import MARK
from crystalline.checkpoints.modelfiles import CONFIG
from crystalline.config import ModelConfig, TrainConfig, parameter_count
from crystalline.data.reading import shown
from crystalline.errors import ConfigError, StoreError, UsageError
from crystalline.files import make_folder, sync_folder
from crystalline.options import train_config
from crystalline.store import database
from crystalline.store.provenance import Store

DEFAULT = "models"
VARIABLE = "CRYSTALLINE_MODELS"
GONE, BESIDE = ".deleted-", ".new-"  # names of models that are being removed, or made, begin so

PathLike = str | os.PathLike[str]


def models_folder(said: PathLike | None = None) -> Path:
    """Where models are: as said, as CRYSTALLINE_MODELS says, or ``models``."""
    return Path(said or os.environ.get(VARIABLE) or DEFAULT)


def is_model(folder: Path) -> bool:
    """Whether a folder has what only models have."""
    return any((folder / name).exists() for name in (CHECKSUMS, COMMIT, database.NAME))


def model_names(models_dir: PathLike | None = None) -> list[str]:
    """The names of all models, sorted."""
    root = models_folder(models_dir)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = (name for name in os.listdir(root) if not name.startswith("."))
        return sorted(name for name in names if is_model(root / name))
    return []


def resolve_model(name: PathLike, models_dir: PathLike | None = None) -> Path:
    """The folder of a model: itself, or its name in the models' folder.

    Raises UsageError, with the nearest name, where there is none.
    """
    said, root = os.fspath(name), models_folder(models_dir)
    if said and "\0" not in said:
        for path in (Path(said), root / said):
            if is_model(path):
                return path
    known = model_names(root)
    near = difflib.get_close_matches(os.path.basename(said), known, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {near[0]}?"
    elif known:
        hint = f"the models in {shown(os.fspath(root))} are {', '.join(map(shown, known[:10]))}"
        hint += ", ..." if len(known) > 10 else ""
    else:
        hint = f"{shown(os.fspath(root))} holds none; make one with crystalline models create"
    raise UsageError(f"{shown(said)}: no such model; {hint}")


def folder_of(name: str) -> str:
    """What a command is given as a model: a path, or the name of one in the models' folder."""
    named = models_folder() / name
    return os.fspath(named) if not os.path.exists(name) and is_model(named) else name


def new_place(name: PathLike, models_dir: PathLike | None = None) -> Path:
    """Where a new model of that name, or path, would be.  UsageError where something is."""
    said = os.fspath(name)
    last = os.path.basename(said.rstrip(os.sep))
    if not last or last.startswith(".") or "\0" in said:
        raise UsageError(f"{shown(said)!r}: no name for a model; choose one as mine or my-code")
    path = Path(said) if os.sep in said else models_folder(models_dir) / said
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{shown(os.fspath(path))}: exists already; choose another name")
    return path


# --- changes --------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps trainings out of a model until the end of the block, or of the process."""
    try:
        mark = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"{shown(os.fspath(folder))}: may not be changed ({error.strerror}); allow it"
        ) from error
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(mark)
        raise UsageError(
            f"{shown(os.fspath(folder))}: a training runs there; stop it first"
        ) from None
    except OSError:
        pass  # some network file systems have no locks
    try:
        yield
    finally:
        os.close(mark)


def create_model(
    name: PathLike, options: Mapping[str, object], models_dir: PathLike | None = None
) -> Path:
    """A model without a checkpoint: ``options`` of TrainConfig are kept for its first training.

    Raises ConfigError for an option that breaks a rule, UsageError where something is already.
    """
    said = train_config(options, "models create")
    folder = new_place(name, models_dir)
    with being_made(folder) as beside, Store.open(beside, create=True) as store:
        store.set(options=_chosen(said), created=time.time())
    return folder


@contextlib.contextmanager
def being_made(place: Path) -> Iterator[Path]:
    """A folder beside ``place`` to make a model in; it gets its name when all of it is there."""
    beside = place.parent / f"{BESIDE}{os.getpid()}-{place.name}"
    with told_of(place):
        make_folder(os.fspath(place.parent))
        sweep(place.parent)
        beside.mkdir()
        try:
            with held(beside):
                yield beside
                sync_folder(os.fspath(beside))
                _move(beside, place)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _chosen(said: TrainConfig) -> dict[str, Any]:
    """What differs from a TrainConfig of which nothing was said."""
    nothing = asdict(TrainConfig())
    chosen = {name: value for name, value in asdict(said).items() if value != nothing[name]}
    if said.val:  # training may begin in another folder
        chosen["val"] = [os.path.abspath(path) for path in said.val]
    if said.tokenizer is not None:
        chosen["tokenizer"] = os.path.abspath(said.tokenizer)
    return chosen


def rename_model(name: PathLike, to: PathLike, models_dir: PathLike | None = None) -> Path:
    """Gives a model another name.  UsageError while it trains."""
    folder, place = resolve_model(name, models_dir), new_place(to, models_dir)
    with told_of(folder), held(folder), _quiet(folder):
        make_folder(os.fspath(place.parent))
        _move(folder, place)
    return place


def delete_model(name: PathLike, models_dir: PathLike | None = None) -> Path:
    """Removes a model: it is gone at once, and what it took a moment later.  UsageError while it
    trains."""
    folder = resolve_model(name, models_dir)
    if folder.is_symlink():
        where = shown(os.fspath(folder))
        raise UsageError(f"{where}: is a link; delete {shown(os.path.realpath(folder))} instead")
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    gone = folder.parent / f"{GONE}{os.getpid()}-{folder.name}"
    with told_of(folder):
        with held(folder), _quiet(folder):
            _move(folder, gone)
        sweep(folder.parent)
    return folder


def sweep(root: Path) -> None:
    """Removes what no process makes or deletes any more."""
    for name in os.listdir(root):
        if name.startswith((GONE, BESIDE)):
            with contextlib.suppress(UsageError), held(root / name):
                shutil.rmtree(root / name, ignore_errors=True)


@contextlib.contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """Nobody writes to the queue meanwhile; who comes later is told that the model has gone."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(StoreError):  # there is none, or it is damaged: nobody can write
            store = stack.enter_context(Store.open(folder))
            stack.enter_context(store.transaction())
        yield


def _move(folder: Path, place: Path) -> None:
    os.rename(folder, place)
    for parent in {folder.parent, place.parent}:
        sync_folder(os.fspath(parent))


@contextlib.contextmanager
def told_of(folder: Path) -> Iterator[None]:
    """What the disk refuses, in one line."""
    try:
        yield
    except OSError as error:
        where = shown(os.fspath(folder))
        if error.errno == errno.EXDEV:
            raise UsageError(f"{where}: is on another disk; copy it, then delete it") from None
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise UsageError(f"{where}: exists already; choose another name") from None
        raise StoreError(
            f"{where}: {error.strerror or error}; check the disk and permissions; nothing of what "
            "was there has changed"
        ) from error


# --- looking --------------------------------------------------------------------------------------


def summary(folder: Path) -> dict[str, Any]:
    """A model in JSON-able values, from what can be read at once; no checksum is looked at.

    ``parameters``, ``step`` and what depends on them are None before the first checkpoint.
    """
    config, state = (_object(folder, name) for name in (CONFIG, STATE))
    progress = state.get("progress", {})
    with Store.open(folder, read_only=True) as store:
        counts = {name: count for name, (count, _) in store.counts().items()}
        options, runs = store.get("options", {}), len(store.runs())
        epochs = {name: store.get(name) for name in ("epochs_trained", "target_epochs")}
    return {
        "name": folder.resolve().name,
        "folder": os.fspath(folder),
        "training": trains(folder),
        **_sizes(config),
        "step": progress.get("step"),
        "steps": state.get("course", {}).get("steps"),
        "tokens": progress.get("tokens"),
        "seconds": progress.get("seconds"),
        "best": progress.get("best"),
        "best_bits_per_byte": progress.get("best_bits_per_byte"),
        **epochs,
        "runs": runs,
        "options": options,
        "queue": counts,
        "bytes": sum(size for _, size in files_of(folder)),
    }


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        c = ModelConfig.from_hf(config, CONFIG)
    except ConfigError:
        return {"parameters": None, "layers": None, "dim": None}
    return {"parameters": parameter_count(c), "layers": c.layers, "dim": c.dim}


def _object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the checkpoint, also where its commit is pending; else nothing."""
    for path in (folder / name, folder / (name + NEW)):
        with contextlib.suppress(OSError, ValueError):
            value = json.loads(path.read_bytes())
            if isinstance(value, dict):
                return value
    return {}


def files_of(folder: Path) -> list[tuple[str, int]]:
    """The path of every file below, and its size."""
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # some come and go
                path = os.path.join(root, name)
                found.append((path, os.stat(path).st_size))
    return found


def trains(folder: Path) -> bool:
    """Whether a process holds the model, as far as the system shows it; asks without locking."""
    try:
        inode = os.stat(folder / MARK).st_ino
        with open("/proc/locks", encoding="ascii") as locks:
            entries = [line.split() for line in locks]
    except OSError:
        return False
    return any(e[1] == "FLOCK" and e[5].rpartition(":")[2] == str(inode) for e in entries)
