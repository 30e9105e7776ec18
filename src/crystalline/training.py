"""A training's state, and what is done with it: a step, a validation, a checkpoint, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from crystalline import early, kept
from crystalline.batches import Batches, validation_batches
from crystalline.candidates import Candidates
from crystalline.checkpoint import load_model, load_training, save_model
from crystalline.config import ModelConfig
from crystalline.errors import CheckpointError, NumericsError
from crystalline.kept import BEST
from crystalline.layers import Floats
from crystalline.metrics import Metrics
from crystalline.model import Decoder, Parameters, initialise
from crystalline.optim import AdamW, AdamWConfig
from crystalline.pacing import Pacing
from crystalline.plan import Recipe, check_memory
from crystalline.schedule import Course, learning_rate
from crystalline.shards import TokenStore
from crystalline.sparse import touched_rows, vocabulary_weights
from crystalline.spheres.crew import Crew
from crystalline.spheres.driver import Command
from crystalline.spheres.stats import SphereStats
from crystalline.state_format import FORMAT, migrated
from crystalline.tokenizer import Tokenizer

Event = dict[str, Any]
OnEvent = Callable[[Event], None]

VALIDATION_TOKENS = 1 << 16  # of one validation; the last one takes all


@dataclass
class Progress:
    """The part of the training state that changes; with weights and moments it is all of it."""

    course: Course
    step: int = 0
    sequences: int = 0  # taken from the stream
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_bits_per_byte: float | None = None
    best_step: int = 0
    validation: dict[str, Any] | None = None
    evaluation_interval: int = 0  # steps between validations; 0 spreads them evenly
    mark: float | None = None  # the loss that a validation must better to count as progress
    stale: int = 0  # validations in a row that did not
    ended: str | None = None  # why, where it was not by the last step


class Training:
    """One model in one folder, at one step.  ``create`` or ``resume`` make one."""

    def __init__(
        self, out: Path, config: ModelConfig, recipe: Recipe, tokenizer: Tokenizer,
        crew: Crew, progress: Progress, on_event: OnEvent,
    ) -> None:  # fmt: skip
        self.out, self.config, self.recipe, self.tokenizer = out, config, recipe, tokenizer
        self.crew, self.team = crew, crew.team
        self.progress, self.on_event = progress, on_event
        self.store = TokenStore.open(out)
        B, T = recipe.batch_size, config.seq_len
        check_memory(config, B, T, self.team, *recipe.kind)
        self.candidates: Candidates | None = None
        if recipe.loss == "sampled":
            counts = self.store.train.counts(config.vocab_size)
            self.candidates = Candidates(counts, recipe.samples, recipe.seed, self.team)
        self.plan_model()
        self.plan_batches()
        self.token_bytes = np.array(
            [len(tokenizer.token_bytes(i)) for i in range(config.vocab_size)]
        )
        self.metrics = Metrics(out / "metrics.jsonl")
        self.options: dict[str, Any] = {}  # what the user said, kept for resuming
        self.commands: list[Command] = []  # that took effect
        self.pacing = Pacing()
        self.saved_step = self.model_step = -1  # of the checkpoint this process wrote last
        self.stats = SphereStats(self.team, crew.hierarchy)

    @property
    def offered(self) -> Parameters:
        """What is validated, kept as the best and exported."""
        return self.weights

    def plan_model(self) -> None:
        """What depends on the model's size: weights, gradients and moments."""
        self.weights, self.gradients = Parameters(self.config), Parameters(self.config)
        self.crew.interleave(self.weights.flat)
        settings = AdamWConfig(weight_decay=self.recipe.weight_decay)
        sparse = vocabulary_weights(self.config) if self.candidates else ()
        self.optimizer = AdamW(self.weights, self.team, settings, sparse)
        for block in (self.weights, self.gradients, self.optimizer.m, self.optimizer.v):
            self.team.touch(block.flat)

    def plan_batches(self) -> None:
        """What depends on the batch size: the order of the text, and the memory of a batch."""
        self.plan_decoder()
        B, T = self.recipe.batch_size, self.config.seq_len
        self.batches = Batches(self.store.train, B, T, self.recipe.seed)

    def plan_decoder(self) -> None:
        """What depends on both: the memory of a batch."""
        B, T = self.recipe.batch_size, self.config.seq_len
        expected = None if self.candidates is None else self.candidates.log_expected
        self.decoder = Decoder(
            self.weights, self.team, B, T, self.gradients, self.recipe.precision, expected,
            self.recipe.lends_gradients,
        )  # fmt: skip

    @classmethod
    def create(
        cls, out: Path, config: ModelConfig, recipe: Recipe, tokenizer: Tokenizer, crew: Crew,
        course: Course, on_event: OnEvent,
    ) -> Self:  # fmt: skip
        """A new training at step 0, in a folder that holds the data already."""
        trainer = cls(out, config, recipe, tokenizer, crew, Progress(course), on_event)
        initialise(trainer.weights, recipe.seed)
        return trainer

    @classmethod
    def resume(cls, out: Path, crew: Crew, on_event: OnEvent, at: int | None = None) -> Self:
        """The training as its last checkpoint left it, or one that is kept, of step ``at``."""
        source = out if at is None else kept.place(out, at)
        config, tokenizer, tensors = load_model(source)
        beside, state = load_training(source)
        state = migrated(state, f"{source}/training_state.json")
        try:
            recipe = Recipe(**state["recipe"])
            progress = Progress(**{**state["progress"], "course": Course(**state["course"])})
            updates, commands = int(state["updates"]), list(state["commands"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source}/training_state.json: {error} does not fit this version; train again"
            ) from error
        trainer = cls(out, config, recipe, tokenizer, crew, progress, on_event)
        trainer.load(early.last_weights(tensors, beside), beside, updates)
        trainer.options, trainer.commands = state["options"], commands
        trainer.saved_step = progress.step if at is None else -1
        if state.get("data") != trainer.store.fingerprint:
            raise CheckpointError(
                f"{out}/data: is not the text this model was trained on; restore it from a copy"
            )
        return trainer

    def load(self, model: Mapping[str, Floats], beside: Mapping[str, Floats], updates: int) -> None:
        """Takes over what was ``offered`` at the last step, and what ``beside`` gave then."""
        self.weights.load(model)
        self.optimizer.load(beside, updates)

    def beside(self) -> dict[str, Floats]:
        """The tensors that resuming needs beside the weights."""
        return self.optimizer.tensors()

    # --- one step ---------------------------------------------------------------------------------

    def gradient(self, first: int, counted: bool = True) -> tuple[float, int]:
        """Sets the gradients of the mean loss of a step whose sequences begin at ``first`` of the
        stream; returns that loss and its number of tokens."""
        n, B, total = self.recipe.accumulate, self.recipe.batch_size, 0.0
        batches = [self.batches.batch(first + i * B) for i in range(n)]
        # Counted first: each micro-batch is weighted by its share of the whole step's tokens.
        count = sum(int((targets >= 0).sum()) for _, targets in batches)
        samples: list[NDArray[np.int32] | None] = [None] * n
        if self.candidates is not None:
            drawn = [self.candidates.draw(first + i * B) for i in range(n)]
            self.optimizer.begin(self.gradients, touched_rows(self.config, batches, drawn))
            samples = [*drawn]
        for i, (ids, targets) in enumerate(batches):
            total += self.decoder.gradient(ids, targets, 1.0 / count, i > 0, samples[i])
            if counted:
                space = self.decoder.space
                self.stats.add_batch(
                    space.groups, space.ids, space.targets, self.decoder.group_losses, space.T
                )
        return total / count, count

    def step(self) -> Event:
        """One update."""
        p, r = self.progress, self.recipe
        begun = time.monotonic()
        lr = learning_rate(r.lr, r.warmup, r.floor, p.course.at(p.step + 1))
        loss, count = self.gradient(p.sequences)
        norm = self.optimizer.step(self.gradients, lr) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            raise self._not_finite(f"the loss is {loss} and its gradient {norm}")
        seconds = time.monotonic() - begun
        self.stats.end_step(self.optimizer.squares)
        p.step, p.tokens, p.seconds = p.step + 1, p.tokens + count, p.seconds + seconds
        p.sequences += r.sequences
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
        self.optimizer.settle()
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

    def validated(self, most: int | None = VALIDATION_TOKENS) -> None:
        """Validates, and keeps the weights as the best if they are.

        A validation over all the held-out text, where the others took a part of it, is only told.
        """
        result, p = self.validate(most), self.progress
        if result is None:
            return
        if not math.isfinite(result["loss"]):
            raise self._not_finite(f"the validation loss is {result['loss']}")
        self.pacing.validation_seconds = result["seconds"]
        p.validation = {k: result[k] for k in ("step", "loss", "bits_per_byte", "tokens")}
        if most is not None and (p.best is None or result["loss"] < p.best):
            p.best, p.best_step = result["loss"], p.step
            p.best_bits_per_byte = result["bits_per_byte"]
            self.save_best()
        if most is not None:
            early.count(self, result["loss"])
        self.tell(result | {"best": p.best, "best_step": p.best_step})

    # --- checkpoints ------------------------------------------------------------------------------

    def save_best(self) -> None:
        """Keeps the weights of now as the best model."""
        save_model(self.out / BEST, self.config, self.tokenizer, self.offered.named)

    def save(self) -> None:
        """Writes the checkpoint: model, moments and state."""
        begun = time.monotonic()
        self.optimizer.settle()
        model_step, model, displaced = early.model_to_save(self)
        progress = asdict(self.progress)
        state = {
            "format": FORMAT, "course": progress.pop("course"), "progress": progress,
            "recipe": asdict(self.recipe), "updates": self.optimizer.t, "model_step": model_step,
            "data": self.store.fingerprint, "options": self.options, "commands": self.commands,
        }  # fmt: skip
        self.metrics.flush()
        save_model(
            self.out,
            self.config,
            self.tokenizer,
            model,
            optimizer=self.beside() | displaced,
            state=state,
        )
        self.pacing.saved(begun)
        self.saved_step, self.model_step = self.progress.step, model_step
        self.tell({"event": "checkpoint", "step": self.progress.step, "path": str(self.out)})

    def tell(self, event: Event) -> None:
        """Writes steps and validations down, and hands every event on."""
        if event["event"] in ("step", "validation"):
            self.metrics.write(event)
        self.on_event(event)
