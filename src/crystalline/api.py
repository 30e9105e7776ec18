"""train: from paths to a model, in one call."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crystalline.checkpoints.checkpoint import holds_training
from crystalline.checkpoints.claim import Claim, claimed
from crystalline.config import (
    TrainConfig,
)
from crystalline.data.reading import Piece, collect, split
from crystalline.data.shards import TokenStore, write_shards
from crystalline.decoder.memory import give_back
from crystalline.errors import StoreError, UsageError
from crystalline.inference.model import Model, load
from crystalline.options import load_toml, train_config
from crystalline.pipeline.origins import Texts, refuse_fed
from crystalline.training.from_weights import holds_model, starting_point
from crystalline.training.plan import (
    DEFAULT_MINUTES,
)
from crystalline.training.resuming import resumed
from crystalline.training.saving import save_plan
from crystalline.training.schedule import Course
from crystalline.training.starting import (
    chosen,
    crew_of,
    refuse_hopeless,
    reporter,
    tell_plan,
    vocabulary,
    with_packing,
)
from crystalline.training.trainer import Trainer
from crystalline.training.training import OnEvent

PathLike = str | os.PathLike[str]

LENGTHS = ("minutes", "steps", "epochs")  # how long to train: one of them


def train(
    paths: PathLike | Iterable[PathLike] | None = None,
    out: PathLike = "models/model",
    *,
    resume: bool = False,
    at: int | None = None,
    config: PathLike | None = None,
    on_event: OnEvent | None = None,
    begun: float | None = None,
    **options: Any,
) -> Model:
    """Trains a model on files and folders of text or code and returns it.

    ``out`` is the folder it is kept in: a Hugging Face Llama checkpoint with what resuming needs.
    ``options`` are the fields of :class:`TrainConfig` (``minutes``, ``steps`` or ``epochs``, sizes,
    ``lr``, ``seed``, ``threads``, ...); ``config`` names a TOML file with the same names, over
    which the call wins.  ``resume`` goes on with what ``out`` holds, to the same bits as never
    having stopped, or with ``at`` from a kept checkpoint of that step; what may be given then says
    docs/training.md.  Where ``out`` holds a model without training state, as an import leaves it,
    or where ``start_from`` names the folder of another model, training begins from those weights.
    ``on_event`` is called with a dict for all that happens (key ``event``: data, tokenizer, plan,
    step, validation, checkpoint, warning, hierarchy, done, and progress while the text is
    prepared), from the first step on in the training's own thread.  ``minutes`` count from
    ``begun``, on the clock of ``time.monotonic``: from the call, if it is not given.

    Raises UsageError for bad arguments or data, CheckpointError, NumericsError, and Interrupted
    after a signal, when the checkpoint has been written.
    """
    said = {"resume": resume, "at": at, "config": config, "on_event": on_event, **options}
    with training(paths, out, begun=begun, **said) as trainer:
        trainer.run()
        threads = trainer.team.threads
    # What training held goes before the model is read: it would lie beside it.
    del trainer
    gc.collect()
    return load(out, threads=threads)


@contextlib.contextmanager
def training(
    paths: PathLike | Iterable[PathLike] | None = None,
    out: PathLike = "models/model",
    *,
    resume: bool = False,
    at: int | None = None,
    config: PathLike | None = None,
    on_event: OnEvent | None = None,
    begun: float | None = None,
    **options: Any,
) -> Iterator[Trainer]:
    """As ``train``, but hands over the trainer, ready to ``run`` or to ``start`` in the background.

    Its folder is held until the end of the block, which stops what still runs, with a checkpoint.
    """
    called = time.monotonic()
    begun = called if begun is None else begun
    tell = on_event or (lambda event: None)
    merged = load_toml(config) if config is not None else {}
    given = {k: v for k, v in options.items() if v is not None}
    if not given.keys().isdisjoint(LENGTHS):  # one of them displaces another in the file
        merged = {k: v for k, v in merged.items() if k not in LENGTHS}
    merged.update(given)
    said = train_config(merged, os.fspath(config) if config is not None else "train")
    folder = Path(out)
    if at is not None and not resume:
        raise UsageError(f"at is {at}, but says where to resume; use it with resume")
    if resume and not holds_model(folder):
        raise UsageError(f"{folder}: holds no checkpoint to resume; train without resume first")
    if not resume and holds_model(folder) and holds_training(folder):
        raise UsageError(f"{folder}: holds a model already; use resume, or another out")
    if not resume and paths is None:
        raise UsageError("no paths to train on; name a file or a folder of text or code")
    with claimed(folder) as claim:
        if resume:
            trainer = resumed(folder, said, given, merged, crew_of(said), claim, tell, at)
            tell_plan(trainer, tell, "as it was begun")
        else:
            trainer = _created(paths or (), folder, said, (begun, called), claim, tell)
        try:
            yield trainer
        finally:
            if trainer.node is not None and trainer.node.alive:
                trainer.node.request_stop()
                trainer.node.wait()


def _created(
    paths: PathLike | Iterable[PathLike],
    folder: Path,
    said: TrainConfig,
    clock: tuple[float, float],
    claim: Claim,
    tell: OnEvent,
) -> Trainer:
    """``clock``: when the minutes began, and when the libraries were loaded."""
    begun, called = clock
    refuse_fed(folder)
    crew = crew_of(said)
    team = crew.team
    start = starting_point(folder, said)
    if start is None:
        refuse_hopeless(said, team)
    sources, skipped = collect(paths)
    val_sources, val_skipped = collect(said.val) if said.val else (None, [])
    skipped = [*skipped, *val_skipped]
    texts = Texts()
    sources, doubles = texts.once(sources, val_sources or ())
    skipped += doubles
    train_pieces, val_pieces = split(sources, val_sources)
    if said.patience and not val_pieces:
        raise UsageError(
            f"patience is {said.patience}, but the text is too short to hold any of it out, and "
            "nothing will be validated; give val, or leave out patience"
        )
    size = sum(piece.size for piece in train_pieces)
    tell({"event": "data", "files": len(sources), "bytes": sum(s.size for s in sources),
          "skipped": [asdict(s) for s in skipped]})  # fmt: skip
    pieces = _read(train_pieces, reporter(tell, "tokenizer"))
    tokenizer = start.tokenizer if start else vocabulary(said, size, pieces)
    tell({"event": "tokenizer", "vocab_size": tokenizer.vocab_size})
    minutes = said.minutes
    if minutes is None and said.steps is None and said.epochs is None:
        minutes = DEFAULT_MINUTES
    # The sizes are checked before anything is written.
    seconds = None if minutes is None else 60 * minutes - (time.monotonic() - begun)
    choice = chosen(said, size, seconds, tokenizer, team, start)
    config, recipe = choice.config, choice.recipe
    write_shards(folder, tokenizer, train_pieces, val_pieces, reporter(tell, "tokens"))
    try:
        texts.write_down(folder, train_pieces, val_pieces)
    except StoreError as error:  # the model can be trained all the same
        tell({"event": "warning", "step": 0, "message": f"{error}; its texts are not listed"})
    give_back()
    recipe, why = with_packing(said, recipe, config, TokenStore.open(folder, verify=False).train)
    course = Course(said.steps or 1)
    trainer = Trainer.create(folder, config, recipe, tokenizer, crew, course, tell, start=start)
    trainer.options = asdict(said) | {"choice": choice.described()}
    trainer.progress.evaluation_interval = said.evaluation_interval or 0
    trainer.saving.plan, trainer.saving.claim = save_plan(trainer.options), claim
    if said.epochs is not None:
        trainer.batches.limit(said.epochs)
        sequences = trainer.batches.end or 1
        trainer.progress.course = Course(-(-sequences // recipe.sequences))
    if minutes is not None and choice.pace is not None:
        trainer.aim(begun + 60 * minutes, choice.pace.step(recipe), called - begun)
    tell_plan(trainer, tell, why, start)
    return trainer


def _read(pieces: Sequence[Piece], report: Callable[[int, int], None]) -> Iterator[str]:
    total, done = sum(piece.size for piece in pieces), 0
    for piece in pieces:
        yield piece.read()
        done += piece.size
        report(done, total)
