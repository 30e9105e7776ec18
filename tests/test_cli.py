"""The command: what it shows where, and that every option does something."""

from __future__ import annotations

import inspect
import io
import json
import re
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from command import LIMIT, SMALL, invoke, run, start, weights
from conftest import prose
from rich.console import Console
from terminal import on_terminal

import crystalline
from crystalline.__main__ import main
from crystalline.commands import train, write
from crystalline.config import TrainConfig
from crystalline.errors import tame
from crystalline.inference.model import Model
from crystalline.progress import SKIPPED, Lines, Screen, finished, found, planned
from crystalline.words import clock, short

STEPS = 40
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def follow_steps(process: Any, until: int) -> None:
    """Reads the events of a training until a step is done."""
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "step" and event["step"] >= until:
            return
    pytest.fail(f"ended before step {until}: {process.stderr.read()}")


# --- help -----------------------------------------------------------------------------------------


def test_help_tells_every_option_of_training_and_its_default() -> None:
    said = invoke("train", "--help")
    for field in fields(TrainConfig):
        assert re.search(rf"--{field.name.replace('_', '-')}[ /]", said)
    for option in train.train.params:
        if not getattr(option, "is_flag", False) and option.name not in ("paths", "config"):
            assert "default" in option.get_help_record(train.train.make_context("", ["x"]))[1]


def test_help_of_generate_tells_the_defaults_of_the_library() -> None:
    parameters = inspect.signature(Model.stream).parameters
    for name, _, _, default in write.SAMPLING_OPTIONS:
        key = name.strip("-").replace("-", "_")
        if key != "threads":
            assert default == str(parameters[key].default), name


@pytest.mark.parametrize("args", [["--version"], ["-h"], ["bench", "step", "-h"]])
def test_asking_for_words_succeeds(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    assert crystalline.__version__ in capsys.readouterr().out or args != ["--version"]


def test_no_command_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "Commands:" in err


# --- train ----------------------------------------------------------------------------------------


def test_train_writes_plain_lines_where_there_is_no_terminal(
    text_file: Path, tmp_path: Path
) -> None:
    code, out, err = run("train", text_file, "--out", tmp_path / "m", "--steps", STEPS, *SMALL)
    assert (code, out) == (0, "")
    assert not CONTROL.search(err)
    for words in ("found 1 text", "23.0 k parameters", f"step {STEPS}/{STEPS} (100 %): loss",
                  "bits per byte", "tokens/s", "peak memory", "memory forecast",
                  "12 spheres, each works itself", "thread balance: busiest 1.00 x the mean",
                  f"crystalline generate {tmp_path / 'm'}"):  # fmt: skip
        assert words in err
    assert len(err.splitlines()) < 50
    assert max(map(len, err.splitlines()[-14:])) <= 80  # the table of the spheres


def test_json_is_one_object_a_line_and_nothing_else(text_file: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "train", text_file, "--out", tmp_path / "m", "--steps", 10, "--json", *SMALL
    )
    assert (code, err) == (0, "")
    kinds = [json.loads(line)["event"] for line in out.splitlines()]
    assert kinds[0] == "data"
    assert kinds[-1] == "done"
    assert kinds.count("step") == 10
    assert {"tokenizer", "progress", "plan", "validation", "checkpoint"} < set(kinds)


def test_quiet_is_quiet(text_file: Path, tmp_path: Path) -> None:
    args = ["train", text_file, "--out", tmp_path / "m", "--steps", 3, "--quiet", *SMALL]
    assert run(*args) == (0, "", "")
    assert (tmp_path / "m" / "metrics.jsonl").read_text().count("\n") >= 3


def test_a_file_of_options_and_the_command_line_over_it(text_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    held = tmp_path / "held.txt"
    held.write_text(prose(200, seed=5))
    config.write_text(
        f'dim = 32\nlayers = 2\nseq_len = 16\nbatch_size = 4\nvocab_size = 300\nval = "{held}"\n'
        "accumulate = 2\nkv_heads = 1\nheads = 2\nhidden = 48\nthreads = 1\nminutes = 5\n"
    )
    out = tmp_path / "m"
    args = ["train", text_file, "--config", config, "--out", out, "--layers", 1, "--steps", 2]
    invoke(*args, "--seed", 7, "--lr", 0.002)
    said = json.loads(invoke("info", out, "--json"))
    assert said["training"]["steps"] == 2  # not minutes = 5 of the file
    recipe, sizes = said["training"]["recipe"], said["config"]
    assert (recipe["seed"], recipe["lr"], recipe["accumulate"]) == (7, 0.002, 2)
    assert (sizes["layers"], sizes["heads"], sizes["kv_heads"], sizes["hidden"]) == (1, 2, 1, 48)
    assert said["data"]["validation"]["bytes"] == held.stat().st_size


def test_a_preset_epochs_and_a_tokenizer_of_another_model(text_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    invoke("train", text_file, "--out", other, "--steps", 1, "--quiet", *SMALL)
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("one line of text is enough to train on\n")
    out = tmp_path / "m"
    invoke("train", tiny, "--preset", "nano", "--tokenizer", other, "--epochs", 2,
           "--batch-size", 1, "--threads", 1, "--out", out, "--quiet")  # fmt: skip
    said = json.loads(invoke("info", out, "--json"))
    assert said["config"]["dim"] == 128
    assert said["training"]["step"] >= 2
    assert (out / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_ctrl_c_keeps_everything_and_resume_ends_in_the_same_bytes(
    text_file: Path, tmp_path: Path
) -> None:
    steps = 1500
    common = [text_file, "--steps", steps, *SMALL]
    process = start("train", *common, "--out", tmp_path / "a", "--json")
    follow_steps(process, 20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert re.fullmatch(r"crystalline: stopped by a signal after step \d+ of 1500; .*\n", err)
    done = json.loads(invoke("info", tmp_path / "a", "--json"))["training"]["step"]
    assert 20 <= done < steps
    assert run("train", "--resume", "--out", tmp_path / "a", "--quiet") == (0, "", "")
    assert run("train", *common, "--out", tmp_path / "b", "--quiet") == (0, "", "")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_sigterm_stops_as_well(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    process = start("train", text_file, "--steps", 100000, "--out", out, "--json", *SMALL)
    follow_steps(process, 5)
    process.terminate()
    process.communicate(timeout=LIMIT)
    assert process.returncode == 143
    assert json.loads(invoke("info", out, "--json"))["training"]["step"] >= 5


def test_ctrl_c_while_the_text_is_read(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crystalline.api.training", interrupted)
    assert main(["train", str(text_file), "--quiet"]) == 130
    assert capsys.readouterr().err.strip() == "crystalline: stopped"


# --- on a terminal --------------------------------------------------------------------------------


def test_a_terminal_shows_a_live_display(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would break the lines that are looked for
    args = ["train", text_file, "--out", "m", "--steps", 1000, *SMALL, "--lr", 0.003]
    code, shown = on_terminal(lambda process, shown: None, *args)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert plain != shown
    for words in ("found 1 text", "23.0 k parameters", " of 1,000", " left", "tokens/s ", "loss ",
                  "validation ", "bits per byte", "peak memory ", "use it", "done"):  # fmt: skip
        assert words in plain
    assert plain.count('--prompt "..."') == 1
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_display_can_be_drawn_at_every_moment(
    text_file: Path, tmp_path: Path, encoding: str
) -> None:
    events: list[dict[str, Any]] = [
        {"event": "progress", "phase": "tokens", "done": 1, "total": 4},
        {"event": "data", "files": 1, "bytes": 9,
         "skipped": [{"path": "a[b].png", "reason": "binary"}]},
    ]  # fmt: skip
    args = ["train", text_file, "--out", tmp_path / "m", "--steps", 9, "--json", *SMALL]
    events += map(json.loads, invoke(*args).splitlines())
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, force_terminal=True, width=60, highlight=False)
    screen = Screen(console)
    for event in events:
        screen(event)
        console.print(screen.doing)
    file.flush()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue().decode())
    for words in ("turning text into tokens: 25 % of 4B", "a[b].png: binary", "step 9 of 9",
                  "measuring how fast", "learning a vocabulary", "starting", "use it"):  # fmt: skip
        assert words in shown


def test_generated_text_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wild:
        def stream(self, prompt: str, **options: Any) -> list[str]:
            return ["one\x1b[2J", "\ttwo\nthree\x07"]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    write.write(Wild(), "zero ", False, {})
    assert "zero \x1b[0mone\\x1b[2J\ttwo\nthree\\x07\n" in sys.stdout.getvalue()  # type: ignore[attr-defined]


def test_tame_keeps_letters() -> None:
    assert tame("Füße \u3000 語 a\tb") == "Füße \u3000 語 a\\tb"
    assert tame("a\nb\udcff\x1b", keep="\n") == "a\nb\\udcff\\x1b"


# --- words ----------------------------------------------------------------------------------------


def test_of_many_skipped_files_a_few_of_each_kind_are_named() -> None:
    skipped = [{"path": f"{i}.png", "reason": "binary"} for i in range(500)]
    skipped += [{"path": ".git", "reason": "hidden"}, {"path": "a\n.txt", "reason": "empty"}]
    lines = found({"files": 3, "bytes": 12345, "skipped": skipped})
    assert lines[0] == "found 3 texts, 12.3 kB"
    assert "500 binary, 1 hidden, 1 empty" in lines[1]
    assert len(lines) == 2 + SKIPPED + 1
    assert "  a\\n.txt: empty" in lines
    assert lines[-1] == f"  and {502 - SKIPPED} more; --json lists them all"


@pytest.mark.parametrize(("seconds", "said"), [
    (0.2, "0:00"), (61, "1:01"), (3600, "1:00:00"), (90061, "1 d 1 h"), (-3, "0:00"),
])  # fmt: skip
def test_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


@pytest.mark.parametrize(("n", "said"), [
    (7, "7"), (999, "999"), (1000, "1.00 k"), (12345, "12.3 k"), (999_999, "1.00 M"),
    (123_456_789, "123 M"), (2.5e9, "2.50 G"),
])  # fmt: skip
def test_short(n: float, said: str) -> None:
    assert short(n) == said


def test_a_better_checkpoint_than_the_last_is_pointed_at() -> None:
    done: dict[str, Any] = {
        "step": 9, "seconds": 3.0, "path": "my models/x", "best": 3.0, "best_step": 4,
        "best_bits_per_byte": 2.0, "validation": {"loss": 3.3, "bits_per_byte": 2.2},
    }  # fmt: skip
    rows = dict(finished(done))
    assert rows["best"] == (
        "3.000 nats per token, 2.000 bits per byte, at step 4: kept in 'my models/x'/best"
    )
    assert rows["use it"].startswith("crystalline generate 'my models/x' ")
    assert "best" not in dict(finished(done | {"best": 3.299}))
    assert "too short" in dict(finished(done | {"validation": None}))["validation"]


def test_a_resumed_run_says_so(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    invoke("train", text_file, "--out", out, "--steps", 2, "--quiet", *SMALL)
    lines = invoke("train", "--resume", "--out", out, "--steps", 4, "--json").splitlines()
    events = [json.loads(line) for line in lines]
    (plan,) = [e for e in events if e["event"] == "plan"]
    assert dict(planned(plan))["training"].startswith("resumed at step 2 of 4, steps of 4 x 16")


def test_plain_lines_come_at_most_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    show = Lines()
    for i in range(1, 1001):
        show({"event": "step", "step": i, "steps": 1000, "loss": 1.0, "tokens_per_s": 1.0,
              "eta": 1.0, "peak_mib": 1.0})  # fmt: skip
    show({"event": "progress", "phase": "tokens", "done": 5, "total": 10})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[-1].startswith("step 1,000/1,000 (100 %): loss 1.000, ")
