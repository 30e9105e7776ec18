"""bf16 operands: near the reference, the same bits on any threads, nothing outside touched, and a
model that learns as the one in float32 does."""

from __future__ import annotations

from dataclasses import replace

import bf16_cases
import numpy as np
import pytest
import reference as ref
import torch
from bf16_cases import BUILDERS, GRID, rounded, widened
from case import Shape, draw, groups_of, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_guard_pages import guarded
from test_kernels import bits, check, ragged_groups
from test_model import MODELS, batch, random_weights

from crystalline._native import Team
from crystalline.config import ModelConfig
from crystalline.decoder.decoder import Decoder, Parameters, check_precision
from crystalline.errors import UsageError

THREADS = (1, 2, 3, 5, 12)
HAS = Team(1).has_bf16
needs_bf16 = pytest.mark.skipif(not HAS, reason="this CPU has no AVX512_BF16")


@needs_bf16
@pytest.mark.parametrize(("op", "shape"), GRID)
def test_near_the_reference_and_the_same_bits(op: str, shape: Shape) -> None:
    c = BUILDERS[op][0](shape)
    want = bits(check(c, Team(1)))
    for threads in THREADS:
        assert bits(c.outputs(Team(threads))) == want, f"not the bits of one thread: {threads}"


@needs_bf16
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("R", "groups"), ragged_groups())
def test_groups_of_any_size(R: int, groups: np.ndarray, add: bool) -> None:
    for c in (
        bf16_cases.matmul_dw_bf16((R, 7, 21), add, groups),
        bf16_cases.head_bf16((R, 6, 33), True, add, groups),
    ):
        assert bits(check(c, Team(1))) == bits(c.outputs(Team(3)))


SMALL = st.integers(1, 40)


@needs_bf16
@settings(max_examples=examples(25), deadline=None, derandomize=True)
@given(shape=st.tuples(SMALL, SMALL, SMALL))
def test_products_of_any_shape(shape: Shape) -> None:
    for op in ("matmul_bf16", "matmul_bf16 narrow", "matmul_dx_bf16", "matmul_dw_bf16"):
        check(BUILDERS[op][0](shape), Team(2))


@needs_bf16
def test_a_narrow_result_is_the_wide_one_rounded() -> None:
    team, x, w = Team(2), rounded(draw(37, 600)), draw(65, 600, seed=1)
    wide, narrow = np.empty((37, 65), np.float32), np.empty((37, 65), np.uint16)
    team.matmul_bf16(wide, x, w)
    team.matmul_bf16(narrow, x, w)
    assert np.array_equal(rounded(wide), narrow)


@needs_bf16
def test_operands_may_lie_at_any_address_of_a_bf16() -> None:
    team, w, groups = Team(2), draw(35, 38, seed=1), np.arange(13) * 37 // 12
    results = []
    for skip in (0, 1):  # numbers from the beginning of their memory
        x, y = (np.zeros(37 * n + 1, np.uint16)[skip:][: 37 * n].reshape(37, n) for n in (38, 35))
        x[...] = rounded(draw(37, 38))
        dh, dw, losses = draw(37, 38), np.zeros((35, 38), np.float32), draw(37)
        team.matmul_bf16(y, x, w)
        team.matmul_dw_bf16(dw, y, x, groups)
        team.head_bf16(losses, x, w, np.arange(37, dtype=np.int32) % 35, groups, dh, dw)
        results.append([a.tobytes() for a in (y, dh, dw, losses)])
    assert results[0] == results[1]


@needs_bf16
def test_rounding_is_that_of_torch_for_normal_numbers_infinities_and_nan() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 100_000, np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([x[abs(x) >= 2.0**-126], [np.inf, -np.inf, np.nan, 0.0, -0.0]])
    x = x.astype(np.float32)
    y = np.empty(len(x), np.uint16)
    Team(1).to_bf16(y, x)
    want = torch.from_numpy(x).bfloat16().float().numpy()
    assert np.array_equal(widened(y), want, equal_nan=True)


@needs_bf16
@pytest.mark.parametrize("side", ["begin", "end"])
def test_nothing_outside_is_touched(side: str) -> None:
    guarded("bf16_cases", "avx512", side)


@needs_bf16
def test_the_head_stays_finite_with_logits_of_tens_of_millions() -> None:
    R, D, V = 24, 32, 300
    h, w = rounded(3e3 * draw(R, D)), rounded(3e3 * draw(V, D, seed=1))
    z = ref.matmul(widened(h), widened(w))
    assert abs(z).max() > 5e7
    targets = z.argmax(axis=1).astype(np.int32)  # of no loss, but where two are near
    losses, dh, dw = poison(R), poison(R, D), poison(V, D)
    Team(2).head_bf16(losses, h, widened(w), targets, groups_of(R), dh, dw, 1 / R)
    assert np.isfinite(dh).all()
    assert np.isfinite(dw).all()
    assert abs(losses).max() < D * np.spacing(np.float32(abs(z).max()))  # of the sums' steps


@needs_bf16
def test_the_head_leaves_rows_without_a_target_out_whatever_they_hold() -> None:
    """Also the padding of a panel, in which the panel before has left infinities."""
    R, D, V = 32, 32, 200
    w, huge = widened(rounded(draw(V, D, seed=1))), rounded(np.full((R, D), 3e38, np.float32))
    masked, team = np.full(R, -1, np.int32), Team(1)
    losses, dh, dw = poison(R), poison(R, D), poison(V, D)
    team.head_bf16(losses, huge, w, masked, groups_of(R), dh, dw, 1.0)
    assert not losses.any(), losses
    assert not dh.any()
    assert not dw.any()
    one, losses, dh = rounded(draw(1, D)), poison(1), poison(1, D)
    team.head_bf16(losses, one, w, masked[:1] + 4, groups_of(1), dh, dw, 1.0)
    assert np.isfinite(dh).all()
    assert np.isfinite(dw).all()


def test_without_the_instructions_there_is_one_clear_error() -> None:
    team, c = Team(1, "portable"), ModelConfig(300, 16, 1, 2, 2, 20, 8)
    assert not team.has_bf16
    with pytest.raises(ValueError, match="needs a CPU with AVX512_BF16"):
        team.to_bf16(np.empty(3, np.uint16), np.empty(3, np.float32))
    with pytest.raises(UsageError, match=r"no AVX512_BF16.*choose fp32"):
        check_precision(c, team, "bf16")
    with pytest.raises(UsageError, match="'fp16', but must be fp32 or bf16"):
        check_precision(c, team, "fp16")


@needs_bf16
def test_an_odd_width_is_refused() -> None:
    with pytest.raises(UsageError, match="hidden is 21, but must be even for bf16; choose 22"):
        check_precision(ModelConfig(300, 16, 1, 2, 2, 21, 8), Team(1), "bf16")
    with pytest.raises(ValueError, match="a size is zero, negative or does not fit"):
        Team(1).matmul_bf16(
            np.empty((2, 2), np.float32), np.empty((2, 3), np.uint16), np.empty((2, 3), np.float32)
        )


@needs_bf16
def test_rope_refuses_what_does_not_fit() -> None:
    team, wide, narrow = Team(1), np.zeros((6, 8), np.float32), np.zeros((6, 8), np.uint16)
    tables = [np.zeros((3, 2), np.float32)] * 2
    team.rope_bf16(wide, narrow, *tables, 2, 3)  # rows 3 .. 6 begin again at position 0
    for work, to, x in ((team.rope_bf16, wide, narrow), (team.rope_bwd_bf16, narrow, wide)):
        with pytest.raises(ValueError, match="4 positions are more than the 3 of the tables"):
            work(to, x, *tables, 2, 4)
        with pytest.raises(ValueError, match="rows of the result is 5, but rows of the operand"):
            work(to[:5], x, *tables, 2, 3)
        with pytest.raises(ValueError, match="a size is zero, negative or does not fit"):
            work(to, x, *tables, 3, 3)


def gradient(c: ModelConfig, precision: str, threads: int) -> tuple[float, np.ndarray]:
    weights, gradients = Parameters(c), Parameters(c)
    weights.load(random_weights(c))
    gradients.flat[...] = np.nan
    ids, targets = batch(c, 13, 8)
    decoder = Decoder(weights, Team(threads), 13, 8, gradients, precision)
    loss = decoder.gradient(ids, targets, 1 / ids.size, False) / ids.size
    assert decoder.loss(ids, targets) / ids.size == pytest.approx(loss, rel=1e-6)
    return loss, gradients.flat


@needs_bf16
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_near_the_one_in_float32(name: str) -> None:
    c = replace(MODELS[name], hidden=2 * MODELS[name].hidden)
    loss, got = gradient(c, "bf16", 1)
    want_loss, want = gradient(c, "fp32", 1)
    assert loss == pytest.approx(want_loss, rel=0.01)
    assert np.linalg.norm(got - want) <= 0.05 * np.linalg.norm(want)
    for threads in THREADS[1:]:
        other, same = gradient(c, "bf16", threads)
        assert (other, same.tobytes()) == (loss, got.tobytes())
