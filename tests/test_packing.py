"""Packed rows: every window once and whole, the rows that best fit gives, the least padding."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from batch_case import digest, made, make_split, rows_of, sequences, wanted
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline.data.batches import Batches, validation_batches
from crystalline.data.packing import chosen_packing, packed, packed_rows


def best_fit(lengths: list[int], T: int) -> list[list[int]]:
    """The textbook's: windows one by one, longest first, each to the fullest row that takes it."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= T]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


WINDOWS = st.integers(1, 40).flatmap(
    lambda T: st.tuples(st.just(T), st.lists(st.integers(1, T), max_size=60))
)


@given(WINDOWS)
@settings(deadline=None, max_examples=examples(400))
def test_rows_are_those_of_best_fit(case: tuple[int, list[int]]) -> None:
    T, given_lengths = case
    lengths = np.array(given_lengths, np.int64)
    order, firsts = packed(lengths, T)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    rows = [lengths[order[a:b]].tolist() for a, b in pairwise(firsts.tolist())]
    # Which of two rows with as much room takes a window is open; how full rows are is not.
    assert sorted(map(sum, rows)) == sorted(map(sum, best_fit(given_lengths, T)))
    assert len(rows) == packed_rows(lengths, T)
    for length in range(1, T + 1):  # of equal windows the first come first
        alike = [i for i in order.tolist() if lengths[i] == length]
        assert alike == sorted(alike)


def test_lengths_beyond_sixteen_bits() -> None:
    lengths = np.array([70_000, 1, 65_536, 4_464, 69_999])
    order, firsts = packed(lengths, 70_000)
    assert order.tolist() == [0, 2, 3, 4, 1]
    assert firsts.tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize("T", [64, 256, 1024])
def test_hardly_a_position_is_padding_where_documents_are_small(T: int) -> None:
    rng = np.random.default_rng(T)
    sizes = [*rng.exponential(60, 5000).astype(int).tolist(), 5000, 20000]
    split = make_split(sizes)
    stream = Batches(split, 1, T, 0, packing=True)
    predictions = split.tokens - split.documents
    assert predictions > 0.99 * stream.sequences_in(1) * T
    assert Batches(split, 1, T, 0).sequences_in(1) > 1.2 * stream.sequences_in(1)


def test_a_document_that_fits_is_never_cut() -> None:
    split = make_split([30] * 50)
    stream = Batches(split, 1, 64, 3, packing=True)
    rows = sequences(stream, stream.sequences_in(3), 64)
    assert {len(window) for row in rows for window in row} == {31}


def test_neighbours_change_from_pass_to_pass() -> None:
    split = make_split([9] * 60)
    stream = Batches(split, 1, 40, 3, packing=True)
    rows = sequences(stream, 30, 40)
    pairs = [{frozenset(made(row)) for row in rows[a : a + 15]} for a in (0, 15)]
    assert not pairs[0] & pairs[1]


def test_the_order_never_changes_between_versions() -> None:
    split = make_split([40, 5, 300, 0, 90, 1, 7, 7, 7])
    stream = Batches(split, 4, 16, 42, packing=True)
    stream.change_length(stream.begin(1) + 5, 11)
    assert [stream.begin(number) for number in (1, 2, 3)] == [30, 71, 114]
    before, after = range(0, 24, 4), range(36, 76, 4)
    assert digest(map(stream.batch, before)) == "7a5f17e1b8c8e977a10e9b438ee7fe08"
    assert digest(map(stream.batch, after)) == "43d0114b8a43b79567923427f7e19415"


@given(
    sizes=st.lists(st.integers(0, 90), max_size=12), B=st.integers(1, 7), T=st.integers(1, 40)
)
@settings(deadline=None, max_examples=examples(100))
def test_validation_has_the_same_windows_packed(sizes: list[int], B: int, T: int) -> None:
    split = make_split(sizes)
    plain = [row for row in rows_of(validation_batches(split, B, T), T) if row]
    rows = [row for row in rows_of(validation_batches(split, B, T, packing=True), T) if row]
    windows = Counter(str(window) for row in rows for window in row)
    assert windows == Counter(str(window) for row in plain for window in row)
    assert len(rows) <= len(plain)
    assert sum(map(made, rows), Counter[tuple[int, int]]()) == wanted(split)
    if max(sizes, default=0) < T and len(rows) == len(plain):
        assert [made(row) for row in rows] == [made(row) for row in plain]


@pytest.mark.parametrize(
    ("sizes", "T", "choice", "why"),
    [
        ([10_000], 256, False, r"padding is 2\.3% of all positions"),
        ([20] * 100, 256, True, r"padding would be 91\.\d% of all positions, packed it is 8\.\d%"),
        ([160] * 100, 256, False, r"padding is 37\.1% of all positions, packed or not"),
        ([254] * 100 + [20], 256, False, r"padding is 1\.\d% of all positions"),
    ],
)
def test_packing_is_chosen_where_padding_is_much(
    sizes: list[int], T: int, choice: bool, why: str
) -> None:
    predictions = np.array(sizes) + 1
    chosen, reason = chosen_packing(None, predictions, T)
    assert chosen is choice
    assert re.fullmatch(why, reason)
    assert chosen_packing(True, predictions, T) == (True, "as asked for")
    assert chosen_packing(False, predictions, T) == (False, "as asked for")
