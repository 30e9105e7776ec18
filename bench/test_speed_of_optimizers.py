"""Optimizers by the clock, on the weights of the seed model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crystalline._native import Team, usable_cpus
from crystalline.config import OPTIMIZERS, PRESETS
from crystalline.decoder.decoder import Parameters, initialise
from crystalline.optimizers import make_optimizer
from crystalline.optimizers.ema import Average


@pytest.fixture(scope="module")
def weights() -> Parameters:
    made = Parameters(PRESETS["seed"])
    initialise(made, 0)
    return made


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update(benchmark: Any, name: str, weights: Parameters) -> None:
    """With the gradient's norm, as training has it."""
    gradients = Parameters(weights.config)
    gradients.flat[...] = np.random.default_rng(0).standard_normal(gradients.flat.size)
    optimizer = make_optimizer(
        name, weights, Team(usable_cpus()), weight_decay=0.1, embedding_decay=None,
        norm_decay=0.0, clip=1.0,
    )  # fmt: skip
    benchmark(optimizer.step, gradients, 1e-4)


def test_the_average(benchmark: Any, weights: Parameters) -> None:
    average = Average(weights, Team(usable_cpus()), 0.999)
    average.start()
    benchmark(average.update, 1000)


def test_what_they_are_made_of(benchmark: Any, weights: Parameters) -> None:
    """Each operation alone, one after the other, on a million numbers."""
    team, n = Team(usable_cpus()), 1 << 20
    p, m, g = (np.ones(n, np.float32) for _ in range(3))
    spans = np.array([(0, n, 1)], np.int64)
    matrices = np.array([(0, 256, 688)], np.int64)
    steps = np.full(1, 1e-4, np.float32)

    terms = np.array([(1.5, -0.5, 0.0)] * 5, np.float32)
    said = {"grad_scale": 1.0, "decay": 0.99}

    def each() -> None:
        team.lion_spans(p, m, g, spans, beta1=0.9, beta2=0.99, step_size=1e-4, **said)
        team.sgd_spans(p, m, g, spans, momentum=0.9, nesterov=False, step_size=1e-4, **said)
        team.muon_step(p, m, g, matrices, steps, terms, momentum=0.95, nesterov=True, **said)
        team.ema(m, p, 0.001)

    benchmark(each)
