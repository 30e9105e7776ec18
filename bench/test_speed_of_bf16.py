"""Kernels that training in bf16 uses, by the clock; the shapes are those of the seed model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crystalline._native import Team, usable_cpus
from crystalline.decoder.positions import rope_tables

R, D, F, V = 3072, 256, 688, 10000
GROUPS = (np.arange(13) * 256).astype(np.int64)


@pytest.fixture(scope="module")
def team() -> Team:
    team = Team(usable_cpus())
    if not team.has_bf16:
        pytest.skip("this CPU has no AVX512_BF16")
    return team


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def narrow(team: Team, *shape: int) -> np.ndarray:
    """Values in bf16."""
    y = np.empty(shape, np.uint16)
    team.to_bf16(y.reshape(-1), values(*shape).reshape(-1))
    return y


def test_from_bf16(benchmark: Any, team: Team) -> None:
    benchmark(team.from_bf16, values(R * D), narrow(team, R * D))


def test_to_bf16(benchmark: Any, team: Team) -> None:
    benchmark(team.to_bf16, np.empty(R * D, np.uint16), values(R * D))


@pytest.mark.parametrize("N", [768, 1376])
@pytest.mark.parametrize("product", ["y", "dx", "dw"])
def test_matmul(benchmark: Any, team: Team, N: int, product: str) -> None:
    x, dy, w = narrow(team, R, D), narrow(team, R, N), values(N, D)
    if product == "y":
        benchmark(team.matmul_bf16, np.empty_like(dy), x, w)
    elif product == "dx":
        benchmark(team.matmul_dx_bf16, np.empty_like(x), dy, w)
    else:
        benchmark(team.matmul_dw_bf16, np.empty_like(w), dy, x, GROUPS)
    benchmark.extra_info["gflops"] = 2e-9 * R * N * D / benchmark.stats["median"]


def test_head(benchmark: Any, team: Team) -> None:
    h, w, losses = narrow(team, R, D), values(V, D), np.empty(R, np.float32)
    targets, dh = np.arange(R, dtype=np.int32), np.empty((R, D), np.float32)
    benchmark(team.head_bf16, losses, h, w, targets, GROUPS, dh, np.empty_like(w))
    benchmark.extra_info["gflops"] = 6e-9 * R * V * D / benchmark.stats["median"]


def test_rmsnorm(benchmark: Any, team: Team) -> None:
    x, y, w = values(R, D), np.empty((R, D), np.uint16), np.ones(D, np.float32)
    benchmark(team.rmsnorm_bf16, y, np.empty(R, np.float32), x, w, 1e-5)


def test_swiglu(benchmark: Any, team: Team) -> None:
    benchmark(team.swiglu_bf16, np.empty((R, F), np.uint16), narrow(team, R, 2 * F))


def test_swiglu_bwd_act(benchmark: Any, team: Team) -> None:
    gu, act = narrow(team, R, 2 * F), narrow(team, R, F)
    benchmark(team.swiglu_bwd_act_bf16, np.empty_like(gu), act, gu)


def test_rope(benchmark: Any, team: Team) -> None:
    tables = rope_tables(256, 32, 1e4)
    benchmark(team.rope_bf16, values(R, 3 * D), narrow(team, R, 3 * D), *tables, 16, 256)


def test_rope_of_packed_rows(benchmark: Any, team: Team) -> None:
    positions = np.tile(np.arange(64, dtype=np.int32), R // 64)
    x, y, tables = values(R, 3 * D), narrow(team, R, 3 * D), rope_tables(64, 32, 1e4)
    benchmark(team.rope_at_bf16, x, y, *tables, 16, positions)
    team.rope_bwd_at_bf16(y, x, *tables, 16, positions)


def test_rope_bwd(benchmark: Any, team: Team) -> None:
    tables = rope_tables(256, 32, 1e4)
    benchmark(team.rope_bwd_bf16, narrow(team, R, 3 * D), values(R, 3 * D), *tables, 16, 256)
