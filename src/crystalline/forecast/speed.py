"""How fast a model will train here, found by training a little of it.

Of a model too large to try, some layers are tried, with a vocabulary that is smaller in the same
proportion and, where it is very wide, narrower: what is left takes its time in the same parts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from crystalline._native import Team
from crystalline.config import ModelConfig, parameter_count
from crystalline.decoder.candidates import Candidates
from crystalline.decoder.decoder import GROUPS, Decoder, Parameters, initialise
from crystalline.decoder.sparse import touched_rows, vocabulary_weights
from crystalline.optimizers import make_optimizer
from crystalline.training.plan import Recipe, flops_per_token

WIDEST = 1024  # tried; from there on products run at the same speed
MOST_FLOPS = 4e10  # of one try: about a quarter of a second on two cores
LEAST = 64  # tokens, numbers or words: smaller parts tell nothing


@dataclass(frozen=True)
class Pace:
    """Seconds of a step: of each of its batches, and of the update.  ``tried`` is what share of the
    arithmetic of a batch was really done."""

    batch: float
    update: float
    tried: float

    def step(self, recipe: Recipe) -> float:
        """Seconds of a step of ``accumulate`` batches."""
        return recipe.accumulate * self.batch + self.update


def measure(c: ModelConfig, recipe: Recipe, team: Team, seconds: float = 1.0) -> Pace:
    """The pace of a model, measured for about ``seconds`` (at least two steps, of which the first
    does not count): the middle of what was seen, as other programs may work here too."""
    small, B = _part(c, recipe)
    weights, gradients = Parameters(small), Parameters(small)
    initialise(weights, 0)
    samples = min(recipe.samples, small.vocab_size)
    candidates = None
    if samples:
        candidates = Candidates(np.ones(small.vocab_size, np.int64), samples, 0, team)
    sparse = vocabulary_weights(small) if candidates else ()
    optimizer = make_optimizer(
        recipe.optimizer, weights, team, sparse, weight_decay=recipe.weight_decay,
        embedding_decay=recipe.embedding_decay, norm_decay=recipe.norm_decay, clip=recipe.clip,
    )  # fmt: skip
    expected = candidates.log_expected if candidates else None
    decoder = Decoder(weights, team, B, small.seq_len, gradients, recipe.precision, expected, True)
    source = np.random.default_rng(0)
    batches: list[float] = []
    updates: list[float] = []
    begun = time.perf_counter()
    while len(batches) < 2 or time.perf_counter() - begun < seconds:
        tokens = source.integers(0, small.vocab_size, (B, small.seq_len + 1), dtype=np.int32)
        ids, targets = tokens[:, :-1], tokens[:, 1:]
        at = time.perf_counter()
        drawn = candidates.draw(len(batches)) if candidates else None
        if drawn is not None:
            optimizer.begin(gradients, touched_rows(small, [(ids, targets)], [drawn]))
        decoder.gradient(ids, targets, 1.0 / ids.size, False, drawn)
        middle = time.perf_counter()
        optimizer.step(gradients, 1e-4)
        batches.append(middle - at)
        updates.append(time.perf_counter() - middle)
    rows = recipe.batch_size * c.seq_len / (B * small.seq_len)
    share = flops_per_token(small, samples) / (flops_per_token(c, recipe.samples) * rows)
    touched = parameter_count(small) / parameter_count(c)
    return Pace(
        float(np.median(batches[1:])) / share, float(np.median(updates[1:])) / touched, share
    )


def _part(c: ModelConfig, recipe: Recipe) -> tuple[ModelConfig, int]:
    """The model that is tried, and its batch: all of it if that is little work."""
    B = recipe.batch_size

    def too_much() -> bool:
        return flops_per_token(c, min(recipe.samples, c.vocab_size)) * B * c.seq_len > MOST_FLOPS

    while B > GROUPS and too_much():
        B = max(GROUPS, B // 2)
    if too_much() and c.dim > WIDEST:
        heads = max(1, c.heads * WIDEST // c.dim)
        c = replace(
            c, dim=heads * c.head_dim, heads=heads,
            kv_heads=_divisor(heads, heads * c.kv_heads / c.heads),
            hidden=max(16, c.hidden * heads // c.heads // 16 * 16),
            vocab_size=max(LEAST, c.vocab_size * heads // c.heads),
        )  # fmt: skip
    while c.layers > 1 and too_much():
        layers = c.layers // 2
        c = replace(
            c, layers=layers, vocab_size=max(LEAST, c.vocab_size * layers // c.layers)
        )
    while B > 1 and too_much():
        B //= 2
    # What is left is large in one of these alone.
    while too_much():
        name, size = max(
            ((name, getattr(c, name)) for name in ("seq_len", "hidden", "vocab_size")),
            key=lambda pair: pair[1],
        )
        if size <= LEAST:
            break
        c = replace(c, **{name: max(LEAST, size // 2)})
    return c, B


def _divisor(n: int, near: float) -> int:
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(d - near))
