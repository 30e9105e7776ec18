"""What a training run shows: a live display on a terminal, plain lines elsewhere, JSON, or nothing.

Everything here goes to standard error, so that standard output carries only what was asked for as
data: the events of ``--json``, generated text, tables of ``info``.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from crystalline.errors import tame
from crystalline.spheres.live import LiveTraining
from crystalline.spheres_view import Recent, as_lines, board_view, changed, mapping, summary
from crystalline.words import clock, plural, score, short

Event = dict[str, Any]

SKIPPED = 10  # files named that were not used
LINE_SHARE = 0.02  # of the steps between two plain lines, and
LINE_SECONDS = (1.0, 10.0)  # at least so long, but never longer than that
SMOOTH = 0.95  # of the shown loss comes from the steps before
NOTABLE = 0.995  # a best validation below this share of the last one is worth a word
LOOK_SECONDS = 0.25  # between two looks at the board of another training
FIRST_SECONDS = 1.0  # waited at most for what the first look shows
PHASES = {
    "tokenizer": "learning a vocabulary", "tokens": "turning text into tokens",
    "queue": "adding to the queue", "copy": "copying", "verify": "checking",
    "opening": "opening the model", "weights": "writing weights",
}  # fmt: skip
NEXT = {
    "tokenizer": "learning a vocabulary", "tokens": "measuring how fast this computer is",
    "queue": "", "copy": "", "verify": "",
    "opening": "reading the vocabulary", "weights": "checking what was written",
}  # fmt: skip


# --- sentences ------------------------------------------------------------------------------------


def _kind(skipped: dict[str, str]) -> str:
    return skipped["reason"].split(":")[0]


def _examples(skipped: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Some skipped files of every kind, so that many of one kind do not hide the others."""
    met: Counter[str] = Counter()
    ranked = []
    for item in skipped:
        kind = _kind(item)
        met[kind] += 1
        # That a hidden file is skipped is no surprise: such come last.
        ranked.append((kind == "hidden", met[kind], kind, item))
    chosen = sorted(ranked, key=lambda r: r[:2])[:SKIPPED]
    return [item for *_, item in sorted(chosen, key=lambda r: (r[0], r[2]))]


def found(event: Event) -> list[str]:
    """The data event in lines: what was found, and what was left out and why."""
    return [
        f"found {plural(event['files'], 'text')}, {short(event['bytes'])}B",
        *left_out(event["skipped"]),
    ]


def left_out(skipped: Sequence[dict[str, str]]) -> list[str]:
    """Files that are not used, by kind, and the first of each with the reason."""
    lines = []
    if skipped:
        kinds = Counter(_kind(s) for s in skipped)
        reasons = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common())
        lines.append(f"skipped {plural(len(skipped), 'file')} or folders: {reasons}")
        lines += [f"  {tame(s['path'])}: {tame(s['reason'])}" for s in _examples(skipped)]
        if len(skipped) > SKIPPED:
            lines.append(f"  and {len(skipped) - SKIPPED:,} more; --json lists them all")
    return lines


def planned(e: Event) -> list[tuple[str, str]]:
    """The plan event as rows of a table."""
    kv = f", {plural(e['kv_heads'], 'key/value head')}" if e["kv_heads"] != e["heads"] else ""
    held = f", {short(e['validation_tokens'])} held out" if e["validation_tokens"] else ""
    steps = plural(e["steps"], "step")
    if e["step"]:
        steps = f"resumed at step {e['step']:,} of {e['steps']:,}, steps"
    batch = f"{e['batch_size']} x {e['length']} tokens"
    batch += f" x {e['accumulate']} accumulated" if e["accumulate"] > 1 else ""
    rest = f", loss over {e['samples']:,} sampled tokens" if e["samples"] else ""
    rest += ", packed" if e["packing"] else ""
    rest += ", in bf16" if e["precision"] == "bf16" else ""
    rest += f", {e['optimizer']}" if e["optimizer"] != "adamw" else ""
    rest += f", {e['schedule']}" if e["schedule"] != "cosine" else ""
    rest += "".join(f", lattice {what}" for what in ("init", "rope") if e[what] == "lattice")
    rest += f", lambda {e['lambda_correction']:.3g}" if e["lambda_correction"] else ""
    rest += f", averaged by {e['ema']:g}" if e["ema"] else ""
    choice = e.get("choice") or {}
    chosen = [("chosen", choice["reason"])] if "seconds_a_step" in choice else []
    return [
        ("model", f"{short(e['parameters'])} parameters: {plural(e['layers'], 'layer')}, "
         f"width {e['dim']}, {plural(e['heads'], 'head')}{kv}, feed-forward {e['hidden']}, "
         f"context {e.get('context', e['seq_len'])}"),
        *([("begins", f"from the weights of {tame(e['begins_from'])}")] if e.get("begins_from")
          else []),
        ("data", f"{short(e['train_tokens'])} tokens to learn from{held}, "
         f"vocabulary {e['vocab_size']:,}"),
        ("training", f"{steps} of {batch}, learning rate {e['lr']:.2g}, seed {e['seed']}{rest}"),
        *chosen,
        ("machine", f"{e['machine']}, {e['isa']}, memory forecast {e['memory_mib']:,.0f} MiB"),
        *mapping(e),
        ("folder", tame(e["out"])),
    ]  # fmt: skip


def validated(e: Event) -> str:
    """A validation event in a line."""
    best = ", the best so far" if e["best_step"] == e["step"] else ""
    return f"step {e['step']:,}: validation {score(e['loss'], e['bits_per_byte'])}{best}"


FED = ("queue", "watch", "skipped", "trouble")


def fed(e: Event) -> list[str]:
    """What happened to the queue, in lines."""
    kind = e["event"]
    if kind == "skipped":
        return [f"skipped {tame(e['path'])}: {tame(e['reason'])}"]
    if kind == "trouble":
        return [f"the queue cannot be written, trying again: {tame(e['error'])}"]
    if kind == "watch":
        known = f", {plural(e['known'], 'text')} known before" if e["known"] else ""
        return [f"queued {plural(e['new'], 'new text')}{known}"]
    if e["waiting"]:
        return ["everything is trained that makes a step; waiting for text"]
    return [f"took in {plural(e['documents'], 'document')}, {short(e['tokens'])} tokens"]


def warned(e: Event) -> str:
    """A warning event in a line."""
    return f"step {e['step']:,}: warning: {tame(e['message'])}"


def finished(e: Event) -> list[tuple[str, str]]:
    """The done event as rows of a table."""
    folder = tame(shlex.quote(e["path"]))
    rows = [("done", f"{plural(e['step'], 'step')}, {clock(e['seconds'])} of training")]
    if e.get("ended"):
        rows.append(("", e["ended"]))
    last = e["validation"]
    if last is None:
        rows.append(("validation", "none: the text is too short to hold any of it out"))
    else:
        rows.append(("validation", score(last["loss"], last["bits_per_byte"])))
        if e["best"] is not None and e["best"] < NOTABLE * last["loss"]:
            better = score(e["best"], e["best_bits_per_byte"])
            best_is_model = e.get("model_step") == e["best_step"]
            where = "this is the model" if best_is_model else f"kept in {folder}/best"
            rows.append(("best", f"{better}, at step {e['best_step']:,}: {where}"))
    rows.append(("model", tame(e["path"])))
    rows.append(("use it", f'crystalline generate {folder} --prompt "..."'))
    return rows


def _share(e: Event) -> str:
    """A progress event in words."""
    left = f", {clock(e['eta'])} left" if "eta" in e else ""
    share = 100 * e["done"] / max(e["total"], 1)
    return f"{PHASES[e['phase']]}: {share:.0f} % of {short(e['total'])}B{left}"


# --- displays -------------------------------------------------------------------------------------


class Smoothed:
    """A running mean of losses that weighs the last ones most, and does not begin at zero."""

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def add(self, loss: float) -> float:
        """The mean with one more loss."""
        self.total = SMOOTH * self.total + (1 - SMOOTH) * loss
        self.weight = SMOOTH * self.weight + (1 - SMOOTH)
        return self.total / self.weight


class Lines:
    """Plain lines without control characters, for files and pipes."""

    def __init__(self) -> None:
        self.loss = Smoothed()
        self.shown_share = self.shown_at = -1e9

    def __call__(self, e: Event) -> None:
        """Shows an event, if it is time for a line."""
        kind = e["event"]
        if kind == "data":
            self._print(*found(e))
        elif kind == "progress":
            self._prepare(e)
        elif kind in ("plan", "done"):
            rows = planned(e) if kind == "plan" else finished(e)
            self._print(*(f"{name:<11} {text}" for name, text in rows))
            if kind == "done":
                self._print("", *as_lines(summary(e)))
        elif kind == "step":
            self._step(e)
        elif kind == "validation":
            self._print(validated(e))
        elif kind == "hierarchy":
            self._print(*changed(e))
        elif kind in FED:
            self._print(*fed(e))
        elif kind == "warning":
            self._print(warned(e))

    def _print(self, *lines: str) -> None:
        for line in lines:
            print(line, file=sys.stderr, flush=True)

    def _prepare(self, e: Event) -> None:
        now = time.monotonic()
        if e["done"] < e["total"] and now - self.shown_at > 2.0:
            self.shown_at = now
            self._print(_share(e))
        elif e["done"] >= e["total"] and e["phase"] == "weights":  # reading them back takes as long
            self._print(NEXT["weights"])

    def _step(self, e: Event) -> None:
        loss, share, now = self.loss.add(e["loss"]), e["step"] / e["steps"], time.monotonic()
        waited, (least, most) = now - self.shown_at, LINE_SECONDS
        due = waited > most or (waited > least and share - self.shown_share >= LINE_SHARE)
        if not due and e["step"] < e["steps"]:
            return
        self.shown_share, self.shown_at = share, now
        self._print(
            f"step {e['step']:,}/{e['steps']:,} ({100 * share:.0f} %): loss {loss:.3f}, "
            f"{e['tokens_per_s']:,.0f} tokens/s, {clock(e['eta'])} left, "
            f"peak memory {e['peak_mib']:,.0f} MiB"
        )


class Screen:
    """A live display: a bar with the figures of the moment below, and above it what stays."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.loss = Smoothed()
        self.doing: RenderableType = ""
        self.validation = ""
        self._work("looking for text")
        self.live = Live(
            get_renderable=lambda: self.doing, console=console, refresh_per_second=5, transient=True
        )

    def __call__(self, e: Event) -> None:
        """Shows an event."""
        kind = e["event"]
        if kind == "data":
            first, *rest = found(e)
            self.console.print(Text(first))
            self.console.print(Text("\n".join(rest), style="yellow"), end="\n" if rest else "")
            self._work(PHASES["tokenizer"])
        elif kind == "progress":
            self._work(_share(e) if e["done"] < e["total"] else NEXT[e["phase"]])
        elif kind in ("plan", "done"):
            self._table(planned(e) if kind == "plan" else finished(e), kind == "done")
            if kind == "done":
                self.console.print(summary(e))
                self.console.print()
            self._work("" if kind == "done" else "starting")
        elif kind == "step":
            self.doing = self._training(e, self.loss.add(e["loss"]))
        elif kind == "validation":
            self.validation = f"{e['loss']:.3f} ({e['bits_per_byte']:.2f} bits per byte)"
            self.console.print(Text(validated(e), style="green"))
        elif kind == "hierarchy":
            for line in changed(e):
                self.console.print(Text(line))
        elif kind in FED:
            for line in fed(e):
                self.console.print(Text(line))
            if e.get("waiting"):
                self._work("waiting for text; Ctrl-C ends it")
        elif kind == "warning":
            self.console.print(Text(warned(e), style="yellow"))

    def _work(self, text: str) -> None:
        unicode = self.console.encoding.lower().startswith("utf")
        self.doing = Spinner("dots" if unicode else "line", Text(text)) if text else ""

    def _table(self, rows: list[tuple[str, str]], done: bool) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")  # a path is shown whole
        for name, text in rows:
            table.add_row(Text(name, style="bold green" if done else "bold cyan"), Text(text))
        self.console.print()
        self.console.print(table)
        self.console.print()

    def _training(self, e: Event, loss: float) -> RenderableType:
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        for _ in range(3):
            bar.add_column(no_wrap=True)
        bar.add_row(
            ProgressBar(total=e["steps"], completed=e["step"]),
            f"step {e['step']:,} of {e['steps']:,}",
            f"{100 * e['step'] / e['steps']:.0f} %",
            Text(f"{clock(e['eta'])} left", style="cyan"),
        )
        figures = Text()
        for name, value in (
            ("loss", f"{loss:.3f}"), ("validation", self.validation),
            ("tokens/s", f"{e['tokens_per_s']:,.0f}"), ("peak memory", f"{e['peak_mib']:,.0f} MiB"),
        ):  # fmt: skip
            if value:
                figures.append("   " if figures else "").append(f"{name} ", "dim").append(value)
        return Group(bar, figures)


@contextlib.contextmanager
def display(quiet: bool, as_json: bool) -> Iterator[Callable[[Event], None]]:
    """Something to give to ``train`` as ``on_event``, while the training lasts."""
    if quiet:
        yield lambda event: None
    elif as_json:
        yield lambda event: click.echo(json.dumps(event))
    else:
        console = Console(stderr=True, highlight=False)
        if not console.is_terminal or console.is_dumb_terminal:
            yield Lines()
        else:
            screen = Screen(console)
            with screen.live:
                yield screen


# --- another process's training -------------------------------------------------------------------


def watch(folder: str, once: bool) -> None:
    """Shows the spheres of the training that runs in ``folder``: until it ends on a terminal, as
    they are now elsewhere or with ``once``.  Raises UsageError where no training runs."""
    console, recent = Console(highlight=False), Recent()
    with LiveTraining.attach(folder) as training:
        _first(training, recent)
        if once or not console.is_terminal or console.is_dumb_terminal:
            view = _now(recent, 1000)
            if console.is_terminal:
                console.print(view)
            else:
                click.echo("\n".join(as_lines(view)))
            return
        live = Live(
            get_renderable=lambda: _now(recent, console.height), console=console,
            auto_refresh=False, vertical_overflow="crop",
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt), live:  # which only ends the looking
            while training.shown:
                recent.add(training.board())
                live.refresh()
                time.sleep(LOOK_SECONDS)
    if not training.shown:
        last = recent.now or {}
        at = f"; last seen at step {last['step']:,} of {last['steps']:,}" if "step" in last else ""
        console.print(Text(f"the training has ended{at}"))


def _first(training: LiveTraining, recent: Recent) -> None:
    """Waits a moment for two boards, as rates are differences; a pause shows one alone."""
    until = time.monotonic() + FIRST_SECONDS
    while recent.before is None and time.monotonic() < until and training.shown:
        recent.add(training.board())
        if recent.now is not None and recent.now["state"] != "RUNNING":
            return
        time.sleep(0.02)


def _now(recent: Recent, height: int) -> RenderableType:
    board = recent.now
    if board is None:
        return Text("the training has shown nothing yet")
    return board_view(board, recent.before, time.time() - board["time"], height)
