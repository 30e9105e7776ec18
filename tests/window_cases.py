"""The cases of rows in windows: rotary positions a row, attention inside windows."""

from __future__ import annotations

import numpy as np
import reference as ref
from attention_cases import split_heads
from case import THETA, Array, Arrays, Case, Due, Shape, draw, poison

from crystalline._native import Team
from crystalline.decoder.positions import rope_tables

SIZES = (1, 2, 17, 64, 65, 200, 1000)


def windows(B: int, T: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """positions (B, T), and the starts (W + 1) and lengths (W) of these windows; some have rows
    that do not count, some nothing else."""
    rng = np.random.default_rng([seed, B, T])
    positions = np.zeros((B, T), np.int32)
    for row in positions:
        at = 0
        while at < T:
            n = min(int(rng.choice(SIZES)), T - at)
            row[at : at + n] = np.arange(n)
            at += n
    starts = np.append(np.flatnonzero(positions == 0), B * T)
    rows = np.diff(starts)
    return positions, starts, np.where(rng.random(len(rows)) < 0.7, rows, rng.integers(0, rows + 1))


def used_rows(starts: Array, lengths: Array) -> Array:
    """Whether each row counts."""
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
    return place < np.repeat(lengths, np.diff(starts))


def lse_rows(lse: Array, starts: Array, lengths: Array, H: int) -> Array:
    """lse (R H), a window behind the other, as (R, H); zero where rows do not count."""
    rows = np.zeros((int(starts[-1]), H), np.float32)
    for s, n in zip(starts, lengths, strict=False):
        rows[s : s + n] = lse[s * H : (s + n) * H].reshape(H, n).T
    return rows


def rope_at(shape: Shape, inverse: bool = False) -> Case:
    B, T, H, K, Dh = shape
    x = draw(B * T, (H + 2 * K) * Dh)
    positions, _, _ = windows(B, T)
    cosine, sine = rope_tables(T, Dh, THETA)
    turn = ref.rotary_backward if inverse else ref.rotary

    def due(o: Arrays) -> list[Due]:
        before, after = (a.reshape(B, T, H + 2 * K, Dh) for a in (x, o["x"]))
        turned, rest = before[:, :, : H + K], before[:, :, H + K :]
        assert np.array_equal(after[:, :, H + K :], rest), "rope_at turned a head too many"
        inputs = (turned, THETA, positions)
        return [("rotary", after[:, :, : H + K], turn(*inputs), inputs, {})]

    def run(team: Team, a: Arrays) -> None:
        team.rope_at(a["x"], a["cosine"], a["sine"], H + K, a["positions"], inverse)

    reads = {"cosine": cosine, "sine": sine, "positions": positions.reshape(-1)}
    return Case(reads, {"x": x}, run, due)


def attention_windows(shape: Shape) -> Case:
    B, T, H, K, Dh = shape
    qkv = draw(B * T, (H + 2 * K) * Dh)
    positions, starts, lengths = windows(B, T)
    used = used_rows(starts, lengths)
    q, k, v = split_heads(qkv, shape)
    seen = ref.same_window(positions)

    def due(o: Arrays) -> list[Due]:
        out, lse = ref.attention(q, k, v, seen)
        assert not o["out"][~used].any(), "rows that do not count are not zero"
        got = np.where(used[:, None], o["out"], out.reshape(B * T, -1)).reshape(out.shape)
        told = lse_rows(o["lse"], starts, lengths, H)
        told = np.where(used[:, None], told, lse.reshape(B * T, H)).reshape(lse.shape)
        named = {"seen": seen}
        return [
            ("attention.out", got, out, (q, k, v), named),
            ("attention.lse", told, lse, (q, k, v), named),
        ]

    def run(team: Team, a: Arrays) -> None:
        team.attention_windows(a["out"], a["lse"], a["qkv"], a["starts"], H, K, a["lengths"])

    reads = {"qkv": qkv, "starts": starts, "lengths": lengths}
    return Case(reads, {"out": poison(B * T, H * Dh), "lse": poison(B * T * H)}, run, due)


def attention_windows_bwd(shape: Shape) -> Case:
    B, T, H, K, Dh = shape
    forward = attention_windows(shape)
    kept = forward.outputs(Team(1, "portable"))
    qkv, dout = forward.reads["qkv"], draw(B * T, H * Dh, seed=1)
    positions, starts, lengths = windows(B, T)
    counted = np.where(used_rows(starts, lengths)[:, None], dout, 0)
    inputs = (counted.reshape(B, T, H, Dh), *split_heads(qkv, shape))
    seen = ref.same_window(positions)

    def due(o: Arrays) -> list[Due]:
        got, want = split_heads(o["dqkv"], shape), ref.attention_backward(*inputs, seen)
        named = zip(("dq", "dk", "dv"), got, want, strict=True)
        return [(f"attention.{name}", g, w, inputs, {"seen": seen}) for name, g, w in named]

    def run(team: Team, a: Arrays) -> None:
        team.attention_windows_bwd(
            a["dqkv"], a["dout"], a["out"], a["qkv"], a["lse"], a["starts"], H, K, a["lengths"]
        )

    reads = forward.reads | {"dout": dout} | kept
    return Case(reads, {"dqkv": poison(*qkv.shape)}, run, due)
