"""Attention inside windows: the bits of every window on its own, whoever works."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import split_heads
from case import THETA, Array, draw, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_arrange import Leaves, arrangements
from torch.nn import functional

from crystalline._native import ISAS, Team, available_isas
from crystalline.decoder.positions import rope_tables, window_starts

THREADS = (1, 2, 3, 12)
Shape = tuple[int, int, int]  # heads, key/value heads, width of a head
Results = tuple[Array, Array, Array]  # out, lse, dqkv


def team(isa: str, threads: int) -> Team:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    return Team(threads, isa)


def starts_of(sizes: list[int]) -> Array:
    return np.cumsum([0, *sizes], dtype=np.int64)


def inputs(R: int, shape: Shape) -> tuple[Array, Array]:
    """qkv and dout."""
    H, K, Dh = shape
    return draw(R, (H + 2 * K) * Dh), draw(R, H * Dh, seed=1)


def both(
    team: Team, qkv: Array, dout: Array, shape: Shape, starts: Array, lengths: Array | None = None
) -> Results:
    """Forward and backward."""
    H, K, _ = shape
    out, lse, dqkv = poison(*dout.shape), poison(len(qkv) * H), poison(*qkv.shape)
    team.attention_windows(out, lse, qkv, starts, H, K, lengths)
    team.attention_windows_bwd(dqkv, dout, out, qkv, lse, starts, H, K, lengths)
    return out, lse, dqkv


def alone(qkv: Array, dout: Array, shape: Shape) -> Results:
    """The rows as a sequence of its own, on one portable thread."""
    (H, K, _), T, one = shape, len(qkv), Team(1, "portable")
    out, lse, dqkv = poison(*dout.shape), poison(T * H), poison(*qkv.shape)
    one.attention(out, lse, qkv, T, H, K)
    one.attention_bwd(dqkv, dout, out, qkv, lse, T, H, K)
    return out, lse, dqkv


def check(teams: list[Team], sizes: list[int], lengths: list[int], shape: Shape) -> None:
    """Every window is as if it were alone; rows that do not count may hold anything, and are zero
    in what comes out."""
    starts, ends = starts_of(sizes), np.array(lengths, np.int64)
    qkv, dout = inputs(int(starts[-1]), shape)
    for s, rows, n in zip(starts, sizes, lengths, strict=False):
        qkv[s + n : s + rows] = dout[s + n : s + rows] = np.nan
    got = [both(team, qkv, dout, shape, starts, ends) for team in teams]
    H = shape[0]
    for s, rows, n in zip(starts, sizes, lengths, strict=False):
        want = alone(qkv[s : s + n].copy(), dout[s : s + n].copy(), shape) if n else None
        for out, lse, dqkv in got:
            end = slice(s + n, s + rows)
            assert not out[end].any() and not dqkv[end].any(), f"at {s}: padding is not zero"
            if want:
                assert out[s : s + n].tobytes() == want[0].tobytes(), f"out at {s}"
                assert lse[s * H : (s + n) * H].tobytes() == want[1].tobytes(), f"lse at {s}"
                assert dqkv[s : s + n].tobytes() == want[2].tobytes(), f"dqkv at {s}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([1], (1, 1, 2)),
        ([1] * 50, (2, 1, 6)),
        ([37, 1, 1, 64, 100, 128, 65], (6, 2, 18)),
        ([5, 600, 3, 1, 300, 2], (2, 2, 32)),  # one is worked off in pairs of chunks by a crowd
        ([0, 7, 0, 0, 130, 0], (4, 1, 10)),
        ([1100], (2, 1, 4)),
        ([3] * 200 + [520], (3, 3, 8)),
    ],
)
def test_each_window_has_the_bits_it_has_alone(sizes: list[int], shape: Shape, isa: str) -> None:
    check([team(isa, threads) for threads in THREADS], sizes, sizes, shape)
    used = [n * (i % 3) // 2 if i % 3 < 2 else n for i, n in enumerate(sizes)]
    check([team(isa, threads) for threads in THREADS], sizes, used, shape)


@settings(max_examples=examples(30), deadline=None, derandomize=True)
@given(
    windows=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 9)), min_size=1, max_size=9),
    K=st.integers(1, 3), share=st.integers(1, 3), half=st.integers(1, 20),
    threads=st.integers(1, 5),
)  # fmt: skip
def test_windows_of_any_kind(
    windows: list[tuple[int, int]], K: int, share: int, half: int, threads: int
) -> None:
    sizes = [used + more for used, more in windows]
    sizes[-1] += 1  # one row at least
    teams = [Team(threads, isa) for isa in available_isas()]
    check(teams, sizes, [used for used, _ in windows], (K * share, K, 2 * half))


SIZES = [1, 30, 2, 270, 64, 5, 5, 5, 128, 90]
QKV, DOUT = inputs(sum(SIZES), (4, 2, 6))
WANT = both(Team(1, "portable"), QKV, DOUT, (4, 2, 6), starts_of(SIZES))


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(arrangement=arrangements(), steal=st.booleans(), isa=st.sampled_from(available_isas()))
def test_no_arrangement_changes_a_bit(
    arrangement: tuple[int, Leaves], steal: bool, isa: str
) -> None:
    threads, leaves = arrangement
    team = Team(threads, isa)
    team.arrange(*leaves, steal)
    got = both(team, QKV, DOUT, (4, 2, 6), starts_of(SIZES))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, WANT, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_window(isa: str, bad: float) -> None:
    starts = starts_of(SIZES)
    for w in (0, 3, 6):
        rows = slice(starts[w], starts[w + 1])
        qkv, dout = QKV.copy(), DOUT.copy()
        qkv[rows] = dout[rows] = bad
        out, lse, dqkv = both(team(isa, 2), qkv, dout, (4, 2, 6), starts)
        others = np.ones(len(qkv), bool)
        others[rows] = False
        assert out[others].tobytes() == WANT[0][others].tobytes()
        assert lse[np.repeat(others, 4)].tobytes() == WANT[1][np.repeat(others, 4)].tobytes()
        assert dqkv[others].tobytes() == WANT[2][others].tobytes()
        assert not np.isfinite(out[rows]).any(), "it got lost"


@pytest.mark.parametrize("isa", ISAS)
def test_even_windows_are_sequences(isa: str) -> None:
    """Three rows of 65: as windows, and as ``attention`` takes them."""
    qkv, dout = inputs(195, (4, 2, 10))
    got = both(team(isa, 2), qkv, dout, (4, 2, 10), starts_of([65] * 3))
    out, lse, dqkv = poison(195, 40), poison(195 * 4), poison(*qkv.shape)
    team(isa, 2).attention(out, lse, qkv, 65, 4, 2)
    team(isa, 2).attention_bwd(dqkv, dout, out, qkv, lse, 65, 4, 2)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, (out, lse, dqkv), strict=True))


def test_attention_equals_torch_under_a_mask() -> None:
    shape, T = (6, 2, 18), sum(SIZES)
    qkv, dout = inputs(T, shape)
    out, _, dqkv = both(Team(2), qkv, dout, shape, starts_of(SIZES))
    theirs = torch.tensor(qkv.astype(np.float64), requires_grad=True)
    q, k, v = (a.transpose(1, 2) for a in split_heads(theirs, (1, T, *shape)))  # type: ignore[arg-type]
    at = np.repeat(np.arange(len(SIZES)), SIZES)
    mask = torch.tensor(np.tri(T, dtype=bool) & (at[:, None] == at))
    want = functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    want = want.transpose(1, 2).reshape(out.shape)
    want.backward(torch.tensor(dout.astype(np.float64)))
    assert theirs.grad is not None
    assert np.abs(out - want.detach().numpy()).max() < 5e-6
    assert np.abs(dqkv - theirs.grad.numpy()).max() < 2e-5


# --- Positions.


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_turns_by_its_position_alone(isa: str) -> None:
    """Rows of every position in any order, and those of ``rope``."""
    cosine, sine = rope_tables(50, 18, THETA)
    x = draw(50, 5 * 18)
    want = x.copy()
    Team(1, "portable").rope(want, cosine, sine, 3, 50)
    for threads in THREADS:
        order = np.random.default_rng(threads).permutation(50).astype(np.int32)
        got = x[order].copy()
        team(isa, threads).rope_at(got, cosine, sine, 3, order)
        assert got.tobytes() == want[order].tobytes()


@pytest.mark.parametrize("positions", [[0, 1, 8], [0, -1, 2], [2**31 - 1, 0, 0], [-(2**31), 0, 0]])
def test_positions_outside_the_tables_are_refused_and_nothing_is_written(
    positions: list[int],
) -> None:
    table, x = np.zeros((8, 2), np.float32), draw(3, 12)
    before, at = x.copy(), np.array(positions, np.int32)
    with pytest.raises(ValueError, match=r"^rope_at: .*position"):
        Team(2).rope_at(x, table, table, 2, at)
    assert np.array_equal(x, before)
    with pytest.raises(ValueError, match=r"^rope_at: positions is 2, but rows of x is 3"):
        Team(2).rope_at(x, table, table, 2, at[:2])
    if Team(1).has_bf16:
        narrow = np.zeros((3, 12), np.uint16)
        with pytest.raises(ValueError, match=r"^rope_at_bf16: .*position"):
            Team(2).rope_at_bf16(x, narrow, table, table, 2, at)
        with pytest.raises(ValueError, match=r"^rope_bwd_at_bf16: .*position"):
            Team(2).rope_bwd_at_bf16(narrow, x, table, table, 2, at)
        assert np.array_equal(x, before) and not narrow.any()


def test_windows_begin_where_positions_are_0() -> None:
    positions = np.array([[0, 1, 0, 0], [0, 1, 2, 3]], np.int32)
    assert window_starts(positions).tolist() == [0, 2, 3, 4, 8]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([1, 2, 3, 4], "sequence 1 has 1 in front, at 0"),
        ([0, 2, 3, 4], "sequence 1 has 2 after 0, at 1"),
        ([0, 1, 1, 2], "sequence 1 has 1 after 1, at 2"),
        ([0, 0, -1, 0], "sequence 1 has -1 after 0, at 2"),
        ([0, 1, 2, 2**31 - 1], "sequence 1 has 2147483647 after 2, at 3"),
    ],
)
def test_positions_that_do_not_rise_from_0_are_refused(row: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        window_starts(np.array([[0, 1, 2, 3], row], np.int32))


# --- What is refused.


@pytest.mark.parametrize(
    ("starts", "lengths", "why"),
    [
        ([], None, "rise from 0"),
        ([0], None, "rise from 0 to the number of rows, 9"),
        ([1, 9], None, "rise from 0"),
        ([0, 8], None, "rise from 0"),
        ([0, 6, 5, 9], None, "start 1 is 6, but start 2 is 5"),
        ([0, 2**62, 9], None, "start 1"),
        ([0, -4, 9], None, "start 0 is 0, but start 1 is -4"),
        ([0, 5, 9], [5], "lengths is 1, but the number of windows is 2"),
        ([0, 5, 9], [5, 5], "length 1 is 5, but window 1 has 4 rows"),
        ([0, 5, 9], [-1, 4], "length 0 is -1"),
        ([0, 5, 9], [2**62, 4], "length 0"),
    ],
)
def test_windows_that_do_not_fit_are_refused_and_nothing_is_written(
    starts: list[int], lengths: list[int] | None, why: str
) -> None:
    qkv, dout = inputs(9, (2, 1, 4))
    ends = None if lengths is None else np.array(lengths, np.int64)
    at: Any = np.array(starts, np.int64)
    out, lse, dqkv = poison(9, 8), poison(18), poison(9, 16)
    with pytest.raises(ValueError, match=f"^attention_windows: .*{why}"):
        Team(2).attention_windows(out, lse, qkv, at, 2, 1, ends)
    with pytest.raises(ValueError, match=f"^attention_windows_bwd: .*{why}"):
        Team(2).attention_windows_bwd(dqkv, dout, dout, qkv, lse, at, 2, 1, ends)
    assert all(np.isnan(a).all() for a in (out, lse, dqkv))
