"""Going on with a training: what may be said then, what that changes, and what is refused, and why.

What is changed takes effect through the same commands that a running training obeys, and is
recorded with its step like them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crystalline._queue import SphereMessage
from crystalline.checkpoints.claim import Claim
from crystalline.config import TrainConfig
from crystalline.errors import UsageError
from crystalline.pipeline.ingest import segments_of
from crystalline.spheres.crew import Crew
from crystalline.spheres.driver import Command
from crystalline.spheres.messages import ALL_SPHERES, MessageType, Setting
from crystalline.training import early
from crystalline.training.saving import SAVING, save_plan
from crystalline.training.schedule import Course
from crystalline.training.settings import perform
from crystalline.training.trainer import Trainer
from crystalline.training.training import OnEvent

CREW = (  # options of who works, which change no result
    "threads", "hierarchy_depth", "work_stealing", "recursive_spawning", "thread_allocation", "pin",
)  # fmt: skip
SETTINGS = {  # options that a command can change
    "epochs": Setting.EPOCHS, "lr": Setting.LEARNING_RATE, "batch_size": Setting.BATCH_SIZE,
    "evaluation_interval": Setting.EVALUATION_INTERVAL, "seq_len": Setting.SEQ_LEN,
    "layers": Setting.LAYERS,
}  # fmt: skip
ENDING = ("patience", "min_delta")
MAY_CHANGE = (*CREW, "steps", *SETTINGS, *SAVING, *ENDING)

WIDTHS = "what was learnt is laid out for it"
REASONS = {  # why an option cannot change, where the reason is not the same for all
    "dim": WIDTHS, "heads": WIDTHS, "kv_heads": WIDTHS, "hidden": WIDTHS,
    "vocab_size": "every token has a row of its own in what was learnt",
    "tokenizer": "what was learnt belongs to its tokens", "preset": WIDTHS,
    "val": "the text that was held out is kept with the model",
    "seed": "the order of the text follows from it",
    "init": "the first weights are past",
    "rope": "what was learnt turns by these positions",
    "boundary_counters": "what was counted would not be of the whole training",
    "minutes": "the end was planned when the training began; give steps or epochs",
}  # fmt: skip


OTHERWISE = "it would be another training than the one that was begun"


def resumed(
    folder: Path, said: TrainConfig, given: Mapping[str, Any], merged: Mapping[str, Any],
    crew: Crew, claim: Claim, tell: OnEvent, at: int | None = None,
) -> Trainer:  # fmt: skip
    """The training in ``folder``, or its kept checkpoint of step ``at``, with what was said.

    ``given`` are the options of the call, ``merged`` these and a file's.  An option may be said
    again as it was said first; in a call, where a command has changed it since, that changes it
    back.  Raises UsageError for what cannot change, and then nothing has.
    """
    trainer = Trainer.resume(folder, crew, tell, at, segments_of(folder))
    trainer.saving.claim = claim
    trainer.saving.plan = save_plan(trainer.options)
    trainer.saving.go_back(at)
    now = _now(trainer)
    before = trainer.options | {"val": tuple(trainer.options.get("val", ()))}
    new = {}
    for name in merged:
        value = getattr(said, name)
        again = value == now.get(name) or (
            value == before.get(name) and (name not in given or name not in SETTINGS)
        )
        if name not in (*CREW, "steps") and not again:
            new[name] = value
    _refuse(trainer, [name for name in new if name not in MAY_CHANGE])
    p = trainer.progress
    done = p.step >= p.course.steps
    _set_length(trainer, said.steps, new.pop("epochs", None))
    if p.step >= p.course.steps:
        ended = f" ({p.ended})" if p.ended else ""
        raise UsageError(
            f"{folder}: training is finished at step {p.step}{ended}; give steps, more than that, "
            "to go on"
        )
    if done:
        early.go_on(trainer)
    _set_rest(trainer, new)
    if at is None:  # else with the first save: until then what is later counts
        trainer.metrics.forget_after(p.step)
    return trainer


def _now(trainer: Trainer) -> dict[str, Any]:
    """The values of options that hold now."""
    return {
        **asdict(trainer.config), **asdict(trainer.recipe), **asdict(trainer.saving.plan),
        "seq_len": trainer.batches.seq_len,
        "evaluation_interval": trainer.progress.evaluation_interval,
        "epochs": trainer.options.get("epochs"),
    }  # fmt: skip


def _refuse(trainer: Trainer, names: list[str]) -> None:
    if names:
        why = "; ".join(
            f"{name} cannot change when resuming: {REASONS.get(name, OTHERWISE)}" for name in names
        )
        raise UsageError(f"{why}; leave out all but {', '.join(MAY_CHANGE)}")


def _set_length(trainer: Trainer, steps: int | None, epochs: float | None) -> None:
    p = trainer.progress
    if trainer.batches.passes is not None and (steps, epochs) != (None, None):
        raise UsageError(
            f"{trainer.out}: is trained from its queue; go on with crystalline train "
            f"{trainer.out} --epochs N"
        )
    if steps is not None and steps != p.course.steps:
        if steps <= p.step:
            raise UsageError(f"steps is {steps}, but {p.step} are done; choose more")
        p.course = Course(steps)
        trainer.batches.limit(None)
        trainer.saving.changed = True
    if epochs is not None:
        done = p.step >= p.course.steps
        command(trainer, Setting.EPOCHS, epochs)
        if done:  # as with steps: the learning rate follows the whole, not a rest at its end
            p.course = Course(p.course.steps)


def _set_rest(trainer: Trainer, new: Mapping[str, Any]) -> None:
    # Layers last: they keep the checkpoint of before, which is of no use if something is refused.
    for name in (name for name in SETTINGS if name in new):
        command(trainer, SETTINGS[name], new[name])
    recipe = {name: new[name] for name in ENDING if name in new}
    trainer.recipe = replace(trainer.recipe, **recipe)
    plan = {name: new[name] for name in SAVING if name in new}
    trainer.saving.plan = replace(trainer.saving.plan, **plan)
    for name, value in new.items():
        trainer.options[name] = value
        trainer.saving.changed = True


def command(trainer: Trainer, setting: Setting, value: float) -> None:
    """Carries a command out before the training goes on, and records it.  UsageError refuses."""
    values = [float(setting), float(value)]
    perform(trainer, SphereMessage(MessageType.SET, values=values))
    trainer.record(
        Command(step=trainer.step_number, command="SET", sphere=ALL_SPHERES, values=values)
    )
    trainer.saving.changed = True
