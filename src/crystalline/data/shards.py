"""Tokens on disk: written once as a stream, then memory-mapped.

    data/index.json          what follows, and the SHA-256 of itself
    data/train-00000.bin     token ids, little-endian uint16 or uint32, one document after the other
    data/train-offsets.bin   int64 (documents + 1,): where each document begins, and the end
    data/val-...             the same for the documents held out
    data/segments/000001/    documents that came later, in the same form (segments.py)

A document is stored as EOT, its ids, EOT, and may lie across two shards. All is written to
``data.new``, the index last; only then the folder gets its name. So there is at any moment either
a whole ``data``, or none and a whole ``data.new``, which is then read in its place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from crystalline import files
from crystalline.data.reading import shown
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import CheckpointError

FORMAT = 1
SHARD_BYTES = 256 << 20
COUNTED = 4 << 20  # tokens counted together
SMALL = 1 << 20  # bytes of a shard that is read whole
GROUP = 4 << 20  # characters of text read before they are encoded together

Progress = Callable[[int, int], None]  # bytes of text done, and bytes in all (about)
Tokens = npt.NDArray[np.unsignedinteger[Any]]


class Text(Protocol):
    """A document to be encoded: a Piece, or anything like it."""

    @property
    def size(self) -> int:
        """About how many bytes it has."""

    def read(self) -> str:
        """All of it."""


class Split:
    """The documents of one part of the data, as one row of ``tokens`` token ids.

    ``offsets`` int64 (documents + 1,) says where each begins; ``bytes`` is their length as UTF-8
    text; ``eot`` the id that stands before and after each.
    """

    def __init__(
        self, shards: Sequence[Tokens], offsets: npt.NDArray[np.int64], bytes: int, eot: int
    ) -> None:
        self._shards = shards
        self._starts = np.cumsum([0, *map(len, shards)])
        self.offsets = offsets
        self.documents = len(offsets) - 1
        self.tokens = int(self._starts[-1])
        self.bytes = bytes
        self.eot = eot

    def and_then(self, others: Sequence[Self]) -> Split:
        """These documents and behind them those of the others, numbered through."""
        parts = [self, *others]
        offsets = [self.offsets[:1]]
        for part in parts:
            offsets.append(offsets[-1][-1] + part.offsets[1:])
        shards = [shard for part in parts for shard in part._shards]
        return Split(shards, np.concatenate(offsets), sum(p.bytes for p in parts), self.eot)

    def counts(self, V: int) -> npt.NDArray[np.int64]:
        """How often each of V tokens stands there."""
        total = np.zeros(V, np.int64)
        for shard in self._shards:
            for a in range(0, len(shard), COUNTED):
                total += np.bincount(shard[a : a + COUNTED], minlength=V)
        return total

    def slice(self, a: int, b: int) -> npt.NDArray[np.int32]:
        """Tokens a .. b-1, a copy."""
        out = np.empty(b - a, dtype=np.int32)
        at = a
        shard = int(np.searchsorted(self._starts, a, side="right")) - 1
        while at < b:
            part = self._shards[shard][at - self._starts[shard] : b - self._starts[shard]]
            out[at - a : at - a + len(part)] = part
            at += len(part)
            shard += 1
        return out


@dataclass(frozen=True)
class TokenStore:
    """The prepared data of a model's folder. ``fingerprint`` differs if any token does;
    ``fingerprints`` are those of ``data`` alone, and with each segment more."""

    root: str
    train: Split
    val: Split
    vocab_size: int
    fingerprints: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Of all there is."""
        return self.fingerprints[-1]

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        verify: bool = True,
        *,
        segments: Sequence[int] = (),
    ) -> TokenStore:
        """Map the tokens below a model's folder, and those of ``segments`` in the order given.

        ``verify`` reads every byte once and compares checksums; without it only the sizes are
        compared. Raises CheckpointError for a file that is missing or damaged, naming it.
        """
        root = os.path.join(os.fspath(folder), "data")
        if not os.path.isdir(root) and _complete(root + ".new"):
            root += ".new"
        index, fingerprint = _read_index(root)
        splits = [
            _open_split(root, index["splits"][name], index, verify) for name in ("train", "val")
        ]
        store = cls(root, splits[0], splits[1], index["vocab_size"], (fingerprint,))
        return store.extended(segments, verify)

    def extended(self, segments: Sequence[int], verify: bool = True) -> TokenStore:
        """With more segments behind; what is open already is not read again."""
        added, prints = [], list(self.fingerprints)
        for number in segments:
            root = segment_folder(self.root, number)
            index, fingerprint = _read_index(root)
            if (index["vocab_size"], index["eot"]) != (self.vocab_size, self.train.eot):
                raise _damaged(os.path.join(root, "index.json"), "made with another tokenizer")
            added.append(_open_split(root, index["splits"]["train"], index, verify))
            prints.append(hashlib.sha256((prints[-1] + fingerprint).encode()).hexdigest())
        train = self.train.and_then(added) if added else self.train
        return replace(self, train=train, fingerprints=tuple(prints))


def segment_folder(root: str, number: int) -> str:
    """Where segment ``number`` lies below the folder ``data``."""
    return os.path.join(root, "segments", f"{number:06d}")


def write_shards(
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer,
    train: Sequence[Text],
    val: Sequence[Text],
    on_progress: Progress | None = None,
) -> None:
    """Encode all documents into ``folder/data``, in the place of what was there.

    Memory does not grow with the number of documents' bytes. ``on_progress`` is called with the
    bytes done and the bytes in all. Raises DataError for a text that cannot be read any more and
    CheckpointError where the disk fails; the earlier data is then untouched.
    """
    root = os.path.join(os.fspath(folder), "data")
    new = root + ".new"
    total = sum(piece.size for piece in (*train, *val))
    try:
        files.make_folder(os.path.dirname(root))
        finish(root)
        write_beside(new, tokenizer, {"train": train, "val": val}, total, on_progress)
        _replace(root, new)
    except OSError as error:
        raise CheckpointError(advice(root, error, total)) from error


def finish(root: str) -> None:
    """Does what a crash between the two renames of ``write_shards`` left undone."""
    if not os.path.isdir(root) and _complete(root + ".new"):
        os.rename(root + ".new", root)


def write_beside(
    new: str,
    tokenizer: Tokenizer,
    splits: Mapping[str, Sequence[Text]],
    total: int,
    on_progress: Progress | None = None,
) -> dict[str, array[int]]:
    """Encode documents into the folder ``new``, in the place of what was there; the stored tokens
    of each, by split. ``total`` is their bytes, about. After an error nothing is left of it."""
    _clear(new)
    os.mkdir(new)
    try:
        return _write_all(new, tokenizer, splits, total, on_progress)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _write_all(
    new: str,
    tokenizer: Tokenizer,
    splits: Mapping[str, Sequence[Text]],
    total: int,
    on_progress: Progress | None,
) -> dict[str, array[int]]:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    done = 0
    index: dict[str, Any] = {
        "format": FORMAT,
        "dtype": dtype.str,
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "splits": {},
    }

    def report(size: int) -> None:
        nonlocal done
        done += size
        if on_progress:
            on_progress(done, total)

    lengths = {}
    for name, texts in splits.items():
        stream = _Stream(tokenizer, texts, dtype, report)
        index["splits"][name] = _write_split(new, name, stream, dtype.itemsize)
        lengths[name] = stream.lengths
    files.write_durably(os.path.join(new, "index.json"), [_sealed(index)])
    files.sync_folder(new)
    return lengths


def _write_split(new: str, name: str, stream: _Stream, itemsize: int) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    while stream.more():
        shard = f"{name}-{len(shards):05d}.bin"
        chunks = stream.take(SHARD_BYTES // itemsize)
        stamp = files.write_durably(os.path.join(new, shard), chunks)
        shards.append({"name": shard, **stamp._asdict()})
    offsets = np.cumsum([0, *stream.lengths], dtype="<i8")
    stamp = files.write_durably(os.path.join(new, f"{name}-offsets.bin"), [offsets.tobytes()])
    return {
        "bytes": stream.bytes,
        "offsets": {"name": f"{name}-offsets.bin", **stamp._asdict()},
        "shards": shards,
    }


@dataclass
class _Stream:
    """The stored form of documents, made as it is taken."""

    tokenizer: Tokenizer
    pieces: Sequence[Text]
    dtype: np.dtype[Any]
    report: Callable[[int], None]
    lengths: array[int] = field(default_factory=lambda: array("q"))  # stored tokens by document
    bytes: int = 0

    def __post_init__(self) -> None:
        self._groups = self._encoded()
        self._rest: Tokens = np.empty(0, self.dtype)

    def more(self) -> bool:
        """Whether tokens are left; encodes the next documents if need be."""
        while len(self._rest) == 0:
            group = next(self._groups, None)
            if group is None:
                return False
            self._rest = group
        return True

    def take(self, tokens: int) -> Iterator[memoryview]:
        """The bytes of the next ``tokens`` tokens, or of all that are left."""
        while tokens and self.more():
            part, self._rest = self._rest[:tokens], self._rest[tokens:]
            tokens -= len(part)
            yield part.view(np.uint8).data

    def _encoded(self) -> Iterator[Tokens]:
        texts: list[str] = []
        characters = size = 0
        for number, piece in enumerate(self.pieces, 1):
            texts.append(piece.read())
            characters += len(texts[-1])
            size += piece.size
            if characters >= GROUP or number == len(self.pieces):
                yield self._stored(texts)
                self.report(size)
                texts, characters, size = [], 0, 0

    def _stored(self, texts: list[str]) -> Tokens:
        end = np.array([self.tokenizer.eot], dtype=self.dtype)
        rows: list[Tokens] = []
        for text, ids in zip(texts, self.tokenizer.encode_batch(texts), strict=True):
            rows += [end, ids.astype(self.dtype), end]
            self.lengths.append(len(ids) + 2)
            self.bytes += len(text.encode())
        return np.concatenate(rows)


def _replace(root: str, new: str) -> None:
    """Give ``new`` the name ``root``. Between the two renames ``new`` is read in its place."""
    old = root + ".old"
    _clear(old)
    if os.path.lexists(root):
        os.rename(root, old)
    os.rename(new, root)
    files.sync_folder(os.path.dirname(root))
    shutil.rmtree(old, ignore_errors=True)  # what stays is removed the next time


def _clear(folder: str) -> None:
    if os.path.lexists(folder):
        shutil.rmtree(folder)


def advice(root: str, error: OSError, total: int) -> str:
    where = shown(root)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = -(-2 * total // 2**20)  # two bytes a token, at most a token a byte, in most cases
        return f"{where}: disk full while writing tokens; free {need} MiB; nothing was replaced"
    return (
        f"{where}: cannot write tokens ({error.strerror or error}); "
        "choose a folder that can be written; nothing was replaced"
    )


def _sealed(index: dict[str, Any]) -> bytes:
    """The text of an index: one form only, with a checksum of itself."""
    own = hashlib.sha256(json.dumps(index).encode()).hexdigest()
    return (json.dumps({"index": index, "sha256": own}, indent=2) + "\n").encode()


def _complete(root: str) -> bool:
    return os.path.isfile(os.path.join(root, "index.json"))


def _damaged(path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)}: {what}; restore it from a copy, or train again from the texts"
    )


def _read_index(root: str) -> tuple[dict[str, Any], str]:
    path = os.path.join(root, "index.json")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    try:
        sealed = json.loads(data)
        index = sealed["index"] if _sealed(sealed["index"]) == data else None
    except (ValueError, TypeError, KeyError, RecursionError):
        index = None
    if index is None:
        raise _damaged(path, "damaged, its checksum differs")
    if index["format"] != FORMAT:
        raise _damaged(path, f"format {index['format']}, but this version reads {FORMAT}")
    return index, sealed["sha256"]


def _open_split(root: str, entry: dict[str, Any], index: dict[str, Any], verify: bool) -> Split:
    for item in (entry["offsets"], *entry["shards"]):
        _check(os.path.join(root, item["name"]), files.Stamp(item["size"], item["sha256"]), verify)
    offsets = np.fromfile(os.path.join(root, entry["offsets"]["name"]), dtype="<i8")
    shards = [
        _tokens(os.path.join(root, shard["name"]), index["dtype"]) for shard in entry["shards"]
    ]
    return Split(shards, offsets.astype(np.int64), entry["bytes"], index["eot"])


def _tokens(path: str, dtype: str) -> Tokens:
    """A shard: a small one is read, as there may be more of them than files can be open."""
    if os.path.getsize(path) <= SMALL:
        return np.fromfile(path, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _check(path: str, want: files.Stamp, verify: bool) -> None:
    try:
        size = os.path.getsize(path)
        if size != want.size:
            raise _damaged(path, f"{size} bytes long, expected {want.size}")
        if verify and files.stamp_of_file(path) != want:
            raise _damaged(path, "damaged, its checksum differs")
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
