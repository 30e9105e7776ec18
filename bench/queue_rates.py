"""How many messages a second the queue carries, against the queues of the standard library.

    python bench/queue_rates.py --rounds 7

Three rates, each the median of rounds in which both sides take turns: in C from one thread to
another on a second CPU; send and receive by one thread of Python, against ``queue.SimpleQueue``;
from one process to another, against ``multiprocessing.Queue`` with a tuple of three numbers.
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
import queue
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from crystalline._queue import MessageQueue, SphereMessage

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "src/crystalline/_kernels"
FORK: Any = multiprocessing.get_context("fork")
# What is asked: messages a second, or a multiple of the other queue's.
BARS = {"C, two CPUs": 10e6, "one thread": 0.5, "two processes": 10.0}


def _c_rate(program: Path, messages: int) -> float:
    command = [program, "1", "1", str(messages), "1024", "pin"]
    rate: float = json.loads(subprocess.check_output(command))["per_second"]
    return rate


def _driver(folder: str) -> Path:
    program = Path(folder) / "queue_soak"
    sources = [KERNELS / name for name in ("queue.c", "queue_members.c", "system.c")]
    include = ["-I", KERNELS, "-I", KERNELS / "include"]
    command = ["gcc", "-std=c11", "-O3", "-pthread", *include, ROOT / "tests/c/queue_soak.c"]
    subprocess.run([*command, *sources, "-o", program], check=True)
    return program


def _ours_in_one_thread(messages: int) -> float:
    line, message = MessageQueue(1024), SphereMessage(1)
    send, receive = line.send, line.receive
    begun = time.perf_counter()
    for _ in range(messages):
        send(message)
        receive()
    return messages / (time.perf_counter() - begun)


def _theirs_in_one_thread(messages: int) -> float:
    line: queue.SimpleQueue[SphereMessage] = queue.SimpleQueue()
    message = SphereMessage(1)
    put, get = line.put, line.get
    begun = time.perf_counter()
    for _ in range(messages):
        put(message)
        get()
    return messages / (time.perf_counter() - begun)


def _timed(sender: Callable[[], None], receive: Callable[[], object], messages: int) -> float:
    """From the first message that came to the last; starting the process is not counted."""
    process = FORK.Process(target=sender)
    process.start()
    receive()
    begun = time.perf_counter()
    for _ in range(messages - 1):
        receive()
    rate = (messages - 1) / (time.perf_counter() - begun)
    process.join()
    return rate


def _ours_between_processes(messages: int) -> float:
    memory = mmap.mmap(-1, MessageQueue.bytes_needed(1024))  # shared with the children
    line = MessageQueue(1024, buffer=memory)

    def sender() -> None:
        for ticket in range(messages):
            line.send_wait(SphereMessage(1, ticket=ticket), timeout=None)

    return _timed(sender, line.receive_wait, messages)


def _theirs_between_processes(messages: int) -> float:
    line: Any = FORK.Queue()

    def sender() -> None:
        for ticket in range(messages):
            line.put((1, 1, ticket))

    return _timed(sender, line.get, messages)


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of the table.")
def main(rounds: int, as_json: bool) -> None:
    """Measures, and compares with what is asked."""
    rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in BARS}
    with tempfile.TemporaryDirectory() as folder:
        program = _driver(folder)
        for _ in range(rounds):
            rates["C, two CPUs"][0].append(_c_rate(program, 5_000_000))
            rates["one thread"][0].append(_ours_in_one_thread(500_000))
            rates["one thread"][1].append(_theirs_in_one_thread(500_000))
            rates["two processes"][0].append(_ours_between_processes(500_000))
            rates["two processes"][1].append(_theirs_between_processes(50_000))
    rows = []
    for name, (ours, theirs) in rates.items():
        median, other = statistics.median(ours), statistics.median(theirs) if theirs else None
        got = median / other if other else median
        rows.append({"what": name, "per_second": median, "least": min(ours), "most": max(ours),
                     "other": other, "got": got, "asked": BARS[name]})  # fmt: skip
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'':15}{'million/s':>10}{'from':>8}{'to':>8}{'other':>8}{'ratio':>8}{'asked':>8}")
    for row in rows:
        numbers = [row[key] / 1e6 for key in ("per_second", "least", "most")]
        other = f"{row['other'] / 1e6:8.3f}{row['got']:8.2f}{row['asked']:8.1f}" if row["other"] \
            else f"{'':16}{row['asked'] / 1e6:8.1f}"  # fmt: skip
        print(f"{row['what']:15}{numbers[0]:10.2f}{numbers[1]:8.2f}{numbers[2]:8.2f}{other}")


if __name__ == "__main__":
    main()
