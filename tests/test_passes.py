"""Passes with documents of their own, lengths that change, data that grows: whatever happens to a
stream, every prediction of a pass is made exactly as often as it weighs, and any place gives the
same sequence again."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from batch_case import Row, made, make_split, rows_of, sequences, wanted
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline.data.batches import Batch, Batches
from crystalline.data.shards import Split
from crystalline.errors import DataError

SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=8)
LENGTHS = st.integers(1, 40)
ACTS = ("take", "take", "take", "length", "append", "grow", "close", "resume", "limit")


class Life:
    """A stream that things happen to, and every sequence that was taken of it."""

    def __init__(self, data: st.DataObject, packing: bool, listed: bool) -> None:
        self.data, self.packing = data, packing
        self.sizes = data.draw(SIZES, "sizes")
        self.seed, self.T = data.draw(st.integers(0, 2**70)), data.draw(LENGTHS, "T")
        self.split = make_split(self.sizes)
        self.stream = Batches(
            self.split, 1, self.T, self.seed, packing=packing, passes=[] if listed else None
        )
        self.first = 0
        self.taken: list[tuple[int, Row, Batch]] = []  # pass, content, as it was given
        self.moved: list[int] = []  # where the length changed

    def take(self, rows: int) -> None:
        end = self.stream.end
        if end is not None:
            rows = min(rows, end - self.first)
        if rows == 0:
            return
        self.stream.batch_size = rows + (self.data.draw(st.integers(0, 2)) if end else 0)
        batch = self.stream.batch(self.first)
        assert batch.ids.shape[1] == self.stream.seq_len
        assert (batch.positions is not None) == self.packing
        given = list(rows_of([batch], self.stream.seq_len))
        for row in range(rows):
            number = self.stream.pass_of(self.first + row)
            one = Batch(*(part if part is None else part[row : row + 1] for part in batch))
            self.taken.append((number, given[row], one))
            assert given[row]
        self.first += rows

    def act(self) -> None:
        what, data, stream = self.data.draw(st.sampled_from(ACTS)), self.data, self.stream
        if what == "take":
            self.take(data.draw(st.integers(1, 30), "rows"))
        elif what == "length":
            stream.change_length(self.first, data.draw(LENGTHS, "length"))
        elif what == "append" and stream.passes is not None:
            places = st.lists(st.integers(0, self.split.documents - 1), min_size=1, max_size=9)
            stream.append_pass(data.draw(places, "documents"), data.draw(st.integers(1, 3)))
        elif what == "grow":
            self.sizes = self.sizes + data.draw(SIZES, "more")
            self.split = make_split(self.sizes)
            stream.grow(self.split)
        elif what == "close":
            before = stream.epoch_of(self.first)
            stream.close(self.first)
            assert stream.passes == math.ceil(before)
        elif what == "limit":
            more = st.floats(0.2, 9).map(lambda epochs: self.epochs() + epochs)
            stream.limit(data.draw(st.one_of(st.none(), more)))
        else:
            state = json.loads(json.dumps(stream.state()))
            self.stream = Batches(
                self.split, 1, self.T, self.seed, packing=self.packing, state=state
            )
            assert self.stream.state() == state

    def epochs(self) -> float:
        return self.stream.epoch_of(self.first)

    def check(self) -> None:
        """The passes that are over; and the whole past, asked again."""
        by_pass: dict[int, list[Row]] = defaultdict(list)
        for number, row, _ in self.taken:
            by_pass[number].append(row)
        count = 0 if not self.taken else self.taken[-1][0] + 1
        for number in range(count):
            due = wanted(self.split, self.stream.documents(number))
            done = sum(map(made, by_pass[number]), Counter[tuple[int, int]]())
            if self.stream.begin(number + 1) <= self.first:
                assert done == due
            else:
                assert done < due
        self.stream.batch_size = 1
        for place in self.data.draw(st.permutations(range(len(self.taken)))):
            again = self.stream.batch(place)
            for got, want in zip(again, self.taken[place][2], strict=True):
                assert np.array_equal(got, want)


@given(data=st.data(), packing=st.booleans(), listed=st.booleans())
@settings(deadline=None, max_examples=examples(300))
def test_every_prediction_is_made_as_often_as_it_weighs(
    data: st.DataObject, packing: bool, listed: bool
) -> None:
    life = Life(data, packing, listed)
    for _ in range(data.draw(st.integers(1, 14), "acts")):
        life.act()
    life.check()
    if life.stream.passes is not None:  # to the end, and nothing but padding behind it
        life.stream.limit(None)
        life.take(life.stream.end or 0)
        life.check()
        assert life.stream.end == len(life.taken) == life.stream.begin(life.stream.passes)
        life.stream.batch_size = 3
        assert (life.stream.batch(life.first).targets == -1).all()
        assert life.epochs() == life.stream.passes == life.stream.pass_of(life.first)


@given(data=st.data(), packing=st.booleans())
@settings(deadline=None, max_examples=examples(100))
def test_epochs_and_sequences_are_inverse(data: st.DataObject, packing: bool) -> None:
    life = Life(data, packing, listed=False)
    for _ in range(data.draw(st.integers(0, 3))):
        life.take(data.draw(st.integers(1, 30)))
        life.stream.change_length(life.first, data.draw(LENGTHS))
    stream, last = life.stream, -1.0
    for place in range(life.first + 40):
        epochs = stream.epoch_of(place)
        assert epochs > last
        assert stream.sequences_in(epochs) == place
        assert (epochs == int(epochs)) == (place == stream.begin(int(epochs)))
        last = epochs


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_is_over_exactly_where_the_limit_ends_the_stream(packing: bool) -> None:
    split = make_split([40, 3, 100, 7, 7])
    stream = Batches(split, 4, 16, 1, packing=packing)
    assert stream.end is None
    for epochs in (1, 3):
        stream.limit(epochs)
        end = stream.end
        assert end == stream.sequences_in(epochs) == stream.begin(epochs)
        rows = sequences(stream, end + 5, 16)
        total = sum(map(made, rows), Counter[tuple[int, int]]())
        assert total == Counter({k: epochs * n for k, n in wanted(split).items()})
        assert not any(rows[end:])
    stream.limit(0.5)
    assert stream.end == stream.sequences_in(0.5) == round(0.5 * stream.begin(1))
    stream.limit(1e-9)
    assert stream.end == 1  # something is trained
    stream.limit(None)
    assert stream.end is None


def test_what_is_appended_behind_a_padded_step_goes_on_without_a_gap() -> None:
    split = make_split([40, 40])
    stream = Batches(split, 5, 16, 1, passes=[[0], [1]])
    end = stream.end
    assert end == 6
    assert (stream.batch(5).targets[1:] == -1).all()
    stream.append_pass([0, 0, 1])
    assert stream.begin(2) == end
    assert made(sequences(stream, 1, 16, end)[0]) <= wanted(split)
    assert stream.documents(2).tolist() == [0, 0, 1]


def test_a_million_passes_cost_no_more_than_one() -> None:
    stream = Batches(make_split([3, 50]), 4, 16, 0)
    place = stream.begin(10**12) + 1
    assert stream.pass_of(place) == 10**12
    row = sequences(stream, 1, 16, place)
    assert made(row[0])
    packed = Batches(make_split([3, 5]), 4, 16, 0, packing=True)  # all fit: rows alike
    assert packed.begin(10**12) == 10**12
    assert len(json.dumps(packed.state())) < 200


def test_a_state_is_small_and_restores_what_was_looked_up() -> None:
    sizes = [int(n) for n in np.random.default_rng(0).integers(0, 300, 1000)]
    stream = Batches(make_split(sizes), 4, 64, 0, packing=True)
    stream.limit(20)
    end = stream.end
    state = stream.state()
    assert state["passes"] == [[[[0, 1000, 1]], None]]
    assert len(json.dumps(state)) < 1000
    again = Batches(make_split(sizes), 4, 64, 0, packing=True, state=state)
    assert again._passes._runs == stream._passes._runs
    assert again.end == end


@pytest.mark.parametrize("packing", [False, True])
def test_a_shorter_length_leaves_no_old_row(packing: bool) -> None:
    split = make_split([100, 100, 3])
    stream = Batches(split, 2, 32, 5, packing=packing)
    stream.change_length(4, 8)
    rows = sequences(stream, 3, 8, 4)
    assert all(len(window) <= 8 for row in rows for window in row)
    with pytest.raises(ValueError, match="changes between sequences 3 and 4"):
        stream.batch(3)
    with pytest.raises(ValueError, match="changed at 4 already"):
        stream.change_length(3, 16)
    with pytest.raises(ValueError, match="length 0"):
        stream.change_length(9, 0)


def test_a_longer_length_joins_what_was_cut() -> None:
    """What is left of one document in one piece becomes windows as long as they may be."""
    split = make_split([1000])
    stream = Batches(split, 1, 4, 0)
    stream.change_length(0, 4)
    before = stream.sequences_in(1)
    stream.change_length(1, 1001)
    assert stream.sequences_in(1) <= 3  # the first row, and what lies before and behind it
    assert before > 250


def test_a_length_set_back_at_once_changes_nothing() -> None:
    split = make_split([100, 100, 3])
    stream, plain = Batches(split, 2, 32, 5), Batches(split, 2, 32, 5)
    stream.change_length(4, 8)
    stream.change_length(4, 32)
    assert stream.state() == plain.state() | {"rows": stream.state()["rows"]}
    assert sequences(stream, 20, 32) == sequences(plain, 20, 32)


def test_listed_passes_need_no_document_to_begin_with() -> None:
    empty = Split([], np.array([0]), 0, 0)
    stream = Batches(empty, 2, 8, 0, passes=[])
    assert (stream.end, stream.passes, stream.epoch_of(0), stream.begin(0)) == (0, 0, 0.0, 0)
    with pytest.raises(DataError, match="no document to train on"):
        stream.append_pass()
    split = make_split([5])
    stream.grow(split)
    stream.append_pass()
    assert stream.end == 1
    assert made(sequences(stream, 1, 8)[0]) == wanted(split)


def test_mistakes_are_refused() -> None:
    split = make_split([5, 6])
    with pytest.raises(ValueError, match="close them"):
        Batches(split, 2, 8, 0).append_pass([0])
    stream = Batches(split, 2, 8, 0, passes=[[0]])
    with pytest.raises(DataError, match="documents 0 to 2, but the data has 2"):
        stream.append_pass([2, 0])
    with pytest.raises(DataError, match="documents -1 to 0"):
        stream.append_pass([-1, 0])
    with pytest.raises(ValueError, match="one document or more"):
        stream.append_pass([])
    with pytest.raises(ValueError, match="other documents"):
        stream.grow(make_split([5, 7, 8]))
    with pytest.raises(ValueError, match="other documents"):
        stream.grow(make_split([5]))
    with pytest.raises(IndexError, match="no pass 1"):
        stream.documents(1)
    state = stream.state()
    with pytest.raises(DataError, match="the data has 0"):
        Batches(Split([], np.array([0]), 0, 0), 2, 8, 0, state=state)
