"""Finding and reading the texts to train on, and holding some of them out.

What is text is decided by looking inside, never by the name: every byte of a file is decoded once
before it is used. What is left out is told, with the reason.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from crystalline.errors import DataError

MAX_FILE_BYTES = 64 << 20  # one document is held in memory whole while it is encoded
CHUNK = 1 << 20  # bytes looked at together
# Prose and code do without these; left out are white space and what old terminals and DOS wrote.
CONTROLS = sorted(set(map(chr, range(32))) - set("\t\n\v\f\r\b\x1a\x1b"))
MANY_CONTROLS = 0.1  # share of control characters from which a file is no text
MANY_HIGH = 0.3  # share of bytes above 127 that no Latin-1 prose has
HELD_OUT = 0.1  # share of the documents, and of the bytes where it can be
NAMED = 3  # skipped files that an error names

Path = str | os.PathLike[str]


# A folder with one of these files is a model's own: its settings and tokens are not text to learn.
MODEL_MARKS = {"training.lock", "checksums.json", "commit.json"}


@dataclass(frozen=True)
class Source:
    """A file that holds text: its path, its size in bytes and how its characters are written."""

    path: str
    size: int
    encoding: str

    def read(self) -> str:
        """The whole text, line ends as they are. Raises DataError if it no longer is one."""
        try:
            with open(self.path, encoding=self.encoding, newline="") as file:
                return file.read()
        except (OSError, UnicodeError) as error:
            raise DataError(
                f"{shown(self.path)}: changed since it was found ({_why(error)});"
                " keep the files as they are while training begins, and start again"
            ) from error


class File(NamedTuple):
    """A file from outside: its path, its size in bytes and when it was changed last."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not used. The reason reads ``kind`` or ``kind: what to do``."""

    path: str
    reason: str


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one: ``all``, ``head`` (nine tenths) or ``tail`` (the rest)."""

    source: Source
    part: str = "all"

    @property
    def size(self) -> int:
        """About how many bytes it takes in its file: what progress is measured in."""
        return int(self.source.size * {"all": 1, "head": 0.9, "tail": 0.1}[self.part])

    def read(self) -> str:
        """The characters of this part. Raises DataError."""
        text = self.source.read()
        cut = _cut(text)
        return {"all": text, "head": text[:cut], "tail": text[cut:]}[self.part]


def collect(
    paths: Path | Iterable[Path], max_file_bytes: int = MAX_FILE_BYTES
) -> tuple[list[Source], list[Skipped]]:
    """Find every text in files and folders; folders are walked in the order of their names.

    UTF-8 and UTF-16 with a byte-order mark are text. Hidden, binary, empty, oversized, undecodable
    and unreadable files, special files, loops of links and files met before are skipped. Raises
    DataError for a path that does not exist and where nothing is left.
    """
    walk = _Walk(max_file_bytes)
    given = _given(paths)
    for path, status in walk.files(given):
        with walk.skipping(path), open(path, "rb") as file:
            walk.sources.append(Source(path, status.st_size, _recognise(file)))
    if not walk.sources:
        raise DataError(nothing_usable(given, walk.skipped))
    return walk.sources, walk.skipped


def find_files(
    paths: Path | Iterable[Path], max_file_bytes: int = MAX_FILE_BYTES
) -> tuple[list[File], list[Skipped]]:
    """As ``collect``, but no file is opened yet: ``read_file`` tells which are text."""
    walk = _Walk(max_file_bytes)
    found = [File(path, s.st_size, s.st_mtime_ns) for path, s in walk.files(_given(paths))]
    return found, walk.skipped


def read_file(path: str, max_file_bytes: int = MAX_FILE_BYTES) -> tuple[str, File]:
    """The whole text of a file, and what the file was while it was read.

    Raises Unusable for what ``collect`` skips, also if it changed meanwhile.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            _check_status(before, max_file_bytes)
            data = file.readall()
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (len(data), after.st_mtime_ns):
            raise Unusable("changing: give it again when it is whole")
    except OSError as error:
        raise Unusable(f"unreadable: {_why(error)}") from error
    return decode(data), File(path, len(data), before.st_mtime_ns)


def decode(data: bytes) -> str:
    """The characters of a whole text.  Raises Unusable if it is none."""
    return data.decode(_recognise(io.BytesIO(data)))  # which has decoded it all once


def split(
    sources: Sequence[Source], val_sources: Sequence[Source] | None = None
) -> tuple[list[Piece], list[Piece]]:
    """Documents to learn from, and documents held out to measure on.

    Files of ``val_sources`` are never learnt from. Without them, a single document holds out the
    last tenth of its characters, and of several about one in ten is held out whole: chosen by a
    hash of its path below their common folder, so the choice stays when the folder moves. The
    second list is empty for a single document of one character.
    """
    if val_sources is not None:
        held = {os.path.realpath(source.path) for source in val_sources}
        train = [Piece(s) for s in sources if os.path.realpath(s.path) not in held]
        if not train:
            raise DataError(
                "every document to train on is also held out for validation; "
                "name other files for validation"
            )
        return train, [Piece(source) for source in val_sources]
    if len(sources) == 1:
        only = sources[0]
        if _cut(only.read()) == 0:
            return [Piece(only)], []
        return [Piece(only, "head")], [Piece(only, "tail")]
    held = _hold_out(sources)
    return (
        [Piece(source) for source in sources if source.path not in held],
        [Piece(source) for source in sources if source.path in held],
    )


def nothing_usable(given: Sequence[Path], skipped: Sequence[Skipped]) -> str:
    """The message where no text was found: counts by kind and the first few."""
    where = ", ".join(shown(os.fspath(path)) for path in given[:NAMED])
    where += f" and {len(given) - NAMED} more" if len(given) > NAMED else ""
    if len(given) == len(skipped) == 1 and skipped[0].path == where:
        return f"{where}: cannot train on it, {skipped[0].reason}"
    kinds = Counter(item.reason.split(":")[0] for item in skipped)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    first = "; ".join(f"{item.path}: {item.reason}" for item in skipped[:NAMED])
    found = f"{counts} (first: {first})" if skipped else "no files in it"
    return f"{where}: no text to train on: {found}; give text or source code in UTF-8"


def shown(path: str) -> str:
    """A path that can be printed, whatever bytes its name holds."""
    return os.fsencode(path).decode(errors="replace")


def _cut(text: str) -> int:
    """Where the last tenth begins. It is never empty, since 0.9 n rounds down."""
    return int(0.9 * len(text))


def _hold_out(sources: Sequence[Source]) -> set[str]:
    """The paths of at least one document, of about a tenth of them, of a tenth of the bytes."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(s.path)) for s in sources])

    def rank(source: Source) -> bytes:
        return hashlib.sha256(os.fsencode(os.path.relpath(source.path, common))).digest()

    budget = HELD_OUT * sum(source.size for source in sources)
    held: set[str] = set()
    for source in sorted(sources, key=rank):
        if len(held) < max(1, round(HELD_OUT * len(sources))) and source.size <= budget:
            held.add(source.path)
            budget -= source.size
    # No document is as small as a tenth of the whole: the smallest is the nearest to it.
    return held or {min(sources, key=lambda source: (source.size, rank(source))).path}


class Unusable(Exception):
    """Why a file or folder is not used."""


def _given(paths: Path | Iterable[Path]) -> list[Path]:
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise DataError("no path given; name a file or a folder that holds text or source code")
    return given


@dataclass
class _Walk:
    """One walk over all given paths: what was found, and what was met before."""

    max_file_bytes: int
    sources: list[Source] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    met: dict[tuple[int, int], str] = field(default_factory=dict)

    def files(self, paths: Sequence[Path]) -> Iterator[tuple[str, os.stat_result]]:
        """Every file that may be text, as far as can be told from outside."""
        for given in paths:
            name = os.fspath(given)
            if not os.path.lexists(name):
                raise DataError(f"{shown(name)}: no such file or folder; check the spelling")
            # Each path goes with the folders around it, as device and inode: a loop leads back.
            todo: list[tuple[str, frozenset[tuple[int, int]]]] = [(name, frozenset())]
            while todo:
                path, above = todo.pop()
                below: list[str] = []
                with self.skipping(path):
                    status, below = self._look(path, path == name, above)
                    if not stat.S_ISDIR(status.st_mode):
                        yield path, status
                within = above | {(status.st_dev, status.st_ino)} if below else above
                todo.extend((os.path.join(path, entry), within) for entry in below)

    def _look(
        self, path: str, given: bool, above: frozenset[tuple[int, int]]
    ) -> tuple[os.stat_result, list[str]]:
        """What is there, and the names in it, the last first, if it is a folder."""
        if not given and os.path.basename(path).startswith("."):
            raise Unusable("hidden")
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            raise Unusable("loop of links")
        if identity in self.met:
            raise Unusable(f"same as another: {shown(self.met[identity])}")
        self.met[identity] = path
        if not stat.S_ISDIR(status.st_mode):
            _check_status(status, self.max_file_bytes)
            return status, []
        names = sorted(os.listdir(path), key=os.fsencode, reverse=True)
        if not given and not MODEL_MARKS.isdisjoint(names):
            raise Unusable("a model's folder: give its path to train on its files")
        return status, names

    @contextlib.contextmanager
    def skipping(self, path: str) -> Iterator[None]:
        """Notes what turns out not to be usable."""
        try:
            yield
        except Unusable as error:
            self.skipped.append(Skipped(shown(path), str(error)))
        except OSError as error:
            # A link to nothing or to itself fails here as well.
            self.skipped.append(Skipped(shown(path), f"unreadable: {_why(error)}"))


def _check_status(status: os.stat_result, max_file_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("special file")
    if status.st_size > max_file_bytes:
        raise Unusable(
            f"oversized: {status.st_size / 2**20:.1f} MiB, at most"
            f" {max_file_bytes / 2**20:.1f} MiB; cut it with split -C"
        )


def _recognise(file: BinaryIO) -> str:
    """The encoding of a file. Raises Unusable if it is not text."""
    start = file.read(4)
    file.seek(0)
    encoding = "utf-8"
    if start.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    elif start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise Unusable("undecodable: UTF-32; convert it with iconv -f UTF-32 -t UTF-8")
    elif start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    length = controls = 0
    try:
        for text in _decoded(file, encoding):
            if "\0" in text:
                raise Unusable("binary")
            length += len(text)
            controls += sum(map(text.count, CONTROLS))
    except UnicodeDecodeError as error:
        raise Unusable(_foreign(file, encoding)) from error
    if length == 0:
        raise Unusable("empty")
    if controls > MANY_CONTROLS * length:
        raise Unusable("binary")
    return encoding


def _decoded(file: BinaryIO, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    while chunk := file.read(CHUNK):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _foreign(file: BinaryIO, encoding: str) -> str:
    """What a file is that cannot be decoded: text in an older encoding, or no text at all."""
    if encoding == "utf-16":
        return "undecodable: damaged UTF-16; save it again as UTF-8"
    file.seek(0)
    length = high = 0
    while chunk := file.read(CHUNK):
        if any(control.encode() in chunk for control in CONTROLS):
            return "binary"
        length += len(chunk)
        high += len(chunk) - len(chunk.translate(None, bytes(range(128, 256))))
    if high > MANY_HIGH * length:
        return "undecodable: not UTF-8; convert it with iconv -f ITS-ENCODING -t utf-8"
    return "undecodable: not UTF-8, perhaps Latin-1; convert it with iconv -f latin1 -t utf-8"


def _why(error: OSError | UnicodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else error.args[-1]
