"""What every training begins with: who works, a vocabulary, sizes and recipe, the plan told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, replace

import numpy as np

from crystalline._native import Team
from crystalline.config import (
    PRESETS,
    SMALLEST_VOCAB,
    ModelConfig,
    TrainConfig,
    parameter_count,
)
from crystalline.model import check_precision
from crystalline.packing import chosen_packing
from crystalline.plan import (
    Budget,
    Recipe,
    check_memory,
    check_samples,
    choose_model,
    choose_recipe,
    machine_flops,
)
from crystalline.shards import Split
from crystalline.spheres.crew import Crew, make_crew
from crystalline.tokenizer import Tokenizer, default_vocab_size
from crystalline.trainer import Trainer
from crystalline.training import OnEvent

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
    return make_crew(
        said.threads, depth=said.hierarchy_depth, strategy=said.thread_allocation, pin=said.pin,
        steal=said.work_stealing, recursive=said.recursive_spawning,
    )  # fmt: skip


def tell_plan(trainer: Trainer, tell: OnEvent, why: str) -> None:
    c, r, T = trainer.config, trainer.recipe, trainer.batches.seq_len
    need = check_memory(c, r.batch_size, T, trainer.team, *r.kind)
    tell({
        "event": "plan", **{f.name: getattr(c, f.name) for f in fields(c)}, **asdict(r),
        "parameters": parameter_count(c), "steps": trainer.progress.course.steps,
        "step": trainer.progress.step, "train_tokens": trainer.store.train.tokens,
        "validation_tokens": trainer.store.val.tokens, "threads": trainer.team.threads,
        "isa": trainer.team.isa, "out": str(trainer.out), **trainer.crew.described(),
        "memory_mib": need / 2**20, "length": T, "packing_reason": why,
    })  # fmt: skip


def refuse_hopeless(said: TrainConfig, team: Team) -> None:
    """What can never fit is refused before a large corpus is read: with the smallest vocabulary."""
    if said.dim is None and said.preset is None:
        return
    nothing = Budget(said, 0)
    least = choose_model(nothing, SMALLEST_VOCAB)
    recipe = choose_recipe(nothing, least)
    check_memory(least, recipe.batch_size, least.seq_len, team, *recipe.kind)


def vocabulary(said: TrainConfig, size: int, texts: Iterable[str], tell: OnEvent) -> Tokenizer:
    """The tokenizer that was named, or one learnt from texts of so many bytes."""
    if said.tokenizer is not None:
        tokenizer = Tokenizer.load(said.tokenizer)
    else:
        wanted = said.vocab_size or default_vocab_size(size)
        if said.vocab_size is None and said.preset is not None:
            wanted = max(PRESETS[said.preset].vocab_size, SMALLEST_VOCAB)
        tokenizer = Tokenizer.train(texts, wanted)
    tell({"event": "tokenizer", "vocab_size": tokenizer.vocab_size})
    return tokenizer


def chosen(
    said: TrainConfig, corpus_tokens: int, seconds: float | None, tokenizer: Tokenizer, team: Team
) -> tuple[ModelConfig, Recipe]:
    """Sizes and recipe for a text of about so many tokens; refused if they cannot be trained."""
    budget = Budget(said, corpus_tokens, seconds, machine_flops(team, said.precision))
    config = choose_model(budget, tokenizer.vocab_size)
    recipe = choose_recipe(budget, config)
    check_samples(said, config.vocab_size)
    check_precision(config, team, said.precision)
    check_memory(config, recipe.batch_size, config.seq_len, team, *recipe.kind)
    return config, recipe


def with_packing(
    said: TrainConfig, recipe: Recipe, config: ModelConfig, split: Split
) -> tuple[Recipe, str]:
    """The recipe with documents packed or not, and why."""
    packing, why = chosen_packing(said.packing, np.diff(split.offsets) - 1, config.seq_len)
    return replace(recipe, packing=packing), why
