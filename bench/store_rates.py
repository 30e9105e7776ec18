"""How many files a second a model's queue takes in, and how soon a long one is listed.

    python bench/store_rates.py --files 100000

Writes small files, of about 850 bytes, and measures: finding, reading, hashing and queueing them in
one process; the same again, when every text is known; ``queue list`` and the number in each state;
and leasing and marking all of them, in turns of 500.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from crystalline.pipeline.gather import queue_paths
from crystalline.store import Placed, Store

# What is asked: files a second, or seconds.
BARS = {"add": 5000.0, "add again": None, "list": 0.1, "show one": 0.1, "tokenized": None}
WORDS = "the quick brown fox jumps over a lazy dog while rain falls on old stones".split()


def _write(folder: Path, files: int) -> None:
    rng = random.Random(0)
    text = " ".join(rng.choice(WORDS) for _ in range(40_000))
    for n in range(files):
        if n % 1000 == 0:
            part = folder / f"{n // 1000:04}"
            part.mkdir(parents=True)
        start, length = rng.randrange(len(text) - 3000), int(rng.lognormvariate(6.5, 0.7))
        (part / f"{n:06}.txt").write_text(f"{n}\n{text[start : start + min(length, 3000)]}")


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _tokenize(store: Store) -> None:
    segment = place = 0
    while taken := store.lease(500):
        placed = [Placed(one.id, place + n, 0, 1) for n, one in enumerate(taken)]
        store.tokenized(segment, placed)
        segment, place = segment + 1, place + len(placed)


def _look(folder: Path) -> None:
    """As ``queue list`` does, the file opened anew."""
    with Store.open(folder, read_only=True) as store:
        store.counts()
        for one in store.documents(limit=20):
            store.sources(one.id)


def _measure(root: Path, files: int) -> dict[str, float]:
    _write(root / "texts", files)
    (root / "model").mkdir()
    with Store.open(root / "model", create=True) as store:

        def add() -> None:
            queue_paths(store, [str(root / "texts")])

        def show() -> None:
            list(store.provenance(store.find(str(root / "texts" / "0001" / "001234.txt")).id))

        return {
            "add": files / _seconds(add),
            "add again": files / _seconds(add),
            "list": min(_seconds(lambda: _look(root / "model")) for _ in range(5)),
            "show one": min(_seconds(show) for _ in range(5)),
            "tokenized": files / _seconds(lambda: _tokenize(store)),
        }


@click.command()
@click.option("--files", default=100_000, show_default=True)
@click.option("--folder", type=click.Path(), help="Where to write them; emptied afterwards.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of the table.")
def main(files: int, folder: str | None, as_json: bool) -> None:
    """Measures, and compares with what is asked."""
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        got = _measure(root, files)
    finally:
        shutil.rmtree(root)
    rows: list[dict[str, Any]] = [
        {"what": what, "got": value, "asked": BARS[what]} for what, value in got.items()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        rate = row["got"] > 10
        text = f"{row['got']:12,.0f} a second" if rate else f"{1e3 * row['got']:12.1f} ms"
        asked = row["asked"] and (f"{row['asked']:,.0f}" if rate else f"{1e3 * row['asked']:.0f}")
        print(f"{row['what']:10}{text}{f', asked {asked}' if asked else ''}")


if __name__ == "__main__":
    main()
