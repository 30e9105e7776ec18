"""Batches: each prediction exactly once an epoch, and the same from any starting point."""

import doctest
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from batch_case import EOT, digest, made, make_split, rows_of, sequences, wanted
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline.data import windows as module
from crystalline.data.batches import NO_LOSS, Batches, validation_batches
from crystalline.data.shards import Split
from crystalline.errors import DataError

DOCUMENTS = st.lists(st.integers(0, 90), min_size=1, max_size=12)


# What the first version gave: sizes, B, T, seed, batches, their hash, that of the validation.
GOLDEN = [
    ([40, 5, 300, 0, 90, 1], 4, 8, 42, 60,
     "1c82b8dfb355f7e9a5160e8f99ea72c3", "431ae2970ddc098e4f514ab9d7e0d5a6"),
    (range(200), 7, 16, 2**70 + 5, 90,
     "17739614f160a044c2bb02fa2a476fd1", "ea65318c45343ea3c3d84fb952d4fb3c"),
    ([5000, 3, 2000], 3, 16, -1, 400,
     "66a6778a75ee401fe11bd655884cc92c", "c1f4e816fea08a2033c86c56f37755f9"),
    ([0], 5, 4, 0, 3, "45e482ea099579796b4c4028fdfbd1ad", "dbde21391eb7516bfa4ebc95d9c866fa"),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "B", "T", "seed", "count", "train", "val"), GOLDEN)
def test_batches_are_those_of_the_first_version(sizes, B, T, seed, count, train, val):
    split = make_split(sizes)
    stream = Batches(split, B, T, seed)
    assert digest(stream.batch(i * B) for i in range(count)) == train
    assert digest(validation_batches(split, B, T)) == val


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
        stream = sequences(batches, 3 * epoch, seq_len)
    finally:
        module.MANY_WINDOWS = original
    for e in range(3):
        rows = stream[e * epoch : (e + 1) * epoch]
        assert all(rows)
        assert sum(map(made, rows), Counter()) == wanted(split)


@given(sizes=DOCUMENTS, size=st.integers(1, 7), seq_len=st.integers(1, 40))
@settings(deadline=None)
def test_validation_makes_every_prediction_once_in_order(sizes, size, seq_len):
    split = make_split(sizes)
    pairs = list(validation_batches(split, size, seq_len))
    assert all(batch.ids.shape == (size, seq_len) for batch in pairs)
    rows = list(rows_of(pairs, seq_len))
    pairs = [pair for row in rows for window in row for pair in window]
    assert Counter(pairs) == wanted(split)
    ends = set((split.offsets[1:] - 1).tolist())
    tokens = split.slice(0, split.tokens).tolist()
    assert [a for a, _ in pairs] == [t for i, t in enumerate(tokens) if i not in ends]
    assert sum(map(bool, rows)) == sum(-(-(n + 1) // seq_len) for n in sizes)


def test_the_example_of_the_documentation():
    path = Path(__file__).parent.parent / "docs" / "batches.md"
    failed, attempted = doctest.testfile(str(path), module_relative=False)
    assert attempted > 15
    assert failed == 0


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
        for got, expected in zip(other.batch(4 * index)[:2], want[index][:2], strict=True):
            assert np.array_equal(got, expected)


def test_batches_of_any_size_see_the_same_stream():
    split = make_split([50, 3, 0, 200])
    streams = [sequences(Batches(split, size, 16, 1), 100, 16) for size in (1, 3, 10)]
    assert streams[0] == streams[1] == streams[2]


def test_a_batch_may_hold_many_epochs():
    split = make_split([1])
    ids, targets, positions = Batches(split, 5, 4, 0).batch(10)
    assert positions is None
    assert ids.tolist() == [[0, 1, 0, 0]] * 5
    assert targets.tolist() == [[1, 0, NO_LOSS, NO_LOSS]] * 5


def test_seeds_and_epochs_differ_in_order_and_in_cuts():
    split = make_split([1000])
    epoch = Batches(split, 1, 16, 0).sequences_in(1)
    streams = [sequences(Batches(split, 1, 16, seed), 2 * epoch, 16) for seed in (0, 1)]
    epochs = [s[e * epoch : (e + 1) * epoch] for s in streams for e in (0, 1)]
    assert len({str(e) for e in epochs}) == 4
    assert len({str(sorted(e)) for e in epochs}) > 1


@pytest.mark.parametrize("size", [1000, 1006, 1007, 1013, 1014, 1022])
def test_the_cuts_of_a_long_document_wander_over_half_a_window_at_least(size):
    least, most = module.draws(np.array([size + 1]), 16, False)
    assert most - least + 1 >= 8
    stream = Batches(make_split([size]), 1, 16, 3)
    begins = set()
    for row in sequences(stream, stream.sequences_in(60), 16):
        begins.add(row[0][0][0] % 16)
    assert len(begins) >= 8


def test_a_short_document_takes_no_row_more_than_it_must():
    for size in range(1, 16 * 16):
        assert Batches(make_split([size]), 1, 16, 0).sequences_in(1) == -(-(size + 1) // 16)


def test_epoch_of_counts_sequences():
    batches = Batches(make_split([31, 31, 31]), 4, 16, 0)
    assert batches.sequences_in(1) == 6
    assert [batches.epoch_of(i) for i in (0, 12, 24)] == [0.0, 2.0, 4.0]


def test_the_order_never_changes_between_versions():
    ids, targets, _ = Batches(make_split([40, 5, 300]), 4, 8, 42).batch(28)
    assert ids[:, 0].tolist() == [0, 302, 206, 126]
    assert targets[:, 0].tolist() == [1, 303, 207, 127]


def test_two_epochs_at_most_are_kept_in_memory():
    batches = Batches(make_split([31]), 3, 16, 0)
    for index in (0, 1, 5, 50, 2):
        batches.batch(index)
        assert len(batches._passes._sections) <= 2


def test_tables_of_a_large_corpus_are_made_at_once():
    sizes = np.full(20_000, 5000)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    split = Split([np.zeros(0, "<u2")], offsets, 0, EOT)
    windows = Batches(split, 12, 256, 0)._passes.section_at(0).table.windows
    assert int(windows.lengths.sum()) == int((sizes - 1).sum())
    assert windows.lengths.min() >= 1
    assert windows.lengths.max() <= 256
