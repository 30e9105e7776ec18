"""Attention beyond its cases: long sequences in little memory, and what is not finite."""

from __future__ import annotations

import numpy as np
import pytest
from attention_cases import split_heads
from case import Array, draw, poison

from crystalline._native import ISAS, Team, available_isas

LONGEST = 32768


def make(isa: str, threads: int = 2) -> Team:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    return Team(threads, isa)


def both(
    team: Team, qkv: Array, dout: Array, T: int, H: int, K: int
) -> tuple[Array, Array, Array]:
    """out, lse and dqkv."""
    out, lse, dqkv = poison(*dout.shape), poison(len(qkv) * H), poison(*qkv.shape)
    team.attention(out, lse, qkv, T, H, K)
    team.attention_bwd(dqkv, dout, out, qkv, lse, T, H, K)
    return out, lse, dqkv


# --- Long sequences.


def test_work_space_does_not_grow_with_the_sequence() -> None:
    need = []
    for T in (256, 1024, 4096):
        team, H, Dh = Team(2), 2, 32
        both(team, draw(T, 3 * H * Dh), draw(T, H * Dh), T, H, H)
        need.append(team.work_bytes)
    assert need[0] == need[1] == need[2] < 2 * 2**20


def test_a_sequence_of_32768_is_right_in_a_constant_work_space() -> None:
    """One head of width 2, on two threads (pairs of chunks) and on one; some rows and keys of it
    are held against float64."""
    T, Dh = LONGEST, 2
    qkv, dout = draw(T, 3 * Dh), draw(T, Dh, seed=1)
    team = Team(2)
    out, lse, dqkv = both(team, qkv, dout, T, 1, 1)
    assert team.work_bytes < 2**20
    alone = both(Team(1), qkv, dout, T, 1, 1)
    assert all(a.tobytes() == b.tobytes() for a, b in zip((out, lse, dqkv), alone, strict=True))

    q, k, v, do = (a.astype(np.float64) for a in (*np.hsplit(qkv, 3), dout))
    scale, mean = Dh**-0.5, np.sum(do * out, axis=1)
    for t in (0, 1, 255, 256, 20000, T - 1):
        seen = slice(0, t + 1)
        s = k[seen] @ q[t] * scale
        true_lse = np.log(np.sum(np.exp(s - s.max()))) + s.max()
        p = np.exp(s - true_lse)
        assert lse[t] == pytest.approx(true_lse, abs=2e-6)
        assert out[t] == pytest.approx(p @ v[seen], abs=1e-6)
        ds = p * (v[seen] @ do[t] - mean[t]) * scale
        assert dqkv[t, :Dh] == pytest.approx(ds @ k[seen], abs=1e-6)
    for j in (0, 63, 300, 20000, T - 1):  # lse has been judged above
        p = np.exp(q[j:] @ k[j] * scale - lse[j:])
        ds = p * (do[j:] @ v[j] - mean[j:]) * scale
        assert dqkv[j, Dh : 2 * Dh] == pytest.approx(ds @ q[j:], rel=1e-5, abs=1e-5)
        assert dqkv[j, 2 * Dh :] == pytest.approx(p @ do[j:], rel=1e-5, abs=1e-5)


# --- What is not finite.


@pytest.mark.parametrize("isa", ISAS)
def test_a_key_of_minus_infinity_weighs_nothing(isa: str) -> None:
    """Key 70's scores are -infinity: as if it were not there, but for the last bits."""
    T, H, Dh, gone = 150, 2, 8, 70
    shape = (1, T, H, H, Dh)
    qkv = draw(T, 3 * H * Dh)
    q, k, _ = split_heads(qkv, shape)
    q[..., 0] = abs(q[..., 0]) + np.float32(0.1)
    k[0, gone, :, 0] = -np.inf
    out, lse = poison(T, H * Dh), poison(T * H)
    make(isa).attention(out, lse, qkv, T, H, H)
    rest = np.delete(qkv, gone, axis=0)
    want, want_lse = poison(T - 1, H * Dh), poison((T - 1) * H)
    make(isa).attention(want, want_lse, rest, T - 1, H, H)
    # The row that is gone still attends to those before it: leave it out of the comparison.
    assert np.allclose(np.delete(out, gone, axis=0), want, rtol=1e-5, atol=1e-6)
    got_lse = np.delete(lse.reshape(H, T), gone, axis=1)
    assert np.allclose(got_lse, want_lse.reshape(H, T - 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [-np.inf, np.inf, np.nan])
def test_a_row_with_no_weights_is_not_a_number(isa: str, bad: float) -> None:
    """The first 100 keys are all -infinity (all +infinity, no numbers): no row up to there has
    weights; later ones are as if those keys were not there when they are -infinity."""
    T, Dh, first = 150, 8, 100
    qkv = draw(T, 3 * Dh)
    qkv[:, 0] = abs(qkv[:, 0]) + np.float32(0.1)
    qkv[:first, Dh] = bad
    out, lse = poison(T, Dh), poison(T)
    make(isa).attention(out, lse, qkv, T, 1, 1)
    assert np.isnan(out[:first]).all()
    if bad != -np.inf:
        assert np.isnan(out[first:]).all()
        return
    want, want_lse = poison(T - first, Dh), poison(T - first)
    make(isa).attention(want, want_lse, qkv[first:].copy(), T - first, 1, 1)
    assert np.allclose(out[first:], want, rtol=1e-5, atol=1e-6)
    assert np.allclose(lse[first:], want_lse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [-np.inf, np.inf, np.nan])
@pytest.mark.parametrize("part", [1, 2])  # keys, values
def test_what_is_not_finite_goes_back_at_most_to_its_block(
    isa: str, bad: float, part: int
) -> None:
    T, H, Dh, at, block = 300, 2, 6, 150, 128
    qkv, dout = draw(T, 3 * H * Dh), draw(T, H * Dh, seed=1)
    want_out, want_lse, want = both(make(isa), qkv, dout, T, H, H)
    qkv[at, part * H * Dh] = bad  # of the first head
    out, lse, dqkv = both(make(isa), qkv, dout, T, H, H)
    assert out[:block].tobytes() == want_out[:block].tobytes()
    assert lse[:block].tobytes() == want_lse[:block].tobytes()
    q = slice(0, H * Dh)  # dq: the gradients of earlier keys and values do see later queries
    assert dqkv[:block, q].tobytes() == want[:block, q].tobytes()
    second = slice(Dh, 2 * Dh)
    assert out[:, second].tobytes() == want_out[:, second].tobytes()
    assert not np.isfinite(out[at:, :Dh]).all(), "it got lost"


@pytest.mark.parametrize("isa", ISAS)
def test_scores_far_apart_and_large(isa: str) -> None:
    """Scores of some thousands: the largest takes all, nothing overflows."""
    T, Dh = 90, 4
    qkv = draw(T, 3 * Dh)
    qkv[:, : 2 * Dh] *= 100
    out, lse, dqkv = both(make(isa), qkv, draw(T, Dh, seed=1), T, 1, 1)
    q, k, v = np.hsplit(qkv.astype(np.float64), 3)
    s = np.where(np.tri(T, dtype=bool), q @ k.T / 2, -np.inf)
    best = s.argmax(axis=1)
    clear = np.sort(s, axis=1)[:, -1] - np.sort(s, axis=1)[:, -2] > 200
    assert clear[1:].sum() > 50
    assert np.array_equal(out[clear], v[best][clear].astype(np.float32))
    assert lse == pytest.approx(s.max(axis=1), rel=1e-5, abs=1)
    assert np.isfinite(dqkv).all()
