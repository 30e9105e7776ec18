"""A training's state, and what is done with it: a step, a validation, a checkpoint, resuming."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from crystalline.checkpoints import kept
from crystalline.checkpoints.checkpoint import open_model, open_training, save_model
from crystalline.checkpoints.kept import BEST
from crystalline.checkpoints.pending import Tensor
from crystalline.checkpoints.state_format import FORMAT, migrated
from crystalline.config import ModelConfig
from crystalline.data.batches import Batches, validation_batches
from crystalline.data.shards import TokenStore
from crystalline.data.tokenizer import Tokenizer
from crystalline.decoder.candidates import Candidates
from crystalline.decoder.decoder import GROUPS, Decoder, Parameters, initialise
from crystalline.decoder.layers import Floats
from crystalline.decoder.memory import give_back
from crystalline.decoder.sparse import touched_rows, vocabulary_weights
from crystalline.errors import CheckpointError, NumericsError
from crystalline.evaluation.windows import window_nats
from crystalline.forecast.fits import check_memory
from crystalline.forecast.machine import resident
from crystalline.optimizers import make_optimizer
from crystalline.optimizers.ema import Average
from crystalline.spheres.crew import Crew
from crystalline.spheres.driver import Command
from crystalline.spheres.stats import SphereStats
from crystalline.training import early
from crystalline.training.from_weights import Start
from crystalline.training.metrics import Metrics
from crystalline.training.pacing import Pacing
from crystalline.training.plan import Recipe
from crystalline.training.schedule import Course

Event = dict[str, Any]
OnEvent = Callable[[Event], None]

RAW = "w."  # before the names of weights whose average is offered
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
    passes: list[list[int]] = field(default_factory=list)  # first and last step of each so far
    mark: float | None = None  # the loss that a validation must better to count as progress
    stale: int = 0  # validations in a row that did not
    crossings: list[int] = field(default_factory=lambda: [0] * GROUPS)  # of the boundary
    ended: str | None = None  # why, where it was not by the last step


class Training:
    """One model in one folder, at one step.  ``create`` or ``resume`` make one."""

    def __init__(
        self, out: Path, config: ModelConfig, recipe: Recipe, tokenizer: Tokenizer,
        crew: Crew, progress: Progress, on_event: OnEvent, stream: Mapping[str, Any] | None = None,
        segments: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.out, self.config, self.recipe, self.tokenizer = out, config, recipe, tokenizer
        self.crew, self.team = crew, crew.team
        self.progress, self.on_event = progress, on_event
        created = TokenStore.open(out)
        self.store = created.extended(segments)
        self.batches = Batches(
            self.store.train, recipe.batch_size, self.T, recipe.seed, packing=recipe.packing,
            state=stream,
        )  # fmt: skip
        check_memory(config, recipe, self.team, length=self.batches.seq_len)
        self.held = resident()  # before the memory of the model
        self.candidates: Candidates | None = None
        if recipe.loss == "sampled":
            counts = created.train.counts(config.vocab_size)  # the same, whatever comes later
            self.candidates = Candidates(counts, recipe.samples, recipe.seed, self.team)
        self.plan_model()
        self.plan_batches()
        self.token_bytes = np.array(
            [len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
            + [0] * (config.vocab_size - tokenizer.vocab_size)
        )
        self.metrics = Metrics(out / "metrics.jsonl")
        self.options: dict[str, Any] = {}  # what the user said, kept for resuming
        self.commands: list[Command] = []  # that took effect
        self.saved_commands = 0  # of them, those in the checkpoint
        self.pacing = Pacing()
        self.begins_learnt = False  # at step 0 with weights that another training has learnt
        self.saved_step = self.model_step = -1  # of the checkpoint this process wrote last
        self.stats = SphereStats(
            self.team, crew.hierarchy, recipe.boundary_counters, progress.crossings
        )

    @property
    def T(self) -> int:
        """Tokens of a sequence when training began; the model may know more positions."""
        return self.recipe.seq_len or self.config.seq_len

    @property
    def offered(self) -> Parameters:
        """What is validated, kept as the best and exported: the average, where there is one."""
        return self.weights if self.average is None else self.average.parameters

    def plan_model(self) -> None:
        """What depends on the model's size: weights, gradients, moments and the average."""
        r = self.recipe
        self.weights, self.gradients = Parameters(self.config), Parameters(self.config)
        self.crew.interleave(self.weights.flat)
        for block in (self.weights, self.gradients):
            self.team.touch(block.flat)
        sparse = vocabulary_weights(self.config) if self.candidates else ()
        self.optimizer = make_optimizer(
            r.optimizer, self.weights, self.team, sparse, weight_decay=r.weight_decay,
            embedding_decay=r.embedding_decay, norm_decay=r.norm_decay, clip=r.clip,
            lambda_correction=r.lambda_correction,
        )  # fmt: skip
        self.average = Average(self.weights, self.team, r.ema) if r.ema else None

    def plan_batches(self) -> None:
        """What depends on the sizes of a batch, or on the model's: its memory."""
        B, T = self.recipe.batch_size, self.batches.seq_len
        expected = None if self.candidates is None else self.candidates.log_expected
        self.decoder = Decoder(
            self.weights, self.team, B, T, self.gradients, self.recipe.precision, expected,
            self.recipe.lends_gradients,
        )  # fmt: skip
        self.batches.batch_size = B
        # What is measured stays comparable: always at the model's length, in the same batches.
        self.measuring = self.decoder
        most = self.T
        if most != T:
            self.measuring = Decoder(
                self.weights, self.team, B, most, precision=self.recipe.precision
            )

    @classmethod
    def create(
        cls, out: Path, config: ModelConfig, recipe: Recipe, tokenizer: Tokenizer, crew: Crew,
        course: Course, on_event: OnEvent, stream: Mapping[str, Any] | None = None,
        segments: Sequence[int] = (), start: Start | None = None,
    ) -> Self:  # fmt: skip
        """A new training at step 0, in a folder that holds the data already; its weights are
        random, or those of ``start``."""
        trainer = cls(
            out, config, recipe, tokenizer, crew, Progress(course), on_event, stream, segments
        )
        trainer.begins_learnt = start is not None
        if start is None:
            initialise(trainer.weights, recipe.seed, recipe.init)
        else:
            trainer.weights.load(start.weights)
        if trainer.average is not None:
            trainer.average.start()
        give_back()
        return trainer

    @classmethod
    def resume(
        cls, out: Path, crew: Crew, on_event: OnEvent, at: int | None = None,
        segments: Sequence[int] = (),
    ) -> Self:  # fmt: skip
        """The training as its last checkpoint left it, or one that is kept, of step ``at``; with
        what came to its text since."""
        source = out if at is None else kept.place(out, at)
        config, tokenizer, tensors = open_model(source)
        beside, state = open_training(source)
        state = migrated(state, f"{source}/training_state.json")
        try:
            recipe = Recipe(**state["recipe"])
            progress = Progress(**{**state["progress"], "course": Course(**state["course"])})
            updates, commands = int(state["updates"]), list(state["commands"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source}/training_state.json: {error} does not fit this version; train again"
            ) from error
        trainer = cls(
            out, config, recipe, tokenizer, crew, progress, on_event, state.get("batches"), segments
        )
        trainer.load(tensors, beside, updates)
        trainer.options, trainer.commands = state["options"], commands
        trainer.saved_commands = len(commands)
        trainer.saved_step = progress.step if at is None else -1
        if state.get("data") not in trainer.store.fingerprints:
            raise CheckpointError(
                f"{out}/data: is not the text this model was trained on; restore it from a copy"
            )
        return trainer

    def load(self, model: Mapping[str, Tensor], beside: Mapping[str, Tensor], updates: int) -> None:
        """Takes over a model's file and what was saved ``beside`` it after ``updates``."""
        early.load_last(self.offered, model, beside)
        if self.average is not None:
            for name, view in self.weights.named.items():
                view[...] = np.asarray(beside[RAW + name])
        self.optimizer.load(beside, updates)

    def beside(self) -> dict[str, Floats]:
        """The tensors that resuming needs beside what is offered."""
        raw = {} if self.average is None else self.weights.named
        return self.optimizer.tensors() | {RAW + name: view for name, view in raw.items()}

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
        lr = r.learning_rate.rate(r.lr, p.course.at(p.step + 1))
        loss, count = self.gradient(p.sequences)
        norm = self.optimizer.step(self.gradients, lr) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            raise self._not_finite(f"the loss is {loss} and its gradient {norm}")
        if self.average is not None:
            self.optimizer.settle()  # it reads all weights
            self.average.update(self.optimizer.t)
        seconds = time.monotonic() - begun
        self.stats.end_step(self.optimizer.squares)
        p.crossings = self.stats.crossings.tolist()
        p.step, p.tokens, p.seconds = p.step + 1, p.tokens + count, p.seconds + seconds
        taken = self.taken(p.sequences)
        self._note_passes(p.sequences, p.sequences + taken)
        p.sequences += taken
        return {
            "event": "step", "step": p.step, "loss": loss, "lr": lr, "grad_norm": norm,
            "tokens": count, "seconds": seconds,
        }  # fmt: skip

    def _note_passes(self, first: int, end: int) -> None:
        """The step just made took these sequences."""
        p, last = self.progress, self.batches.pass_of(end - 1)
        for number in range(self.batches.pass_of(first), last + 1):
            # A checkpoint of an older version does not know the steps of passes before it.
            p.passes += [[p.step, p.step] for _ in range(number + 1 - len(p.passes))]
            p.passes[number][1] = p.step

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
        B, T = self.recipe.batch_size, self.T
        every = 1 if most is None else max(1, split.tokens // most)
        sums: list[float] = []
        count, size = 0, 0
        with contextlib.nullcontext() if self.average is None else self.average.in_place():
            for i, batch in enumerate(validation_batches(split, B, T, self.recipe.packing)):
                if i % every:
                    continue
                self.measuring.loss(*batch)
                sums += window_nats(self.measuring, batch.positions)
                counted = batch.targets[batch.targets >= 0]
                count += counted.size
                size += int(self.token_bytes[counted].sum())
        nats = math.fsum(sums)  # exact: batches of any size give the same
        return {
            "event": "validation", "step": self.progress.step, "loss": nats / count,
            "bits_per_byte": nats / math.log(2) / max(size, 1), "tokens": count,
            "seconds": time.monotonic() - begun,
        }  # fmt: skip

    def validated(self, most: int | None = VALIDATION_TOKENS) -> None:
        """Validates, and keeps the weights as the best if they are.

        A validation over all the held-out text, where the others took a part of it, is only told.
        """
        begun = time.monotonic()
        result, p = self.validate(most), self.progress
        if result is None:
            return
        if not math.isfinite(result["loss"]):
            raise self._not_finite(f"the validation loss is {result['loss']}")
        measured, best = time.monotonic(), False
        p.validation = {k: result[k] for k in ("step", "loss", "bits_per_byte", "tokens")}
        if most is not None and (p.best is None or result["loss"] < p.best):
            p.best, p.best_step = result["loss"], p.step
            p.best_bits_per_byte = result["bits_per_byte"]
            self.save_best()
            best = True
        if most is not None:
            early.count(self, result["loss"])
        keeping = time.monotonic() - measured if best else 0.0
        self.pacing.validated(measured - begun, keeping, most is None)
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
            "batches": self.batches.state(),
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
        self.saved_commands = len(self.commands)
        self.tell({"event": "checkpoint", "step": self.progress.step, "path": str(self.out)})

    def tell(self, event: Event) -> None:
        """Writes steps and validations down, and hands every event on."""
        if event["event"] in ("step", "validation"):
            self.metrics.write(event)
        self.on_event(event)
