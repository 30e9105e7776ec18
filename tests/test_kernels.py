"""Every kernel on every instruction set and any threads: near the reference, and equal in bits."""

from __future__ import annotations

import functools
import hashlib
import math

import kernel_cases
import numpy as np
import pytest
import reference as ref
from attention_cases import attention, attention_bwd, empty_cache
from case import Array, Case, Shape, draw, groups_of, poison
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import GRID, case
from tolerance import SHAPES, U, assert_close, chain, ratio

from crystalline._native import ISAS, Team, available_isas

THREADS = (1, 2, 3, 5, 12)
EMPTY_GROUPS = [0, 0, 2, 2, 2, 2, 2, 7, 7, 7, 7, 11, 11]  # no batch is laid out so, but it may be


@functools.cache
def team(isa: str, threads: int) -> Team:
    """One team for all tests; it keeps its work space, so stale contents are tested too."""
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    return Team(threads, isa)


def bits(outputs: dict[str, Array]) -> str:
    """One name for the bits of all outputs."""
    digest = hashlib.sha256()
    for name, a in sorted(outputs.items()):
        digest.update(name.encode() + a.tobytes())
    return digest.hexdigest()


@functools.cache
def first_bits(op: str, shape: Shape) -> str:
    """The bits that all others must equal: portable, on one thread, held against the reference."""
    return bits(check(case(op, shape), Team(1, "portable")))


def check(c: Case, team: Team) -> dict[str, Array]:
    """Run the case and hold every output against the reference."""
    outputs = c.outputs(team)
    for family, got, want, inputs, named in c.due(outputs):
        assert_close(family, got, want, *inputs, **named)
    return outputs


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "shape"), GRID)
def test_near_the_reference_and_the_same_bits(op: str, shape: Shape, isa: str) -> None:
    for threads in THREADS:
        got = bits(case(op, shape).outputs(team(isa, threads)))
        assert got == first_bits(op, shape), f"not the bits of one portable thread: {threads}"


def ragged_groups() -> list[tuple[int, Array]]:
    """Rows and their groups: batches that leave groups empty or fill some twice, and an odd one."""
    batches = [(B * T, groups_of(B, T)) for B, T in SHAPES["batch"]]
    return [*batches, (11, np.array(EMPTY_GROUPS, np.int64))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("R", "groups"), ragged_groups())
def test_groups_of_any_size(R: int, groups: Array, add: bool, isa: str) -> None:
    for c in (
        kernel_cases.matmul_dw((R, 7, 21), add, groups),
        kernel_cases.rmsnorm_bwd((R, 21), add, groups),
        kernel_cases.embedding_bwd((R, 9, 21), add, groups),
        kernel_cases.head((R, 5, 33), True, add, groups),
        kernel_cases.head_sampled((R, 5, 33), groups=groups),
    ):
        want = bits(c.outputs(Team(1, "portable")))
        assert bits(check(c, team(isa, 1))) == want
        assert bits(c.outputs(team(isa, 3))) == want


# A block is 2^24 logits, but at least 48 rows: here 67, so groups go together, alone, or in parts.
BLOCKS = {
    "each group alone": [0, 30, 60, 90, 90, 90, 90, 90, 90, 90, 90, 90, 90],
    "a group in two parts": [0, 70, 70, 70, 70, 80, 80, 80, 80, 80, 80, 80, 80],
}


@functools.cache
def several_blocks(name: str) -> tuple[Case, str]:
    """A head whose groups do not fit into one block, and its bits.

    Sums over so many words are longer than the table's: their roundings grow as a random walk, in
    16 lanes, and for dh along one chain.
    """
    groups, V = np.array(BLOCKS[name], np.int64), 250_000
    c = kernel_cases.head((int(groups[-1]), 2, V), groups=groups)
    outputs = c.outputs(Team(1))
    for family, got, want, inputs, named in c.due(outputs):
        walk = math.sqrt(V) if family == "cross_entropy.dh" else chain(V)
        assert np.all(ratio(family, got, want, *inputs, **named) <= walk), family
    return c, bits(outputs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", BLOCKS)
def test_head_with_groups_in_several_blocks(name: str, isa: str) -> None:
    c, want = several_blocks(name)
    assert bits(c.outputs(team(isa, 3))) == want


SMALL = st.integers(1, 40)
FEW = settings(max_examples=examples(25), deadline=None, derandomize=True)


@FEW
@given(shape=st.tuples(SMALL, SMALL, SMALL))
def test_matmul_of_any_shape(shape: Shape) -> None:
    for builder in (
        kernel_cases.matmul, kernel_cases.matmul_dx, kernel_cases.matmul_dw,
    ):  # fmt: skip
        c = builder(shape)
        assert len({bits(check(c, team(isa, 2))) for isa in available_isas()}) == 1


@FEW
@given(
    B=st.integers(1, 3), T=st.integers(1, 70), K=st.integers(1, 3), share=st.integers(1, 3),
    half=st.integers(1, 40),
)  # fmt: skip
def test_attention_of_any_shape(B: int, T: int, K: int, share: int, half: int) -> None:
    for builder in (attention, attention_bwd):
        c = builder((B, T, K * share, K, 2 * half))
        assert len({bits(check(c, team(isa, 2))) for isa in available_isas()}) == 1


# --- The same bits by another way.


@pytest.mark.parametrize("shape", SHAPES["matmul"])
def test_a_packed_weight_gives_the_bits_of_matmul(shape: Shape) -> None:
    assert first_bits("matmul_packed", shape) == first_bits("matmul", shape)
    assert first_bits("matmul_packed+", shape) == first_bits("matmul+", shape)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("product", ["matmul", "matmul_dx"])
@pytest.mark.parametrize("few", [1, 2, 7, 16])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (300, 40), (37, 1003), (2100, 19)])
def test_few_rows_give_the_bits_of_many(N: int, K: int, few: int, product: str, isa: str) -> None:
    """Few rows are multiplied by the weight as it lies, and many by panels of it."""
    w = draw(N, K, seed=1)
    x, width = (draw(17, K), N) if product == "matmul" else (draw(17, N), K)
    many, some = poison(17, width), poison(few, width)
    getattr(team(isa, 2), product)(many, x, w)
    getattr(team(isa, 2), product)(some, x[:few], w)
    assert np.array_equal(some, many[:few])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "pieces", [[1] * 9, [7, 1, 1], [60, 1, 5, 1, 64, 1, 1], [130], [9, 270, 8]]
)
@pytest.mark.parametrize(("H", "K", "Dh"), [(6, 3, 18), (4, 1, 6), (2, 2, 34)])
def test_a_cache_gives_the_bits_of_attention(
    H: int, K: int, Dh: int, pieces: list[int], isa: str
) -> None:
    T = sum(pieces)
    c = attention((1, T, H, K, Dh))
    want, got, at = c.outputs(team(isa, 2))["out"], poison(T, H * Dh), 0
    keys, values = empty_cache(K, Dh, 320)
    for rows in pieces:
        span = slice(at, at + rows)
        team(isa, 2).attention_cached(got[span], c.reads["qkv"][span], keys, values, H, at)
        at += rows
    assert np.array_equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
def test_swiglu_backward_in_place(isa: str) -> None:
    c = case("swiglu_bwd", (37, 688))
    gu = c.reads["gu"].copy()
    team(isa, 3).swiglu_bwd(gu, c.reads["dact"], gu)
    assert np.array_equal(gu, c.outputs(team(isa, 1))["dgu"])


@pytest.mark.parametrize("isa", ISAS)
def test_swiglu_backward_gives_the_activation_of_forward_to_the_bit(isa: str) -> None:
    c = case("swiglu_bwd", (37, 688))
    gu, act = c.reads["gu"].copy(), c.reads["dact"].copy()
    want = poison(37, 688)
    team(isa, 1).swiglu(want, gu)
    team(isa, 3).swiglu_bwd_act(gu, act, gu)
    assert np.array_equal(act, want)
    assert np.array_equal(gu, c.outputs(team(isa, 1))["dgu"])


@pytest.mark.parametrize("isa", ISAS)
def test_rope_at_a_position_is_that_row_and_its_inverse_undoes_it(isa: str) -> None:
    T, H, Dh = 9, 3, 10
    c = kernel_cases.rope((2, T, H, 0, Dh))
    cosine, sine, x = c.reads["cosine"], c.reads["sine"], c.writes["x"]
    turned = c.outputs(team(isa, 2))["x"]
    for row in range(T):
        one = x[row : row + 1].copy()
        team(isa, 1).rope(one, cosine, sine, H, 1, position=row)
        assert np.array_equal(one[0], turned[row])
    team(isa, 2).rope(turned, cosine, sine, H, T, inverse=True)
    a, b = np.split(abs(x.reshape(-1, Dh)), 2, axis=-1)
    assert np.all(abs(turned - x).reshape(-1, Dh) <= 8 * U * np.tile(a + b, 2))


# --- What is masked is nothing, and what is no number stays none.


@pytest.mark.parametrize("isa", ISAS)
def test_masked_targets_have_no_loss_and_no_gradient(isa: str) -> None:
    c = kernel_cases.head((13, 16, 300))
    c.reads["targets"][:] = -1
    assert all(np.all(a == 0) for a in c.outputs(team(isa, 2)).values())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "where",
    [
        ("head", (37, 33, 1003), "h", "losses"), ("head", (37, 33, 1003), "w", "losses"),
        ("attention", (12, 33, 8, 8, 16), "qkv", "out"), ("matmul", (37, 1003, 65), "w", "y"),
        ("rmsnorm", (37, 1003), "x", "y"), ("swiglu", (37, 688), "gu", "act"),
        ("squared_norm", (65537,), "x", "total"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_get_lost(
    where: tuple[str, Shape, str, str], bad: float, isa: str
) -> None:
    op, shape, operand, output = where
    a = case(op, shape).arrays()
    a[operand] = a[operand].copy()
    a[operand].flat[a[operand].size // 2] = bad
    case(op, shape).run(team(isa, 2), a)
    assert not np.isfinite(a[output]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_swiglu_far_from_zero(isa: str) -> None:
    gate = np.array([-1e30, -1000, -104, -88, 88, 104, 1000, 1e30], np.float32)
    gu, act = np.stack([gate, np.ones(8, np.float32)]).reshape(1, 16), poison(1, 8)
    team(isa, 1).swiglu(act, gu)
    assert_close("swiglu.act", act, ref.swiglu(gu), gu)
    dgu, dact = poison(1, 16), draw(1, 8)
    team(isa, 1).swiglu_bwd(dgu, dact, gu)
    assert_close("swiglu.dgu", dgu, ref.swiglu_backward(dact, gu), dact, gu)
