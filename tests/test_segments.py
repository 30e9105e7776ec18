"""Segments of tokens: behind the others when they are named, whole or not there, swept when not."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_shards import Fails, check, pieces

from crystalline import files
from crystalline.data import shards
from crystalline.data.batches import Batches
from crystalline.data.segments import append_segment, sweep_segments
from crystalline.data.shards import TokenStore, write_shards
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import CheckpointError, DataError

BASE = ["one word", "x", "日本語 and é\n" * 30]
FIRST, SECOND = ["line\n" * 100, "the last of them", ""], ["a\n" * 7]
FILES = ("index.json", "train-00000.bin", "train-offsets.bin")


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train([*BASE, *FIRST], 300)


@pytest.fixture
def model(tok: Tokenizer, tmp_path: Path) -> Path:
    """A folder with the tokens of BASE."""
    folder = tmp_path / "m"
    write_shards(folder, tok, pieces(tmp_path / "t", BASE), pieces(tmp_path / "v", ["v"]))
    return folder


def listed(folder: Path) -> list[str]:
    """The segments on the disk."""
    parent = folder / "data" / "segments"
    return sorted(os.listdir(parent)) if parent.exists() else []


def test_documents_of_segments_stand_behind_the_others(tok: Tokenizer, model: Path) -> None:
    first = append_segment(model, 1, tok, FIRST)
    second = append_segment(model, 7, tok, SECOND)
    assert (first.number, second.number) == (1, 7)
    assert first.tokens == [len(tok.encode(text)) + 2 for text in FIRST]
    assert listed(model) == ["000001", "000007"]
    plain = TokenStore.open(model)
    check(plain.train, tok, BASE)
    check(TokenStore.open(model, segments=[1, 7]).train, tok, [*BASE, *FIRST, *SECOND])
    check(TokenStore.open(model, segments=[7, 1]).train, tok, [*BASE, *SECOND, *FIRST])
    check(TokenStore.open(model, segments=[7]).val, tok, ["v"])


def test_what_is_open_grows(tok: Tokenizer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_segment(model, 1, tok, FIRST)
    store = TokenStore.open(model, segments=[1])
    stream = Batches(store.train, 2, 16, 0, passes=[range(store.train.documents)])
    end = stream.end
    append_segment(model, 2, tok, SECOND)
    read: list[str] = []
    real = files.stamp_of_file
    monkeypatch.setattr(files, "stamp_of_file", lambda path: (read.append(path), real(path))[1])
    more = store.extended([2])
    assert {Path(path).parent.name for path in read} == {"000002"}  # and nothing once more
    check(more.train, tok, [*BASE, *FIRST, *SECOND])
    check(store.train, tok, [*BASE, *FIRST])
    stream.grow(more.train)
    stream.append_pass([6])
    assert end is not None and stream.end == end + 1
    ids = tok.encode(SECOND[0])
    assert stream.batch(end).ids[0, 1 : 1 + len(ids)].tolist() == list(ids)
    again = TokenStore.open(model, segments=[1, 2])
    assert again.fingerprints == more.fingerprints
    assert again.train.offsets.tolist() == more.train.offsets.tolist()


def test_the_fingerprint_covers_all_segments_in_their_order(tok: Tokenizer, model: Path) -> None:
    plain = TokenStore.open(model).fingerprint
    append_segment(model, 1, tok, FIRST)
    append_segment(model, 2, tok, SECOND)
    append_segment(model, 3, tok, SECOND)
    assert TokenStore.open(model).fingerprint == plain
    prints = {
        TokenStore.open(model, segments=given).fingerprint
        for given in ([], [1], [2], [1, 2], [2, 1], [1, 2, 3])
    }
    assert len(prints) == 6
    chain = TokenStore.open(model, segments=[1, 2]).fingerprints
    assert chain == tuple(
        TokenStore.open(model, segments=given).fingerprint for given in ([], [1], [1, 2])
    )
    # The same documents make the same segment.
    assert TokenStore.open(model, segments=[2]).fingerprint == (
        TokenStore.open(model, segments=[3]).fingerprint
    )


@pytest.mark.parametrize("name", FILES)
def test_damage_is_noticed_and_named(name: str, tok: Tokenizer, model: Path) -> None:
    append_segment(model, 1, tok, FIRST)
    path = model / "data" / "segments" / "000001" / name
    good = path.read_bytes()
    for at in range(0, len(good), max(1, len(good) // 20)):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=rf"000001/{name}: damaged"):
            TokenStore.open(model, segments=[1])
        TokenStore.open(model)  # which does not look there
    path.write_bytes(good[:-1])
    with pytest.raises(CheckpointError, match=f"000001/{name}"):
        TokenStore.open(model, segments=[1])
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"000001/{name}: cannot be read \(No such file"):
        TokenStore.open(model, segments=[1])


def test_a_segment_of_another_tokenizer_is_refused(tok: Tokenizer, model: Path) -> None:
    other = Tokenizer.train(BASE, 280)
    append_segment(model, 1, other, FIRST)
    with pytest.raises(CheckpointError, match=r"000001/index\.json: made with another tokenizer"):
        TokenStore.open(model, segments=[1])


def test_refusals_change_nothing(tok: Tokenizer, model: Path, tmp_path: Path) -> None:
    append_segment(model, 1, tok, FIRST)
    with pytest.raises(CheckpointError, match="000001: is there already; take the next number"):
        append_segment(model, 1, tok, SECOND)
    with pytest.raises(DataError, match="000002: no document is given"):
        append_segment(model, 2, tok, [])
    with pytest.raises(CheckpointError, match="data: is not there; give the folder of a model"):
        append_segment(tmp_path / "none", 1, tok, FIRST)
    assert listed(model) == ["000001"] and not (tmp_path / "none").exists()
    check(TokenStore.open(model, segments=[1]).train, tok, [*BASE, *FIRST])


def test_sweeping_keeps_what_is_named(tok: Tokenizer, model: Path) -> None:
    assert sweep_segments(model, []) == []
    for number in (1, 2, 3):
        append_segment(model, number, tok, SECOND)
    segments = model / "data" / "segments"
    (segments / "000004.new").mkdir()
    (segments / "000002.new").mkdir()
    (segments / "notes.txt").write_text("not ours")
    assert sweep_segments(model, [2, 9]) == [1, 3]
    assert listed(model) == ["000002", "notes.txt"]
    check(TokenStore.open(model, segments=[2]).train, tok, [*BASE, *SECOND])
    append_segment(model, 1, tok, FIRST)
    check(TokenStore.open(model, segments=[2, 1]).train, tok, [*BASE, *SECOND, *FIRST])


@pytest.mark.parametrize("at", range(1, 4))
def test_a_full_disk_leaves_no_segment(
    at: int, tok: Tokenizer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_durably", Fails(files.write_durably, at, full))
        with pytest.raises(CheckpointError, match="000001: disk full while writing tokens; free"):
            append_segment(model, 1, tok, FIRST)
    assert listed(model) == []
    append_segment(model, 1, tok, FIRST)
    check(TokenStore.open(model, segments=[1]).train, tok, [*BASE, *FIRST])


class Crash(BaseException):
    """The end of a process."""


OPERATIONS = 20  # on files, of one append: a crash at each, and one that is too late


@pytest.mark.parametrize("at", range(1, OPERATIONS + 2))
def test_a_crash_at_any_operation_leaves_a_whole_segment_or_none(
    at: int, tok: Tokenizer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_segment(model, 1, tok, SECOND)
    before, crashed = TokenStore.open(model, segments=[1]).fingerprint, False
    with monkeypatch.context() as patch:
        left = [at]

        def counted(real: Any) -> Any:
            def operation(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] <= 0:  # a dead process does nothing more, nor tidies up
                    raise Crash
                return real(*args, **kwargs)

            return operation

        for name in ("open", "write", "fsync", "mkdir", "rename", "close", "rmdir", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            append_segment(model, 2, tok, FIRST)
        except Crash:
            crashed = True
    assert crashed == (at <= OPERATIONS) == (left[0] <= 0)
    assert TokenStore.open(model, segments=[1]).fingerprint == before
    if "000002" in listed(model):  # not yet named, but nothing of it is missing
        check(TokenStore.open(model, segments=[1, 2]).train, tok, [*BASE, *SECOND, *FIRST])
    sweep_segments(model, [1])
    assert listed(model) == ["000001"]
    append_segment(model, 2, tok, FIRST)
    check(TokenStore.open(model, segments=[1, 2]).train, tok, [*BASE, *SECOND, *FIRST])


SCRIPT = """
import sys
from crystalline.data.segments import append_segment, sweep_segments
from crystalline.data.tokenizer import Tokenizer
folder, tokenizer = sys.argv[1], Tokenizer.load(sys.argv[2])
named = open(sys.argv[3], "a+")
named.seek(0)
numbers = [int(line) for line in named if line.endswith("\\n")]
sweep_segments(folder, numbers)
for number in range(max(numbers, default=0) + 1, 10**6):
    append_segment(folder, number, tokenizer, [f"text {number} " * 50, str(number)])
    print(number, file=named, flush=True)
"""


def test_killed_again_and_again_every_named_segment_is_whole(
    tok: Tokenizer, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tok.to_json())
    named, rng = tmp_path / "named", random.Random(3)
    command = [sys.executable, "-c", SCRIPT, str(model), str(tmp_path / "tokenizer.json"),
               str(named)]  # fmt: skip
    seen = 0
    for _ in range(4):
        child = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # until it is at work
            if named.exists() and named.read_text().count("\n") > seen:
                break
            assert child.poll() is None
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        numbers = [int(line) for line in named.read_text().splitlines()]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > seen
        seen = len(numbers)
        texts = [text for n in numbers for text in (f"text {n} " * 50, str(n))]
        check(TokenStore.open(model, segments=numbers).train, tok, [*BASE, *texts])


def test_segments_go_on_where_a_crash_left_the_data_beside_its_place(
    tok: Tokenizer, model: Path
) -> None:
    os.rename(model / "data", model / "data.new")
    append_segment(model, 1, tok, FIRST)
    check(TokenStore.open(model, segments=[1]).train, tok, [*BASE, *FIRST])


def test_many_small_shards_read_as_one(
    tok: Tokenizer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 14)
    append_segment(model, 1, tok, FIRST)
    append_segment(model, 2, tok, SECOND)
    train = TokenStore.open(model, segments=[1, 2]).train
    check(train, tok, [*BASE, *FIRST, *SECOND])
    counts = np.bincount(train.slice(0, train.tokens), minlength=tok.vocab_size)
    assert train.counts(tok.vocab_size).tolist() == counts.tolist()
