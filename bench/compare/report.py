"""What came out, for people, for files, and beside an earlier day."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from compare.contest import OURS, Row, Settings

MOST_SLOWER = 0.05  # of a ratio, until --against complains
BEGIN = "<!-- written by python -m bench.compare --readme: not by hand -->"
END = "<!-- end of what is written -->"
README = Path(__file__).parent.parent.parent / "README.md"


def figure(x: float | None) -> str:
    """Three digits that mean something."""
    if x is None:
        return ""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def shape(row: Row) -> list[str]:
    """A row's words: name, ours, best peer, ratio, share of the limit."""
    peer = f"{figure(row.peers[row.best])} ({row.best})" if row.best else ""
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    unit = "" if row.unit == "ratio" else f" {row.unit}"
    ours = figure(row.ours) + unit if row.ours is not None else ""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return [row.name, ours, peer, ratio, share]


HEAD = ("", "crystalline", "best peer", "ratio", "of the limit")


def table(group: str, rows: list[Row]) -> Table:
    """A group for the terminal, every peer in a column of its own."""
    names = dict.fromkeys(name for r in rows for name in (*r.peers, *r.failed))
    peers = [name for name in names if name != OURS]
    shown = Table(title=group, title_justify="left")
    for name in ("", "unit", "crystalline", *peers, "ratio", "of the limit"):
        shown.add_column(name, justify="left" if name in ("", "unit") else "right")
    for r in rows:
        words = shape(r)
        shown.add_row(
            r.name + (" (noisy)" if r.noisy else ""), "" if r.unit == "ratio" else r.unit,
            figure(r.ours), *(figure(r.peers.get(p)) for p in peers), *words[3:],
        )  # fmt: skip
    for name, why in {k: v for r in rows for k, v in r.failed.items()}.items():
        shown.caption = f"{shown.caption or ''}\n{name} takes no part: {why}".strip()
    return shown


def document(s: Settings, rows: list[Row], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything, as --json writes it."""
    return {
        "date": datetime.date.today().isoformat(),
        "threads": s.threads, "isa": s.isa, "samples": s.samples, "peaks": s.peaks,
        "rows": [asdict(r) for r in rows], "stages": stages,
    }  # fmt: skip


def earlier(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of an earlier --json file by group and name.  Raises ClickException."""
    try:
        rows = json.loads(path.read_text())["rows"]
        for r in rows:
            if r["ratio"] is not None and not isinstance(r["ratio"], int | float):
                raise TypeError(f"a ratio is {r['ratio']!r}")
        return {(r["group"], r["name"]): {"ratio": r["ratio"], "unit": r["unit"]} for r in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise click.ClickException(
            f"{path}: no file of an earlier `python -m bench.compare --json {path}` "
            f"({type(error).__name__}: {error})"
        ) from None


def check_writable(path: Path) -> None:
    """Before anything is measured: what would not find room is told now.  Raises ClickException."""
    try:
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> click.ClickException:
    """The one line about a file that took nothing."""
    why = error.strerror or error
    return click.ClickException(f"{path}: cannot be written ({why}); name a file in another folder")


def slower(rows: list[Row], before: dict[tuple[str, str], dict[str, Any]]) -> list[list[str]]:
    """What got slower (or larger) relative to its best peer: name, ratio then and now, change.

    Raises ClickException where nothing can be compared.
    """
    common = [
        (r, old) for r in rows
        if (old := before.get((r.group, r.name), {}).get("ratio")) and r.ratio
    ]  # fmt: skip
    if not common:
        raise click.ClickException(
            "--against: no row of this run is in that file; run it with the same --only and --quick"
        )
    found = []
    for r, old in common:
        assert r.ratio is not None
        change = old / r.ratio if not r.less_is_better else r.ratio / old
        if change > 1 + MOST_SLOWER:
            worse = f"{100 * (change - 1):.0f} % worse"
            found.append([f"{r.group}: {r.name}", f"{old:.3f}", f"{r.ratio:.3f}", worse])
    return found


def slower_table(found: list[list[str]]) -> Table:
    """For the terminal."""
    shown = Table(title="slower than before, relative to the best peer", title_justify="left")
    for name in ("", "ratio before", "now", "change"):
        shown.add_column(name, justify="left" if name == "" else "right")
    for line in found:
        shown.add_row(*line)
    return shown


def markdown(s: Settings, rows: list[Row]) -> str:
    """What stands between the marks of the README."""
    today = datetime.date.today().isoformat()
    lines = [
        f"{s.peaks['cpu']}, {s.threads} threads, {s.isa}, {today}: medians of {s.samples} samples "
        "in turn. The limit is the peak of multiply-adds or of moving the same bytes, measured in "
        "the same run; a ratio is ours over the best peer's.",
    ]  # fmt: skip
    for group in dict.fromkeys(r.group for r in rows):
        lines += ["", "| " + " | ".join([group, *HEAD[1:]]) + " |", "|---" * len(HEAD) + "|"]
        lines += ["| " + " | ".join(shape(r)) + " |" for r in rows if r.group == group]
    noisy = sum(r.noisy for r in rows)
    if noisy:
        lines += ["", f"In {noisy} rows others were using the machine all the time."]
    return "\n".join(lines)


def write_readme(text: str, readme: Path = README) -> None:
    """Puts the text between the marks.  Raises ClickException where there are none."""
    whole = readme.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"{readme}: the lines {BEGIN!r} and {END!r} are not there")
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
