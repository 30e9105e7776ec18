"""The sieve below the abacus, and its bench."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
from click.testing import CliRunner
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalline import _sieve
from crystalline.lattice.abacus import Abacus

BENCH = Path(__file__).parent.parent / "bench"
TURNS = [r for r in range(30) if all(r % p for p in (2, 3, 5))]


@pytest.mark.parametrize("group", range(-1, 12))
def test_masks(group: int) -> None:
    """Bit 8 k + b of a word stands for 30 k + TURNS[b]; 240 is a multiple of 12."""
    numbers = [30 * k + r for k in range(8) for r in TURNS]
    want = sum(1 << i for i, n in enumerate(numbers) if group in {-1, n % 12})
    assert _sieve.mask(group) == want
    assert (want == 0) == (group in {0, 2, 3, 4, 6, 8, 9, 10})


def segment(begin: int, size: int) -> _sieve.Sieve:
    """A sieved segment of ``size`` bytes from byte ``begin`` on, a multiple of 8."""
    top = int(np.sqrt(30.0 * (begin + size))) + 1
    primes = np.array(list(sympy.primerange(_sieve.FIRST, top + 1)), np.uint32)
    sieve = _sieve.Sieve(primes, np.zeros_like(primes), np.zeros(3 * size, np.uint8), begin)
    sieve.advance()
    return sieve


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 10**8), st.integers(1, 6), st.data())
def test_parts_of_a_segment(word: int, words: int, data: Any) -> None:
    """Any part of a segment, with ends that lie in it or beyond."""
    sieve = segment(8 * word, 8 * words)
    base = 240 * word
    lo = data.draw(st.integers(max(0, base - 300), base + 240 * words + 300))
    hi = data.draw(st.integers(max(0, base - 300), base + 240 * words + 300))
    group = data.draw(st.integers(-1, 11))
    inside = sympy.primerange(max(lo, base, 7), min(hi + 1, base + 240 * words))
    right = [p for p in inside if group in {-1, p % 12}]
    out = np.zeros(len(right) + 1, np.uint64)
    mask = _sieve.mask(group)
    assert sieve.count(lo, hi, mask) == len(right)
    sieve.list(lo, hi, mask, out)
    assert out.tolist() == [*right, 0]
    assert sieve.first(lo, hi, mask) == (right[0] if right else 0)


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2000), st.integers(0, 20), st.integers(-1, 11))
def test_primes_one_by_one(lo: int, width: int, room: int, group: int) -> None:
    hi = min(lo + width, 2**64 - 1)
    right = [p for p in sympy.primerange(max(lo, 7), hi + 1) if group in {-1, p % 12}][:room]
    out = np.zeros(21, np.uint64)
    assert _sieve.primes_between(lo, hi, _sieve.mask(group), out[:room]) == len(right)
    assert out.tolist() == right + [0] * (21 - len(right))


def test_other_threads_run_while_a_segment_is_sieved() -> None:
    """Nobody is asked to give up the interpreter here: the other thread gets it only from C."""
    sieve = segment(0, 1 << 20)
    seen: list[int] = []

    def other() -> None:
        time.sleep(0.001)
        seen.append(1)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    sys.setswitchinterval(1000)
    try:
        thread.start()
        for _ in range(1000):
            sieve.advance()
            if seen:
                break
        assert seen
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def _bench(monkeypatch: pytest.MonkeyPatch, program: Path, said: str, *words: str) -> Any:
    program.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    program.chmod(0o755)
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(importlib.import_module("undisturbed"), "TRIES", 1)
    main = importlib.import_module("sieve").main
    return CliRunner().invoke(main, ["--only", "1", "--rounds", "1", "--program", program, *words])


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    primes = sum(len(x) for x in Abacus(0, 10**9).arrays())
    said = f"Seconds: 0.125\\nPrimes: {primes}\\n"
    done = _bench(monkeypatch, tmp_path / "primesieve", said, "--json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.output)
    assert row["primes"] == primes and row["primesieve"] == 0.125
    assert row["ratio"] == row["seconds"] / 0.125
    done = _bench(monkeypatch, tmp_path / "primesieve", said)
    assert done.output.splitlines()[1].split()[2] == str(primes)


@pytest.mark.parametrize("said", ["Seconds: 0.1\\nPrimes: 5\\n", "what?"])
def test_bench_of_what_counts_otherwise(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _bench(monkeypatch, tmp_path / "primesieve", said)
    assert done.exit_code == 1 and ("primesieve counts 5" in done.output or "what?" in done.output)


def test_bench_without_primesieve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    done = CliRunner().invoke(importlib.import_module("sieve").main, ["--program", "/none"])
    assert done.exit_code == 1 and "apt-get install primesieve-bin" in done.output
