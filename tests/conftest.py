"""Small texts and a small model that every test of training can afford."""

from __future__ import annotations

import faulthandler
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crystalline._region import process_start
from crystalline.spheres.region import PREFIX, SEGMENTS

# Nothing about these sizes is a multiple of a vector or a tile.
TINY = {
    "vocab_size": 300, "dim": 40, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 52,
    "seq_len": 24, "batch_size": 13, "packing": False,
}  # fmt: skip

WORDS = (
    "the quick brown fox jumps over a lazy dog while rain falls on old stones and nobody "
    "remembers why seven lamps were lit or which of them went out before morning came"
).split()


STDERR: list[int] = []  # the real one, while a test's own is caught


def pytest_configure() -> None:
    """What a test that hangs has to say must not be lost with the file that catches it."""
    STDERR.append(os.dup(2))


def prose(words: int, seed: int = 0) -> str:
    """Repetitive text that a tiny model can learn something from."""
    rng = random.Random(seed)
    lines = []
    while words > 0:
        n = min(words, rng.randint(4, 12))
        lines.append(" ".join(rng.choice(WORDS) for _ in range(n)) + ".\n")
        words -= n
    return "".join(lines)


def examples(n: int) -> int:
    """Examples of a property: CRYSTALLINE_EXAMPLES times as many, which `make fuzz` sets."""
    return n * int(os.environ.get("CRYSTALLINE_EXAMPLES", "1"))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """One document of about 20 KB."""
    path = tmp_path / "prose.txt"
    path.write_text(prose(4000))
    return path


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """Twelve documents of very different lengths."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(prose(3 * 2**i % 700 + 1, seed=i))
    return folder


def segments_left() -> set[str]:
    """Segments of this process, and of processes that are gone."""
    ours = [name for name in os.listdir(SEGMENTS) if name.startswith(PREFIX)]
    pids = {name: int(name.split("-")[1]) for name in ours}
    return {name for name, pid in pids.items() if pid == os.getpid() or not process_start(pid)}


@pytest.fixture
def segments() -> Iterator[None]:
    """The test leaves nothing in shared memory; one that hangs ends the run with a traceback."""
    faulthandler.dump_traceback_later(240, exit=True)
    before = segments_left()
    yield
    faulthandler.cancel_dump_traceback_later()
    for _ in range(100):  # a resource tracker needs a moment to remove what its process left
        if segments_left() <= before:
            return
        time.sleep(0.1)
    assert segments_left() <= before
