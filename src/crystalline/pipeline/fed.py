"""Training a model from its queue: made of what waits there, or gone on with.

How a model is made of its queue, and what a crash leaves at each point:

1. Documents are leased, and a vocabulary learnt from them.  A crash leaves them pending.
2. ``data`` and ``tokenizer.json`` are written.  A crash leaves files that are written over.
3. state.db says that the documents are tokenized.  A crash leaves a model whose text is there, and
   which is made from it the next time.
4. The first checkpoint is written.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crystalline.checkpoints.claim import claimed
from crystalline.checkpoints.modelfiles import TOKENIZER
from crystalline.config import TrainConfig
from crystalline.data.reading import HELD_OUT, Piece, collect
from crystalline.data.shards import TokenStore, write_shards
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import UsageError
from crystalline.files import sync_folder, write_durably
from crystalline.inference.model import Model, load
from crystalline.options import load_toml, train_config
from crystalline.pipeline.feed import Feed
from crystalline.pipeline.ingest import later_segments, places, tidy
from crystalline.pipeline.record import passes
from crystalline.pipeline.watch import Watcher
from crystalline.store import Leased, Store
from crystalline.training.from_weights import holds_model
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

FIRST_DOCUMENTS = 1 << 20  # that a model is made of, at most, and
FIRST_BYTES = 256 << 20  # the bytes of their texts; the rest comes in segments
MANY = 10  # documents of which a tenth can be held out
WAIT_SECONDS = 0.2

PathLike = str | os.PathLike[str]


def feed(
    model: PathLike,
    *,
    watch: Sequence[PathLike] = (),
    flush: bool = False,
    config: PathLike | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Model:
    """Trains a model on what waits in its queue, each document for ``epochs`` epochs, and returns
    it; ``watch`` names folders whose files are queued as they come, until a signal ends it.

    The model's folder is there already, with a checkpoint or (``models create``) without.  What
    does not fill a step waits for more text, unless ``flush`` trains it, padded.  ``options`` are
    those of ``train``; all but ``epochs`` and who works are for a model's first training.

    Raises what ``train`` raises, and UsageError where there is nothing to train.
    """
    said = {"watch": watch, "flush": flush, "config": config, "on_event": on_event, **options}
    with feeding(model, **said) as trainer:
        trainer.run()
        threads = trainer.team.threads
    return load(model, threads=threads)


@contextlib.contextmanager
def feeding(
    model: PathLike,
    *,
    watch: Sequence[PathLike] = (),
    flush: bool = False,
    config: PathLike | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Iterator[Trainer]:
    """As ``feed``, but hands over the trainer, ready to ``run`` or to ``start``."""
    tell, folder = on_event or (lambda event: None), Path(model)
    with contextlib.ExitStack() as stack:
        claim = stack.enter_context(claimed(folder))
        with Store.open(folder, create=True) as store:
            tidy(folder, store)
            said, epochs = _said(store, config, options)
            arrivals = _Arrivals()
            if watch:
                paths = [os.fspath(path) for path in watch]
                stack.enter_context(Watcher(folder, paths, on_event=arrivals.hear(tell)))
            if holds_model(folder):
                segments = later_segments(store)
                trainer = Trainer.resume(folder, crew_of(said), tell, segments=segments)
                trainer.metrics.forget_after(trainer.progress.step)
                why = "as it was begun"
            else:
                trainer, why = _created(folder, said, store, tell, bool(watch))
            trainer.saving.plan, trainer.saving.claim = save_plan(trainer.options), claim
            store.record_passes(passes(trainer), afresh=True)
            store.set(target_epochs=epochs)
            trainer.feed = Feed(trainer, epochs, flush=flush, lasting=bool(watch))
            trainer.feed.begin(store)
            arrivals.feed = trainer.feed
            if not watch:
                _refuse_idle(trainer.feed, trainer)
        tell_plan(trainer, tell, why)
        try:
            yield trainer
        finally:
            if trainer.node is not None and trainer.node.alive:
                trainer.node.request_stop()
                trainer.node.wait()


def _refuse_idle(feed: Feed, trainer: Trainer) -> None:
    """UsageError where no step can be made of what there is."""
    if feed.left == 0:
        raise UsageError(
            f"{trainer.out}: nothing waits in its queue, and every document has its epochs; add "
            "text with crystalline queue add, or ask for more epochs"
        )
    if not feed.enough:
        raise UsageError(
            f"{trainer.out}: {feed.left} sequences wait, and a step takes "
            f"{trainer.recipe.sequences}; add text, or use --flush to train them padded"
        )


@dataclass
class _Arrivals:
    """Wakes the feed when the watcher has queued something."""

    feed: Feed | None = None

    def hear(self, tell: OnEvent) -> OnEvent:
        """The watcher's events, handed on: once there is a feed, on the thread that trains."""

        def heard(event: dict[str, Any]) -> None:
            if self.feed is None:
                tell(event)
                return
            self.feed.heard.append(event)
            self.feed.arrived.set()

        return heard


def _said(
    store: Store, config: PathLike | None, options: dict[str, Any]
) -> tuple[TrainConfig, int]:
    """What was said when the model was created, and now; and the epochs of a document."""
    given = {k: v for k, v in options.items() if v is not None}
    for name in ("minutes", "steps"):
        if name in given:
            raise UsageError(
                f"{name} is {given[name]}, but a queue is trained by epochs; give epochs"
            )
    kept = store.get("options", {})
    known = {k: v for k, v in kept.items() if k not in ("minutes", "steps")}
    merged = known | (load_toml(config) if config is not None else {}) | given
    epochs = merged["epochs"] if "epochs" in merged and "epochs" not in kept else None
    epochs = given.get("epochs", epochs) or store.get("target_epochs", kept.get("epochs") or 1)
    if not isinstance(epochs, int | float) or epochs != int(epochs) or epochs < 1:
        raise UsageError(f"epochs is {epochs!r}, but a queue wants a whole number of 1 or more")
    return train_config(merged | {"epochs": float(epochs)}, "train"), int(epochs)


def _created(
    folder: Path, said: TrainConfig, store: Store, tell: OnEvent, lasting: bool
) -> tuple[Trainer, str]:
    """A model made of its queue, and why it is packed or not."""
    crew = crew_of(said)
    refuse_hopeless(said, crew.team)
    if said.start_from is not None:
        raise UsageError(
            f"start_from is {said.start_from!r}, but a model made of its queue begins anew; train "
            "on files first, then feed it"
        )
    if 0 not in store.segments():
        while not store.has_pending():
            if not lasting:
                raise UsageError(
                    f"{folder}: nothing waits in its queue; add text with crystalline queue add"
                )
            time.sleep(WAIT_SECONDS)
        _first_tokens(folder, said, store, tell)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    segments = later_segments(store)
    tokens = TokenStore.open(folder, segments=segments).train
    choice = chosen(said, tokens.bytes, None, tokenizer, crew.team)
    config = choice.config
    recipe, why = with_packing(said, choice.recipe, config, tokens)
    nothing = {"passes": [], "lengths": [[0, config.seq_len]], "rows": [], "epochs": None}
    trainer = Trainer.create(
        folder, config, recipe, tokenizer, crew, Course(1), tell, nothing, segments
    )
    trainer.options = asdict(said) | {"choice": choice.described()}
    trainer.progress.evaluation_interval = said.evaluation_interval or 0
    if said.patience and trainer.store.val.documents == 0:
        raise UsageError(
            f"patience is {said.patience}, but no text is held out, and nothing will be "
            "validated; give val, or leave out patience"
        )
    return trainer, why


@dataclass(frozen=True)
class _Text:
    """A leased document, as it is written down."""

    document: Leased

    @property
    def size(self) -> int:
        return self.document.bytes

    def read(self) -> str:
        return self.document.text


def _first_tokens(folder: Path, said: TrainConfig, store: Store, tell: OnEvent) -> None:
    """Steps 1 to 3."""
    taken = store.lease(FIRST_DOCUMENTS, FIRST_BYTES, seconds=86400.0)
    if said.val:
        held: list[Leased] = []
        val: Sequence[Piece | _Text] = [Piece(source) for source in collect(said.val)[0]]
    else:
        held = _held_out(taken)
        val = [_Text(one) for one in held]
    out = {one.id for one in held}
    train = [one for one in taken if one.id not in out]
    size = sum(one.bytes for one in train)
    tell({"event": "data", "files": len(taken), "bytes": sum(one.bytes for one in taken),
          "skipped": []})  # fmt: skip
    tokenizer = vocabulary(said, size, (one.text for one in train))
    tell({"event": "tokenizer", "vocab_size": tokenizer.vocab_size})
    write_durably(os.fspath(folder / TOKENIZER), [tokenizer.to_json()])
    sync_folder(os.fspath(folder))
    write_shards(
        folder, tokenizer, [_Text(one) for one in train], val, reporter(tell, "tokens")
    )
    tokens = TokenStore.open(folder)
    lengths = (tokens.train.offsets[1:] - tokens.train.offsets[:-1]).tolist()
    placed = places(train, lengths, 0, 0)
    store.tokenized(0, placed, fingerprint=tokens.fingerprint, held_out=sorted(out))


def _held_out(taken: Sequence[Leased]) -> list[Leased]:
    """About a tenth of many documents, chosen by their hashes, and of at most a tenth of the bytes;
    of few documents none."""
    if len(taken) < MANY:
        return []
    budget = HELD_OUT * sum(one.bytes for one in taken)
    held: list[Leased] = []
    for one in sorted(taken, key=lambda one: one.hash):
        if len(held) < round(HELD_OUT * len(taken)) and one.bytes <= budget:
            held.append(one)
            budget -= one.bytes
    return held


def model_to_feed(paths: Sequence[str], models_dir: str | None, feeds: bool) -> Path | None:
    """The model that ``crystalline train`` is to feed, if that is what its arguments mean: with
    options of a queue the one that is named, else a model's folder, or its name where no such
    path is."""
    from crystalline.store.models import is_model, models_folder, resolve_model

    if feeds:
        if len(paths) != 1:
            raise UsageError("name one model to train from its queue")
        return resolve_model(paths[0], models_dir)
    if len(paths) != 1:
        return None
    path = Path(paths[0])
    if path.exists():
        return path if is_model(path) else None
    named = models_folder(models_dir) / paths[0]
    return named if is_model(named) else None


