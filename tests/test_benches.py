"""The benches of the team run and say what they are for; how fast anything is, is not asked."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TINY, prose

BENCH = Path(__file__).parent.parent / "bench"
Bench = Callable[..., Any]


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("undisturbed")


@pytest.fixture
def bench(undisturbed: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """What a bench prints as JSON, when it need not wait for a quiet moment."""
    stepping = importlib.import_module("stepping")
    for module in (undisturbed, stepping):
        monkeypatch.setattr(module, "TICKS", 1e-3)
    monkeypatch.setattr(undisturbed, "TRIES", 1)

    def run(name: str, *words: str) -> Any:
        done = CliRunner().invoke(importlib.import_module(name).main, [*words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    return run


@pytest.mark.parametrize(
    "options", [[], ["--no-stealing", "--depth", "2", "--no-pin"], ["--pin"]], ids=str
)
def test_scaling(bench: Bench, options: list[str]) -> None:
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


def test_a_wrong_list_of_threads_is_refused(undisturbed: Any) -> None:
    done = CliRunner().invoke(importlib.import_module("scaling").main, ["--threads", "1,x"])
    assert done.exit_code == 2 and "'1,x' is no list of numbers like 1,2,4" in done.output


def test_the_benches_run_as_programs() -> None:
    for name in ("scaling", "stealing", "sampled", "shakespeare", "repository"):
        done = subprocess.run(
            [sys.executable, str(BENCH / f"{name}.py"), "--help"], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0 and "--json" in done.stdout, done.stderr


def test_stealing(bench: Bench) -> None:
    got = bench("stealing", "--samples", "1", "--threads", "2")
    assert [row["work"] for row in got] == ["attention", "training step"]
    for row in got:
        on, off = row["on"], row["off"]
        assert row["excess_ratio"] == pytest.approx(on["excess"] / off["excess"])
        assert row["time_ratio"] == pytest.approx(on["ms"] / off["ms"])
        assert row["improves"] == (row["excess_ratio"] <= 0.8 and row["time_ratio"] < 1)
        assert 0 <= on["excess"] <= 1 and off["samples"] == 1


@pytest.mark.parametrize("words", ["", "--uniform"])
def test_sampled_output_layer(bench: Bench, words: str) -> None:
    sizes = ["--vocabulary", "600", "--vocabulary", "700"]
    got = bench("sampled", *sizes, "--threads", "2", "--samples", "1", *words.split())
    assert [row["V"] for row in got] == [600, 700]
    for row in got:
        assert row["ratio"] == pytest.approx(row["full_ms"] / row["sampled_ms"])


def test_sampled_quality(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small text in place of the library, and a small model."""
    sampled = importlib.import_module("sampled")

    def library(folder: Path) -> int:
        folder.mkdir()
        (folder / "text.py").write_text(prose(3000))
        return (folder / "text.py").stat().st_size

    monkeypatch.setattr(sampled, "library", library)
    monkeypatch.setattr(sampled, "SIZES", {k: v for k, v in TINY.items() if k != "vocab_size"})
    got = bench("sampled", "--quality", "--steps", "3", "--threads", "1")
    full, *others = got["runs"]
    assert [run["kind"] for run in got["runs"]] == list(sampled.KINDS)[: len(got["runs"])]
    assert len(others) >= 1 and got["steps"] == 3
    for run in others:
        assert full["tokens"] == run["tokens"] > 0
        assert run["gap"] == pytest.approx(run["validation"] / full["validation"] - 1)
        assert run["time"] == pytest.approx(run["seconds"] / full["seconds"])


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


def test_what_others_use_is_told_from_the_machines_clock_and_ones_own(
    undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(["cpu  100 5 50 900 30 1 2 3 0 0", "cpu  400 5 50 950 90 1 2 103 0 0"])
    monkeypatch.setattr(undisturbed.Path, "read_text", lambda _: next(ticks) + "\ncpu0 1 2 3\n")
    monkeypatch.setattr(undisturbed.os, "sysconf", lambda _: 100)
    monkeypatch.setattr(undisturbed.time, "process_time", iter([7.0, 10.0]).__next__)
    monkeypatch.setattr(undisturbed.time, "perf_counter", iter([1.0, 3.0]).__next__)
    # 3 seconds by programs and 1 taken by the hypervisor, 3 of them ours, in 2 seconds.
    assert undisturbed.observed(lambda: "done") == ("done", 0.5)


def test_ladder(tmp_path: Path, undisturbed: Any) -> None:
    module = importlib.import_module("ladder")
    main = module.main
    candidate = "dim=16 layers=1 seq_len=16 batch_size=2 vocab_size=300"
    speeds, results = str(tmp_path / "speeds.json"), tmp_path / "results.jsonl"

    def ladder(*words: str) -> str:
        done = CliRunner().invoke(main, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "tokens/s" in ladder("speeds", speeds, candidate, "--samples", "1")
    pace = json.loads(Path(speeds).read_text())[candidate]
    ladder("run", speeds, str(results), "--seconds", str(module.OVERHEAD + 3 * pace))
    row = json.loads(results.read_text())
    assert row["steps"] == 3 and row["candidate"] == candidate and row["bits_per_byte"] > 0
    assert CliRunner().invoke(main, ["speeds", speeds, "width=16"]).exit_code == 2
