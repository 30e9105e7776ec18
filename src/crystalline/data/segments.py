"""Documents that come after a model was made: appended to its tokens, segment by segment.

A segment is a folder below ``data/segments``, in the form of ``data`` and with documents to learn
alone. It is written beside, read back, and renamed: there is all of it, or nothing. That it counts
is said elsewhere, by who opens it; what nobody names is swept.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crystalline import files
from crystalline.data.reading import shown
from crystalline.data.shards import advice, finish, segment_folder, write_beside
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import CheckpointError, DataError

NAME = re.compile(r"(\d{6,})(\.new)?")


@dataclass(frozen=True)
class Segment:
    """``tokens`` are the stored tokens of each document, in the order they were given in."""

    number: int
    tokens: list[int]


@dataclass(frozen=True)
class _Given:
    text: str

    @property
    def size(self) -> int:
        return len(self.text)

    def read(self) -> str:
        return self.text


def append_segment(
    folder: str | os.PathLike[str], number: int, tokenizer: Tokenizer, texts: Sequence[str]
) -> Segment:
    """Encode documents into segment ``number`` (1 or more) of a model's folder.

    When it returns they are on the disk. Raises DataError without a document; CheckpointError where
    there is such a segment, which is not touched, and where the disk fails, which leaves nothing.
    """
    root = os.path.join(os.fspath(folder), "data")
    place, size = segment_folder(root, number), sum(map(len, texts))
    if not texts:
        raise DataError(f"{shown(place)}: no document is given; a segment has one or more")
    if os.path.lexists(place):
        raise CheckpointError(f"{shown(place)}: is there already; take the next number, or sweep")
    try:
        finish(root)
        if not os.path.isdir(root):
            raise CheckpointError(f"{shown(root)}: is not there; give the folder of a model")
        files.make_folder(os.path.dirname(place))
        given = {"train": [_Given(text) for text in texts]}
        lengths = write_beside(place + ".new", tokenizer, given, size)
        os.rename(place + ".new", place)
        files.sync_folder(os.path.dirname(place))
    except OSError as error:
        raise CheckpointError(advice(place, error, size)) from error
    return Segment(number, lengths["train"].tolist())


def sweep_segments(folder: str | os.PathLike[str], keep: Iterable[int]) -> list[int]:
    """Remove every segment of a model's folder but those to ``keep``, and what a crash left of one;
    the numbers of those removed. Nobody else may append meanwhile."""
    parent = os.path.dirname(segment_folder(os.path.join(os.fspath(folder), "data"), 1))
    kept, gone = set(keep), []
    try:
        names = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
        for name in names:
            match = NAME.fullmatch(name)
            if match is not None and (match[2] or int(match[1]) not in kept):
                shutil.rmtree(os.path.join(parent, name))
                gone += [] if match[2] else [int(match[1])]
        if names:
            files.sync_folder(parent)
    except OSError as error:
        raise CheckpointError(
            f"{shown(parent)}: cannot be swept ({error.strerror or error}); "
            "choose a folder that can be written"
        ) from error
    return gone
