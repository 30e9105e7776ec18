"""Batches: each prediction exactly once an epoch, and the same from any starting point."""

from collections import Counter

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline import batches as module
from crystalline.batches import NO_LOSS, Batches, validation_batches
from crystalline.errors import DataError
from crystalline.shards import Split

EOT = 0
DOCUMENTS = st.lists(st.integers(0, 90), min_size=1, max_size=12)


def make_split(sizes):
    """Documents of these sizes whose token i is i + 1, so that a prediction names its place."""
    rows, offsets = [], [0]
    for size in sizes:
        begin = offsets[-1]
        rows.append([EOT, *range(begin + 1, begin + 1 + size), EOT])
        offsets.append(begin + size + 2)
    tokens = np.array([t for row in rows for t in row], dtype="<u4")
    third = len(tokens) // 3
    parts = [tokens[:third], tokens[third : 2 * third], tokens[2 * third :]]
    return Split([part for part in parts if len(part)], np.array(offsets), sum(sizes), EOT)


def wanted(split):
    """Each prediction (token, target) of each document, with how often it occurs."""
    tokens = split.slice(0, split.tokens).tolist()
    ends = set(split.offsets[1:].tolist())
    return Counter((tokens[i], tokens[i + 1]) for i in range(len(tokens) - 1) if i + 1 not in ends)


def rows_of(pairs, seq_len):
    """The rows of batches one by one, each checked for its form: n predictions, then padding."""
    for ids, targets in pairs:
        assert ids.dtype == targets.dtype == np.int32
        assert ids.shape == targets.shape
        assert ids.shape[1] == seq_len
        for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
            n = sum(t != NO_LOSS for t in target)
            assert target[n:] == [NO_LOSS] * (seq_len - n)
            assert row[n:] == [EOT] * (seq_len - n)
            assert row[1:n] == target[: max(n - 1, 0)]
            yield list(zip(row[:n], target[:n], strict=True))


def sequences(batches, count, size, seq_len):
    """The first ``count`` sequences of the stream."""
    pairs = (batches.batch(i) for i in range(0, count, size))
    return list(rows_of(pairs, seq_len))[:count]


@given(
    sizes=DOCUMENTS,
    size=st.integers(1, 7),
    seq_len=st.integers(1, 40),
    seed=st.integers(-3, 2**70),
    many=st.integers(1, 4),
)
@settings(deadline=None, max_examples=examples(150))
def test_every_prediction_is_made_exactly_once_an_epoch(sizes, size, seq_len, seed, many):
    split = make_split(sizes)
    original, module.MANY_WINDOWS = module.MANY_WINDOWS, many
    try:
        batches = Batches(split, size, seq_len, seed)
        epoch = batches.sequences_in(1)
        stream = sequences(batches, 3 * epoch, size, seq_len)
    finally:
        module.MANY_WINDOWS = original
    for e in range(3):
        rows = stream[e * epoch : (e + 1) * epoch]
        assert all(rows)
        assert sum(map(Counter, rows), Counter()) == wanted(split)


@given(sizes=DOCUMENTS, size=st.integers(1, 7), seq_len=st.integers(1, 40))
@settings(deadline=None)
def test_validation_makes_every_prediction_once_in_order(sizes, size, seq_len):
    split = make_split(sizes)
    pairs = list(validation_batches(split, size, seq_len))
    assert all(ids.shape == (size, seq_len) for ids, _ in pairs)
    rows = list(rows_of(pairs, seq_len))
    made = [pair for row in rows for pair in row]
    assert Counter(made) == wanted(split)
    ends = set((split.offsets[1:] - 1).tolist())
    tokens = split.slice(0, split.tokens).tolist()
    assert [a for a, _ in made] == [t for i, t in enumerate(tokens) if i not in ends]
    assert sum(map(bool, rows)) == sum(-(-(n + 1) // seq_len) for n in sizes)


def test_no_document_held_out_gives_no_validation_batch():
    assert list(validation_batches(Split([], np.array([0]), 0, EOT), 4, 8)) == []


def test_no_document_to_train_on_is_an_error():
    with pytest.raises(DataError, match="no document to train on"):
        Batches(Split([], np.array([0]), 0, EOT), 4, 8, 0)


@given(order=st.lists(st.integers(0, 60), min_size=1, max_size=20), seed=st.integers(0, 5))
@settings(deadline=None)
def test_a_batch_depends_on_its_index_alone(order, seed):
    split = make_split([50, 3, 0, 200])
    straight = Batches(split, 4, 16, seed)
    want = [straight.batch(4 * i) for i in range(61)]
    other = Batches(split, 4, 16, seed)
    for index in order:
        for got, expected in zip(other.batch(4 * index), want[index], strict=True):
            assert np.array_equal(got, expected)


def test_batches_of_any_size_see_the_same_stream():
    split = make_split([50, 3, 0, 200])
    streams = [sequences(Batches(split, size, 16, 1), 100, size, 16) for size in (1, 3, 10)]
    assert streams[0] == streams[1] == streams[2]


def test_a_batch_may_hold_many_epochs():
    split = make_split([1])
    ids, targets = Batches(split, 5, 4, 0).batch(10)
    assert ids.tolist() == [[0, 1, 0, 0]] * 5
    assert targets.tolist() == [[1, 0, NO_LOSS, NO_LOSS]] * 5


def test_seeds_and_epochs_differ_in_order_and_in_cuts():
    split = make_split([1000])
    epoch = Batches(split, 1, 16, 0).sequences_in(1)
    streams = [sequences(Batches(split, 1, 16, seed), 2 * epoch, 1, 16) for seed in (0, 1)]
    epochs = [s[e * epoch : (e + 1) * epoch] for s in streams for e in (0, 1)]
    assert len({str(e) for e in epochs}) == 4
    assert len({str(sorted(e)) for e in epochs}) > 1


@pytest.mark.parametrize("size", [1000, 1006, 1007, 1013, 1014, 1022])
def test_the_cuts_of_a_long_document_wander_over_half_a_window_at_least(size):
    batches = Batches(make_split([size]), 1, 16, 3)
    assert batches._most - batches._least + 1 >= 8
    begins = set()
    for epoch in range(60):
        begins |= set((batches._epoch(epoch).starts % 16).tolist())
    assert len(begins) >= 8


def test_a_short_document_takes_no_row_more_than_it_must():
    for size in range(1, 16 * 16):
        assert Batches(make_split([size]), 1, 16, 0).sequences_in(1) == -(-(size + 1) // 16)


def test_epoch_of_counts_sequences():
    batches = Batches(make_split([31, 31, 31]), 4, 16, 0)
    assert batches.sequences_in(1) == 6
    assert [batches.epoch_of(i) for i in (0, 12, 24)] == [0.0, 2.0, 4.0]


def test_the_order_never_changes_between_versions():
    ids, targets = Batches(make_split([40, 5, 300]), 4, 8, 42).batch(28)
    assert ids[:, 0].tolist() == [0, 302, 206, 126]
    assert targets[:, 0].tolist() == [1, 303, 207, 127]


def test_two_epochs_at_most_are_kept_in_memory():
    batches = Batches(make_split([31]), 3, 16, 0)
    for index in (0, 1, 5, 50, 2):
        batches.batch(index)
        assert len(batches._epochs) <= 2


def test_tables_of_a_large_corpus_are_made_at_once():
    sizes = np.full(20_000, 5000)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    split = Split([np.zeros(0, "<u2")], offsets, 0, EOT)
    windows = Batches(split, 12, 256, 0)._epoch(0)
    assert int(windows.lengths.sum()) == int((sizes - 1).sum())
    assert windows.lengths.min() >= 1
    assert windows.lengths.max() <= 256
