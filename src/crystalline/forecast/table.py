"""A forecast as a reader wants it: a few sentences, and the memory by purpose."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from crystalline.words import clock, plural, short

BAR = 24  # characters of the longest bar


def size(n: float) -> str:
    """Bytes as 950 KiB, 41.3 MiB, 1.20 GiB."""
    for unit, least in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if n >= least:
            x = n / least
            return f"{x:,.{2 if x < 10 else 1 if x < 100 else 0}f} {unit}"
    return f"{n / 1024:.0f} KiB"


def count(n: float) -> str:
    """Parameters and tokens: 135 M, 10.0 B."""
    return short(n).replace(" G", " B")


def lasts(seconds: float) -> str:
    """A time that may be very long."""
    years = seconds / (365.25 * 86400)
    return f"{years:,.1f} years" if years >= 2 else clock(seconds)


def view(f: dict[str, Any]) -> RenderableType:
    """The whole forecast."""
    return Group(_rows(model_rows(f)), "", *_memory(f), "", _rows(time_rows(f)))


def model_rows(f: dict[str, Any]) -> list[tuple[str, str]]:
    """What would be trained, on what."""
    c, r = f["config"], f["recipe"]
    kv = f" ({c['kv_heads']} key/value)" if c["kv_heads"] != c["heads"] else ""
    asked = f["params_asked"]
    off = "" if asked is None else f", {100 * (f['parameters'] / asked - 1):+.1f} % of those asked"
    parts = ", ".join(f"{name} {count(n)}" for name, n in f["parts"].items())
    batch = f"{r['batch_size']} x {c['seq_len']} tokens"
    batch += f" x {r['accumulate']} accumulated" if r["accumulate"] > 1 else ""
    loss = f", loss over {r['samples']:,} sampled tokens" if r["samples"] else ""
    rows = [
        ("model", f"{count(f['parameters'])} parameters{off}: {plural(c['layers'], 'layer')}, "
         f"width {c['dim']}, {plural(c['heads'], 'head')}{kv}, feed-forward {c['hidden']}, context "
         f"{c['seq_len']}, vocabulary {c['vocab_size']:,}"),
        ("parts", parts),
        ("training", f"{batch} a step, {r['optimizer']}, {r['precision']}{loss}, learning rate "
         f"{r['lr']:.2g}"),
    ]  # fmt: skip
    if f["text"]:
        t = f["text"]
        rows.append(("text", f"{plural(t['documents'], 'document')}, {short(t['bytes'])}B, about "
                     f"{short(t['tokens'])} tokens to learn from"))  # fmt: skip
    if f["reason"]:
        rows.append(("chosen", f["reason"]))
    return rows


def time_rows(f: dict[str, Any]) -> list[tuple[str, str]]:
    """How long it takes, and what it leaves on the disk."""
    at, d, n = f["length"], f["disk"], f["processes"]
    epochs = "" if at["epochs"] is None else f", {at['epochs']:.1f} passes over the text"
    tried = f"by trying {100 * f['tried']:.0f} % of a batch"
    if f["tried"] < 0.01:
        tried = "by trying a small part of it"
    elif f["tried"] > 0.995:
        tried = "by trying some steps"
    ideal = f"; ideal, if {n} processes divide the work without loss" if n > 1 else ""
    total = d["checkpoint"] + d["best"] + d["tokens"]
    tokens = f", tokens {size(d['tokens'])}" if d["tokens"] else ""
    return [
        ("speed", f"{f['tokens_per_s']:,.0f} tokens/s on {plural(f['threads'], 'thread')}"
         f"{' each' if n > 1 else ''}, {f['isa']}: {tried}{ideal}"),
        ("time", f"{lasts(at['seconds'])} for {count(at['tokens'])} tokens ({at['by']}), "
         f"{plural(at['steps'], 'step')}{epochs}: {at['tokens_per_parameter']:.2g} tokens a "
         "parameter"),
        ("disk", f"{size(total)}: checkpoint {size(d['checkpoint'])}, best weights "
         f"{size(d['best'])}{tokens}; {size(d['while saving'])} more while saving"),
        ("fits", "yes" if f["fits"] else f"no: {f['nearest']}"),
    ]  # fmt: skip


def _rows(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        bad = name == "fits" and text != "yes"
        table.add_row(Text(name, style="bold red" if bad else "bold cyan"), Text(text))
    return table


def _memory(f: dict[str, Any]) -> list[RenderableType]:
    """The peak, and a bar for each purpose."""
    m = f["memory"]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    training = sum(m["training"].values())
    longest = max(m["training"].values())
    each = f" of each of {f['processes']} processes" if f["processes"] > 1 else ""
    head = Text.assemble(("memory  ", "bold cyan"), (size(m["peak"]), "bold"),
                         f" at the peak{each}; {size(m['available'])} available")  # fmt: skip
    for name, n in m["training"].items():
        if n:
            bar = max(1, round(BAR * n / longest))
            table.add_row(f"  {name}", size(n), Text("█" * bar, style="cyan"))
    for name, n in m["before"].items():
        if n > training:
            table.add_row(f"  {name}", size(n), "before training: that is the peak")
    return [head, table]
