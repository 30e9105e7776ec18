"""Tokens on disk: what is written comes back, and any damage is noticed."""

import errno
import json
import os

import numpy as np
import pytest

from crystalline import files
from crystalline.data import shards
from crystalline.data.reading import Piece, Source, collect, split
from crystalline.data.shards import TokenStore, write_shards
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import CheckpointError, DataError

TEXTS = ["one word", "x", "日本語 and é\n" * 30, "line\n" * 100, "the last of them"]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(TEXTS, 300)


def pieces(folder, texts):
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:03d}").write_bytes(text.encode())
    return [Piece(source) for source in collect([folder])[0]]


@pytest.fixture
def stored(tok, tmp_path):
    """A folder with three small shards of documents to learn and one held out."""
    write_shards(tmp_path / "m", tok, pieces(tmp_path / "t", TEXTS), pieces(tmp_path / "v", ["v"]))
    return tmp_path / "m"


def check(split, tok, texts):
    assert split.documents == len(texts)
    assert split.bytes == sum(len(text.encode()) for text in texts)
    assert split.tokens == split.offsets[-1]
    for text, a, b in zip(texts, split.offsets[:-1], split.offsets[1:], strict=True):
        row = split.slice(int(a), int(b))
        assert row.dtype == np.int32
        assert row.tolist() == [tok.eot, *tok.encode(text), tok.eot]


@pytest.mark.parametrize("shard_bytes", [2, 14, 100, 1 << 20])
@pytest.mark.parametrize("group", [1, 50, 1 << 20])
def test_documents_come_back_whatever_the_shards(tok, tmp_path, monkeypatch, shard_bytes, group):
    monkeypatch.setattr(shards, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(shards, "GROUP", group)
    write_shards(tmp_path, tok, pieces(tmp_path / "t", TEXTS), pieces(tmp_path / "v", TEXTS[:1]))
    store = TokenStore.open(tmp_path)
    check(store.train, tok, TEXTS)
    check(store.val, tok, TEXTS[:1])
    assert (store.vocab_size, store.train.eot) == (tok.vocab_size, tok.eot)
    sizes = [p.stat().st_size for p in sorted((tmp_path / "data").glob("train-0*.bin"))]
    assert len(sizes) == -(-2 * store.train.tokens // shard_bytes)
    assert set(sizes[:-1]) <= {shard_bytes}
    whole = store.train.slice(0, store.train.tokens)
    for a in range(0, store.train.tokens, 7):
        for b in (a, a + 1, min(a + 33, store.train.tokens)):
            assert store.train.slice(a, b).tolist() == whole[a:b].tolist()


def test_the_same_texts_give_the_same_files(tok, tmp_path, stored):
    write_shards(tmp_path / "n", tok, pieces(tmp_path / "t", TEXTS), pieces(tmp_path / "v", ["v"]))
    for path in (stored / "data").iterdir():
        assert path.read_bytes() == (tmp_path / "n" / "data" / path.name).read_bytes()
    print_of = TokenStore.open(stored).fingerprint
    assert TokenStore.open(tmp_path / "n").fingerprint == print_of
    write_shards(tmp_path / "n", tok, pieces(tmp_path / "t", TEXTS), pieces(tmp_path / "v", ["w"]))
    assert TokenStore.open(tmp_path / "n").fingerprint != print_of


def test_one_character_and_nothing_held_out(tok, tmp_path):
    (tmp_path / "t").write_text("x")
    train, val = split(collect([tmp_path / "t"])[0])
    write_shards(tmp_path, tok, train, val)
    store = TokenStore.open(tmp_path)
    check(store.train, tok, ["x"])
    check(store.val, tok, [])
    assert store.val.slice(0, 0).tolist() == []


def test_head_and_tail_of_one_document(tok, tmp_path):
    text = "".join(TEXTS)
    (tmp_path / "t").write_text(text)
    write_shards(tmp_path, tok, *split(collect([tmp_path / "t"])[0]))
    store = TokenStore.open(tmp_path)
    cut = int(0.9 * len(text))
    check(store.train, tok, [text[:cut]])
    check(store.val, tok, [text[cut:]])


def test_a_large_vocabulary_takes_four_bytes(tok, tmp_path):
    described = json.loads(tok.to_json())
    described["model"]["vocab"]["日本語日本語"] = 70000
    large = Tokenizer.from_json(json.dumps(described).encode(), "here")
    write_shards(tmp_path, large, pieces(tmp_path / "t", TEXTS), [])
    store = TokenStore.open(tmp_path)
    check(store.train, large, TEXTS)
    size = (tmp_path / "data" / "train-00000.bin").stat().st_size
    assert size == 4 * store.train.tokens


def test_progress_ends_at_the_whole(tok, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP", 1)
    calls = []
    train, val = pieces(tmp_path / "t", TEXTS), pieces(tmp_path / "v", ["v"])
    write_shards(tmp_path, tok, train, val, lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == list(np.cumsum([p.size for p in train + val]))
    assert calls[-1][0] == calls[-1][1]


def test_opening_without_verifying_compares_sizes_only(stored):
    path = stored / "data" / "train-00000.bin"
    damaged = bytearray(path.read_bytes())
    damaged[3] ^= 1
    path.write_bytes(damaged)
    TokenStore.open(stored, verify=False)
    path.write_bytes(damaged[:-1])
    with pytest.raises(CheckpointError, match=r"train-00000.bin: \d+ bytes long, expected"):
        TokenStore.open(stored, verify=False)


NAMES = ["train-00000.bin", "train-offsets.bin", "val-00000.bin", "val-offsets.bin", "index.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_noticed_wherever_it_is(stored, name):
    path = stored / "data" / name
    good = path.read_bytes()
    step = max(1, len(good) // 60)
    for at in range(0, len(good), step):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=rf"{name}: damaged, its checksum differs; "):
            TokenStore.open(stored)
    path.write_bytes(good)
    TokenStore.open(stored)


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_or_missing_file_is_noticed(stored, name):
    path = stored / "data" / name
    good = path.read_bytes()
    for keep in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:keep])
        with pytest.raises(CheckpointError, match=name):
            TokenStore.open(stored)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read \(No such file"):
        TokenStore.open(stored)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"\xff", b"[" * 100000, b'{"index": 1}'])
def test_an_index_that_is_none_is_refused(stored, content):
    (stored / "data" / "index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"index\.json: damaged"):
        TokenStore.open(stored)


def test_a_later_format_is_refused(stored):
    path = stored / "data" / "index.json"
    index = json.loads(path.read_bytes())["index"]
    path.write_bytes(shards._sealed(index | {"format": 2}))
    with pytest.raises(CheckpointError, match="format 2, but this version reads 1"):
        TokenStore.open(stored)


def test_a_folder_without_tokens_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"data/index\.json: cannot be read"):
        TokenStore.open(tmp_path)


class Fails:
    """Raises at the n-th call of a function of the module ``files`` or ``os``."""

    def __init__(self, real, at, error):
        self.real, self.left, self.error = real, at, error

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("at", range(1, 6))
def test_a_full_disk_leaves_the_earlier_tokens(tok, tmp_path, stored, monkeypatch, at):
    before = TokenStore.open(stored).fingerprint
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(files, "write_durably", Fails(files.write_durably, at, full))
    with pytest.raises(CheckpointError, match=r"data: disk full while writing tokens; free 1 MiB"):
        write_shards(stored, tok, pieces(tmp_path / "t", TEXTS[:2]), pieces(tmp_path / "v", ["v"]))
    assert TokenStore.open(stored).fingerprint == before
    assert os.listdir(stored) == ["data"]


def test_a_text_that_vanishes_leaves_the_earlier_tokens(tok, stored):
    with pytest.raises(DataError, match="gone: changed"):
        write_shards(stored, tok, [Piece(Source("gone", 5, "utf-8"))], [])
    assert os.listdir(stored) == ["data"]
    TokenStore.open(stored)


def test_a_place_that_cannot_be_written_is_named(tok, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/data: cannot write tokens \("):
        write_shards(tmp_path / "file", tok, pieces(tmp_path / "t", TEXTS), [])


@pytest.mark.parametrize("at", [1, 2])
def test_a_crash_between_the_renames_loses_nothing(tok, tmp_path, stored, monkeypatch, at):
    before = TokenStore.open(stored).fingerprint
    new = pieces(tmp_path / "n", ["other text"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", Fails(os.rename, at, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            write_shards(stored, tok, new, [])
    store = TokenStore.open(stored)
    if at == 1:
        assert store.fingerprint == before
    else:
        assert not (stored / "data").exists()
        check(store.train, tok, ["other text"])
    # The next writing begins by finishing the last one, so its failing loses nothing either.
    with pytest.raises(DataError):
        write_shards(stored, tok, [Piece(Source("gone", 5, "utf-8"))], [])
    assert TokenStore.open(stored).fingerprint == store.fingerprint
    write_shards(stored, tok, new, new)
    assert os.listdir(stored) == ["data"]
    check(TokenStore.open(stored).val, tok, ["other text"])


def test_tokens_that_are_open_stay_readable_when_replaced(tok, tmp_path, stored):
    store = TokenStore.open(stored)
    write_shards(stored, tok, pieces(tmp_path / "n", ["other"]), [])
    check(store.train, tok, TEXTS)
