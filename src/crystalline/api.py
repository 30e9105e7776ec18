"""train: from paths to a model, in one call."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crystalline.batches import Batches
from crystalline.checkpoint import holds_training
from crystalline.claim import claimed
from crystalline.config import (
    PRESETS,
    SMALLEST_VOCAB,
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
    continued_recipe,
    machine_flops,
)
from crystalline.schedule import Course
from crystalline.shards import TokenStore, write_shards
from crystalline.spheres.crew import Crew, make_crew
from crystalline.starting import Start, holds_model, starting_point
from crystalline.tokenizer import Tokenizer, default_vocab_size
from crystalline.trainer import Trainer
from crystalline.training import OnEvent

PathLike = str | os.PathLike[str]

CREW = (  # options of who works, which change no result
    "threads", "hierarchy_depth", "work_stealing", "recursive_spawning", "thread_allocation", "pin",
)  # fmt: skip
MAY_CHANGE = (*CREW, "steps")  # on resuming
LENGTHS = ("minutes", "steps", "epochs")  # how long to train: one of them
TOLD_EVERY = 0.25  # seconds between two progress events


def train(
    paths: PathLike | Iterable[PathLike] | None = None,
    out: PathLike = "models/model",
    *,
    resume: bool = False,
    config: PathLike | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Model:
    """Trains a model on files and folders of text or code and returns it.

    ``out`` is the folder it is kept in: a Hugging Face Llama checkpoint with what resuming needs.
    ``options`` are the fields of :class:`TrainConfig` (``minutes``, ``steps`` or ``epochs``, sizes,
    ``lr``, ``seed``, ``threads``, ...); ``config`` names a TOML file with the same names, over
    which the call wins.  ``resume`` goes on with what ``out`` holds, to the same bits as never
    having stopped; only who works (``threads`` and the like) and a later end may be given then.
    Where ``out`` holds a model without training state, as an import leaves it, or where
    ``start_from`` names the folder of another model, training begins from those weights.
    ``on_event`` is called with a dict for all that happens (key ``event``: data, tokenizer, plan,
    step, validation, checkpoint, hierarchy, done, and progress while the text is prepared), from
    the first step on in the training's own thread.

    Raises UsageError for bad arguments or data, CheckpointError, NumericsError, and Interrupted
    after a signal, when the checkpoint has been written.
    """
    said = {"resume": resume, "config": config, "on_event": on_event, **options}
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
    if resume and not holds_model(folder):
        raise UsageError(f"{folder}: holds no checkpoint to resume; train without resume first")
    if not resume and holds_model(folder) and holds_training(folder):
        raise UsageError(f"{folder}: holds a model already; use resume, or another out")
    if not resume and paths is None:
        raise UsageError("no paths to train on; name a file or a folder of text or code")
    with claimed(folder):
        if resume:
            trainer = _resumed(folder, said, merged, tell)
        else:
            trainer = _created(paths or (), folder, said, begun, tell)
        try:
            yield trainer
        finally:
            if trainer.node is not None and trainer.node.alive:
                trainer.node.request_stop()
                trainer.node.wait()


def _resumed(folder: Path, said: TrainConfig, merged: dict[str, Any], tell: OnEvent) -> Trainer:
    trainer = Trainer.resume(folder, _crew(said), tell)
    # A setting may be said again, as it was said or as it came out; it may not change.
    recorded = asdict(trainer.config) | asdict(trainer.recipe) | {"seq_len": trainer.T}
    before = trainer.options | {"val": tuple(trainer.options.get("val", ()))}
    changed = [
        name
        for name in merged
        if name not in MAY_CHANGE
        and getattr(said, name) not in (before.get(name), recorded.get(name))
    ]
    if changed:
        raise UsageError(
            f"{', '.join(changed)} cannot change when resuming; leave out all but "
            f"{', '.join(MAY_CHANGE)}"
        )
    p = trainer.progress
    if said.steps is not None and said.steps != p.course.steps:
        if said.steps <= p.step:
            raise UsageError(f"steps is {said.steps}, but {p.step} are done; choose more")
        p.course = Course(said.steps)
    if p.step >= p.course.steps:
        raise UsageError(
            f"{folder}: training is finished at step {p.step}; give steps, more than that, to go on"
        )
    trainer.metrics.forget_after(p.step)
    _tell_plan(trainer, None, tell)
    return trainer


def _created(
    paths: PathLike | Iterable[PathLike],
    folder: Path,
    said: TrainConfig,
    begun: float,
    tell: OnEvent,
) -> Trainer:
    crew = _crew(said)
    team = crew.team
    start = starting_point(folder, said)
    if start is None and (said.dim is not None or said.preset is not None):
        # What can never fit is refused before a large corpus is read: the smallest vocabulary.
        nothing = Budget(said, 0)
        least = choose_model(nothing, SMALLEST_VOCAB)
        recipe = choose_recipe(nothing, least)
        check_memory(least, recipe.batch_size, least.seq_len, team, *recipe.kind)
    sources, skipped = collect(paths)
    val_sources, val_skipped = collect(said.val) if said.val else (None, [])
    skipped = [*skipped, *val_skipped]
    train_pieces, val_pieces = split(sources, val_sources)
    size = sum(piece.size for piece in train_pieces)
    tell({"event": "data", "files": len(sources), "bytes": sum(s.size for s in sources),
          "skipped": [asdict(s) for s in skipped]})  # fmt: skip
    if start is not None:
        tokenizer = start.tokenizer
    elif said.tokenizer is not None:
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
    if start is not None:
        config = start.config
        recipe = continued_recipe(budget, config, start.length(said))
    else:
        config = choose_model(budget, tokenizer.vocab_size)
        recipe = choose_recipe(budget, config)
    T = recipe.seq_len or config.seq_len
    check_samples(said, config.vocab_size)
    check_precision(config, team, said.precision)
    check_memory(config, recipe.batch_size, T, team, *recipe.kind)
    write_shards(folder, tokenizer, train_pieces, val_pieces, _reporter(tell, "tokens"))
    course = Course(said.steps or 1)
    if said.epochs is not None:
        course = Course(_steps_of_epochs(folder, T, recipe, said.epochs))
    trainer = Trainer.create(folder, config, recipe, tokenizer, crew, course, tell, start)
    trainer.options = asdict(said)
    if minutes is not None:
        trainer.aim(begun + 60 * minutes)
    _tell_plan(trainer, start, tell)
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


def _steps_of_epochs(folder: Path, T: int, recipe: Recipe, epochs: float) -> int:
    """Steps until every sequence of that many epochs has been trained."""
    batches = Batches(TokenStore.open(folder).train, recipe.batch_size, T, recipe.seed)
    return max(1, -(-batches.sequences_in(epochs) // recipe.sequences))


def _crew(said: TrainConfig) -> Crew:
    return make_crew(
        said.threads, depth=said.hierarchy_depth, strategy=said.thread_allocation, pin=said.pin,
        steal=said.work_stealing, recursive=said.recursive_spawning,
    )  # fmt: skip


def _tell_plan(trainer: Trainer, start: Start | None, tell: OnEvent) -> None:
    c, r = trainer.config, trainer.recipe
    need = check_memory(c, r.batch_size, trainer.T, trainer.team, *r.kind)
    tell({
        "event": "plan", **asdict(c), **asdict(r), "seq_len": trainer.T, "context": c.seq_len,
        "begins_from": start.where if start is not None else None,
        "parameters": parameter_count(c), "steps": trainer.progress.course.steps,
        "step": trainer.progress.step, "train_tokens": trainer.store.train.tokens,
        "validation_tokens": trainer.store.val.tokens, "threads": trainer.team.threads,
        "isa": trainer.team.isa, "out": str(trainer.out), **trainer.crew.described(),
        "memory_mib": need / 2**20,
    })  # fmt: skip
