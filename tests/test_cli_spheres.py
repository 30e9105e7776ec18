"""The spheres on the command line: the options of the crew, and looking at a running training."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import LIMIT, SMALL, invoke, rows_of, run, start
from terminal import on_terminal

from crystalline import api
from crystalline.errors import UsageError
from crystalline.spheres import LiveTraining
from crystalline.training import starting

pytestmark = pytest.mark.usefixtures("segments")

ROOT = Path(__file__).parents[1]
# As SMALL, without the number of threads.
MODEL = SMALL[: SMALL.index("--threads")]


def test_every_option_of_the_crew_reaches_the_training(text_file: Path, tmp_path: Path) -> None:
    def planned(*args: Any) -> dict[str, Any]:
        out = tmp_path / f"m{len(os.listdir(tmp_path))}"
        said = invoke("train", text_file, "--out", out, "--steps", 1, "--json", *MODEL, *args)
        (event,) = [e for e in map(json.loads, said.splitlines()) if e["event"] == "plan"]
        return dict(event)

    two = ("--threads", 2)
    assert planned(*two)["threads"] == 2
    assert planned(*two, "--hierarchy-depth", 3)["leaves"] == 1728
    assert planned(*two, "--hierarchy-depth", "auto")["depths"] == [1] * 12
    assert planned(*two, "--thread-allocation", "compact")["groups"] == [0] * 6 + [1] * 6
    assert planned(*two, "--thread-allocation", "spread")["strategy"] == "spread"
    assert planned("--threads", 12)["strategy"] == "one_to_one"
    for option, key in (("work-stealing", "steal"), ("pin", "pinned")):
        assert planned(*two, f"--{option}")[key] is True
        assert planned(*two, f"--no-{option}")[key] is False


def test_recursive_spawning_reaches_the_crew(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crews: list[Any] = []
    made = starting.make_crew

    def make(*args: Any, **options: Any) -> Any:
        crews.append(made(*args, **options))
        return crews[-1]

    monkeypatch.setattr(starting, "make_crew", make)
    for i, option in enumerate(["--recursive-spawning", "--no-recursive-spawning"]):
        invoke("train", text_file, "--out", tmp_path / f"m{i}", "--steps", 1, "--quiet", *MODEL,
               "--threads", 2, "--no-work-stealing", option)  # fmt: skip
    assert [crew.adaptive for crew in crews] == [True, False]


@pytest.mark.parametrize(("args", "says"), [
    (["--hierarchy-depth", "4"], "'4' is not one of 'auto', '1', '2', '3'"),
    (["--thread-allocation", "sideways"], "'sideways' is not one of 'auto', "),
    (["--thread-allocation", "one_to_one", "--threads", "2"], "one_to_one needs 12 threads"),
])  # fmt: skip
def test_wrong_options_of_the_crew(
    args: list[str], says: str, text_file: Path, tmp_path: Path
) -> None:
    code, out, err = run("train", text_file, "--out", tmp_path / "m", *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("crystalline: error: ")
    assert says in err
    assert not (tmp_path / "m").exists()


def test_a_whole_training_in_plain_lines(text_file: Path, tmp_path: Path) -> None:
    args = ["train", text_file, "--out", tmp_path / "m", "--steps", 5, "--threads", 2, "--pin"]
    code, out, err = run(*args, *MODEL, "--hierarchy-depth", 2)
    assert (code, out) == (0, "")
    lines = err.splitlines()
    for words in ("machine     ", "threads     2 threads, each kept on its CPU",
                  "            thread 1 (CPU ",
                  "spheres     12 spheres x 12 children = "):  # fmt: skip
        assert any(line.startswith(words) for line in lines), words
    rows = rows_of(lines, "sphere")
    assert [row[0] for row in rows] == [str(g) for g in range(12)]
    assert all(99 <= sum(map(int, row[5:8])) <= 101 for row in rows)
    assert 98 <= sum(int(row[9]) for row in rows) <= 102
    assert lines[-1].startswith("thread balance: busiest ")


@pytest.fixture
def running(text_file: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A training in another process that has done some steps."""
    out = tmp_path / "m"
    args = ["train", text_file, "--out", out, "--steps", 10**6, *MODEL, "--threads", 2, "--quiet"]
    process = start(*args)
    try:
        until = time.monotonic() + LIMIT
        while not steps_done(out):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        yield process, out
    finally:
        process.kill()
        process.communicate(timeout=LIMIT)


def steps_done(out: Path) -> int:
    """Of the training that runs in a folder; 0 if none does yet."""
    try:
        with LiveTraining.attach(out) as live:
            return int(live.board().get("step", 0))
    except UsageError:
        return 0


def test_the_spheres_of_a_training_in_another_process(
    running: tuple[subprocess.Popen[str], Path],
) -> None:
    process, out = running
    board = json.loads(invoke("spheres", out, "--json"))
    assert (board["state"], board["model"], board["steps"]) == ("RUNNING", str(out), 10**6)
    assert abs(time.time() - board["time"]) < LIMIT
    for args in ([], ["--once"]):
        code, said, err = run("spheres", out, *args)
        assert (code, err) == (0, "")
        lines = said.splitlines()
        rows = rows_of(lines, "sphere")
        assert len(rows) == 12
        # Of a batch of four sequences the first four spheres have one each.
        assert all(int(row[2].replace(",", "")) > 0 and float(row[8]) > 0 for row in rows[:4])
        assert all((row[2], row[8]) == ("0", "-") for row in rows[4:])
        assert len(rows_of(lines, "thread")) == 2
    process.terminate()
    process.wait(LIMIT)
    code, said, err = run("spheres", out)
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"crystalline: error: {out}: no training runs there")


@pytest.mark.parametrize("end", ["training", "watching"])
def test_watching_until_either_ends(end: str, running: tuple[subprocess.Popen[str], Path]) -> None:
    process, out = running

    ended: list[subprocess.Popen[str]] = []

    def after(watcher: subprocess.Popen[str], shown: bytes) -> None:
        if not ended and shown.count(b"RUNNING") >= 3:  # drawn again and again
            ended.append(process if end == "training" else watcher)
            ended[0].send_signal(signal.SIGINT)

    code, shown = on_terminal(after, "spheres", out, width=80, height=24)
    assert code == 0
    assert ("the training has ended; last seen at step " in shown) == (end == "training")
    assert (process.poll() is None) == (end == "watching")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


def test_where_nothing_trains(tmp_path: Path) -> None:
    for args in ([], ["--once"], ["--json"]):
        code, said, err = run("spheres", tmp_path, *args)
        assert (code, said, err.count("\n")) == (2, "", 1)
        assert "no training runs there" in err


def test_a_pause_is_shown(text_file: Path, tmp_path: Path) -> None:
    sizes = {"dim": 32, "layers": 1, "seq_len": 16, "batch_size": 4, "vocab_size": 300}
    with api.training(text_file, tmp_path / "m", steps=10**6, threads=1, **sizes) as trainer:
        node = trainer.start()
        step = node.pause()
        said = invoke("spheres", tmp_path / "m", "--once").splitlines()
        assert said[0].endswith("m  PAUSED")
        assert step == 0 or said[1].startswith(f"step {step:,} of 1,000,000")
        node.stop()
        node.wait()


def test_the_example_of_training_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = ROOT / "examples" / "background_training.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "m")])
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(seconds / 10))
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    for words in ("the spheres worked for", "paused after", "learning rate halved", "stopped"):
        assert words in said
    assert (tmp_path / "m" / "model.safetensors").exists()
