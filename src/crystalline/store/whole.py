"""Whether a model is whole: every checksum, state.db itself, and that the parts agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crystalline.checkpoints.checkpoint import STATE, PathOf, _current, _read
from crystalline.checkpoints.modelfiles import REMEDY, read_object
from crystalline.data.shards import _check, _read_index
from crystalline.errors import CrystallineError
from crystalline.files import Stamp
from crystalline.store import database
from crystalline.store.copying import checkpoints_of
from crystalline.store.documents import unpack
from crystalline.store.provenance import Store
from crystalline.words import plural

SEGMENTS = "segments"  # below data: what came after the model was created


@dataclass(frozen=True)
class Check:
    """Something that was looked at.  ``problems`` are empty if it is whole."""

    what: str
    detail: str
    problems: tuple[str, ...] = ()


def verify_model(folder: Path, on_check: Callable[[Check], None] | None = None) -> list[Check]:
    """Reads all of a model, also while it trains; ``on_check`` is told of each part at once.

    Nothing is changed, except that a save that a crash interrupted is completed.
    """
    checks = []
    for check in _checks(folder):
        checks.append(check)
        if on_check is not None:
            on_check(check)
    return checks


def _checks(folder: Path) -> Iterator[Check]:
    # state.db first: training may go on meanwhile, and what is looked at later is never behind.
    if (folder / database.NAME).exists():
        opened, store = _tried(lambda: Store.open(folder, read_only=True))
        if store is None:
            yield Check(database.NAME, "", opened)
        else:
            with store:
                yield _database(store)
                yield from _tokens(folder, store)
                yield _passes(folder, store)
    else:
        yield from _tokens(folder, None)
    checkpoints = checkpoints_of(folder)
    for path in checkpoints:
        problems, files = _tried(partial(_read, os.fspath(path), _verify_files))
        name = os.fspath(path.relative_to(folder)) if path != folder else "checkpoint"
        yield Check(name, f"{plural(files or 0, 'file')}: all checksums agree", problems)
    if folder not in checkpoints:
        yield Check("checkpoint", "none yet: the model has not been trained")


def _tried(look: Callable[[], Any]) -> tuple[tuple[str, ...], Any]:
    try:
        return (), look()
    except CrystallineError as error:
        return (str(error),), None


def _verify_files(folder: str, path_of: PathOf) -> int:
    _, manifest = _current(folder)
    for name in manifest:
        path_of(name)
    return len(manifest)


def _database(store: Store) -> Check:
    """The file, and that every text is there which is yet to be tokenized."""
    broken, found = _tried(lambda: store.integrity() or [*_contents(store)])
    problems = (*broken, *(found or ()))
    count = sum(n for n, _ in store.counts().values()) if not problems else 0
    return Check(database.NAME, f"{plural(count, 'document')}: whole", problems)


def _contents(store: Store) -> Iterator[str]:
    waiting = "('pending', 'leased', 'failed', 'dead')"
    for (id,) in store.rows(
        f"SELECT id FROM documents WHERE (state IN {waiting}) != "
        "(id IN (SELECT document FROM contents))"
    ):
        yield f"document {id}: its text is not where its state says; remove it and add it again"
    with database.told(store.path):
        for id, hash, packed, body in store.db.execute(
            "SELECT id, hash, packed, body FROM documents JOIN contents ON document = id"
        ):
            try:
                unpack(hash, packed, body)
            except ValueError as error:
                yield f"document {id}: its text is damaged ({error}); remove it and add it again"


def _tokens(folder: Path, store: Store | None) -> Iterator[Check]:
    """The tokens, and that state.db says the same of them."""
    rows = store.rows("SELECT number, fingerprint FROM segments") if store else []
    said = dict(rows)
    if _place(folder, 0).exists():
        said.setdefault(0, "")
    documents = tokens = 0
    known = store is not None  # where a segment begins: not behind one that cannot be read
    for number, fingerprint in sorted(said.items()):
        place = _place(folder, number)
        problems, found = _tried(partial(_shards, place))
        name, detail = os.fspath(place.relative_to(folder)), ""
        if found is not None:
            offsets, its_own = found
            detail = f"{plural(len(offsets) - 1, 'document')}, {offsets[-1]:,} tokens: agree"
            if fingerprint not in ("", its_own):
                problems = (f"{place}: not the tokens that state.db knows; {REMEDY}",)
            elif store and known and not _agrees(store, number, documents, offsets + tokens):
                problems = (f"{place}: has other documents than state.db knows; {REMEDY}",)
            documents, tokens = documents + len(offsets) - 1, tokens + int(offsets[-1])
        known = known and found is not None
        yield Check(name, detail, problems)


def _place(folder: Path, number: int) -> Path:
    if number:
        return folder / "data" / SEGMENTS / f"{number:06d}"
    data, new = folder / "data", folder / "data.new"
    return new if not data.exists() and (new / "index.json").exists() else data


def _shards(place: Path) -> tuple[npt.NDArray[np.int64], str]:
    """Where documents to learn from begin, and the fingerprint; every checksum is compared."""
    index, fingerprint = _read_index(os.fspath(place))
    for part in index["splits"].values():
        for item in (part["offsets"], *part["shards"]):
            _check(os.fspath(place / item["name"]), Stamp(item["size"], item["sha256"]), True)
    name = index["splits"]["train"]["offsets"]["name"]
    return np.fromfile(place / name, dtype="<i8").astype(np.int64), fingerprint


def _agrees(store: Store, number: int, before: int, offsets: npt.NDArray[np.int64]) -> bool:
    """Whether the documents of a segment lie where state.db says: the first in place ``before``.

    A model that is older than its state.db has tokens of which no document is known.
    """
    rows = store.rows(
        "SELECT place, first, tokens FROM documents "
        "WHERE segment = ? AND place IS NOT NULL ORDER BY place", (number,)
    )  # fmt: skip
    if not rows and number == 0:
        return True
    places = np.arange(before, before + len(offsets) - 1)
    wanted = np.stack([places, offsets[:-1], np.diff(offsets)], axis=1)
    return np.array_equal(np.array(rows).reshape(-1, 3), wanted)


def _passes(folder: Path, store: Store) -> Check:
    """Passes that state.db has are in the checkpoint, whose state they were written from."""
    passes = store.passes()
    last = max((p.last_step or p.first_step for p in passes), default=0)
    if not last:
        return Check("passes", "none recorded")
    state = partial(_parse_state, os.fspath(folder))
    problems, step = _tried(state)
    if step is not None and step < last:
        detail = f"up to step {last:,}, but the checkpoint is of step {step:,}"
        return Check("passes", f"{detail}: the next training sets them right")
    return Check("passes", f"up to step {last:,}: agree", problems)


def _parse_state(folder: str) -> int:
    state = _read(folder, lambda _, path_of: read_object(path_of(STATE)))
    return int(state["progress"]["step"])
