"""The cases of rotary positions and attention.

qkv(B T, (H + 2 K) Dh) holds the queries' heads, then the keys', then the values'.
"""

from __future__ import annotations

import numpy as np
import reference as ref
from case import THETA, Array, Arrays, Case, Due, Shape, draw, poison

from crystalline._native import Team
from crystalline.decoder.positions import rope_tables


def split_heads(qkv: Array, shape: Shape) -> tuple[Array, Array, Array]:
    """qkv -> q(B,T,H,Dh), k, v(B,T,K,Dh)."""
    B, T, H, K, Dh = shape
    heads = qkv.reshape(B, T, H + 2 * K, Dh)
    return heads[:, :, :H], heads[:, :, H : H + K], heads[:, :, H + K :]


def rope(shape: Shape, inverse: bool = False) -> Case:
    B, T, H, K, Dh = shape
    x = draw(B * T, (H + 2 * K) * Dh)
    cosine, sine = rope_tables(T, Dh, THETA)
    turn = ref.rotary_backward if inverse else ref.rotary

    def due(o: Arrays) -> list[Due]:
        before, after = (a.reshape(B, T, H + 2 * K, Dh) for a in (x, o["x"]))
        turned, rest = before[:, :, : H + K], before[:, :, H + K :]
        assert np.array_equal(after[:, :, H + K :], rest), "rope turned a head too many"
        got = after[:, :, : H + K]
        return [("rotary", got, turn(turned, THETA), (turned, THETA), {})]

    def run(team: Team, a: Arrays) -> None:
        team.rope(a["x"], a["cosine"], a["sine"], H + K, T, inverse=inverse)

    return Case({"cosine": cosine, "sine": sine}, {"x": x}, run, due)


def attention(shape: Shape) -> Case:
    B, T, H, K, Dh = shape
    qkv = draw(B * T, (H + 2 * K) * Dh)
    q, k, v = split_heads(qkv, shape)

    def due(o: Arrays) -> list[Due]:
        out, lse = ref.attention(q, k, v)
        got = o["lse"].reshape(B, H, T).transpose(0, 2, 1)
        return [
            ("attention.out", o["out"].reshape(B, T, H, Dh), out, (q, k, v), {}),
            ("attention.lse", got, lse, (q, k, v), {}),
        ]

    return Case(
        {"qkv": qkv}, {"out": poison(B * T, H * Dh), "lse": poison(B * T * H)},
        lambda team, a: team.attention(a["out"], a["lse"], a["qkv"], T, H, K), due,
    )  # fmt: skip


def attention_bwd(shape: Shape) -> Case:
    B, T, H, K, Dh = shape
    forward = attention(shape)
    kept = forward.outputs(Team(1, "portable"))
    qkv, dout = forward.reads["qkv"], draw(B * T, H * Dh, seed=1)
    inputs = (dout.reshape(B, T, H, Dh), *split_heads(qkv, shape))

    def due(o: Arrays) -> list[Due]:
        got, want = split_heads(o["dqkv"], shape), ref.attention_backward(*inputs)
        named = zip(("dq", "dk", "dv"), got, want, strict=True)
        return [(f"attention.{name}", g, w, inputs, {}) for name, g, w in named]

    def run(team: Team, a: Arrays) -> None:
        team.attention_bwd(a["dqkv"], a["dout"], a["out"], a["qkv"], a["lse"], T, H, K)

    return Case({"qkv": qkv, "dout": dout} | kept, {"dqkv": poison(*qkv.shape)}, run, due)


def empty_cache(K: int, Dh: int, capacity: int) -> tuple[Array, Array]:
    """keys (K, Dh, C) and values (K, C, Dh up to 32), zero as they must be at first."""
    values = np.zeros((K, capacity, -(-Dh // 32) * 32), np.float32)
    return np.zeros((K, Dh, capacity), np.float32), values


def attention_cached(shape: Shape) -> Case:
    """The second half of one sequence, after a first half that the cache holds."""
    _, T, H, K, Dh = shape
    one, past = (1, T, H, K, Dh), T // 2
    qkv = draw(T, (H + 2 * K) * Dh)
    q, k, v = split_heads(qkv, one)
    keys, values = empty_cache(K, Dh, -(-T // 64) * 64)
    keys[:, :, :past] = k[0, :past].transpose(1, 2, 0)
    values[:, :past, :Dh] = v[0, :past].transpose(1, 0, 2)

    def run(team: Team, a: Arrays) -> None:
        team.attention_cached(a["out"], a["qkv"], a["keys"], a["values"], H, past)

    def due(o: Arrays) -> list[Due]:
        assert np.array_equal(o["keys"][:, :, :T], k[0].transpose(1, 2, 0)), "keys are not kept"
        assert np.array_equal(o["values"][:, :T, :Dh], v[0].transpose(1, 0, 2)), "values"
        want, _ = ref.attention(q, k, v)
        got = np.concatenate([want[:, :past], o["out"].reshape(1, T - past, H, Dh)], axis=1)
        return [("attention.out", got, want, (q, k, v), {})]

    writes = {"out": poison(T - past, H * Dh), "keys": keys, "values": values}
    return Case({"qkv": qkv[past:]}, writes, run, due)
