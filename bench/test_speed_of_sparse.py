"""Kernels of the sampled loss by the clock: 512 of 10000 classes, and the rows that a step of 3072
tokens touches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crystalline._native import Team, usable_cpus

R, D, V, S = 3072, 256, 10000, 512
GROUPS = (np.arange(13) * 256).astype(np.int64)
ROWS = np.arange(0, V, 4, dtype=np.int32)
HYPER = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


@pytest.fixture(scope="module")
def team() -> Team:
    return Team(usable_cpus())


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_head_sampled(benchmark: Any, team: Team) -> None:
    h, w, losses = values(R, D), values(V, D), np.empty(R, np.float32)
    targets = np.arange(R, dtype=np.int32)
    samples = np.sort((np.arange(S) * (V // S) + np.arange(12)[:, None]) % V, 1).astype(np.int32)
    log_expected = np.full(V, np.log(S / V), np.float32)
    dh, dw = np.empty_like(h), np.zeros_like(w)
    order, index = np.empty(R, np.int32), np.empty(V + 1, np.int64)
    benchmark(
        team.head_sampled, losses, h, w, targets, GROUPS, samples, log_expected, dh, dw, 1 / R,
        order, index,
    )  # fmt: skip


def test_adamw_rows(benchmark: Any, team: Team) -> None:
    p, m, v, g = (np.abs(values(V, D)) for _ in range(4))
    numbers = {"grad_scale": 1.0, "step_size": 1e-3, "decay": 0.9999, "root_bias2": 1.0}
    benchmark(team.adamw_rows, p, m, v, g, ROWS, **HYPER, **numbers)


def test_adamw_rest_rows(benchmark: Any, team: Team) -> None:
    p, m, v = (np.abs(values(V, D)) for _ in range(3))
    past = np.tile(np.array([0.9999, 1e-3, 1.0], np.float32), (4, 1))

    def caught_up() -> None:
        team.adamw_rest_rows(p, m, v, ROWS, np.zeros(V, np.int32), past, **HYPER)

    benchmark(caught_up)


def test_squared_norm_rows(benchmark: Any, team: Team) -> None:
    benchmark(team.squared_norm_rows, values(V, D), ROWS)
