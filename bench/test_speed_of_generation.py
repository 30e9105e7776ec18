"""Kernels of generation by the clock: weights in each precision, a step of a whole stack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crystalline._native import PRECISIONS, Team, usable_cpus
from crystalline.config import PRESETS, parameter_shapes
from crystalline.inference.weights import Cache, Weights


@pytest.fixture(scope="module")
def team() -> Team:
    return Team(usable_cpus())


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weight(benchmark: Any, team: Team, precision: str) -> None:
    benchmark(team.weight, values(10000, 256), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1, 4, 12])
def test_matmul_weight(benchmark: Any, team: Team, rows: int, precision: str) -> None:
    x, y, w = values(rows, 768), np.empty((rows, 2304), np.float32), values(2304, 768)
    weight = team.weight(w, precision)
    benchmark(team.matmul_weight, y, x, weight)
    benchmark.extra_info["GB/s"] = 1e-9 * weight.nbytes / benchmark.stats["median"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_embedding_weight(benchmark: Any, team: Team, precision: str) -> None:
    ids = np.arange(0, 10000, 40, dtype=np.int32)
    weight, x = team.weight(values(10000, 256), precision), np.empty((len(ids), 256), np.float32)
    benchmark(team.embedding_weight, x, weight, ids)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_decode(benchmark: Any, team: Team, precision: str) -> None:
    c = PRESETS["seed"]
    tensors = {name: 0.02 * values(*shape) for name, shape in parameter_shapes(c).items()}
    stack, cache = Weights(c, tensors, team, precision).stack, Cache(c, c.seq_len)
    h, one, last = np.empty((1, c.dim), np.float32), np.ones(1, np.int64), c.seq_len - 1
    ids = np.ones(1, np.int32)
    benchmark(team.decode, h, stack, ids, [cache.keys], [cache.values], one, last * one)
