"""Every kernel on every instruction set and number of threads: near the reference, equal in bits."""

from __future__ import annotations

import functools
import hashlib

import kernel_cases
import numpy as np
import pytest
import reference as ref
from attention_cases import attention, attention_bwd, empty_cache
from case import Array, Case, Shape, draw, groups_of, poison
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import GRID, case
from tolerance import SHAPES, U, assert_close

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
    """The bits that all others must equal: portable, on one thread."""
    return bits(case(op, shape).outputs(Team(1, "portable")))


def check(c: Case, team: Team) -> dict[str, Array]:
    """Run the case and hold every output against the reference."""
    outputs = c.outputs(team)
    for family, got, want, inputs, named in c.due(outputs):
        assert_close(family, got, want, *inputs, **named)
    return outputs


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "shape"), GRID)
def test_near_the_reference_and_the_same_bits(op: str, shape: Shape, isa: str) -> None:
    assert bits(check(case(op, shape), team(isa, 1))) == first_bits(op, shape)
    for threads in THREADS[1:]:
        got = bits(case(op, shape).outputs(team(isa, threads)))
        assert got == first_bits(op, shape), f"{threads} threads change the result"


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
    ):
        want = bits(c.outputs(Team(1, "portable")))
        assert bits(check(c, team(isa, 1))) == want
        assert bits(c.outputs(team(isa, 3))) == want


# 2^22 logits are a block, but 48 rows at least: the first group of each needs two blocks.
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("R", "V", "first"), [(100, 50000, 90), (53, 90000, 50)])
def test_head_with_a_group_of_several_blocks(R: int, V: int, first: int, isa: str) -> None:
    groups = np.array([0, *[first] * 5, *[R] * 7], np.int64)
    c = blocks_case(R, V, groups)
    assert bits(check(c, team(isa, 1))) == bits(c.outputs(team(isa, 3))) == blocks_bits(R, V, c)


@functools.cache
def blocks_of(R: int, V: int, groups: tuple[int, ...]) -> Case:
    return kernel_cases.head((R, 3, V), groups=np.array(groups, np.int64))
