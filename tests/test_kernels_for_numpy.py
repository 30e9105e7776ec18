"""crystalline.kernels: any layout gives what the reference gives, and what is wrong is said."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
import reference as ref
import reference_softmax as soft
from case import EPS, Array, draw, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled_reference import sampled_cross_entropy, sampled_cross_entropy_backward
from tolerance import assert_close

import crystalline.kernels as ck
from crystalline._native import available_isas
from crystalline.decoder.positions import rope_tables
from crystalline.errors import UsageError
from crystalline.team import KEPT, _shared

FEW = settings(max_examples=examples(20), deadline=None, derandomize=True)
SIZE = st.integers(1, 20)
# Names of a function's results, as its out= takes them.
RESULTS = {
    "matmul_backward": 2, "linear_backward": 2, "linear_cross_entropy_backward": 2,
    "sampled_softmax_backward": 2,
    "rmsnorm_backward": 2, "attention_backward": 3,
}  # fmt: skip


def calls(R: int, D: int, V: int, seed: int = 0) -> dict[str, tuple[Any, ...]]:
    """Arguments of every function that returns arrays, all arrays of which are float32 or ids."""
    rng = np.random.default_rng([seed, R, D, V])

    def f(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    H, half = 2, -(-D // 2)
    tables = rope_tables(R + 3, 2 * half, 10000.0)
    q, k, v = f(2, R, 2 * H, D), f(2, R, H, D), f(2, R, H, D)
    out, lse = ref.attention(q, k, v)
    t, words = rng.integers(-1, V, (R, 2)), rng.integers(0, V, (R, 2))
    x, w = f(R, 2, D), f(D)
    rrms = ref.rmsnorm(x, w, EPS)[1].astype(np.float32)
    sampled = (x, f(V, D), t, rng.permutation(V)[: 1 + V // 2], -abs(f(V)))
    return {
        "exp": (f(R, D),), "log": (abs(f(R, D)) + np.float32(1e-3),),
        "softmax": (f(R, 2, V),), "softmax_backward": (f(R, V), abs(f(R, V))),
        "log_softmax": (f(R, V),), "log_softmax_backward": (f(R, V), -abs(f(R, V))),
        "logsumexp": (f(R, 2, V),), "cross_entropy": (f(R, 2, V), t),
        "cross_entropy_backward": (f(R, 2), f(R, 2, V), t),
        "matmul": (x, f(D, V)), "matmul_backward": (f(R, 2, V), x, f(D, V)),
        "linear": (x, f(V, D), f(R, 2, V)), "linear_backward": (f(R, 2, V), x, f(V, D)),
        "linear_cross_entropy": (x, f(V, D), t), "linear_cross_entropy_backward": (x, f(V, D), t),
        "sampled_softmax": sampled, "sampled_softmax_backward": sampled,
        "rmsnorm": (x, w), "rmsnorm_backward": (f(R, 2, D), x, w, rrms),
        "rope": (f(2, R, H, 2 * half), *tables, 1),
        "rope_backward": (f(2, R, H, 2 * half), *tables, 3),
        "attention": (q, k, v),
        "attention_backward": (
            f(*q.shape), q, k, v, out.astype(np.float32),
            np.ascontiguousarray(lse.transpose(0, 2, 1)).astype(np.float32),
        ),
        "swiglu": (f(R, 2, 2 * D),), "swiglu_backward": (f(R, 2, D), f(R, 2, 2 * D)),
        "embedding": (f(V, D), words), "embedding_backward": (f(R, 2, D), words, V),
    }  # fmt: skip


NAMES = sorted(calls(2, 2, 2))


def results(name: str, args: tuple[Any, ...], **more: Any) -> tuple[Array, ...]:
    got = getattr(ck, name)(*args, **more)
    return got if isinstance(got, tuple) else (got,)


def layouts(a: Array) -> list[Array]:
    """The same numbers in other places of memory."""
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1] + 1), a.dtype)
    wide[..., 1::2] = a
    shifted = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:]
    return [
        wide[..., 1::2], np.asfortranarray(a), a[..., ::-1].copy()[..., ::-1],
        a[::-1].copy()[::-1], shifted.view(a.dtype).reshape(a.shape),
    ]  # fmt: skip


def test_every_function_is_tested_here() -> None:
    others = {"adamw", "rope_tables", "squared_norm"}
    assert set(NAMES) | others == set(ck.__all__)


@FEW
@given(R=SIZE, D=SIZE, V=st.integers(1, 40), seed=st.integers(0, 9))
def test_any_layout_and_any_threads_give_the_same_bits(R: int, D: int, V: int, seed: int) -> None:
    for name, args in calls(R, D, V, seed).items():
        want = results(name, args, threads=1)
        for i in range(5):
            moved = tuple(layouts(a)[i] if isinstance(a, np.ndarray) else a for a in args)
            outs = tuple(poison(*a.shape) for a in want)
            out = outs if name in RESULTS else outs[0]
            isa = available_isas()[i % len(available_isas())]
            got = results(name, moved, threads=1 + i % 3, isa=isa, out=out)
            for a, b, c in zip(got, want, outs, strict=True):
                assert np.shares_memory(a, c) and a.tobytes() == b.tobytes(), name


@pytest.mark.parametrize("name", NAMES)
def test_inputs_may_overlap_outputs(name: str) -> None:
    """Each array argument in turn lies in the memory of each output."""
    args = calls(9, 5, 11)[name]
    want = results(name, args)
    for i, a in enumerate(args):
        if not (isinstance(a, np.ndarray) and a.dtype == np.float32):
            continue
        for j, shape in enumerate(w.shape for w in want):
            for at, to in ((0, 0), (3, 0), (0, 3)):  # where they begin
                size = int(np.prod(shape))
                memory = np.zeros(a.size + size + 3, np.float32)
                inside = memory[at : at + a.size].reshape(a.shape)
                inside[...] = a
                out = memory[to : to + size].reshape(shape)
                outs = [None] * len(want)
                outs[j] = out  # type: ignore[call-overload]
                given_out = tuple(outs) if name in RESULTS else out
                got = results(name, (*args[:i], inside, *args[i + 1 :]), out=given_out)
                for x, y in zip(got, want, strict=True):
                    assert x.tobytes() == y.tobytes(), (i, j, at, to)


def test_against_the_reference() -> None:
    c = calls(13, 6, 37)
    (x,) = c["softmax"]
    assert_close("softmax.y", ck.softmax(x), soft.softmax(x), x)
    assert_close("log_softmax.y", ck.log_softmax(x), soft.log_softmax(x), x)
    assert_close("logsumexp", ck.logsumexp(x), soft.logsumexp(x), x)
    a, b = c["matmul"]
    flat = a.reshape(-1, 6)
    assert_close("matmul", ck.matmul(a, b).reshape(-1, 37), ref.matmul(flat, b.T), flat, b.T)
    dc, a, b = (z.reshape(-1, z.shape[-1]) for z in c["matmul_backward"])
    da, db = ck.matmul_backward(dc, a, b)
    assert_close("matmul", da, ref.matmul_dx(dc, b.T), dc, b)
    assert_close("matmul", db, ref.matmul_dw(a, dc), a.T, dc.T)
    q, k, v = c["attention"]
    lse = poison(2, 4, 13)
    y = ck.attention(q, k, v, lse=lse)
    want, want_lse = ref.attention(q, k, v)
    assert_close("attention.out", y, want, q, k, v)
    assert_close("attention.lse", lse.transpose(0, 2, 1), want_lse, q, k, v)
    d = draw(*q.shape)
    for got, due, n in zip(
        ck.attention_backward(d, q, k, v, y, lse), ref.attention_backward(d, q, k, v), "qkv",
        strict=True,
    ):  # fmt: skip
        assert_close(f"attention.d{n}", got, due, d, q, k, v)
    x, w = c["rmsnorm"]
    rrms = poison(13, 2)
    want_y, want_r = ref.rmsnorm(x, w, EPS)
    assert_close("rmsnorm.y", ck.rmsnorm(x, w, EPS, rrms=rrms), want_y, x, w, EPS)
    assert_close("rmsnorm.rrms", rrms, want_r, x, w, EPS)
    h, w, t = (z.reshape(-1, z.shape[-1]) for z in c["linear_cross_entropy"])
    losses = poison(26)
    dh, dw = ck.linear_cross_entropy_backward(h, w, t.reshape(-1), 0.5, losses=losses)
    due_h, due_w = ref.linear_cross_entropy_backward(h, w, t.reshape(-1), 0.5)
    assert_close("cross_entropy.dh", dh, due_h, h, w, t.reshape(-1), 0.5)
    assert_close("cross_entropy.dw", dw, due_w, h, w, t.reshape(-1), 0.5)
    assert losses.tobytes() == ck.linear_cross_entropy(h, w, t.reshape(-1)).tobytes()
    few = tuple(z.reshape(-1, 6) if z.ndim == 3 else z for z in c["sampled_softmax"])
    few = (*few[:2], few[2].reshape(-1), *few[3:])
    dh, dw = ck.sampled_softmax_backward(*few, 0.5, losses=losses)
    due_h, due_w = sampled_cross_entropy_backward(*few, 0.5)
    assert_close("sampled.loss", losses, sampled_cross_entropy(*few), *few)
    assert_close("sampled.dh", dh, due_h, *few, 0.5)
    assert_close("sampled.dw", dw, due_w, *few, 0.5)
    assert losses.tobytes() == ck.sampled_softmax(*few).tobytes()
    x = draw(2, 9, 3, 8)
    tables = ck.rope_tables(9, 8, 10000.0)
    for got, want in (
        (ck.rope(x, *tables), ref.rotary(x, 10000.0)),
        (ck.rope_backward(x, *tables), ref.rotary_backward(x, 10000.0)),
    ):
        assert_close("rotary", got, want, x, 10000.0)


def test_adamw_and_the_squared_norm() -> None:
    p, g, m, v = draw(7, 5), draw(7, 5, seed=1), draw(7, 5, seed=2), draw(7, 5, seed=3) ** 2
    named = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    got = [a.copy() for a in (p, m, v)]
    ck.adamw(*got, 2 * g, step=3, grad_scale=0.5, **named)
    for name, a, want in zip("pmv", got, ref.adamw(p, g, m, v, 3, **named), strict=True):
        assert_close(f"adamw.{name}", a, want, p, g, m, v, 3, **named)
    assert_close("squared_norm", ck.squared_norm(g.T), ref.squared_norm(g), g)
    same = [a.copy() for a in (p, m, v)]
    ck.adamw(*same, same[0], step=1, lr=1e-2)  # the gradient lies where p is
    apart = [a.copy() for a in (p, m, v)]
    ck.adamw(*apart, p.copy(), step=1, lr=1e-2)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(same, apart, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_give_no_rows_and_zero_sums(name: str) -> None:
    whole = calls(3, 4, 5)[name]
    rows = {"w", "b", "cosine", "sine", "samples", "log_expected"}
    names = getattr(ck, name).__code__.co_varnames
    args = tuple(
        a if n in rows or not isinstance(a, np.ndarray) else a[:0]
        for n, a in zip(names, whole, strict=False)
    )
    for i, a in enumerate(results(name, args)):
        if name == "embedding_backward" or (name in RESULTS and "attention" not in name and i == 1):
            assert a.size and np.all(a == 0)
        else:
            assert a.shape[0] == 0


def test_products_over_nothing_are_zero() -> None:
    assert np.all(ck.matmul(np.zeros((3, 0), np.float32), np.zeros((0, 2), np.float32)) == 0)
    begin = draw(3, 2)
    x, w = np.zeros((3, 0), np.float32), np.zeros((2, 0), np.float32)
    assert np.all(ck.linear(x, w, begin) == begin)
    assert ck.softmax(np.zeros((3, 0), np.float32)).shape == (3, 0)
    assert ck.squared_norm(np.zeros(0, np.float32)) == 0 and ck.exp([]).shape == (0,)


def test_what_comes_in_without_loss() -> None:
    whole = np.arange(-5, 6)
    for kind in (np.float16, np.int8, np.int16, ">f4", np.float32):
        assert ck.exp(whole.astype(kind)).tobytes() == ck.exp(whole.astype(np.float32)).tobytes()
    assert ck.exp([0.1, 1]).tobytes() == ck.exp(np.array([0.1, 1], np.float32)).tobytes()
    assert ck.exp(2.0).shape == () and ck.exp([True]).dtype == np.float32
    read_only = np.ones(3, np.float32)
    read_only.flags.writeable = False
    assert ck.exp(read_only).shape == (3,)


# --- Teams.


def test_few_teams_are_kept_and_python_threads_may_share_them() -> None:
    x = draw(200, 300)
    want = ck.softmax(x, threads=1)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(20):
            if ck.softmax(x, threads=1 + (seed + i) % 6).tobytes() != want.tobytes():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not wrong and len(_shared) <= KEPT


def test_a_forked_child_computes_too() -> None:
    """While another thread of the parent holds the team, whose lock the child must not wait for."""
    x, stop = draw(300, 400), threading.Event()
    want = ck.softmax(x, threads=2)

    def busy() -> None:
        while not stop.is_set():
            ck.softmax(x, threads=2)

    other = threading.Thread(target=busy)
    other.start()
    try:
        for _ in range(5):
            if (pid := os.fork()) == 0:
                os._exit(0 if ck.softmax(x, threads=2).tobytes() == want.tobytes() else 1)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        other.join()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYSTALLINE_ISA", "mmx")
    with pytest.raises(UsageError, match=r"CRYSTALLINE_ISA: .*mmx"):
        ck.exp(1.0)
    assert ck.exp(1.0, isa="portable") == ck.exp(1.0, isa=available_isas()[-1])
    monkeypatch.delenv("CRYSTALLINE_ISA")
    monkeypatch.setenv("CRYSTALLINE_THREADS", "no")
    with pytest.raises(UsageError, match="CRYSTALLINE_THREADS is 'no'"):
        ck.exp(1.0)


def test_a_large_softmax_goes_around_the_caches_to_the_same_bits() -> None:
    """From 2^23 numbers on; rows of an odd length begin anywhere in a cache line."""
    V = 70001
    x = np.tile(draw(3, V), (41, 1))
    y = ck.softmax(x, threads=2, out=poison(*x.shape))
    few = ck.softmax(x[:3], threads=1)
    assert all(y[i].tobytes() == few[i % 3].tobytes() for i in range(len(x)))
