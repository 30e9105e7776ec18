"""The benches of the team run and say what they are for; how fast anything is, is not asked."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"
LIMIT = 300


def bench(name: str, *words: str) -> Any:
    """What a bench prints as JSON."""
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), *words, "--json"], capture_output=True,
        text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "options", [[], ["--no-stealing", "--depth", "2", "--no-pin"], ["--pin"]], ids=str
)
def test_scaling(options: list[str]) -> None:
    got = bench("scaling", "--preset", "nano", "--steps", "1", "--threads", "2,1", *options)
    one, two = got["rows"]
    assert (one["threads"], two["threads"]) == (1, 2)
    assert one["speed_up"] == one["efficiency"] == 1.0
    assert two["efficiency"] == pytest.approx(two["speed_up"] / 2)
    assert one["max_over_mean_busy"] == 1.0 and 1.0 <= two["max_over_mean_busy"] <= 2.0
    for row in got["rows"]:
        assert row["tokens_per_s"] == pytest.approx(12 * 64e3 / row["ms_per_step"])
        assert 0 <= row["barrier_share"] <= row["barrier_share_in_regions"] < 1
        assert 0 <= row["outside_share"] < 1 and 0 < row["reduction_share"] < 1
        assert row["scratch_per_sphere"] > 12
        assert (row["depth"] == 2) == ("--depth" in options)
    if options:
        assert two["pinned"] == (options == ["--pin"])


def test_a_wrong_list_of_threads_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "scaling.py"), "--threads", "1,x"], capture_output=True,
        text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "'1,x' is no list of numbers like 1,2,4" in done.stderr


def test_stealing() -> None:
    got = bench("stealing", "--samples", "1", "--threads", "2")
    assert [row["work"] for row in got] == ["attention", "training step"]
    for row in got:
        on, off = row["on"], row["off"]
        assert row["excess_ratio"] == pytest.approx(on["excess"] / off["excess"])
        assert row["time_ratio"] == pytest.approx(on["ms"] / off["ms"])
        assert row["improves"] == (row["excess_ratio"] <= 0.8 and row["time_ratio"] < 1)
        assert 0 <= on["excess"] <= 1 and off["samples"] == 1


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("undisturbed")


def test_samples_alternate_and_disturbed_ones_are_dropped(
    undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    others = iter([0.0, 0.5, 0.0, 0.0, 0.9, 0.8, 0.7, 0.9])

    def observed(work: Any) -> tuple[Any, float]:
        return work(), next(others)

    def work(name: str) -> str:
        calls.append(name)
        return f"{name}{len(calls)}"

    monkeypatch.setattr(undisturbed, "observed", observed)
    works = {name: lambda name=name: work(name) for name in "ab"}
    taken = undisturbed.alternate(works, 2)
    assert calls == list("abbabbbb")
    assert (taken["a"].results, taken["a"].dropped) == (["a1", "a4"], 0)
    assert (taken["b"].results, taken["b"].dropped) == (["b3"], 5)
    assert not taken["b"].noisy
    others = iter([0.9, 0.6, 0.8, 0.7])
    only = undisturbed.alternate({"c": lambda: work("c")}, 1)["c"]
    assert (only.results, only.dropped, only.noisy) == (["c10"], 4, True)


def test_what_others_use_is_seen_and_ones_own_is_not(undisturbed: Any) -> None:
    def work() -> None:
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass

    quiet = min(undisturbed.observed(work)[1] for _ in range(5))
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        busy = max(undisturbed.observed(work)[1] for _ in range(3))
    finally:
        spin.kill()
        spin.wait()
    assert busy > quiet and busy > 0.2
