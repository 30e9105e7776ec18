"""The benches of quality: what they hold out, gather, judge and print; not how good a model is."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import TINY, prose

import crystalline
from crystalline.demo import bundled_text
from crystalline.evaluation.score import evaluate

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


# --- Tiny Shakespeare -----------------------------------------------------------------------------


def test_the_bench_holds_out_what_training_does(bench: Callable[[str], Any]) -> None:
    text = bundled_text()
    tail = bench("shakespeare").held_out(text)
    assert tail.decode() == text.decode()[int(0.9 * len(text.decode())) :]
    assert len(tail) == 111540


def test_others_find_what_crystalline_finds(bench: Callable[[str], Any], tmp_path: Path) -> None:
    text = prose(3000)
    (tmp_path / "prose.txt").write_text(text)
    crystalline.train(tmp_path / "prose.txt", tmp_path / "m", **TINY, steps=20, lr=3e-3)
    theirs = bench("shakespeare").outside(tmp_path / "m", text[int(0.9 * len(text)) :])
    ours = evaluate(tmp_path / "m").total
    assert (theirs["tokens"], theirs["bytes"]) == (ours.tokens, ours.bytes)
    assert theirs["bits_per_byte"] == pytest.approx(ours.bits_per_byte, rel=1e-6)


def test_a_table_says_which_bars_are_met(bench: Callable[[str], Any]) -> None:
    run = {"seconds": 90.0, "said": 2.1, "parameters": 5, "dim": 4, "layers": 2, "vocab_size": 9,
           "seq_len": 8, "steps": 7}  # fmt: skip
    figures = ((1.5, 2.15), (3.0, 2.0801), (1, 1))
    runs = [run | {"minutes": m, "bits_per_byte": b} for m, b in figures]
    rows = bench("shakespeare").table(runs).splitlines()[2:]
    assert [row.split(" | ")[3] for row in rows] == ["2.15: met", "2.08: missed", ""]


# --- the corpus -----------------------------------------------------------------------------------


@pytest.fixture
def corpus(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with two packages in place of Debian's."""
    corpus = bench("corpus")
    files = {f"usr/{i}.c": f"int f{i}(void);\n".encode() * 40 for i in range(50)}
    files |= {"usr/small.c": b"int;\n", "usr/big.c": b"int x;\n" * 10_000}
    files |= {"usr/again.c": files["usr/7.c"], "usr/latin.c": "é".encode("latin-1") * 500}
    files |= {"usr/a.md": prose(200).encode(), "usr/zero.c": b"\0int x;\n" * 100}
    parts = (corpus.Part("one", r"usr/.*\.c", 10_000, "one's source", "MIT"),
             corpus.Part("two", r"usr/.*\.(c|md)", 9_000, "two's source", "GPL-2.0"))  # fmt: skip
    monkeypatch.setattr(corpus, "PARTS", parts)
    monkeypatch.setattr(corpus, "fetched", lambda names, folder: {n: Path(n) for n in names})
    monkeypatch.setattr(corpus, "version", lambda deb: f"{deb}-1.0")
    monkeypatch.setattr(
        corpus, "files_of",
        lambda deb, wanted: ((n, data) for n, data in files.items() if wanted.fullmatch(n)),
    )  # fmt: skip
    return corpus


def test_a_corpus_is_chosen_once_and_for_all(corpus: Any, tmp_path: Path) -> None:
    said = corpus.gather(tmp_path / "a")
    assert corpus.gather(tmp_path / "b") == said
    contents = {p.read_bytes() for p in (tmp_path / "a" / "texts").rglob("*.*")}
    assert len(contents) == len(said["files"])  # none twice
    assert said["bytes"] == sum(map(len, contents)) == sum(said["by_suffix"].values())
    for part, most in zip(said["parts"], (10_000, 9_000), strict=True):
        assert most - 2000 < part["bytes"] <= most
        assert part["version"] == f"{part['package']}-1.0" and part["licence"]
    kept = {name.split("/")[-1] for name in said["files"]}
    assert kept.isdisjoint({"small.c", "big.c", "latin.c", "zero.c"})


def test_a_corpus_that_is_whole_stays_and_a_damaged_one_is_made_again(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = corpus.gather(tmp_path)
    name = next(iter(said["files"]))
    good = (tmp_path / "texts" / name).read_bytes()
    (tmp_path / "texts" / name).write_bytes(b"int other;\n")
    assert corpus.gather(tmp_path) == said
    assert (tmp_path / "texts" / name).read_bytes() == good
    monkeypatch.setattr(corpus, "fetched", None)  # not asked for
    assert corpus.gather(tmp_path) == said


# --- the repository -------------------------------------------------------------------------------


def test_the_whole_repository_in_small(
    corpus: Any, bench: Callable[[str], Any], tmp_path: Path
) -> None:
    repository = bench("repository")
    words = [str(tmp_path), "--precision", "fp32", "--steps", "2", "--samples", "4"]
    sizes = ["--", "--dim", "32", "--layers", "1", "--heads", "2", "--seq-len", "32"]
    done = CliRunner().invoke(repository.main, [*words, *sizes], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    run = json.loads((tmp_path / "runs" / "fp32" / "run.json").read_text())
    assert "\n".join(repository.report(run)) + "\n" == done.stdout
    assert run["done"]["step"] == 2 and run["words"] == sizes[1:]
    assert run["plan"]["dim"] == 32 and run["code"]["pieces"] == 4
    assert run["corpus"]["sha256"] == corpus.gather(tmp_path)["sha256"]
    assert run["held_out"]["loss"] == run["validations"][-1]["loss"]
    again = CliRunner().invoke(repository.main, words)
    assert again.exit_code == 1 and "remove it, or give --name" in again.output


# --- the lattice ----------------------------------------------------------------------------------


def test_the_lattice_is_compared_seed_by_seed(bench: Callable[[str], Any]) -> None:
    lattice = bench("lattice")
    losses = {"baseline": [3.0, 3.2, 3.1], "rope": [2.9, 3.15, 3.15]}
    runs = [
        {"kind": kind, "seed": seed, "loss": loss, "bits_per_byte": loss / 2, "tokens": 5,
         "validation_tokens": 7}
        for kind, of in losses.items() for seed, loss in enumerate(of)
    ]  # fmt: skip
    base, rope = lattice.summary(runs)
    assert (base["loss"], base["spread"]) == (pytest.approx(3.1), pytest.approx(0.1))
    assert rope["difference"] == pytest.approx((-0.1 - 0.05 + 0.05) / 3)
    assert rope["error"] == pytest.approx(0.0763763 / 3**0.5, rel=1e-5)
    table = lattice.markdown(runs)
    assert "| baseline | 3.1000 | 0.1000 | 1.5500 |  |  |" in table
    assert "| rope | 3.0667 | 0.1443 | 1.5333 | -0.0333 ± 0.0441 | 2 of 3 |" in table
    assert table.endswith("3 seeds; 5 tokens trained, 7 held out.")


def test_the_bench_of_the_lattice_trains_and_goes_on(
    bench: Callable[[str], Any], tmp_path: Path
) -> None:
    lattice, out = bench("lattice"), tmp_path / "runs.json"
    (tmp_path / "prose.txt").write_text(prose(3000))
    words = ["--text", str(tmp_path / "prose.txt"), "--tokens", "1300", "--only", "init",
             "--threads", "1", "--vocab-size", "300", "--out", str(out)]  # fmt: skip
    sizes = ["--", "--dim", "32", "--layers", "1", "--heads", "2", "--seq-len", "32",
             "--batch-size", "13", "--no-packing"]  # fmt: skip
    for seeds in (1, 2):
        before = out.stat().st_mtime_ns if seeds == 2 else 0
        done = CliRunner().invoke(lattice.main, [*words, "--seeds", str(seeds), *sizes])
        assert done.exit_code == 0, done.output
        runs = json.loads(out.read_text())
        assert [(r["kind"], r["seed"]) for r in runs] == [
            (kind, seed) for seed in range(seeds) for kind in ("baseline", "init")
        ]
        assert out.stat().st_mtime_ns > before
    assert {r["steps"] for r in runs} == {3}
    assert [r["tokens"] for r in runs[::2]] == [r["tokens"] for r in runs[1::2]]
    assert len({r["loss"] for r in runs}) == 4
    assert done.stdout.strip() == lattice.markdown(runs)
    other = CliRunner().invoke(lattice.main, [*words, "--steps", "4", *sizes])
    assert other.exit_code == 2 and "give --steps or --tokens" in other.output
