"""Contenders in processes of their own, sampled in turn; who is not sampled is stopped.

A process of its own gives each contender its environment (allocator, instruction set, waiting of
its threads), which libraries read when they start.  Stopped (SIGSTOP), its threads cannot spin
while another is timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undisturbed import alternate

from compare.contest import AVX2, OURS, Contender, Contest, Moving, Row, Settings

LIMIT = "the limit"  # which is sampled in turn with the contenders where memory sets it


class WorkerError(Exception):
    """Why a contender cannot take part, in one line."""


class Worker:
    """A process that runs one contender's work when asked."""

    def __init__(self, contender: Contender, settings: Settings) -> None:
        n = str(settings.threads)
        limits = {f"{name}_NUM_THREADS": n for name in ("OMP", "OPENBLAS", "MKL")}
        forced = AVX2 if settings.isa == "avx2" else {}
        own = forced | dict(contender.environment) | limits | {"CRYSTALLINE_THREADS": n}
        bench, before = str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")
        path = os.pathsep.join([bench, before] if before else [bench])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "compare.worker"], env=os.environ | own | {"PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def ask(self, **question: Any) -> dict[str, Any]:
        """Its answer.  Raises WorkerError when it has none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"its process ended with status {self.process.wait()}")
        self.process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def sample(self) -> dict[str, Any]:
        """A sample, or why there is none: the others go on."""
        try:
            return self.ask()
        except WorkerError as error:
            return {"error": str(error), "others": 0.0}

    def close(self) -> None:
        self.process.kill()  # which ends a stopped process too
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]


def watched(work: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """A sample, and the CPUs that others used, as the worker saw it."""
    answer = work()
    return answer, answer["others"]


class Crew:
    """The workers of a group of contests: one for each contender, begun when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workers: dict[Contender, Worker] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    def prepare(self, contender: Contender, contest: Contest) -> dict[str, Any]:
        if contender not in self.workers:
            self.workers[contender] = Worker(contender, self.settings)
        return self.workers[contender].ask(
            module=contest.module, who=contender.who, case=contest.case,
            threads=self.settings.threads, extra=contest.memory == "extra",
        )  # fmt: skip

    def run(self, contest: Contest) -> list[Row]:
        """The contest's row, and one for memory where that is asked."""
        ready, failed = {}, {}
        for contender in contest.contenders:
            try:
                ready[contender.name] = (contender, self.prepare(contender, contest))
            except WorkerError as error:
                failed[contender.name] = str(error)
                if contender in self.workers:
                    self.workers.pop(contender).close()
        works = {name: self.workers[contender].sample for name, (contender, _) in ready.items()}
        limit = contest.limit
        if isinstance(limit, Moving) and works:
            works[LIMIT] = lambda: {"limit": limit.measured(self.settings), "others": 0.0}
        taken = alternate(works, self.settings.samples, watched, self.settings.tries)
        if LIMIT in taken:
            limit = statistics.median(a["limit"] for a in taken.pop(LIMIT).results)
        for name in list(taken):
            why = [a["error"] for a in taken[name].results if "error" in a]
            if why:
                failed[name] = why[0]
                del taken[name], ready[name]
        rate = {
            name: contest.figure(statistics.median(a["seconds"] for a in s.results))
            for name, s in taken.items()
        }
        told = {
            "samples": min((len(s.results) for s in taken.values()), default=0),
            "dropped": sum(s.dropped for s in taken.values()),
            "noisy": any(s.noisy for s in taken.values()),
        }
        rows = [
            Row(
                contest.group, contest.name, contest.unit, rate.pop(OURS, None), rate,
                None if isinstance(limit, Moving) else limit, failed, **told,
            )
        ]  # fmt: skip
        if contest.memory:
            mib = {
                name: answer["extra_mib"] if contest.memory == "extra"
                else max(a["peak_mib"] for a in taken[name].results)
                for name, (_, answer) in ready.items()
            }  # fmt: skip
            name = f"{contest.name}: {contest.memory} memory"
            rows.append(Row(contest.group, name, "MiB", mib.pop(OURS, None), mib, None, failed))
        if contest.alone:
            self.close()
        return rows
