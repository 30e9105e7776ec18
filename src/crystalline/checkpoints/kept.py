"""Checkpoints that stay: below a model's folder, each in a folder of its own that is whole.

    checkpoints/step-00001000/    the files of a checkpoint, best/ as it was then, and kept.json
    kept.json                     its step, and why it is kept: see WHY

They are hard links: a save puts new files in the place of old names and never writes into a file,
so a link keeps what it had.  Where a disk has no links they are copies, read back.  A folder gets
its name when all of it is on the disk, and loses it before the first of its files goes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalline.checkpoints.checkpoint import CHECKSUMS, COMMIT, load_model, save_model
from crystalline.checkpoints.modelfiles import CONFIG
from crystalline.errors import CheckpointError, UsageError
from crystalline.files import CHUNK, make_folder, parse_manifest, sync_folder, write_durably

BEST = "best"  # the model with the lowest validation loss, beside the checkpoint
FOLDER = "checkpoints"
NOTE = "kept.json"
LAST, MILESTONE, LAYERS = "last", "milestone", "layers"  # why; all but the first are for ever
NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)


@dataclass(frozen=True)
class Kept:
    """One checkpoint that is kept."""

    step: int
    why: str
    path: Path


def listed(out: Path) -> list[Kept]:
    """Those of a model, by rising step; what is no whole one is left out."""
    found = []
    for path in sorted((out / FOLDER).glob("step-*")):
        try:
            note = json.loads((path / NOTE).read_bytes())
            found.append(Kept(int(note["step"]), str(note["why"]), path))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sorted(found, key=lambda kept: kept.step)


def place(out: Path, step: int) -> Path:
    """The folder of the checkpoint of ``step``; UsageError where none is kept."""
    kept = {one.step: one.path for one in listed(out)}
    if not kept:
        raise UsageError(f"at is {step}, but {out} keeps none; train with keep or milestones")
    if step not in kept:
        steps = ", ".join(map(str, kept))
        raise UsageError(f"at is {step}, but {out} keeps those of other steps; choose {steps}")
    return kept[step]


def keep(out: Path, step: int, why: str) -> None:
    """Keeps the checkpoint that ``out`` holds now.  Raises CheckpointError, and then nothing has
    changed."""
    parent = out / FOLDER
    path, beside = parent / f"step-{step:08d}", parent / f".step-{step:08d}.new"
    for one in listed(out):
        if one.step == step and why != LAYERS:
            if one.why == LAYERS and not _same_size(one.path, out):
                return  # that of before is not to be had again
            why = one.why if why == LAST else why  # what is for ever stays so
    try:
        make_folder(os.fspath(parent))
        sweep(out)
        _link_files(out, beside)
        if (out / BEST / CHECKSUMS).exists() or (out / BEST / COMMIT).exists():
            _link_files(out / BEST, beside / BEST)
        note: dict[str, Any] = {"step": step, "why": why}
        write_durably(os.fspath(beside / NOTE), [(json.dumps(note) + "\n").encode()])
        sync_folder(os.fspath(beside))
        if path.exists():
            _remove(path)
        os.rename(beside, path)
        sync_folder(os.fspath(parent))
    except OSError as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(beside)
        raise CheckpointError(
            f"{path}: the checkpoint of step {step} cannot be kept there "
            f"({error.strerror or error}); check the disk and permissions"
        ) from error


def forget(out: Path, most: int, after: int | None = None) -> None:
    """Removes what is kept as one of the last beyond the ``most`` newest, or of a step later than
    ``after``.  Call it when a newer checkpoint has been read back.  Raises OSError."""
    kept = listed(out)
    newest = [one.step for one in kept][-most:] if most else []
    for one in kept:
        late = after is not None and one.step > after
        if one.why == LAST and (late or one.step not in newest):
            _remove(one.path)


def bring_back_best(out: Path, source: Path) -> None:
    """The best model becomes what it was at a kept checkpoint, also if that was none."""
    if (source / BEST).is_dir():
        save_model(out / BEST, *load_model(source / BEST))
    else:
        shutil.rmtree(out / BEST, ignore_errors=True)


def sweep(out: Path) -> None:
    """Removes what a crash left of a folder that was being made or removed."""
    for path in (out / FOLDER).glob(".step-*"):
        shutil.rmtree(path)


def _same_size(a: Path, b: Path) -> bool:
    """Whether two folders hold models of one configuration."""
    return (a / CONFIG).read_bytes() == (b / CONFIG).read_bytes()


def _remove(path: Path) -> None:
    gone = path.with_name(f".{path.name}.old")
    os.rename(path, gone)
    shutil.rmtree(gone)


def _link_files(source: Path, target: Path) -> None:
    """Links, or copies, of the files of the checkpoint in ``source``."""
    if (source / COMMIT).exists():  # a crash came before its last step, which reading completes
        load_model(source)
    manifest = parse_manifest((source / CHECKSUMS).read_bytes()) or {}
    target.mkdir(parents=True)
    for name in (*manifest, CHECKSUMS):
        try:
            os.link(source / name, target / name)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            stamp = write_durably(os.fspath(target / name), _pieces(source / name))
            if stamp != manifest.get(name, stamp):
                raise OSError(f"{source / name}: differs from what was saved") from error
    sync_folder(os.fspath(target))


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            yield piece
