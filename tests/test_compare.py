"""The comparison with other libraries runs, writes what it found, and tells a slowdown; how fast
anything is, is not asked."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

ROOT = Path(__file__).parent.parent
COMPARE = [sys.executable, "-m", "bench.compare", "--samples", "1", "--quick"]


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of bench/ by name."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch's threads wait by spinning, which on a busy machine takes minutes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short comparison writes."""
    path = tmp_path_factory.mktemp("compare") / "found.json"
    words = ["--only", "elementwise", "--only", "head", "--json", str(path)]
    done = subprocess.run(
        COMPARE + words, cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RMSNorm 3072 x 256" in done.stdout and "softmax 384 x 2000" in done.stdout
    return path


def test_what_it_writes(written: Path) -> None:
    found = json.loads(written.read_text())
    assert (found["threads"], found["samples"]) == (2, 1)
    norm, softmax, *heads = found["rows"]
    precisions = ["fp32", "bf16"] if "bf16" in found["peaks"]["arithmetic"] else ["fp32"]
    assert [r["group"] for r in found["rows"]] == ["elementwise"] * 2 + ["head"] * len(heads)
    assert list(norm["peers"]) == list(softmax["peers"]) == ["torch"]
    assert [r["name"].partition("), ")[2] for r in heads] == [
        p + what for p in precisions for what in ("", ": extra memory")
    ]
    memory = heads[1]
    for head in heads[::2]:
        assert set(head["peers"]) | set(head["failed"]) == {
            "torch", "torch, tuned allocator", "torch chunked", "torch compiled",
        }  # fmt: skip
    for row in (norm, softmax, *heads[::2]):
        fastest = max(row["peers"], key=row["peers"].get)
        assert row["best"] == fastest
        assert row["ratio"] == pytest.approx(row["ours"] / row["peers"][fastest])
        assert row["share"] == pytest.approx(row["ours"] / row["limit"])
        assert row["samples"] == 1
    assert memory["unit"] == "MiB"
    assert memory["best"] == min(memory["peers"], key=memory["peers"].get)
    # Gradients of (384, 256) and (2000, 256) alone, and nothing like a second copy of all logits.
    assert 2.3 < memory["ours"] < 20


@pytest.fixture
def again(side_by_side: Any, written: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with the rows that were written instead of new ones."""
    main = side_by_side("bench.compare.__main__")
    contest = side_by_side("compare.contest")
    found = json.loads(written.read_text())
    rows = [contest.Row(**r) for r in found["rows"]]
    s = contest.Settings(2, 1, True, found["isa"], found["peaks"])
    monkeypatch.setattr(main, "settings", lambda *_: s)
    monkeypatch.setattr(main, "run_group", lambda group, _: [r for r in rows if r.group == group])

    def run(*words: str) -> Result:
        return CliRunner().invoke(main.main, words)

    return run


@pytest.mark.parametrize(
    ("which", "factor", "status"),
    [(0, 1.0, 0), (0, 1.04, 0), (0, 1.06, 1), (0, 0.5, 0), (3, 0.96, 0), (3, 0.94, 1), (3, 2, 0)],
)
def test_a_ratio_worse_than_before_fails(
    again: Any, written: Path, tmp_path: Path, which: int, factor: float, status: int
) -> None:
    """``factor`` is how much higher the ratio was before; of memory, less is better."""
    before = json.loads(written.read_text())
    before["rows"][which]["ratio"] *= factor
    path = tmp_path / "before.json"
    path.write_text(json.dumps(before))
    done = again("--against", str(path))
    assert done.exit_code == status, done.output
    assert ("slower than before" in done.output) == bool(status)
    if status:
        assert "6 % worse" in done.output


ROW = '{"rows": [{"group": "x", "name": "y", "unit": "z", "ratio": "fast"}]}'


@pytest.mark.parametrize(
    "text", ["", "[]", '{"rows": [{"group": "x"}]}', ROW, "[" * 100_000, None]
)
def test_a_file_of_something_else_is_refused(again: Any, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    done = again("--against", str(path))
    assert done.exit_code == 1 and "no file of an earlier" in done.output
    assert len(done.output.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMPARE, "--only", "head", "--json", str(tmp_path / "none" / "x.json")], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "x.json: cannot be written" in done.stderr


def test_nothing_in_common_is_said(again: Any, written: Path) -> None:
    done = again("--only", "gemm", "--against", str(written))
    assert done.exit_code == 1 and "no row of this run is in that file" in done.output


def test_the_readme_is_written_between_its_marks(
    again: Any, side_by_side: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = side_by_side("compare.report")
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    monkeypatch.setattr(report.write_readme, "__defaults__", (copy,))
    assert again("--readme").exit_code == 0
    once = copy.read_text()
    assert "| RMSNorm 3072 x 256 |" in once and "## Map of the sources" in once
    assert again("--readme").exit_code == 0 and copy.read_text() == once
    with pytest.raises(click.ClickException, match="are not there"):
        copy.write_text("no marks")
        report.write_readme("text", copy)


def test_a_contender_that_fails_is_said_and_the_others_go_on(side_by_side: Any) -> None:
    contest, workers = side_by_side("compare.contest"), side_by_side("compare.workers")
    s = contest.Settings(1, 1, True, "portable", {"arithmetic": {}})
    contenders = [contest.Contender(n, n) for n in ("numpy", "onednn")]
    case = {"kind": "x W^T", "shape": [3, 5, 7], "precision": "fp32"}
    with workers.Crew(s) as crew:
        match = contest.Contest("tiny", "compare.gemm", case, tuple(contenders), 1.0, "GFLOP/s")
        [row] = crew.run(match)
        assert row.ours is None and row.peers["numpy"] > 0 and row.ratio is None
        bad = contest.Contest("bad", "compare.gemm", {}, (contenders[0],), 1.0, "GFLOP/s")
        [row] = crew.run(bad)
        assert row.failed == {"numpy": "KeyError: 'kind'"} and not row.peers
        worker = crew.workers[contenders[1]]
        worker.process.kill()
        assert "ended with status" in worker.sample()["error"]


def test_a_limit_of_memory_is_measured_in_turn(side_by_side: Any) -> None:
    contest, workers = side_by_side("compare.contest"), side_by_side("compare.workers")
    s = contest.Settings(1, 2, True, "portable", {"arithmetic": {}})
    case = {"kind": "few rows", "shape": [1, 64, 64], "precision": "fp32"}
    who = (contest.Contender(contest.OURS, contest.OURS), contest.Contender("numpy", "numpy"))
    limits = [contest.Moving("read", 1 << 16, 1.0), contest.Moving("read", 1 << 16, 1.0, 1e-3)]
    with workers.Crew(s) as crew:
        for limit in limits:
            match = contest.Contest("tiny", "compare.gemm", case, who, 1e-6, "GFLOP/s", limit)
            [row] = crew.run(match)
            assert list(row.peers) == ["numpy"] and not row.failed
            assert row.share == pytest.approx(row.ours / row.limit)
            assert row.limit == 1e-3 if limit.peak == 1e-3 else row.limit > 0.1


def test_a_call_in_milliseconds(side_by_side: Any) -> None:
    contest = side_by_side("compare.contest")
    match = contest.Contest("short", "compare.steps", {}, (), 768, "ms")
    assert match.figure(0.05) == 50
    row = contest.Row("steps", "short", "ms", 50.0, {"slow": 200.0, "fast": 100.0})
    assert (row.best, row.ratio) == ("fast", 0.5)


GROUPS = ("gemm", "elementwise", "attention", "head", "output", "steps", "generation")


def test_the_rows_of_a_whole_run(side_by_side: Any) -> None:
    contest = side_by_side("compare.contest")
    peaks = {"arithmetic": {isa: {"2": n} for isa, n in (("avx512", 2), ("avx2", 1), ("bf16", 4))}}
    rows = {}
    for isa in ("avx512", "avx2"):
        s = contest.Settings(2, 5, False, isa, peaks)
        made = [c for g in GROUPS for c in side_by_side(f"compare.{g}").contests(s)]
        rows[isa] = {(c.group, c.name): c for c in made}
        assert len(rows[isa]) == len(made)
    whole, without = rows["avx512"], rows["avx2"]
    # What is kept in bf16 and multiplied in fp32 runs without the instructions too.
    bf16 = {at for at in whole if "bf16" in at[1] and at[0] != "generation"}
    assert without.keys() == whole.keys() - bf16
    assert {
        ("gemm", "x W^T (3072, 256, 10000), bf16"), ("gemm", "dX (3072, 10000, 256), bf16"),
        ("gemm", "dW (10000, 3072, 256), bf16"), ("head", "(2048, 768 -> 32000), bf16"),
        ("steps", "seed, 12 x 256, bf16, 512 samples"), ("steps", "m, 4 x 512, bf16"),
        ("steps", "seed, 12 x 64, bf16"),
    } <= bf16  # fmt: skip
    assert {
        ("gemm", "few rows, packed (12, 768, 32000), fp32"),
        ("gemm", "few rows (12, 768, 32000), fp32"), ("elementwise", "softmax 3072 x 10000"),
        ("output", "V 50000, 512 samples"), ("steps", "seed, 12 x 64, fp32, 512 samples"),
        ("generation", "m, batch 1, int8"),
    } <= without.keys()  # fmt: skip
    for group, name in bf16 - {("steps", "seed, 12 x 64, bf16")}:
        fp32 = whole[group, name.replace("bf16", "fp32")]
        assert whole[group, name].limit == 2 * fp32.limit
    sizes = [whole["generation", f"m, batch 1, {p}"].limit.size for p in ("fp32", "bf16", "int8")]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == pytest.approx(4 * 109.5e6, rel=0.02)


TINY = [
    *(("gemm", {"kind": kind, "shape": shape, "precision": "bf16"}) for kind, shape in
      [("x W^T", [24, 32, 48]), ("dX", [24, 32, 48]), ("dW", [16, 24, 32])]),
    ("gemm", {"kind": "few rows", "shape": [4, 32, 48], "precision": "fp32"}),
    ("gemm", {"kind": "few rows, packed", "shape": [4, 32, 48], "precision": "fp32"}),
    ("elementwise", {"op": "softmax", "shape": [24, 40]}),
    ("head", {"sizes": [24, 32, 40], "precision": "bf16"}),
    *(("steps", {"preset": "nano", "precision": precision, "samples": samples, "seq": 16})
      for precision, samples in [("bf16", 0), ("fp32", 20), ("bf16", 20)]),
    *(("generation", {"preset": "nano", "tokens": 3, "precision": precision})
      for precision in ("bf16", "int8")),
]  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("group", "case"), TINY)
def test_ours_and_torchs_work_runs(side_by_side: Any, group: str, case: dict[str, Any]) -> None:
    import torch

    from crystalline._native import Team

    narrow = case.get("precision") == "bf16" and group != "generation"
    build = side_by_side(f"compare.{group}").build
    if case.get("precision") != "int8":
        build("torch", case, 1)()
        torch.set_grad_enabled(True)  # which a contender sets in a process of its own
    if narrow and not Team(1).has_bf16:
        pytest.skip("this CPU has no AVX512_BF16: ours takes no part")
    build("crystalline", case, 1)()


def test_the_output_layer_runs(side_by_side: Any) -> None:
    build = side_by_side("compare.output").build
    layer = build("sampled", {"V": 600}, 1).__self__
    before = layer.w.copy()
    layer.sampled()
    changed = (layer.w != before).any(1)
    assert 512 <= changed.sum() <= 600 and np.isfinite(layer.losses).all()
    build("full", {"V": 600}, 1)()


def test_stages(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    done = subprocess.run(
        [*COMPARE, "--self", "--json", str(path)], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads(path.read_text())["stages"]
    names = [s["stage"] for s in stages if s["stage"] != "bf16"]
    assert "extrapolated" in names[0] and names[-2:] == ["2 threads", "sampled softmax"]
    assert all(s["tokens_per_s"] > 0 for s in stages)
    for before, now in itertools.pairwise(stages):
        assert now["over_last"] == pytest.approx(now["tokens_per_s"] / before["tokens_per_s"])
        assert now["over_first"] == pytest.approx(now["tokens_per_s"] / stages[0]["tokens_per_s"])


def test_peaks(side_by_side: Any) -> None:
    peak = side_by_side("peak")
    done = CliRunner().invoke(peak.main, ["--threads", "2", "--seconds", "0.02", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert set(found["arithmetic"]) | set(found["left_out"]) == {"avx512", "avx2", "bf16"}
    for of in found["arithmetic"].values():
        assert set(of) == {"1", "2"} and min(of.values()) > 1
    levels = list(found["bandwidth"])
    assert levels[0] == "L1" and levels[-1] == "DRAM"
    assert found["bandwidth"]["L1"]["read"]["1"] > found["bandwidth"]["DRAM"]["read"]["1"] > 0


def test_peak_refuses_what_it_does_not_know(
    side_by_side: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled, peak = side_by_side("compiled"), side_by_side("peak")
    built = compiled.program(ROOT / "bench" / "peak.c", *peak.FLAGS)
    done = subprocess.run([built, "read", "0", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: peak KIND")
    assert peak.measure("no such kind", 1) == 0
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(click.ClickException, match="no C compiler 'no-such-compiler' found"):
        compiled.program(ROOT / "bench" / "peak.c")
    monkeypatch.setenv("CC", "cc")
    wrong = tmp_path / "wrong.c"
    wrong.write_text("int main(void) { return x; }")
    with pytest.raises(click.ClickException, match=r"wrong\.c: cc refuses it: .*error"):
        compiled.program(wrong)


@pytest.mark.usefixtures("one_thread")
def test_torchs_step_learns_in_every_setting(side_by_side: Any) -> None:
    torch_step = side_by_side("torch_step")
    first = {}
    for loss in torch_step.LOSSES:
        for precision in torch_step.PRECISIONS:
            step = torch_step.Step("nano", 4, 16, precision, loss, samples=32)
            losses = [step() for _ in range(30)]
            assert losses[-1] < losses[0] - 0.05, (precision, loss, losses)
            first[precision, loss] = losses[0]
        for precision in torch_step.PRECISIONS:
            assert first[precision, loss] == pytest.approx(first["fp32", loss], rel=0.02)


@pytest.mark.usefixtures("one_thread")
def test_torchs_sampled_softmax_is_the_one_of_the_books(side_by_side: Any) -> None:
    torch_step = side_by_side("torch_step")
    import torch

    step = torch_step.Step("nano", 2, 8, loss="sampled", samples=20)
    ids, samples, w = step.ids, step.drawn(), step.model.embed.weight.detach().double().numpy()
    w *= 30  # so that the logits differ
    with torch.no_grad():
        step.model.embed.weight.copy_(torch.from_numpy(w))
        got = float(step.model(ids[:, :-1], ids[:, 1:], samples))
        h = step.model.hidden(ids[:, :-1]).double().numpy()
    V, S = len(w), len(samples)
    law = np.log((np.arange(V) + 2) / (np.arange(V) + 1)) / np.log(V + 1)
    assert law.sum() == pytest.approx(1) and samples.min() >= 0 and samples.max() < V
    logits, losses = h @ w.T - np.log(S * law), []
    for z, target in zip(logits, ids[:, 1:].flatten().tolist(), strict=True):
        taken = [z[target], *(z[c] for c in samples.tolist() if c != target)]
        losses.append(np.log(np.exp(taken).sum()) - z[target])
    assert got == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_torchs_cache_gives_the_tokens_of_no_cache(side_by_side: Any) -> None:
    torch_generation = side_by_side("torch_generation")
    import torch

    generator, prompt = torch_generation.Generator("nano", "fp32"), list(range(10))
    with torch.no_grad():
        generator.model.embed.weight.mul_(20)
    new, ids = generator(prompt, 12), prompt
    for token in new:
        h = generator.model.hidden(torch.tensor([ids]))[-1]
        assert token == int((generator.model.embed.weight @ h).argmax())
        ids = [*ids, token]


def test_every_operation_of_a_team_has_a_bench() -> None:
    from crystalline._native import Pool, Team

    benches = "".join(p.read_text() for p in (ROOT / "bench").glob("test_speed_of_*.py"))
    operations = {n for n in dir(Team) if not n.startswith("_")} - set(dir(Pool))
    sizes = {"packed_len", "weight_bytes", "work_floats"}  # which count, and do no work
    assert {n for n in operations - sizes if f"team.{n}" not in benches} == set()


def test_the_speed_benches_run() -> None:
    kinds = " or ".join(f"speed_of_{of}" for of in ("kernels", "bf16", "generation", "sparse"))
    quick = ["--benchmark-only", "--benchmark-max-time=0.001", "--benchmark-min-rounds=1"]
    # Where tests run side by side, pytest would time nothing.
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench/", *quick,
         "-k", f"({kinds}) and not test_head and not 10000 or nano"],
        cwd=ROOT, capture_output=True, text=True, check=False, env=alone,
    )  # fmt: skip
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-2000:]
