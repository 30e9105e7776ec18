"""How long one training step takes: the same work every time, to compare machines and versions."""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from crystalline.config import PRESETS, TrainConfig, parameter_count
from crystalline.decoder.candidates import Candidates
from crystalline.decoder.decoder import Decoder, Parameters, check_precision, initialise
from crystalline.decoder.sparse import touched_rows, vocabulary_weights
from crystalline.forecast.fits import check_memory
from crystalline.optimizers import make_optimizer
from crystalline.team import make_team
from crystalline.training.plan import Recipe, check_samples, chosen_samples, flops_per_token

WARM_UP = 2  # steps before the clock counts: they touch the memory for the first time


def bench_step(
    preset: str, batch: int, seq: int | None, steps: int, threads: int | None = None,
    loss: str = "full", samples: int | None = None, precision: str = "fp32",
    optimizer: str = "adamw",
) -> dict[str, Any]:  # fmt: skip
    """Times training steps (forward, backward, clipping, ``optimizer``) on random ids; with
    the sampled loss, samples are drawn and rows caught up as in training.

    ``seq`` None is the preset's own length.  The times are medians over ``steps``; ``gflops`` is
    the arithmetic of ``flops_per_token`` done in a second, in 10^9; ``peak_rss_mib`` that of the
    process.  Raises ConfigError where the memory does not do or ``samples`` do
    not fit, UsageError where this machine cannot do the ``precision``.
    """
    team = make_team(threads)
    config = PRESETS[preset]
    config = replace(config, seq_len=seq or config.seq_len)
    B, T, V = batch, config.seq_len, config.vocab_size
    options = TrainConfig(loss=loss, samples=samples)
    check_samples(options, V)
    S = chosen_samples(options, V)
    check_precision(config, team, precision)
    recipe = Recipe(
        B, 1, 1e-4, 0, loss=loss, samples=S, precision=precision, optimizer=optimizer
    )
    check_memory(config, recipe, team)
    weights, gradients = Parameters(config), Parameters(config)
    initialise(weights, 0)
    candidates = Candidates(np.ones(V, np.int64), S, 0, team) if S else None
    sparse = vocabulary_weights(config) if candidates else ()
    updates = make_optimizer(
        optimizer, weights, team, sparse, weight_decay=0.1, embedding_decay=None, norm_decay=0.0,
        clip=1.0,
    )  # fmt: skip
    expected = candidates.log_expected if candidates else None
    decoder = Decoder(weights, team, B, T, gradients, precision, expected, True)
    rng = np.random.default_rng(0)
    spent = []
    for place in range(WARM_UP + steps):
        tokens = rng.integers(0, V, (B, T + 1), dtype=np.int32)
        ids, targets = tokens[:, :-1], tokens[:, 1:]
        begun = time.perf_counter()
        drawn = candidates.draw(place) if candidates else None
        if drawn is not None:
            updates.begin(gradients, touched_rows(config, [(ids, targets)], [drawn]))
        decoder.gradient(ids, targets, 1.0 / (B * T), False, drawn)
        updates.step(gradients, 1e-4)
        spent.append(time.perf_counter() - begun)
    seconds = statistics.median(spent[WARM_UP:])
    speed = B * T / seconds
    return {
        "tokens_per_s": speed,
        "ms_per_step": 1e3 * seconds,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "gflops": speed * flops_per_token(config, S) / 1e9,
        "threads": team.threads,
        "isa": team.isa,
        "preset": preset,
        "batch": B,
        "seq": T,
        "precision": precision,
        "loss": loss,
        "samples": S,
        "optimizer": optimizer,
        "steps": steps,
        "parameters": parameter_count(config),
        "mflop_per_token": flops_per_token(config, S) / 1e6,
        "config": asdict(config),
    }
