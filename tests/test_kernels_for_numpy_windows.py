"""Packed documents in crystalline.kernels: attention and rotary positions that know windows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference as ref
from case import Array, draw, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close
from window_cases import windows

import crystalline.kernels as ck
from crystalline._native import available_isas

FEW = settings(max_examples=examples(20), deadline=None, derandomize=True)


def heads(B: int, T: int, H: int, K: int, Dh: int) -> tuple[Array, ...]:
    """q, k, v and dy."""
    shapes = [(B, T, n, Dh) for n in (H, K, K, H)]
    return tuple(draw(*shape, seed=i) for i, shape in enumerate(shapes))


def both(given: tuple[Array, ...], positions: Any, **how: Any) -> tuple[Array, ...]:
    """y, lse, dq, dk, dv."""
    q, k, v, dy = given
    lse = poison(len(q), q.shape[2], q.shape[1])
    y = ck.attention(q, k, v, positions=positions, lse=lse, **how)
    return y, lse, *ck.attention_backward(dy, q, k, v, y, lse, positions=positions, **how)


@FEW
@given(
    B=st.integers(1, 4), T=st.integers(1, 150), K=st.integers(1, 3), share=st.integers(1, 3),
    half=st.integers(1, 9), seed=st.integers(0, 9),
)  # fmt: skip
def test_attention_in_windows(B: int, T: int, K: int, share: int, half: int, seed: int) -> None:
    given, (positions, _, _) = heads(B, T, K * share, K, 2 * half), windows(B, T, seed)
    q, k, v, dy = given
    got = both(given, positions)
    named = {"seen": ref.same_window(positions)}
    want, want_lse = ref.attention(q, k, v, **named)
    assert_close("attention.out", got[0], want, q, k, v, **named)
    assert_close("attention.lse", got[1].transpose(0, 2, 1), want_lse, q, k, v, **named)
    due = ref.attention_backward(dy, q, k, v, **named)
    for a, b, n in zip(got[2:], due, "qkv", strict=True):
        assert_close(f"attention.d{n}", a, b, dy, q, k, v, **named)
    for b in range(B):  # every window is as if it were alone
        begins = np.append(np.flatnonzero(positions[b] == 0), T).tolist()
        for s, e in itertools.pairwise(begins):
            alone = both(tuple(x[b : b + 1, s:e] for x in given), None)
            assert got[1][b, :, s:e].tobytes() == alone[1].tobytes()
            for i in (0, 2, 3, 4):
                assert got[i][b, s:e].tobytes() == alone[i].tobytes()


def test_any_layout_threads_and_instruction_set_give_the_same_bits() -> None:
    given, (positions, _, _) = heads(3, 130, 4, 2, 10), windows(3, 130)
    want = both(given, positions, threads=1, isa="portable")
    for i, at in enumerate((positions, positions.tolist(), np.asfortranarray(positions, np.uint8))):
        isa = available_isas()[i % len(available_isas())]
        got = both(given, at, threads=1 + i, isa=isa)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got, want, strict=True))


def test_positions_of_whole_sequences_are_none() -> None:
    given = heads(3, 70, 4, 2, 10)
    whole = both(given, np.tile(np.arange(70), (3, 1)))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, both(given, None), strict=True))
    empty = tuple(a[:0] for a in given)
    assert both(empty, np.zeros((0, 70), np.int64))[0].shape == (0, 70, 4, 10)


@FEW
@given(B=st.integers(1, 4), T=st.integers(1, 70), H=st.integers(1, 3), half=st.integers(1, 20))
def test_rope_at_positions(B: int, T: int, H: int, half: int) -> None:
    x, (positions, _, _) = draw(B, T, H, 2 * half), windows(B, T)
    tables = ck.rope_tables(T, 2 * half, 10000.0)
    for turn, back in ((ck.rope, ref.rotary), (ck.rope_backward, ref.rotary_backward)):
        got = turn(x, *tables, positions=positions)
        assert_close("rotary", got, back(x, 10000.0, positions), x, 10000.0)
        rows = np.broadcast_to(np.arange(T), (B, T))
        assert turn(x, *tables, positions=rows).tobytes() == turn(x, *tables).tobytes()
    further = ck.rope_tables(T + 3, 2 * half, 10000.0)
    want = ck.rope(x, *further, positions=positions + 3)
    assert ck.rope(x, *further, 3, positions=positions).tobytes() == want.tobytes()


def test_rope_may_write_over_its_positions() -> None:
    memory = np.zeros(2 * 3 * 2 * 4, np.float32)
    at = memory.view(np.int32)[:6].reshape(2, 3)
    at[...] = [[0, 1, 0], [0, 1, 2]]
    x, tables = draw(2, 3, 2, 4), ck.rope_tables(3, 4, 10000.0)
    want = ck.rope(x, *tables, positions=at.copy())
    got = ck.rope(x, *tables, positions=at, out=memory.reshape(2, 3, 2, 4))
    assert got.tobytes() == want.tobytes()


ONE = np.zeros((1, 3, 1, 2), np.float32)
TABLE = np.zeros((3, 1), np.float32)


@pytest.mark.parametrize(
    ("positions", "error", "why"),
    [
        ([[0, 1]], ValueError, r"positions has shape \(1, 2\), but must have \(1, 3\)"),
        ([0, 1, 2], ValueError, r"positions has shape \(3,\)"),
        ([[0, 1, 3]], ValueError, "positions run from 0 to 3, but must be from 0 to 2"),
        ([[0, -1, 0]], ValueError, "positions run from -1"),
        ([[0.0, 1.0, 2.0]], TypeError, "positions is float64, but must be whole numbers"),
    ],
)
def test_positions_that_do_not_fit_are_refused(
    positions: Any, error: type[Exception], why: str
) -> None:
    for op, call in {
        "attention": lambda p: ck.attention(ONE, ONE, ONE, positions=p),
        "attention_backward": lambda p: ck.attention_backward(
            ONE, ONE, ONE, ONE, ONE, ONE[:, :, :, 0].transpose(0, 2, 1), positions=p
        ),
        "rope": lambda p: ck.rope(ONE, TABLE, TABLE, positions=p),
        "rope_backward": lambda p: ck.rope_backward(ONE, TABLE, TABLE, positions=p),
    }.items():
        with pytest.raises(error, match=f"^{op}: {why}"):
            call(positions)


def test_windows_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^attention: positions: sequence 0 has 2 after 0, at 1"):
        ck.attention(ONE, ONE, ONE, positions=[[0, 2, 1]])
    with pytest.raises(ValueError, match=r"^attention: positions: sequence 0 has 1 in front"):
        ck.attention(ONE, ONE, ONE, positions=[[1, 2, 0]])
