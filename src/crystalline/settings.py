"""What commands do to a training between two of its steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil

from crystalline._queue import SphereMessage
from crystalline.errors import UsageError
from crystalline.plan import memory_forecast
from crystalline.spheres.messages import ALL_SPHERES, MessageType, Setting

if TYPE_CHECKING:
    from crystalline.trainer import Trainer

MOST_SEQUENCES = 1 << 20


def perform(trainer: Trainer, message: SphereMessage) -> Any:
    """Carries out one command; UsageError refuses it, and then nothing has changed."""
    kind = MessageType(message.type)
    if kind is MessageType.CHECKPOINT:
        trainer.save()
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
    c, recipe = trainer.config, trainer.recipe
    if size == recipe.batch_size:
        return
    team, kind = trainer.team, recipe.kind
    needs = [
        memory_forecast(c, B, c.seq_len, team, *kind) for B in (recipe.batch_size, size)
    ]
    more, free = needs[1] - needs[0], int(psutil.virtual_memory().available)
    if more > free:
        raise UsageError(
            f"batch_size is {size}, which needs {more / 2**20:,.0f} MiB more, but "
            f"{free / 2**20:,.0f} MiB are free; choose a smaller one"
        )
    trainer.recipe = replace(recipe, batch_size=size)
    trainer.plan_batches()
    epochs = float(trainer.options.get("epochs") or 0)
    # A training that was given more steps than its epochs have keeps its number of steps.
    if trainer.batches.sequences_in(epochs) > trainer.progress.sequences:
        _set_epochs(trainer, epochs)


def _set_epochs(trainer: Trainer, value: float) -> None:
    if not 0 < value <= 1e7:
        raise UsageError(f"epochs is {value:g}, but must be above 0 and at most 1e7; choose 10")
    p = trainer.progress
    left = trainer.batches.sequences_in(value) - p.sequences
    if left <= 0:
        done = trainer.batches.epoch_of(p.sequences)
        raise UsageError(f"epochs is {value:g}, but {done:.2f} are done; choose more, or stop")
    p.course = p.course.moved(p.step, p.step + -(-left // trainer.recipe.sequences))
    trainer.options["epochs"] = value
    trainer.pacing.deadline = None  # who says how many passes does not say how many minutes


def _set_evaluation_interval(trainer: Trainer, value: float) -> None:
    trainer.progress.evaluation_interval = _whole("evaluation_interval", value, 0, 2**31 - 1)


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
}
