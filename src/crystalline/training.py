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

from crystalline.batches import Batches, validation_batches
from crystalline.candidates import Candidates
from crystalline.checkpoint import load_model, load_training, save_model
from crystalline.config import ModelConfig
from crystalline.errors import CheckpointError, NumericsError
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
from crystalline.tokenizer import Tokenizer

Event = dict[str, Any]
OnEvent = Callable[[Event], None]

VALIDATION_TOKENS = 1 << 16  # of one validation; the last one takes all
BEST = "best"


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


class Training:
    """One model in one folder, at one step.  ``create`` or ``resume`` make one."""

    def __init__(
        self, out: Path, config: ModelConfig, recipe: Recipe, tokenizer: Tokenizer,
        crew: Crew, progress: Progress, on_event: OnEvent, stream: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.out, self.config, self.recipe, self.tokenizer = out, config, recipe, tokenizer
        self.crew, self.team = crew, crew.team
        self.progress, self.on_event = progress, on_event
        self.store = TokenStore.open(out)
        B, T = recipe.batch_size, config.seq_len
        self.batches = Batches(
            self.store.train, B, T, recipe.seed, packing=recipe.packing, state=stream
        )
        check_memory(config, B, self.batches.seq_len, self.team, *recipe.kind)
        self.weights, self.gradients = Parameters(config), Parameters(config)
        crew.interleave(self.weights.flat)
        settings = AdamWConfig(weight_decay=recipe.weight_decay)
        self.candidates: Candidates | None = None
        if recipe.loss == "sampled":
            counts = self.store.train.counts(config.vocab_size)
            self.candidates = Candidates(counts, recipe.samples, recipe.seed, self.team)
        sparse = vocabulary_weights(config) if self.candidates else ()
        self.optimizer = AdamW(self.weights, self.team, settings, sparse)
        for block in (self.weights, self.gradients, self.optimizer.m, self.optimizer.v):
            self.team.touch(block.flat)
        self.plan_batches()
        self.token_bytes = np.array(
            [len(tokenizer.token_bytes(i)) for i in range(config.vocab_size)]
        )
        self.metrics = Metrics(out / "metrics.jsonl")
        self.options: dict[str, Any] = {}  # what the user said, kept for resuming
        self.commands: list[Command] = []  # that took effect
        self.pacing = Pacing()
        self.saved_step = -1  # of the checkpoint this process wrote last
        self.stats = SphereStats(self.team, crew.hierarchy)

    def plan_batches(self) -> None:
        """What depends on the sizes of a batch: its memory."""
        B, T = self.recipe.batch_size, self.batches.seq_len
        expected = None if self.candidates is None else self.candidates.log_expected
        self.decoder = Decoder(
            self.weights, self.team, B, T, self.gradients, self.recipe.precision, expected,
            self.recipe.lends_gradients,
        )  # fmt: skip
        self.batches.batch_size = B
        # What is measured stays comparable: always at the model's length, in the same batches.
        self.measuring = self.decoder
        most = self.config.seq_len
        if most != T:
            self.measuring = Decoder(
                self.weights, self.team, B, most, precision=self.recipe.precision
            )

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
    def resume(cls, out: Path, crew: Crew, on_event: OnEvent) -> Self:
        """The training as its last checkpoint left it."""
        config, tokenizer, tensors = load_model(out)
        optimizer, state = load_training(out)
        try:
            recipe = Recipe(**state["recipe"])
            known = dict(state["progress"])
            # Before batches could change their size, the place in the text followed from the step.
            known.setdefault("sequences", known["step"] * recipe.sequences)
            progress = Progress(**{**known, "course": Course(**state["course"])})
            updates, commands = int(state["updates"]), list(state.get("commands", []))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{out}/training_state.json: {error} does not fit this version; train again"
            ) from error
        trainer = cls(
            out, config, recipe, tokenizer, crew, progress, on_event, state.get("batches")
        )
        trainer.weights.load(tensors)
        trainer.optimizer.m.load({n: optimizer["m." + n] for n in trainer.weights.named})
        trainer.optimizer.v.load({n: optimizer["v." + n] for n in trainer.weights.named})
        trainer.optimizer.t = updates
        trainer.options, trainer.commands = state.get("options", {}), commands
        if state.get("data") not in trainer.store.fingerprints:
            raise CheckpointError(
                f"{out}/data: is not the text this model was trained on; restore it from a copy"
            )
        return trainer

    # --- one step ---------------------------------------------------------------------------------

    def gradient(self, first: int, counted: bool = True) -> tuple[float, int]:
        """Sets the gradients of the mean loss of a step whose sequences begin at ``first`` of the
        stream; returns that loss and its number of tokens."""
        B, total = self.recipe.batch_size, 0.0
        places = range(first, first + self.taken(first), B)
        if not places:
            raise ValueError(f"sequence {first} is behind the last one; nothing is left to train")
        batches = [self.batches.batch(place) for place in places]
        # Counted first: each micro-batch is weighted by its share of the whole step's tokens.
        count = sum(int((batch.targets >= 0).sum()) for batch in batches)
        samples: list[NDArray[np.int32] | None] = [None] * len(batches)
        if self.candidates is not None:
            drawn = [self.candidates.draw(place) for place in places]
            pairs = [batch[:2] for batch in batches]
            self.optimizer.begin(self.gradients, touched_rows(self.config, pairs, drawn))
            samples = [*drawn]
        for i, (ids, targets, positions) in enumerate(batches):
            total += self.decoder.gradient(
                ids, targets, 1.0 / count, i > 0, samples[i], positions
            )
            if counted:
                space = self.decoder.space
                self.stats.add_batch(
                    space.groups, space.ids, space.targets, self.decoder.group_losses, space.T
                )
        return total / count, count

    def taken(self, first: int) -> int:
        """How many sequences a step that begins at ``first`` takes: fewer at the stream's end."""
        end = self.batches.end
        return self.recipe.sequences if end is None else min(self.recipe.sequences, end - first)

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
        p.sequences += self.taken(p.sequences)
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
        for i, batch in enumerate(validation_batches(split, B, T, self.recipe.packing)):
            if i % every:
                continue
            nats += self.measuring.loss(*batch)
            counted = batch.targets[batch.targets >= 0]
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
            save_model(self.out / BEST, self.config, self.tokenizer, self.weights.named)
        self.tell(result | {"best": p.best, "best_step": p.best_step})

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint: model, moments and state."""
        begun = time.monotonic()
        self.optimizer.settle()
        moments = {f"m.{n}": a for n, a in self.optimizer.m.named.items()}
        moments |= {f"v.{n}": a for n, a in self.optimizer.v.named.items()}
        progress = asdict(self.progress)
        state = {
            "format": 1, "course": progress.pop("course"), "progress": progress,
            "recipe": asdict(self.recipe), "updates": self.optimizer.t,
            "data": self.store.fingerprint, "options": self.options, "commands": self.commands,
            "batches": self.batches.state(),
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
        self.pacing.saved(begun)
        self.saved_step = self.progress.step
        self.tell({"event": "checkpoint", "step": self.progress.step, "path": str(self.out)})

    def tell(self, event: Event) -> None:
        """Writes steps and validations down, and hands every event on."""
        if event["event"] in ("step", "validation"):
            self.metrics.write(event)
        self.on_event(event)
