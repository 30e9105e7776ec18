"""Optimizers by the clock, on the weights of the seed model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crystalline._native import Team, usable_cpus
from crystalline.config import OPTIMIZERS, PRESETS
from crystalline.model import Parameters, initialise
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
