"""What commands do to a training between two of its steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crystalline._queue import SphereMessage
from crystalline.config import MOST_LAYERS
from crystalline.errors import CheckpointError, UsageError
from crystalline.forecast.machine import available
from crystalline.forecast.memory import arenas
from crystalline.spheres.messages import ALL_SPHERES, MessageType, Setting
from crystalline.training.growth import add_layers

if TYPE_CHECKING:
    from crystalline.training.trainer import Trainer

MOST_SEQUENCES = 1 << 20


def perform(trainer: Trainer, message: SphereMessage) -> Any:
    """Carries out one command; UsageError refuses it, and then nothing has changed."""
    kind = MessageType(message.type)
    if kind is MessageType.CHECKPOINT:
        try:
            trainer.save()
        except CheckpointError as error:  # who asked is told, and the training goes on
            raise UsageError(str(error)) from error
    elif kind is MessageType.STATS:
        return trainer.stats.snapshot()
    elif kind is MessageType.SET:
        setting, value = Setting(int(message.values[0])), message.values[1]
        if not math.isfinite(value):
            raise UsageError(f"{setting.name.lower()} is {value}, but must be a finite number")
        SETTERS[setting](trainer, value)
    else:
        sphere = None if message.sphere == ALL_SPHERES else message.sphere
        if kind is MessageType.SPAWN:
            trainer.crew.spawn(sphere)
        elif kind is MessageType.TERMINATE:
            trainer.crew.terminate(sphere)
        else:
            trainer.crew.rebalance()
    return None


def _set_learning_rate(trainer: Trainer, value: float) -> None:
    if not 0 < value <= 10:
        raise UsageError(
            f"learning_rate is {value:g}, but must be above 0 and at most 10; choose 0.001"
        )
    trainer.recipe = replace(trainer.recipe, lr=value)


def _set_batch_size(trainer: Trainer, value: float) -> None:
    size = _whole("batch_size", value, 1, MOST_SEQUENCES)
    if size == trainer.recipe.batch_size:
        return
    _check_room(trainer, "batch_size", size, size, trainer.batches.seq_len)
    trainer.recipe = replace(trainer.recipe, batch_size=size)
    trainer.plan_batches()
    _keep_the_end(trainer)


def _set_seq_len(trainer: Trainer, value: float) -> None:
    most = trainer.config.seq_len
    if value > most:
        raise UsageError(
            f"seq_len is {value:g}, but this model was made for {most} tokens, and positions "
            f"behind them have never been trained; choose {most} or fewer"
        )
    T = _whole("seq_len", value, 1, most)
    if trainer.batches.seq_len == T:
        return
    _check_room(trainer, "seq_len", T, trainer.recipe.batch_size, T)
    trainer.batches.change_length(trainer.progress.sequences, T)
    trainer.plan_batches()
    _keep_the_end(trainer)


def _check_room(trainer: Trainer, name: str, value: int, B: int, T: int) -> None:
    """UsageError where B sequences of T need more memory than there is."""
    now, wanted = trainer.recipe, replace(trainer.recipe, batch_size=B)
    needs = [
        sum(arenas(trainer.config, recipe, trainer.team, length).values())
        for recipe, length in ((now, trainer.batches.seq_len), (wanted, T))
    ]
    more, free = needs[1] - needs[0], available()
    if more > free:
        raise UsageError(
            f"{name} is {value}, which needs {more / 2**20:,.0f} MiB more, but "
            f"{free / 2**20:,.0f} MiB are free; choose a smaller one"
        )


def _keep_the_end(trainer: Trainer) -> None:
    """Steps of another size: as many as take what is left of the epochs, or of the passes."""
    p, batches = trainer.progress, trainer.batches
    if trainer.feed is not None:
        trainer.feed.aim()
    elif batches.end is None:
        epochs = float(trainer.options.get("epochs") or 0)
        # A training that was given more steps than its epochs have keeps its number of steps.
        if batches.sequences_in(epochs) > p.sequences:
            _set_epochs(trainer, epochs)
    elif batches.end > p.sequences:
        _end_at(trainer, batches.end)


def _end_at(trainer: Trainer, sequences: int) -> None:
    p = trainer.progress
    steps = -(-(sequences - p.sequences) // trainer.recipe.sequences)
    p.course = p.course.moved(p.step, p.step + steps)


def _set_epochs(trainer: Trainer, value: float) -> None:
    if not 0 < value <= 1e7:
        raise UsageError(f"epochs is {value:g}, but must be above 0 and at most 1e7; choose 10")
    p = trainer.progress
    if trainer.feed is not None:
        trainer.feed.ask_epochs(_whole("epochs", value, 1, 10**7))
        return
    end = trainer.batches.sequences_in(value)
    if end <= p.sequences:
        done = trainer.batches.epoch_of(p.sequences)
        raise UsageError(f"epochs is {value:g}, but {done:.2f} are done; choose more, or stop")
    trainer.batches.limit(value)
    _end_at(trainer, end)
    trainer.options["epochs"] = value
    trainer.pacing.deadline = None  # who says how many passes does not say how many minutes


def _set_evaluation_interval(trainer: Trainer, value: float) -> None:
    trainer.progress.evaluation_interval = _whole("evaluation_interval", value, 0, 2**31 - 1)


def _set_layers(trainer: Trainer, value: float) -> None:
    try:
        add_layers(trainer, _whole("layers", value, 1, MOST_LAYERS))
    except CheckpointError as error:  # that of before cannot be kept
        raise UsageError(str(error)) from error


def _whole(name: str, value: float, least: int, most: int) -> int:
    if value != int(value) or not least <= value <= most:
        raise UsageError(
            f"{name} is {value:g}, but must be a whole number from {least} to {most}; choose "
            f"{max(least, min(round(value), most))}"
        )
    return int(value)


SETTERS = {
    Setting.LEARNING_RATE: _set_learning_rate,
    Setting.BATCH_SIZE: _set_batch_size,
    Setting.EPOCHS: _set_epochs,
    Setting.EVALUATION_INTERVAL: _set_evaluation_interval,
    Setting.SEQ_LEN: _set_seq_len,
    Setting.LAYERS: _set_layers,
}
