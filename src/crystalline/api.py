"""train: from paths to a model, in one call."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from crystalline.batches import Batches
from crystalline.checkpoint import CHECKSUMS, COMMIT
from crystalline.claim import Claim, claimed
from crystalline.config import (
    PRESETS,
    SMALLEST_VOCAB,
    ModelConfig,
    TrainConfig,
    parameter_count,
)
from crystalline.data import Piece, collect, split
from crystalline.errors import UsageError
from crystalline.inference import Model, load
from crystalline.model import check_precision
from crystalline.options import load_toml, train_config
from crystalline.plan import (
    DEFAULT_MINUTES,
    Budget,
    Recipe,
    check_memory,
    check_samples,
    choose_model,
    choose_recipe,
    machine_flops,
)
from crystalline.resuming import resumed
from crystalline.saving import save_plan
from crystalline.schedule import Course
from crystalline.shards import TokenStore, write_shards
from crystalline.spheres.crew import Crew, make_crew
from crystalline.tokenizer import Tokenizer, default_vocab_size
from crystalline.trainer import Trainer
from crystalline.training import OnEvent

PathLike = str | os.PathLike[str]

LENGTHS = ("minutes", "steps", "epochs")  # how long to train: one of them
TOLD_EVERY = 0.25  # seconds between two progress events


def train(
    paths: PathLike | Iterable[PathLike] | None = None,
    out: PathLike = "models/model",
    *,
    resume: bool = False,
    at: int | None = None,
    config: PathLike | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Model:
    """Trains a model on files and folders of text or code and returns it.

    ``out`` is the folder it is kept in: a Hugging Face Llama checkpoint with what resuming needs.
    ``options`` are the fields of :class:`TrainConfig` (``minutes``, ``steps`` or ``epochs``, sizes,
    ``lr``, ``seed``, ``threads``, ...); ``config`` names a TOML file with the same names, over
    which the call wins.  ``resume`` goes on with what ``out`` holds, to the same bits as never
    having stopped, or with ``at`` from a kept checkpoint of that step; what may be given then says
    docs/training.md.  ``on_event`` is called with a dict for all that happens (key ``event``: data,
    tokenizer, plan, step, validation, checkpoint, warning, hierarchy, done, and progress while the
    text is prepared), from the first step on in the training's own thread.

    Raises UsageError for bad arguments or data, CheckpointError, NumericsError, and Interrupted
    after a signal, when the checkpoint has been written.
    """
    said = {"resume": resume, "at": at, "config": config, "on_event": on_event, **options}
    with training(paths, out, **said) as trainer:
        trainer.run()
        threads = trainer.team.threads
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
    **options: Any,
) -> Iterator[Trainer]:
    """As ``train``, but hands over the trainer, ready to ``run`` or to ``start`` in the background.

    Its folder is held until the end of the block, which stops what still runs, with a checkpoint.
    """
    begun = time.monotonic()
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
    if resume and not _holds_model(folder):
        raise UsageError(f"{folder}: holds no checkpoint to resume; train without resume first")
    if not resume and _holds_model(folder):
        raise UsageError(f"{folder}: holds a model already; use resume, or another out")
    if not resume and paths is None:
        raise UsageError("no paths to train on; name a file or a folder of text or code")
    with claimed(folder) as claim:
        if resume:
            trainer = resumed(folder, said, given, merged, _crew(said), claim, tell, at)
            _tell_plan(trainer, tell)
        else:
            trainer = _created(paths or (), folder, said, begun, claim, tell)
        try:
            yield trainer
        finally:
            if trainer.node is not None and trainer.node.alive:
                trainer.node.request_stop()
                trainer.node.wait()


def _holds_model(folder: Path) -> bool:
    return (folder / CHECKSUMS).exists() or (folder / COMMIT).exists()


def _created(
    paths: PathLike | Iterable[PathLike],
    folder: Path,
    said: TrainConfig,
    begun: float,
    claim: Claim,
    tell: OnEvent,
) -> Trainer:
    crew = _crew(said)
    team = crew.team
    if said.dim is not None or said.preset is not None:
        # What can never fit is refused before a large corpus is read: the smallest vocabulary.
        nothing = Budget(said, 0)
        least = choose_model(nothing, SMALLEST_VOCAB)
        recipe = choose_recipe(nothing, least)
        check_memory(least, recipe.batch_size, least.seq_len, team, *recipe.kind)
    sources, skipped = collect(paths)
    val_sources, val_skipped = collect(said.val) if said.val else (None, [])
    skipped = [*skipped, *val_skipped]
    train_pieces, val_pieces = split(sources, val_sources)
    if said.patience and not val_pieces:
        raise UsageError(
            f"patience is {said.patience}, but the text is too short to hold any of it out, and "
            "nothing will be validated; give val, or leave out patience"
        )
    size = sum(piece.size for piece in train_pieces)
    tell({"event": "data", "files": len(sources), "bytes": sum(s.size for s in sources),
          "skipped": [asdict(s) for s in skipped]})  # fmt: skip
    if said.tokenizer is not None:
        tokenizer = Tokenizer.load(said.tokenizer)
    else:
        wanted = said.vocab_size or default_vocab_size(size)
        if said.vocab_size is None and said.preset is not None:
            wanted = max(PRESETS[said.preset].vocab_size, SMALLEST_VOCAB)
        texts = _read(train_pieces, _reporter(tell, "tokenizer"))
        tokenizer = Tokenizer.train(texts, wanted)
    tell({"event": "tokenizer", "vocab_size": tokenizer.vocab_size})
    minutes = said.minutes
    if minutes is None and said.steps is None and said.epochs is None:
        minutes = DEFAULT_MINUTES
    # The sizes are checked before anything is written.
    seconds = None if minutes is None else 60 * minutes - (time.monotonic() - begun)
    budget = Budget(said, size // 3, seconds, machine_flops(team, said.precision))
    config = choose_model(budget, tokenizer.vocab_size)
    recipe = choose_recipe(budget, config)
    check_samples(said, config.vocab_size)
    check_precision(config, team, said.precision)
    check_memory(config, recipe.batch_size, config.seq_len, team, *recipe.kind)
    write_shards(folder, tokenizer, train_pieces, val_pieces, _reporter(tell, "tokens"))
    course = Course(said.steps or 1)
    if said.epochs is not None:
        course = Course(_steps_of_epochs(folder, config, recipe, said.epochs))
    trainer = Trainer.create(folder, config, recipe, tokenizer, crew, course, tell)
    trainer.options = asdict(said)
    trainer.progress.evaluation_interval = said.evaluation_interval or 0
    trainer.saving.plan, trainer.saving.claim = save_plan(trainer.options), claim
    if minutes is not None:
        trainer.aim(begun + 60 * minutes)
    _tell_plan(trainer, tell)
    return trainer


def _reporter(tell: OnEvent, phase: str) -> Callable[[int, int], None]:
    """Tells of bytes done and bytes in all, but not of every small file."""
    told = 0.0

    def report(done: int, total: int) -> None:
        nonlocal told
        if done >= total or time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            tell({"event": "progress", "phase": phase, "done": done, "total": total})

    return report


def _read(pieces: Sequence[Piece], report: Callable[[int, int], None]) -> Iterator[str]:
    total, done = sum(piece.size for piece in pieces), 0
    for piece in pieces:
        yield piece.read()
        done += piece.size
        report(done, total)


def _steps_of_epochs(folder: Path, config: ModelConfig, recipe: Recipe, epochs: float) -> int:
    """Steps until every sequence of that many epochs has been trained."""
    batches = Batches(TokenStore.open(folder).train, recipe.batch_size, config.seq_len, recipe.seed)
    return max(1, -(-batches.sequences_in(epochs) // recipe.sequences))


def _crew(said: TrainConfig) -> Crew:
    return make_crew(
        said.threads, depth=said.hierarchy_depth, strategy=said.thread_allocation, pin=said.pin,
        steal=said.work_stealing, recursive=said.recursive_spawning,
    )  # fmt: skip


def _tell_plan(trainer: Trainer, tell: OnEvent) -> None:
    c, r = trainer.config, trainer.recipe
    need = check_memory(c, r.batch_size, c.seq_len, trainer.team, *r.kind)
    tell({
        "event": "plan", **{f.name: getattr(c, f.name) for f in fields(c)}, **asdict(r),
        "parameters": parameter_count(c), "steps": trainer.progress.course.steps,
        "step": trainer.progress.step, "train_tokens": trainer.store.train.tokens,
        "validation_tokens": trainer.store.val.tokens, "threads": trainer.team.threads,
        "isa": trainer.team.isa, "out": str(trainer.out), **trainer.crew.described(),
        "memory_mib": need / 2**20,
    })  # fmt: skip
