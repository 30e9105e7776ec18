"""crystalline plan: everything a training will take, as plain values; nothing of it is allocated
but what is tried for its speed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from crystalline._native import Team
from crystalline.config import (
    PRESETS,
    SMALLEST_VOCAB,
    ModelConfig,
    TrainConfig,
    parameter_count,
    parameter_shapes,
)
from crystalline.data.reading import collect, split
from crystalline.data.tokenizer import default_vocab_size
from crystalline.decoder.decoder import GROUPS, check_precision, group_starts
from crystalline.forecast.choice import choose
from crystalline.forecast.fits import nearest
from crystalline.forecast.machine import available, resident
from crystalline.forecast.memory import MIB, Memory, Text, memory
from crystalline.forecast.sizes import default_vocabulary, parse_count, sizes_for
from crystalline.forecast.speed import Pace, measure
from crystalline.optimizers import moment_floats
from crystalline.rules import refuse
from crystalline.team import make_team
from crystalline.training.plan import (
    DEFAULT_MINUTES,
    Budget,
    Recipe,
    bytes_per_token,
    check_samples,
    choose_recipe,
)

CHINCHILLA = 20  # tokens a parameter (Hoffmann et al. 2022), where nobody says how long
PROCESSES = tuple(n for n in range(1, GROUPS + 1) if GROUPS % n == 0)  # each has whole groups
KINDS = {"embed": "token table", "self_attn": "attention", "mlp": "feed-forward", "norm": "norms",
         "lm_head": "output table"}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """The text: bytes and documents, to learn from and held out."""

    bytes: int
    documents: int
    held: int

    def tokens(self, V: int) -> int:
        """Tokens to learn from, about (docs/forecast.md): more bytes a token as vocabularies grow.
        """
        return round(self.bytes / bytes_per_token(V))


def forecast(
    paths: Iterable[str | os.PathLike[str]] = (), *, params: str | None = None, processes: int = 1,
    options: TrainConfig | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The forecast for a training, JSON-able.

    ``params`` is a number of parameters ("135M") to choose sizes for.  ``processes`` own the 12
    groups among them: memory and time are then those of one.  Raises ConfigError, DataError.
    """
    said = options or TrainConfig()
    if processes not in PROCESSES:
        rule = f"each owns as many of the {GROUPS} groups"
        refuse("processes", processes, rule, ", ".join(map(str, PROCESSES)))
    base, room = resident(), available() + resident()  # before anything is tried
    corpus = _corpus(list(paths), said)
    team = make_team(said.threads)
    config, recipe, pace, reason = _chosen(said, params, corpus, team)
    check_samples(said, config.vocab_size)
    check_precision(config, team, recipe.precision)
    own = replace(recipe, batch_size=_of_one(recipe.batch_size, processes))
    length = _length(said, config, recipe, corpus, pace, processes)
    need = memory(config, own, team, _text(corpus, config, said), base)
    P = parameter_count(config)
    return {
        "config": asdict(config), "parameters": P, "parts": _parts(config),
        "params_asked": None if params is None else parse_count(params),
        "recipe": asdict(recipe), "reason": reason,
        "text": None if corpus is None else asdict(corpus) | {
            "tokens": corpus.tokens(config.vocab_size)},
        "memory": {"training": need.training, "before": need.before, "peak": need.peak,
                   "available": room},
        "fits": need.peak <= room,
        "nearest": None if need.peak <= room else _nearest(config, own, team, need, room),
        "tokens_per_s": recipe.sequences * config.seq_len / _seconds(recipe, pace, processes),
        "tried": pace.tried, "length": length, "disk": _disk(config, recipe, corpus),
        "processes": processes, "batch_of_one": own.batch_size,
        "threads": team.threads, "isa": team.isa,
    }  # fmt: skip


def _corpus(paths: list[str | os.PathLike[str]], said: TrainConfig) -> Corpus | None:
    if not paths:
        return None
    sources, _ = collect(paths)
    held, _ = collect(said.val) if said.val else (None, [])
    train, val = split(sources, held)
    return Corpus(sum(p.size for p in train), len(train), sum(p.size for p in val))


def _chosen(
    said: TrainConfig, params: str | None, corpus: Corpus | None, team: Team
) -> tuple[ModelConfig, Recipe, Pace, str]:
    """Model, recipe, pace, and why: as ``train`` would choose, or for ``params``."""
    V = _vocabulary(said, params, corpus)
    minutes = said.minutes
    sized = params is not None or said.preset is not None or said.dim is not None
    timed = minutes is None and said.steps is None and said.epochs is None
    if timed and not sized:
        minutes = DEFAULT_MINUTES
    seconds = None if minutes is None else 60 * minutes
    if params is None:
        # Without a text none can be too short.
        tokens = 10**15 if corpus is None else corpus.tokens(V)
        choice = choose(Budget(said, tokens, seconds), V, team)
        pace = choice.pace or measure(choice.config, choice.recipe, team)
        return choice.config, choice.recipe, pace, choice.reason if choice.pace else ""
    for field in ("preset", "dim", "layers", "heads", "kv_heads", "hidden"):
        if getattr(said, field) is not None:
            refuse("params", params, f"{field} is given too", "one of the two")
    config = sizes_for(parse_count(params), V, said.seq_len)
    steps = replace(said, minutes=None, steps=said.steps or 1, epochs=None)
    recipe = choose_recipe(Budget(steps, 10**15), config)
    return config, recipe, measure(config, recipe, team), ""


def _vocabulary(said: TrainConfig, params: str | None, corpus: Corpus | None) -> int:
    if said.vocab_size is not None:
        return said.vocab_size
    if said.preset is not None:
        return max(PRESETS[said.preset].vocab_size, SMALLEST_VOCAB)
    if corpus is not None:
        return default_vocab_size(corpus.bytes)
    return default_vocabulary(parse_count(params)) if params else 8192


def _of_one(batch: int, processes: int) -> int:
    """The most sequences of a batch that one process has."""
    starts = group_starts(batch)
    share = GROUPS // processes
    return max(int(starts[g + share] - starts[g]) for g in range(0, GROUPS, share))


def _seconds(recipe: Recipe, pace: Pace, processes: int) -> float:
    """Of a step; the groups divide its batches ideally, the update is each process's own."""
    return recipe.accumulate * pace.batch / processes + pace.update


def _length(
    said: TrainConfig, c: ModelConfig, recipe: Recipe, corpus: Corpus | None, pace: Pace,
    processes: int,
) -> dict[str, Any]:  # fmt: skip
    """How long it goes on, in tokens, steps, epochs and seconds, and who says so."""
    step, P = recipe.sequences * c.seq_len, parameter_count(c)
    second = _seconds(recipe, pace, processes)
    text = None if corpus is None else corpus.tokens(c.vocab_size)
    sized = said.preset is not None or said.dim is not None
    if said.steps is not None:
        tokens, why = float(said.steps * step), "steps"
    elif said.epochs is not None and text is not None:
        tokens, why = said.epochs * text, "epochs"
    elif said.epochs is not None:
        refuse("epochs", said.epochs, "there is no PATH to pass over", "a PATH, or steps")
    elif said.minutes is not None:
        tokens, why = 60 * said.minutes / second * step, "minutes"
    elif text is not None and not sized:
        tokens, why = 60 * DEFAULT_MINUTES / second * step, f"{DEFAULT_MINUTES:g} minutes"
    else:
        tokens, why = float(CHINCHILLA * P), f"{CHINCHILLA} tokens a parameter"
    steps = max(1, math.ceil(tokens / step))
    return {
        "tokens": round(tokens), "steps": steps, "seconds": steps * second, "by": why,
        "epochs": None if not text else tokens / text, "tokens_per_parameter": tokens / P,
    }  # fmt: skip


def _text(corpus: Corpus | None, c: ModelConfig, said: TrainConfig) -> Text:
    if corpus is None:
        return Text(fresh=False)
    tokens = round((corpus.bytes + corpus.held) / bytes_per_token(c.vocab_size))
    return Text(corpus.bytes + corpus.held, tokens, corpus.documents, said.tokenizer is None)


def _parts(c: ModelConfig) -> dict[str, int]:
    """Parameters by what they are for."""
    parts = dict.fromkeys(KINDS.values(), 0)
    for name, shape in parameter_shapes(c).items():
        kind = "norm" if len(shape) == 1 else next(k for k in KINDS if k in name)
        parts[KINDS[kind]] += math.prod(shape)
    return {name: count for name, count in parts.items() if count}


def _disk(c: ModelConfig, recipe: Recipe, corpus: Corpus | None) -> dict[str, int]:
    """Bytes on the disk: a checkpoint, the best weights, the tokens; and once more a checkpoint
    while a new one is written beside the old."""
    P = 4 * parameter_count(c)
    checkpoint = P + 4 * moment_floats(c, recipe.optimizer) + (P if recipe.ema else 0)
    width = 2 if c.vocab_size <= 1 << 16 else 4
    size = 0 if corpus is None else corpus.bytes + corpus.held
    tokens = round(size / bytes_per_token(c.vocab_size)) * width
    return {"checkpoint": checkpoint, "best": P, "tokens": tokens, "while saving": checkpoint}


def _nearest(c: ModelConfig, own: Recipe, team: Team, need: Memory, room: int) -> str:
    others = need.peak - need.arenas
    return (f"needs {need.peak / MIB:,.0f} MiB, {room / MIB:,.0f} MiB are available; "
            f"choose {nearest(c, own, team, room - others)}")  # fmt: skip
