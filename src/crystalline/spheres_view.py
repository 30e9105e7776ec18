"""The 12 spheres for a reader: where they run, what they did, and the board of a running training.

Functions from events and boards to rows, tables and lines; nothing here prints or waits.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from crystalline.errors import tame
from crystalline.words import clock, plural, short, spans

Facts = Mapping[str, Any]

SPHERES = 12
LISTED = 8  # threads named one by one; more are told together
PLAIN = 80  # columns where there is no terminal
OLD = 2.0  # seconds from which on the age of a board is told
WINDOW = 6  # boards: rates are differences over the last second or so, or they would flicker
BESIDE_THREADS = 21  # lines of the board that are not threads
TIMES = ("busy", "barrier", "idle")
SHARES = ("busy%", "barrier%", "idle%")  # the columns that tell them
SPARE = (  # columns that go where there is no room, the first ones first
    "cross", "stolen", "tasks", "norm%", "leaves", "tokens", "threads", "spheres", "idle%",
    "barrier%", "loss", "tokens/s",
)  # fmt: skip
CHILDREN = ("", " x 12 children", " x 12 children x 12 grandchildren")


# --- before: the mapping and the hierarchy --------------------------------------------------------


def hierarchy(depths: Sequence[int]) -> str:
    """Who has children, in words."""
    leaves = sum(12 ** (depth - 1) for depth in depths)
    if max(depths) == 1:
        return f"{len(depths)} spheres, each works itself"
    if len(set(depths)) == 1:
        return f"{len(depths)} spheres{CHILDREN[depths[0] - 1]} = {leaves:,} leaves"
    deeper = sum(depth > 1 for depth in depths)
    return f"{len(depths)} spheres, {deeper} of them with children = {leaves:,} leaves"


def mapping(e: Facts) -> list[tuple[str, str]]:
    """The threads and spheres of a plan event, as rows of its table."""
    pinned = "each kept on its CPU" if e["pinned"] else "not pinned: the system places them"
    if e["threads"] == 1 and e["pinned"]:
        pinned = "kept on its CPU"
    named = _threads(e) if e["threads"] <= LISTED else _kinds(e)
    stealing = "on" if e["steal"] else "off"
    each = ""
    if e["leaves"] > SPHERES and 1 < e["threads"] <= e["leaves"]:
        each = f", about {e['leaves'] / e['threads']:,.0f} a thread"
    return [
        ("threads", f"{plural(e['threads'], 'thread')}, {pinned}"),
        *(("", line) for line in named),
        ("spheres", hierarchy(e["depths"]) + each),
        ("", f"laid out {e['strategy']}, stealing {stealing}, "
         f"expected load balance {100 * e['load_balance']:.0f} %"),
    ]  # fmt: skip


def _carried(e: Facts) -> list[list[int]]:
    """The spheres of each thread."""
    carried: list[list[int]] = [[] for _ in range(e["threads"])]
    for sphere, thread in enumerate(e["groups"]):
        carried[thread].append(sphere)
    return carried


def _threads(e: Facts) -> list[str]:
    lines = []
    for thread, spheres in enumerate(_carried(e)):
        cpu = f" (CPU {e['cpus'][thread]})" if e["pinned"] else ""
        what = "all 12 spheres" if len(spheres) == SPHERES else "no sphere of its own"
        if 0 < len(spheres) < SPHERES:
            what = f"{'sphere' if len(spheres) == 1 else 'spheres'} {' '.join(map(str, spheres))}"
        lines.append(f"thread {thread}{cpu}: {what}")
    return lines


def _kinds(e: Facts) -> list[str]:
    """Many threads: those that carry as many spheres stand in one line."""
    kinds: dict[int, list[int]] = {}
    for thread, spheres in enumerate(_carried(e)):
        kinds.setdefault(len(spheres), []).append(thread)
    lines = []
    for count, threads in sorted(kinds.items(), reverse=True):
        cpus = ""
        if e["pinned"]:
            cpus = f" (CPUs {spans((e['cpus'][t] for t in threads), 24)})"
        what = f"{plural(count, 'sphere')} each" if count else "no sphere of their own"
        if not count and e["leaves"] >= e["threads"]:
            what = "leaves of other threads' spheres"
        who = "thread" if len(threads) == 1 else "threads"
        lines.append(f"{who} {spans(threads, 24)}{cpus}: {what}")
    return lines


def changed(e: Facts) -> list[str]:
    """A hierarchy event in a line, if it is worth one: that leaves move between threads is daily
    work where others use the machine too."""
    if e["what"] != "spawned":
        return []
    leaves = sum(12 ** (depth - 1) for depth in e["depths"])
    return [f"step {e['step']:,}: threads were uneven, so spheres got children: {leaves:,} leaves"]


# --- after: what each sphere did ------------------------------------------------------------------


def summary(e: Facts) -> Group:
    """What the spheres of a snapshot did since the training began, and how even threads were."""
    table = Sheet("sphere", "threads", "tokens", "tasks", "stolen", *SHARES, "loss", "norm%")
    for row in e["spheres"]:
        table.add(
            str(row["sphere"]), _who(row["threads"]), _count(row["tokens"]),
            _count(row["tasks"]), _count(row["stolen"]), *_percents(row, None),
            _loss(row["loss"]), _percent(row["norm_share"]),
        )  # fmt: skip
    return Group(table, Text(), Text(balance(e["threads"])))


def balance(threads: Sequence[Facts]) -> str:
    """How evenly the threads were busy, in a line."""
    busy = [row["busy"] for row in threads]
    waited = sum(row["barrier"] for row in threads)
    most = max(busy) * len(busy) / max(sum(busy), 1)
    share = waited / max(sum(busy) + waited, 1)
    return (
        f"thread balance: busiest {most:.2f} x the mean, "
        f"{100 * share:.1f} % of the work spent at barriers"
    )


# --- while it runs: the board ---------------------------------------------------------------------


class Recent:
    """The last boards: the newest, and one from a moment before to take differences from."""

    def __init__(self) -> None:
        self._boards: deque[Facts] = deque(maxlen=WINDOW)

    def add(self, board: Facts) -> None:
        """One more, unless it is empty or the same as the last."""
        if board and (not self._boards or board["time"] != self._boards[-1]["time"]):
            self._boards.append(board)

    @property
    def now(self) -> Facts | None:
        """The newest board; None before there is one."""
        return self._boards[-1] if self._boards else None

    @property
    def before(self) -> Facts | None:
        """The oldest board that is kept; None while there is only one."""
        return self._boards[0] if len(self._boards) > 1 else None


def board_view(board: Facts, before: Facts | None, age: float, height: int = 1000) -> Group:
    """A board: its training, a table of the spheres, and one of the threads that leaves some out
    rather than be longer than ``height`` lines.

    Rates and shares are of the time since ``before``, of the whole training without one; ``age`` is
    that of the board in seconds."""
    room = max(3, height - BESIDE_THREADS)
    return Group(
        *_head(board, age), Text(), _spheres(board, before), Text(),
        _threads_table(board, before, room),
    )  # fmt: skip


def _head(board: Facts, age: float) -> list[Text]:
    first = Text(overflow="fold").append(tame(board["model"]), "bold")
    first.append(f"  {board['state']}", "green" if board["state"] == "RUNNING" else "yellow")
    if age > OLD:
        first.append(f"  as of {clock(age)} ago", "yellow")
    second = Text("no step done yet")
    if "step" in board:
        step, steps = board["step"], board["steps"]
        second = Text(
            f"step {step:,} of {steps:,} ({100 * step / max(steps, 1):.0f} %)   "
            f"loss {board['loss']:.3f}   {board['tokens_per_s']:,.0f} tokens/s   "
            f"{clock(board['eta'])} left"
        )
    depth = max(board["depths"])
    third = Text(
        f"{board['isa']}, {'pinned' if board['pinned'] else 'not pinned'}, "
        f"stealing {'on' if board['steal'] else 'off'}, laid out {board['strategy']}, "
        f"depth {depth}, {sum(row['leaves'] for row in board['spheres']):,} leaves",
        style="dim",
    )
    return [first, second, third]


def _spheres(board: Facts, before: Facts | None) -> Sheet:
    table = Sheet(
        "sphere", "threads", "tokens/s", *SHARES, "tasks", "stolen", "loss", "norm%", "cross",
    )  # fmt: skip
    seconds = (_wall(board) - (_wall(before) if before else 0)) / 1e9
    for row in board["spheres"]:
        old = before["spheres"][row["sphere"]] if before else None
        tokens = row["tokens"] - (old["tokens"] if old else 0)
        table.add(
            str(row["sphere"]), _who(row["threads"]),
            f"{tokens / seconds:,.0f}" if seconds > 0 else "-", *_percents(row, old),
            _count(row["tasks"]), _count(row["stolen"]), _loss(row["loss"]),
            _percent(row["norm_share"]), _count(row["crossings"]),
        )  # fmt: skip
    return table


def _threads_table(board: Facts, before: Facts | None, room: int) -> RenderableType:
    table = Sheet("thread", "CPU", "spheres", "leaves", "tasks", "stolen", *SHARES)
    rows = board["threads"]
    shown = rows if len(rows) <= room else rows[: room - 1]
    for row in shown:
        old = before["threads"][row["thread"]] if before else None
        table.add(
            str(row["thread"]), str(row["cpu"]) if row["cpu"] >= 0 else "any",
            spans(row["spheres"], 24), f"{row['leaves']:,}", _count(row["tasks"]),
            _count(row["stolen"]), *_percents(row, old),
        )  # fmt: skip
    if len(shown) == len(rows):
        return table
    return Group(table, Text(f"and {plural(len(rows) - len(shown), 'thread')} more"))


def _wall(board: Facts) -> int:
    """Nanoseconds since the counting began, which every thread spends one way or another."""
    return sum(int(board["threads"][0][key]) for key in TIMES)


# --- cells ----------------------------------------------------------------------------------------


class Sheet:
    """A table of short cells that leaves columns out, those of SPARE in turn, rather than be wider
    than the console."""

    def __init__(self, *heads: str) -> None:
        self.heads = heads
        self.rows: list[Sequence[str]] = []

    def add(self, *cells: str) -> None:
        """One more row."""
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The columns that find room, as rich asks for them."""
        columns = dict(zip(self.heads, zip(*self.rows, strict=True), strict=True))
        width = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}

        def wide(gap: int) -> bool:
            return sum(width[name] + gap for name in columns) - gap > options.max_width

        gap = 1 if wide(2) else 2
        for name in SPARE:
            if name in columns and wide(gap):
                del columns[name]
        table = Table.grid(padding=(0, gap), pad_edge=False)
        table.show_header, table.header_style = True, "bold cyan"
        for name in columns:  # cropped, as an ellipsis is not in every encoding
            table.add_column(name, justify="right", no_wrap=True, overflow="crop")
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*map(Text, cells))
        yield table


def _count(n: int) -> str:
    return short(n).replace(" ", "")


def _who(threads: Sequence[int]) -> str:
    said = spans(threads, 7)
    return said if len(said) <= 7 else f"{len(threads)} thr"


def _loss(loss: float) -> str:
    """A batch of fewer than 12 sequences leaves some spheres without one, and so without a loss."""
    return f"{loss:.3f}" if loss else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _percents(row: Facts, before: Facts | None) -> list[str]:
    """Busy, barrier and idle as shares of the three together.  What changed hands between two
    boards may have less than before: that is nothing, not a debt."""
    times = [max(0, row[key] - (before[key] if before else 0)) for key in TIMES]
    total = sum(times)
    return [_percent(t / total) if total else "-" for t in times]


def as_lines(view: RenderableType, width: int = PLAIN) -> list[str]:
    """A table as lines without control characters."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_terminal=False).print(view)
    return [line.rstrip() for line in file.getvalue().splitlines()]
