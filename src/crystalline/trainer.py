"""The training loop: steps, validation, checkpoints, and resuming to the same bits."""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crystalline._native import Team
from crystalline.batches import Batches, validation_batches
from crystalline.checkpoint import load_model, load_training, save_model
from crystalline.config import ModelConfig
from crystalline.errors import CheckpointError, Interrupted, NumericsError
from crystalline.metrics import Metrics
from crystalline.model import Decoder, Parameters, initialise
from crystalline.optim import AdamW, AdamWConfig
from crystalline.plan import Recipe, check_memory
from crystalline.schedule import Course, learning_rate
from crystalline.shards import TokenStore
from crystalline.signals import noted_signals
from crystalline.tokenizer import Tokenizer

Event = dict[str, Any]
OnEvent = Callable[[Event], None]

VALIDATIONS = 8  # in a run, evenly spread
VALIDATION_TOKENS = 1 << 16  # of one validation; the last one takes all
SAVE_SHARE = 0.05  # of the time may go into checkpoints
REPLANS = 40  # how often a run told minutes looks at the clock
BEST = "best"


@dataclass
class Progress:
    """The part of the training state that changes; with weights and moments it is all of it."""

    course: Course
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_bits_per_byte: float | None = None
    best_step: int = 0
    validation: dict[str, Any] | None = None


class Trainer:
    """Trains one model in one folder.  ``create`` or ``resume`` make one; ``run`` trains."""

    def __init__(
        self, out: Path, config: ModelConfig, recipe: Recipe, tokenizer: Tokenizer,
        team: Team, progress: Progress, on_event: OnEvent,
    ) -> None:  # fmt: skip
        self.out, self.config, self.recipe, self.tokenizer = out, config, recipe, tokenizer
        self.team, self.progress, self.on_event = team, progress, on_event
        self.store = TokenStore.open(out)
        B, T = recipe.batch_size, config.seq_len
        check_memory(config, B, T, team)
        self.weights, self.gradients = Parameters(config), Parameters(config)
        settings = AdamWConfig(weight_decay=recipe.weight_decay)
        self.optimizer = AdamW(self.weights, team, settings)
        self.decoder = Decoder(self.weights, team, B, T, self.gradients)
        self.batches = Batches(self.store.train, B, T, recipe.seed)
        self.token_bytes = np.array(
            [len(tokenizer.token_bytes(i)) for i in range(config.vocab_size)]
        )
        self.metrics = Metrics(out / "metrics.jsonl")
        self.options: dict[str, Any] = {}  # what the user said, kept for resuming
        self.deadline: float | None = None
        self.pace = self.validation_seconds = self.save_seconds = 0.0
        self.saved_at = self.begun = time.monotonic()

    @classmethod
    def create(
        cls, out: Path, config: ModelConfig, recipe: Recipe, tokenizer: Tokenizer, team: Team,
        course: Course, on_event: OnEvent,
    ) -> Trainer:  # fmt: skip
        """A new training at step 0, in a folder that holds the data already."""
        trainer = cls(out, config, recipe, tokenizer, team, Progress(course), on_event)
        initialise(trainer.weights, recipe.seed)
        return trainer

    @classmethod
    def resume(cls, out: Path, team: Team, on_event: OnEvent) -> Trainer:
        """The training as its last checkpoint left it."""
        config, tokenizer, tensors = load_model(out)
        optimizer, state = load_training(out)
        try:
            recipe = Recipe(**state["recipe"])
            progress = Progress(**{**state["progress"], "course": Course(**state["course"])})
            updates = int(state["updates"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{out}/training_state.json: {error} does not fit this version; train again"
            ) from error
        trainer = cls(out, config, recipe, tokenizer, team, progress, on_event)
        trainer.weights.load(tensors)
        trainer.optimizer.m.load({n: optimizer["m." + n] for n in trainer.weights.named})
        trainer.optimizer.v.load({n: optimizer["v." + n] for n in trainer.weights.named})
        trainer.optimizer.t = updates
        trainer.options = state.get("options", {})
        if state.get("data") != trainer.store.fingerprint:
            raise CheckpointError(
                f"{out}/data: is not the text this model was trained on; restore it from a copy"
            )
        return trainer

    # --- one step ---------------------------------------------------------------------------------

    def gradient(self, step: int) -> tuple[float, int]:
        """Sets the gradients of a step's mean loss; returns that loss and its number of tokens."""
        n, total = self.recipe.accumulate, 0.0
        # Counted first: each micro-batch is weighted by its share of the whole step's tokens.
        count = sum(int((self.batches.batch(step * n + i)[1] >= 0).sum()) for i in range(n))
        for i in range(n):
            ids, targets = self.batches.batch(step * n + i)
            total += self.decoder.gradient(ids, targets, 1.0 / count, i > 0)
        return total / count, count

    def step(self) -> Event:
        """One update."""
        p, r = self.progress, self.recipe
        begun = time.monotonic()
        lr = learning_rate(r.lr, r.warmup, r.floor, p.course.at(p.step + 1))
        loss, count = self.gradient(p.step)
        norm = self.optimizer.step(self.gradients, lr) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            raise self._not_finite(f"the loss is {loss} and its gradient {norm}")
        seconds = time.monotonic() - begun
        p.step, p.tokens, p.seconds = p.step + 1, p.tokens + count, p.seconds + seconds
        return {
            "event": "step", "step": p.step, "loss": loss, "lr": lr, "grad_norm": norm,
            "tokens": count, "seconds": seconds,
        }  # fmt: skip

    def _not_finite(self, what: str) -> NumericsError:
        return NumericsError(
            f"{what} at step {self.progress.step + 1}; the checkpoint in {self.out} is intact; "
            f"lower lr (now {self.recipe.lr:g}) and train again with another out"
        )

    # --- validation -------------------------------------------------------------------------------

    def validate(self, most: int | None = VALIDATION_TOKENS) -> Event | None:
        """Full cross-entropy over the held-out text, or a part of about ``most`` tokens."""
        split = self.store.val
        if split.tokens < 2:
            return None
        begun = time.monotonic()
        B, T = self.recipe.batch_size, self.config.seq_len
        every = 1 if most is None else max(1, split.tokens // most)
        nats, count, size = 0.0, 0, 0
        for i, (ids, targets) in enumerate(validation_batches(split, B, T)):
            if i % every:
                continue
            nats += self.decoder.loss(ids, targets)
            counted = targets[targets >= 0]
            count += counted.size
            size += int(self.token_bytes[counted].sum())
        return {
            "event": "validation", "step": self.progress.step, "loss": nats / count,
            "bits_per_byte": nats / math.log(2) / max(size, 1), "tokens": count,
            "seconds": time.monotonic() - begun,
        }  # fmt: skip

    def _validated(self, most: int | None = VALIDATION_TOKENS) -> None:
        """Validates, and keeps the weights as the best if they are.

        A validation over all the held-out text, where the others took a part of it, is only told.
        """
        result, p = self.validate(most), self.progress
        if result is None:
            return
        if not math.isfinite(result["loss"]):
            raise self._not_finite(f"the validation loss is {result['loss']}")
        self.validation_seconds = result["seconds"]
        p.validation = {k: result[k] for k in ("step", "loss", "bits_per_byte", "tokens")}
        if most is not None and (p.best is None or result["loss"] < p.best):
            p.best, p.best_step = result["loss"], p.step
            p.best_bits_per_byte = result["bits_per_byte"]
            save_model(self.out / BEST, self.config, self.tokenizer, self.weights.named)
        self._tell(result | {"best": p.best, "best_step": p.best_step})

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint: model, moments and state."""
        begun = time.monotonic()
        moments = {f"m.{n}": a for n, a in self.optimizer.m.named.items()}
        moments |= {f"v.{n}": a for n, a in self.optimizer.v.named.items()}
        progress = asdict(self.progress)
        state = {
            "format": 1, "course": progress.pop("course"), "progress": progress,
            "recipe": asdict(self.recipe), "updates": self.optimizer.t,
            "data": self.store.fingerprint, "options": self.options,
        }  # fmt: skip
        self.metrics.flush()
        save_model(
            self.out,
            self.config,
            self.tokenizer,
            self.weights.named,
            optimizer=moments,
            state=state,
        )
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - begun
        self._tell({"event": "checkpoint", "step": self.progress.step, "path": str(self.out)})

    # --- the run ----------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        if event["event"] in ("step", "validation"):
            self.metrics.write(event)
        self.on_event(event)

    def _pace(self, event: Event) -> Event:
        """A step's event with what a reader wants to see beside it."""
        p, now = self.progress, time.monotonic()
        self.pace = 0.9 * (self.pace or event["seconds"]) + 0.1 * event["seconds"]
        epoch = self.batches.epoch_of(p.step * self.recipe.accumulate)
        event |= {
            "steps": p.course.steps, "epoch": epoch,
            "tokens_per_s": event["tokens"] / self.pace, "elapsed": now - self.begun,
            "eta": (p.course.steps - p.step) * self.pace,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }  # fmt: skip
        return event

    def aim(self, deadline: float) -> None:
        """Sets the end so that the run is over at ``deadline`` (time.monotonic); measures some
        gradients for that and throws them away."""
        self.deadline = deadline
        spent = []
        for _ in range(4):
            begun = time.monotonic()
            self.gradient(0)
            spent.append(time.monotonic() - begun)
            if time.monotonic() > deadline:
                break
        self.pace = min(spent) * 1.05
        begun = time.monotonic()
        if self.validate() is not None:
            self.validation_seconds = time.monotonic() - begun
        self._replan()

    def _replan(self) -> None:
        """Moves the end so that training, validations and checkpoints are over at the deadline."""
        p = self.progress
        if self.deadline is None:
            return
        validations = VALIDATIONS - int(VALIDATIONS * p.course.at(p.step)) + 0.5
        reserve = validations * self.validation_seconds + 3 * self.save_seconds + 1.0
        seconds = self.deadline - time.monotonic() - reserve
        more = max(1, int(seconds / self.pace))
        # Near the end only a large error moves it: the last steps have the lowest learning rates.
        left = p.course.steps - p.step
        if p.step == 0 or abs(more - left) > max(2, 0.01 * p.step):
            p.course = p.course.moved(p.step, p.step + more)

    def _between_steps(self, before: float) -> None:
        """What is due after a step that began at progress ``before``."""
        p = self.progress
        now = p.course.at(p.step)
        done = now >= 1.0
        if done or int(VALIDATIONS * now) > int(VALIDATIONS * before):
            self._validated()
            if done and self.store.val.tokens > 2 * VALIDATION_TOKENS:
                self._validated(most=None)
        waited = time.monotonic() - self.saved_at
        if done or waited > max(60.0, self.save_seconds / SAVE_SHARE):
            self.save()
        last = p.step == p.course.steps - 1
        if not done and (last or int(REPLANS * now) > int(REPLANS * before)):
            self._replan()

    def run(self) -> None:
        """Trains to the end of the course.  A signal ends it early, after a checkpoint."""
        p = self.progress
        self.begun = time.monotonic()
        if p.step == 0:
            self.save()
        try:
            with noted_signals() as stop:
                while p.step < p.course.steps and not stop:
                    before = p.course.at(p.step)
                    self._tell(self._pace(self.step()))
                    self._between_steps(before)
                if p.step < p.course.steps:
                    self.save()
        finally:
            with contextlib.suppress(OSError):  # the error that ended the run is the one to tell
                self.metrics.flush()
        if p.step < p.course.steps:
            error = Interrupted(
                f"stopped by a signal after step {p.step} of {p.course.steps}; the checkpoint in "
                f"{self.out} is whole; go on with --resume"
            )
            error.exit_code = 128 + (stop.signal or 2)
            raise error
        self._tell({"event": "done", "step": p.step, "seconds": time.monotonic() - self.begun,
                    "validation": p.validation, "best": p.best, "best_step": p.best_step,
                    "best_bits_per_byte": p.best_bits_per_byte,
                    "path": str(self.out)})  # fmt: skip
