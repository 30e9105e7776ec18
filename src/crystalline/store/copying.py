"""A copy of a model, whole also while the original trains.

Of a checkpoint all files are opened before any is copied: a save puts new files in the place of the
names and never writes into a file, so what is open stays what it was.  The checkpoint is copied
first, then state.db as of one moment, then the tokens: each may be ahead of the one before, never
behind, and training sorts that out when it begins.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from crystalline.checkpoints.checkpoint import CHECKSUMS, COMMIT, FILES, PathOf, _current, _read
from crystalline.checkpoints.claim import MARK
from crystalline.errors import CheckpointError
from crystalline.files import (
    CHUNK,
    Manifest,
    make_folder,
    manifest_bytes,
    sync_folder,
    write_durably,
)
from crystalline.spheres.live import LIVE
from crystalline.store import database
from crystalline.store.meter import Meter, OnEvent
from crystalline.store.models import PathLike, being_made, files_of, new_place, resolve_model


def copy_model(
    name: PathLike,
    to: PathLike,
    models_dir: PathLike | None = None,
    on_event: OnEvent | None = None,
) -> Path:
    """Copies a model with its queue and history; the original may train meanwhile.

    Raises UsageError where something is already, CheckpointError for a damaged original.
    """
    folder, place = resolve_model(name, models_dir), new_place(to, models_dir)
    meter = Meter("copy", sum(size for _, size in files_of(folder)), on_event)
    with being_made(place) as beside:
        checkpoints = checkpoints_of(folder)
        for path in checkpoints:
            _copy_checkpoint(path, beside / path.relative_to(folder), path == folder, meter)
        _copy_database(folder, beside)
        _copy_rest(folder, beside, {*checkpoints, folder}, meter)
    return place


def checkpoints_of(folder: Path) -> list[Path]:
    """The model's own checkpoint and those kept below, as far as they are there."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _passing(Path(root, name)))
        if CHECKSUMS in names or COMMIT in names:
            found.append(Path(root))
    return found


def _passing(path: Path) -> bool:
    """Whether a file or folder is on its way into being, or out of it."""
    if path.name == "data.new":  # read in the place of data, if that is not there
        return path.with_name("data").exists()
    return path.name.startswith(".") or path.suffix in (".new", ".old")


def _copy_checkpoint(source: Path, target: Path, needed: bool, meter: Meter) -> None:
    """One that is only kept may be gone by now."""
    try:
        with contextlib.ExitStack() as files:
            manifest, opened = _read(os.fspath(source), lambda f, p: _open_all(f, p, files))
            make_folder(os.fspath(target))
            for name, file in opened.items():
                path = os.fspath(target / name)
                if write_durably(path, _pieces(file, meter)) != manifest[name]:
                    raise CheckpointError(f"{path}: the disk returned other bytes; try again")
            write_durably(os.fspath(target / CHECKSUMS), [manifest_bytes(manifest)])
            sync_folder(os.fspath(target))
    except CheckpointError:
        if needed or source.exists():
            raise


def _open_all(
    folder: str, path_of: PathOf, files: contextlib.ExitStack
) -> tuple[Manifest, dict[str, BinaryIO]]:
    _, manifest = _current(folder)
    return manifest, {
        name: files.enter_context(open(path_of(name), "rb")) for name in manifest
    }


def _copy_database(source: Path, target: Path) -> None:
    """As of one moment, whoever writes meanwhile."""
    if not (source / database.NAME).exists():
        return
    path = os.fspath(target / database.NAME)
    with database.Database.open(source, read_only=True) as store, database.told(path):
        copy = sqlite3.connect(path)
        try:
            store.db.backup(copy)
        finally:
            copy.close()
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _copy_rest(folder: Path, target: Path, checkpoints: set[Path], meter: Meter) -> None:
    """Tokens, measurements and whatever else lies there, but no file of a checkpoint."""
    for root, folders, names in os.walk(folder):
        here, there = Path(root), target / Path(root).relative_to(folder)
        folders[:] = sorted(name for name in folders if not _passing(here / name))
        left = set(FILES if here in checkpoints else ()) | {CHECKSUMS, COMMIT}
        if here == folder:
            left |= {MARK, LIVE, database.NAME, f"{database.NAME}-wal", f"{database.NAME}-shm"}
        elif here not in checkpoints and left & set(names):  # one that has just been kept
            folders.clear()
            continue
        for name in sorted(set(names) - left):
            if _passing(here / name):
                continue
            with contextlib.suppress(FileNotFoundError), open(here / name, "rb") as file:
                make_folder(os.fspath(there))
                write_durably(os.fspath(there / name), _pieces(file, meter))
        if there.is_dir():
            sync_folder(os.fspath(there))


def _pieces(file: BinaryIO, meter: Meter) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(CHUNK):
        yield piece
        meter.add(len(piece))
