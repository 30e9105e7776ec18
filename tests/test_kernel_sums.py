"""Every sum over rows is the written order, bit by bit: chains in the groups, then the fixed tree.

Where products are exact (a factor that is a power of two), a fused multiply-add is an addition,
and NumPy's float32 additions say which bits are due. An absent group adds nothing; adding its zero
changes no number, so the emulation may.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from case import EPS, Array, draw, groups_of, poison
from reference_sums import fixed_tree, lane_sum
from tolerance import SHAPES

from crystalline._native import ISAS, Team, available_isas

ROWS = [(B * T, groups_of(B, T)) for B, T in SHAPES["batch"]]
ROWS.append((11, np.array([0, 0, 2, 2, 2, 2, 2, 7, 7, 7, 7, 11, 11], np.int64)))


@pytest.fixture(params=ISAS)
def team(request: pytest.FixtureRequest) -> Team:
    if request.param not in available_isas():
        pytest.skip(f"this CPU cannot run {request.param}, only {', '.join(available_isas())}")
    return Team(2, request.param)


def powers_of_two(*shape: int) -> Array:
    """Random signs and sizes from 1/4 to 4, with which every product is exact."""
    rng = np.random.default_rng(shape)
    return (rng.choice([-1, 1], shape) * 2.0 ** rng.integers(-2, 3, shape)).astype(np.float32)


def chain(rows: Array) -> Array:
    """rows(n, ...) float32 added to zero one after the other."""
    total = np.zeros(rows.shape[1:], np.float32)
    for row in rows:
        total = total + row
    return total


def group_sums(rows: Array, groups: Array) -> Array:
    """rows(R, ...) -> the chains of the 12 groups."""
    return np.stack([chain(rows[groups[g] : groups[g + 1]]) for g in range(12)])


def tree_onto(total: Array, s: Array) -> Array:
    """The fixed tree with ``accumulate``: it begins with what the output holds."""
    for j in range(0, 12, 3):
        total = total + ((s[j] + s[j + 1]) + s[j + 2])
    return total


@pytest.mark.parametrize(("R", "groups"), ROWS)
def test_matmul_dw_is_the_tree_of_chains(R: int, groups: Array, team: Team) -> None:
    N, K = 7, 37
    dy, x, before = draw(R, N), powers_of_two(R, K), draw(N, K)
    dw, s = poison(N, K), group_sums(dy[:, :, None] * x[:, None, :], groups)
    team.matmul_dw(dw, dy, x, groups)
    assert np.array_equal(dw, fixed_tree(s))
    dw = before.copy()
    team.matmul_dw(dw, dy, x, groups, accumulate=True)
    assert np.array_equal(dw, tree_onto(before, s))


@pytest.mark.parametrize(("R", "groups"), ROWS)
def test_rmsnorm_dw_is_the_tree_of_chains(R: int, groups: Array, team: Team) -> None:
    D = 37
    dy, x, r, w, before = draw(R, D), powers_of_two(R, D), powers_of_two(R), draw(D), draw(D)
    dx, dw, s = poison(R, D), poison(D), group_sums(dy * x * r[:, None], groups)
    team.rmsnorm_bwd(dx, dw, dy, x, w, r, groups)
    assert np.array_equal(dw, fixed_tree(s))
    dw = before.copy()
    team.rmsnorm_bwd(dx, dw, dy, x, w, r, groups, accumulate=True)
    assert np.array_equal(dw, tree_onto(before, s))


@pytest.mark.parametrize(("R", "groups"), ROWS)
def test_embedding_dw_is_the_tree_of_chains(R: int, groups: Array, team: Team) -> None:
    V, D = 3, 37  # few words, so that each stands in many groups
    dx, ids, before = draw(R, D), np.random.default_rng(R).integers(0, V, R, np.int32), draw(V, D)
    order, index = np.empty(R, np.int32), np.empty(V + 1, np.int64)
    stands = ids[:, None, None] == np.arange(V)[:, None]  # (R, V, 1)
    dw, s = poison(V, D), group_sums(dx[:, None] * stands, groups)
    team.embedding_bwd(dw, dx, ids, groups, order, index)
    assert np.array_equal(dw, fixed_tree(s))
    dw = before.copy()
    team.embedding_bwd(dw, dx, ids, groups, order, index, accumulate=True)
    assert np.array_equal(dw, tree_onto(before, s))


def head_dw(team: Team, h: Array, w: Array, targets: Array, groups: Array, **more: object) -> Array:
    """The weight gradient alone."""
    losses, dh, dw = poison(len(h)), poison(*h.shape), poison(*w.shape)
    team.head(losses, h, w, targets, groups, dh, dw, 1.0, **more)
    return dw


@pytest.mark.parametrize(
    ("R", "V", "groups"),
    [
        (37, 50, groups_of(37)), (40, 50, groups_of(5, 8)),
        # The first group needs two blocks: 2^22 logits are 46 rows, and a block has 48 at least.
        (56, 90001, np.array([0, *[50] * 3, *[53] * 4, *[56] * 5], np.int64)),
    ],
)  # fmt: skip
def test_head_dw_is_the_tree_of_chains(R: int, V: int, groups: Array, team: Team) -> None:
    h, w = powers_of_two(R, 1), draw(V, 1)
    targets = np.random.default_rng(R).integers(-1, V, R, np.int32)
    one = np.array([0, *[1] * 12], np.int64)
    # dz of one row, times its h, is what that row alone gives.
    rows = np.stack([head_dw(team, h[r : r + 1], w, targets[r : r + 1], one) for r in range(R)])
    assert np.array_equal(
        head_dw(team, h, w, targets, groups), fixed_tree(group_sums(rows, groups))
    )


@pytest.mark.parametrize(("R", "D"), SHAPES["rows"])
def test_the_norm_of_a_row_is_a_lane_sum(R: int, D: int, team: Team) -> None:
    x, y, r = powers_of_two(R, D), poison(R, D), poison(R)
    team.rmsnorm(y, r, x, draw(D), EPS)
    one, eps = np.float32(1), np.float32(EPS)
    assert np.array_equal(r, one / np.sqrt(lane_sum(x * x) / np.float32(D) + eps))


@pytest.mark.parametrize("n", [1, 143, 144, 145, 1003, 65537])
def test_squared_norm_adds_144_lane_sums_in_order(n: int, team: Team) -> None:
    x = np.random.default_rng(n).integers(-2000, 2000, n).astype(np.float32)  # exact squares
    cuts = [n * i // 144 for i in range(145)]
    total = 0.0
    for a, b in itertools.pairwise(cuts):
        total += float(lane_sum(x[a:b] ** 2))
    assert team.squared_norm(x) == total


def test_spans_of_adamw_that_fall_overlap_or_lie_outside_are_refused(team: Team) -> None:
    named = {
        "grad_scale": 1.0, "beta1": 0.9, "beta2": 0.95, "step_size": 1e-2, "eps": 1e-8,
        "decay": 0.999, "root_bias2": 0.3,
    }  # fmt: skip
    state = [draw(8) for _ in range(4)]
    for spans, told in (
        ([(0, 4, 1), (3, 8, 0)], "span 1 is 3 .. 8, expected within 4 .. 8"),
        ([(5, 4, 1)], "span 0 is 5 .. 4, expected within 0 .. 8"),
        ([(0, 9, 1)], "span 0 is 0 .. 9, expected within 0 .. 8"),
        ([(-1, 4, 1)], "span 0 is -1 .. 4, expected within 0 .. 8"),
    ):
        with pytest.raises(ValueError, match=f"adamw_spans: {re.escape(told)}"):
            team.adamw_spans(*state, np.array(spans, np.int64), **named)
    with pytest.raises(ValueError, match="adamw_spans: columns of spans is 2"):
        team.adamw_spans(*state, np.zeros((1, 2), np.int64), **named)


@pytest.mark.parametrize("n", [1, 143, 144, 145, 1003])
def test_adamw_updates_every_entry_as_if_it_were_alone(n: int, team: Team) -> None:
    named = {
        "grad_scale": 0.5, "beta1": 0.9, "beta2": 0.95, "step_size": 1e-2, "eps": 1e-8,
        "decay": 0.999, "root_bias2": 0.3,
    }  # fmt: skip
    p, m, v, g = draw(n), draw(n, seed=1), draw(n, seed=2) ** 2, draw(n, seed=3)
    alone = [a.copy() for a in (p, m, v)]
    for i in range(n):
        team.adamw(*(a[i : i + 1] for a in alone), g[i : i + 1], **named)
    team.adamw(p, m, v, g, **named)
    for got, want in zip((p, m, v), alone, strict=True):
        assert np.array_equal(got, want)
