"""What every training begins with: who works, a vocabulary, sizes and recipe, the plan told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace

import numpy as np

from crystalline._native import Team
from crystalline.config import (
    PRESETS,
    SMALLEST_VOCAB,
    ModelConfig,
    TrainConfig,
    parameter_count,
)
from crystalline.data.packing import chosen_packing
from crystalline.data.shards import Split
from crystalline.data.tokenizer import Tokenizer, default_vocab_size, use_threads
from crystalline.decoder.decoder import check_precision
from crystalline.decoder.memory import give_back
from crystalline.forecast.choice import Choice, choose, choose_continued
from crystalline.forecast.fits import check_memory
from crystalline.forecast.machine import most_resident
from crystalline.forecast.memory import MIB, Text, memory_when_ready
from crystalline.spheres.crew import Crew, make_crew
from crystalline.training.from_weights import Start
from crystalline.training.plan import (
    Budget,
    Recipe,
    bytes_per_token,
    check_samples,
    choose_model,
    choose_recipe,
)
from crystalline.training.trainer import Trainer
from crystalline.training.training import OnEvent

TOLD_EVERY = 0.25  # seconds between two progress events


def reporter(tell: OnEvent, phase: str) -> Callable[[int, int], None]:
    """Tells of bytes done and bytes in all, but not of every small file."""
    told = 0.0

    def report(done: int, total: int) -> None:
        nonlocal told
        if done >= total or time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            tell({"event": "progress", "phase": phase, "done": done, "total": total})

    return report


def crew_of(said: TrainConfig) -> Crew:
    crew = make_crew(
        said.threads, depth=said.hierarchy_depth, strategy=said.thread_allocation, pin=said.pin,
        steal=said.work_stealing, recursive=said.recursive_spawning,
    )  # fmt: skip
    use_threads(crew.team.threads)
    return crew


def tell_plan(
    trainer: Trainer, tell: OnEvent, packing_reason: str, start: Start | None = None
) -> None:
    """The plan event."""
    c, r, store = trainer.config, trainer.recipe, trainer.store
    text = Text(
        store.train.bytes + store.val.bytes, store.train.tokens + store.val.tokens,
        store.train.documents, sequences=trainer.progress.course.steps * r.sequences,
    )  # fmt: skip
    need = memory_when_ready(c, r, trainer.team, text, trainer.held, most_resident())
    tell({
        "event": "plan", **asdict(c), **asdict(r), "seq_len": trainer.T, "context": c.seq_len,
        "begins_from": None if start is None else start.where,
        "parameters": parameter_count(c), "steps": trainer.progress.course.steps,
        "step": trainer.progress.step, "train_tokens": store.train.tokens,
        "validation_tokens": store.val.tokens, "threads": trainer.team.threads,
        "isa": trainer.team.isa, "out": str(trainer.out), **trainer.crew.described(),
        "memory_mib": need.peak / MIB,
        "choice": trainer.options.get("choice"), "length": trainer.batches.seq_len,
        "packing_reason": packing_reason,
    })  # fmt: skip


def refuse_hopeless(said: TrainConfig, team: Team) -> None:
    """What can never fit is refused before a large corpus is read: with the smallest vocabulary."""
    if said.dim is None and said.preset is None:
        return
    nothing = Budget(said, 0)
    least = choose_model(nothing, SMALLEST_VOCAB)
    recipe = choose_recipe(nothing, least)
    check_memory(least, recipe, team)


def vocabulary(said: TrainConfig, size: int, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that was named, or one learnt from texts of so many bytes."""
    if said.tokenizer is not None:
        return Tokenizer.load(said.tokenizer)
    wanted = said.vocab_size or default_vocab_size(size)
    if said.vocab_size is None and said.preset is not None:
        wanted = max(PRESETS[said.preset].vocab_size, SMALLEST_VOCAB)
    tokenizer = Tokenizer.train(texts, wanted)
    give_back()
    return tokenizer


def chosen(
    said: TrainConfig, size: int, seconds: float | None, tokenizer: Tokenizer, team: Team,
    start: Start | None = None,
) -> Choice:  # fmt: skip
    """Sizes and recipe for a text of so many bytes; refused if they cannot be trained."""
    tokens = round(size / bytes_per_token(tokenizer.vocab_size))
    budget = Budget(said, tokens, seconds)
    if start is None:
        choice = choose(budget, tokenizer.vocab_size, team)
    else:
        choice = choose_continued(budget, start.config, start.length(said), team)
    check_samples(said, choice.config.vocab_size)
    check_precision(choice.config, team, said.precision)
    check_memory(choice.config, choice.recipe, team)
    return choice


def with_packing(
    said: TrainConfig, recipe: Recipe, config: ModelConfig, split: Split
) -> tuple[Recipe, str]:
    """The recipe with documents packed or not, and why."""
    T = recipe.seq_len or config.seq_len
    packing, why = chosen_packing(said.packing, np.diff(split.offsets) - 1, T)
    return replace(recipe, packing=packing), why
