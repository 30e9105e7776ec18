"""The model and the recipe of a run that is told minutes: chosen by trying a little of each.

The speed of matrix products says which rung of the ladder the time may feed; a step of that model
says whether it does, and then one up or down is tried.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from crystalline._native import Team
from crystalline.config import DEFAULT_ROPE, ModelConfig, parameter_count
from crystalline.forecast.speed import Pace, measure
from crystalline.training.plan import (
    LADDER,
    PARAMETERS_PER_TOKEN,
    TOKENS_PER_PARAMETER,
    Budget,
    Recipe,
    choose_model,
    choose_recipe,
    continued_recipe,
    flops_per_token,
    ladder_config,
    machine_flops,
)
from crystalline.words import short

TRY_SHARE = 0.01  # of the time goes into trying a model, and
TRY_SECONDS = 3.0  # at most so long


@dataclass(frozen=True)
class Choice:
    """A model with its recipe, how fast it is (None where nothing was tried), and why it was
    chosen, in a sentence."""

    config: ModelConfig
    recipe: Recipe
    pace: Pace | None
    reason: str

    def described(self) -> dict[str, Any]:
        """For the record: what was chosen, on what grounds."""
        said: dict[str, Any] = {"reason": self.reason}
        if self.pace is not None:
            said |= {"seconds_a_step": self.pace.step(self.recipe)}
        return said


def choose(budget: Budget, V: int, team: Team) -> Choice:
    """Model and recipe.  Without a time to keep, nothing is measured."""
    if budget.seconds is None:
        c = choose_model(budget, V)
        return Choice(c, choose_recipe(budget, c), None, _of_length(budget, c))
    until = time.monotonic() + budget.seconds  # trying costs time too
    rough = replace(budget, flops=machine_flops(team, budget.options.precision))
    config = choose_model(rough, V)
    tried = _try(rough, config, team, until)
    if _free(budget):
        tried = _climb(rough, V, team, until, tried)
    measured, config, pace = tried
    recipe = choose_recipe(measured, config)
    return Choice(config, recipe, pace, _of_time(measured, config, recipe, pace))


def choose_continued(budget: Budget, c: ModelConfig, T: int, team: Team) -> Choice:
    """The recipe for a model that has learnt already, with sequences of T tokens."""
    recipe = continued_recipe(budget, c, T)
    if budget.seconds is None:
        return Choice(c, recipe, None, _of_length(budget, c))
    short_model = replace(c, seq_len=T)
    measured, _, pace = _try(budget, short_model, team, time.monotonic() + budget.seconds, recipe)
    return Choice(c, recipe, pace, _of_time(measured, short_model, recipe, pace))


Tried = tuple[Budget, ModelConfig, Pace]


def _free(budget: Budget) -> bool:
    """Whether the size of the model is open."""
    o = budget.options
    return all(v is None for v in (o.preset, o.dim, o.layers, o.heads, o.kv_heads, o.hidden))


def _try(
    budget: Budget, c: ModelConfig, team: Team, until: float, recipe: Recipe | None = None
) -> Tried:
    """The budget with what is left of its time, at the speed that this model really has."""
    recipe = recipe or choose_recipe(budget, c)
    assert budget.seconds is not None
    pace = measure(c, recipe, team, min(TRY_SECONDS, TRY_SHARE * budget.seconds))
    step = recipe.sequences * c.seq_len * flops_per_token(c, recipe.samples)
    left = max(until - time.monotonic(), 0.0)
    return replace(budget, seconds=left, flops=step / pace.step(recipe)), c, pace


def _climb(budget: Budget, V: int, team: Team, until: float, tried: Tried) -> Tried:
    """The largest rung that the time feeds, by trying neighbours of the first one."""
    rungs = [_shaped(budget, rung, V) for rung in range(len(LADDER))]
    at = rungs.index(tried[1])
    if not tried[0].feeds(tried[1]):
        while at > 0 and not tried[0].feeds(tried[1]):
            at -= 1
            tried = _try(budget, rungs[at], team, until)
        return tried
    # A larger one is tried where the speed of the smaller one leaves it within reach.
    while at + 1 < len(rungs) and tried[0].feeds(rungs[at + 1]):
        at += 1
        larger = _try(budget, rungs[at], team, until)
        if not larger[0].feeds(rungs[at]):
            break
        tried = larger
    return tried


def _shaped(budget: Budget, rung: int, V: int) -> ModelConfig:
    c = ladder_config(rung, V)
    options = budget.options
    return replace(
        c, seq_len=options.seq_len or c.seq_len, rope=options.rope or DEFAULT_ROPE
    )


def _of_length(budget: Budget, c: ModelConfig) -> str:
    each = budget.tokens(c) / parameter_count(c)
    return f"{c.dim} x {c.layers}, V {c.vocab_size:,}: {each:.2g} tokens a parameter"


def _of_time(budget: Budget, c: ModelConfig, recipe: Recipe, pace: Pace) -> str:
    """What was chosen, and why, in a line."""
    assert budget.seconds is not None
    tokens = recipe.sequences * c.seq_len
    each = budget.tokens(c) / parameter_count(c)
    passes = budget.tokens(c) / max(budget.corpus_tokens, 1)
    why = f"{each:.2g} tokens a parameter in {budget.seconds:,.0f} s at " \
          f"{tokens / pace.step(recipe):,.0f} tokens/s"  # fmt: skip
    if not _free(budget):
        why += ", sizes as told"
    elif parameter_count(c) * 2 > PARAMETERS_PER_TOKEN * budget.corpus_tokens:
        why += f"; the text ({short(budget.corpus_tokens)} tokens) feeds no larger one"
    else:
        why += f"; a larger one would get fewer than {TOKENS_PER_PARAMETER:g}"
    return (
        f"{c.dim} x {c.layers}, V {c.vocab_size:,}: {why}; batch {recipe.batch_size} x "
        f"{c.seq_len}, {passes:.1f} passes, weight decay {recipe.weight_decay:g}"
    )
