"""The spheres as they are shown: in the plan, at the end, and while a training runs."""

from __future__ import annotations

import io
from typing import Any

import pytest
from command import rows_of
from rich.console import Console

from crystalline.progress import Lines, Screen
from crystalline.spheres_view import (
    Recent,
    as_lines,
    balance,
    board_view,
    hierarchy,
    mapping,
    summary,
)
from crystalline.words import spans


def plan(threads: int, **said: Any) -> dict[str, Any]:
    """What a plan event tells of the crew."""
    return {
        "threads": threads, "groups": [g % threads for g in range(12)],
        "cpus": list(range(threads)), "pinned": True, "steal": True, "depths": [1] * 12,
        "leaves": 12, "load_balance": 1.0, "strategy": "round_robin", **said,
    }  # fmt: skip


def snapshot(threads: int = 2, scale: int = 1, **said: Any) -> dict[str, Any]:
    """A board on which everything is ``scale`` times as much."""
    times = {"busy": 6 * 10**8 * scale, "barrier": 3 * 10**8 * scale, "idle": 10**8 * scale}
    spheres = [
        {"sphere": g, "threads": [g % threads], "leaves": 1, "tokens": 500 * scale,
         "sequences": 5 * scale, "tasks": 1234 * scale, "stolen": 12 * scale, **times,
         "loss": 2.5, "norm_share": 1 / 12, "crossings": 3 * scale}
        for g in range(12)
    ]  # fmt: skip
    rows = [
        {"thread": t, "cpu": t, "spheres": list(range(t, 12, threads)), "leaves": 12 // threads,
         "tasks": 7404 * scale, "stolen": 72 * scale, **times}
        for t in range(threads)
    ]  # fmt: skip
    return {
        "time": 1e9 + scale, "state": "RUNNING", "model": "m", "isa": "avx2", "steal": True,
        "pinned": True, "step": 10 * scale, "steps": 100, "loss": 2.5, "tokens_per_s": 6000.0,
        "eta": 61.0, "spheres": spheres, "threads": rows, "depths": [1] * 12,
        "strategy": "round_robin", **said,
    }  # fmt: skip


# --- before ---------------------------------------------------------------------------------------


def test_every_thread_is_named_with_its_cpu_and_spheres() -> None:
    assert mapping(plan(2)) == [
        ("threads", "2 threads, each kept on its CPU"),
        ("", "thread 0 (CPU 0): spheres 0 2 4 6 8 10"),
        ("", "thread 1 (CPU 1): spheres 1 3 5 7 9 11"),
        ("spheres", "12 spheres, each works itself"),
        ("", "laid out round_robin, stealing on, expected load balance 100 %"),
    ]
    free = [text for _, text in mapping(plan(1, pinned=False, steal=False, load_balance=0.857))]
    assert free[:2] == ["1 thread, not pinned: the system places them", "thread 0: all 12 spheres"]
    assert free[-1].endswith("stealing off, expected load balance 86 %")


@pytest.mark.parametrize("threads", [1, 2, 5, 8, 9, 12, 13, 48, 4096])
@pytest.mark.parametrize("pinned", [False, True])
def test_many_threads_are_told_together(threads: int, pinned: bool) -> None:
    said = mapping(plan(threads, pinned=pinned, depths=[2] * 12, leaves=144))
    assert len(said) <= 14
    assert all(len(text) <= 68 for _, text in said)  # beside the names, in 80 columns
    if threads == 48:
        cpus = (" (CPUs 0-11)", " (CPUs 12-47)") if pinned else ("", "")
        assert said[1:3] == [
            ("", f"threads 0-11{cpus[0]}: 1 sphere each"),
            ("", f"threads 12-47{cpus[1]}: leaves of other threads' spheres"),
        ]
        assert said[3] == ("spheres", "12 spheres x 12 children = 144 leaves, about 3 a thread")


def test_hierarchies_in_words() -> None:
    assert hierarchy([1] * 12) == "12 spheres, each works itself"
    assert hierarchy([3] * 12) == "12 spheres x 12 children x 12 grandchildren = 1,728 leaves"
    assert hierarchy([1] * 10 + [2, 3]) == "12 spheres, 2 of them with children = 166 leaves"
    assert spans([7, 1, 0, 4, 5, 6], 20) == "0,1,4-7"
    assert spans(range(0, 40, 2), 20) == "20 of them"


def test_children_that_came_by_themselves_are_worth_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    event = {"event": "hierarchy", "step": 1050, "what": "spawned", "depths": [2] * 12}
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    for show in (Lines(), Screen(console)):
        show(event)
        show(event | {"what": "rebalanced"})
    line = "step 1,050: threads were uneven, so spheres got children: 144 leaves\n"
    assert (capsys.readouterr().err, console.file.getvalue()) == (line, line)  # type: ignore[attr-defined]


# --- after ----------------------------------------------------------------------------------------


def test_the_table_of_what_the_spheres_did() -> None:
    lines = as_lines(summary(snapshot()))
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [
        "sphere", "threads", "tokens", "tasks", "stolen", "busy%", "barrier%", "idle%", "loss",
        "norm%",
    ]  # fmt: skip
    rows = rows_of(lines, "sphere")
    assert len(rows) == 12
    assert rows[3] == ["3", "1", "500", "1.23k", "12", "60", "30", "10", "2.500", "8"]
    assert lines[-1] == (
        "thread balance: busiest 1.00 x the mean, 33.3 % of the work spent at barriers"
    )


def test_balance() -> None:
    rows = [{"busy": 30, "barrier": 0}, {"busy": 10, "barrier": 10}]
    assert balance(rows).split(", ") == [
        "thread balance: busiest 1.50 x the mean", "20.0 % of the work spent at barriers",
    ]  # fmt: skip
    assert "0.00 x" in balance([{"busy": 0, "barrier": 0}])


# --- the board ------------------------------------------------------------------------------------


def test_rates_are_of_the_time_between_two_boards() -> None:
    before, now = snapshot(), snapshot(scale=3)
    now["spheres"][5] |= {"busy": 6 * 10**8, "barrier": 3 * 10**8, "idle": 3 * 10**8}
    now["spheres"][6] |= {"busy": 8 * 10**8, "barrier": 0, "tokens": 1000}
    lines = as_lines(board_view(now, before, 0.1))
    rows = rows_of(lines, "sphere")
    # 1000 more tokens in 2 s; half a second's worth of nothing but idle; less barrier is none.
    assert rows[0] == ["0", "0", "500", "60", "30", "10", "3.70k", "36", "2.500", "8", "9"]
    assert rows[5][3:6] == ["0", "0", "100"]
    assert rows[6][2:6] == ["250", "50", "0", "50"]
    assert rows_of(lines, "thread")[1] == [
        "1", "1", "1,3,5,7,9,11", "6", "22.2k", "216", "60", "30", "10",
    ]  # fmt: skip
    assert lines[:3] == [
        "m  RUNNING", "step 30 of 100 (30 %)   loss 2.500   6,000 tokens/s   1:01 left",
        "avx2, pinned, stealing on, laid out round_robin, depth 1, 12 leaves",
    ]  # fmt: skip


def test_one_board_alone_tells_of_the_whole_training() -> None:
    lines = as_lines(board_view(snapshot(scale=2), None, 75.0))
    assert lines[0] == "m  RUNNING  as of 1:15 ago"
    assert rows_of(lines, "sphere")[0][2:6] == ["500", "60", "30", "10"]


def test_a_board_before_the_first_step_and_without_pinning() -> None:
    board = snapshot(scale=0, model="a\x1b[2Jb", pinned=False, steal=False)
    for row in board["threads"]:
        row["cpu"] = -1
    del board["step"]
    lines = as_lines(board_view(board, None, 0.0))
    assert lines[0].startswith("a\\x1b[2Jb")
    assert lines[1:3] == [
        "no step done yet",
        "avx2, not pinned, stealing off, laid out round_robin, depth 1, 12 leaves",
    ]
    assert rows_of(lines, "sphere")[0][2:6] == ["-"] * 4
    assert rows_of(lines, "thread")[0][1] == "any"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_tables_fit_every_terminal(width: int, encoding: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    board = snapshot(scale=999_999, step=10, tokens_per_s=1e6)
    for view in (board_view(board, None, 9.0, 24), summary(board)):
        console.print(view)
    file.seek(0)
    lines = file.read().splitlines()
    assert max(map(len, lines)) <= width
    heads = next(line for line in lines if line.startswith("sphere"))
    assert {"sphere", "busy%"} <= set(heads.split())
    assert ("cross" in heads) == (width >= 80)


def test_many_threads_do_not_push_the_spheres_off_the_screen() -> None:
    lines = as_lines(board_view(snapshot(12), None, 0.0, 26))
    assert len(lines) <= 26
    assert lines[-1] == "and 8 threads more"


def test_the_oldest_of_the_last_boards_is_what_rates_are_taken_from() -> None:
    recent = Recent()
    recent.add({})
    assert (recent.now, recent.before) == (None, None)
    for _ in range(2):
        recent.add({"time": 0})
    assert (recent.now, recent.before) == ({"time": 0}, None)
    for i in range(1, 20):
        recent.add({"time": i})
    assert (recent.now, recent.before) == ({"time": 19}, {"time": 14})
