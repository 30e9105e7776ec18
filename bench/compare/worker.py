"""The process of one contender: prepares work when told, and samples it when asked.

A line of JSON comes in and one goes out.  {"module", "who", "case", "threads", "extra"} prepares
the work and warms it up; {} takes a sample of what was prepared.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from undisturbed import observed, repeated

from compare.contest import OURS

PR_SET_PDEATHSIG = 1


def rss_mib() -> float:
    """Memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """The most it had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def extra_mib(call: Callable[[], Any], first: bool) -> float:
    """What a call takes beyond what was there, the peak set back before it.

    Ours is watched from its ``first`` call, which gets its work space.  A peer has run once by
    then, so that what its libraries load and compile is not counted against it, and gave back
    what its allocator keeps.
    """
    if not first:
        call()
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = rss_mib()
    call()
    return max(0.0, peak_mib() - before)


def prepare(ask: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The work, which returns seconds of one call, and what is told of it."""
    module = importlib.import_module(ask["module"])
    call = module.build(ask["who"], ask["case"], ask["threads"])
    told = {}
    if ask["extra"]:
        told["extra_mib"] = extra_mib(call, ask["who"] == OURS)
    call()  # warm: compiled, its memory touched; `repeated` then finds how often fills a sample
    return repeated(call), told


def main() -> None:
    # Whoever ends the parent ends this too, stopped as it may be.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    work: Callable[[], Any] | None = None
    for line in sys.stdin:
        ask, answer = json.loads(line), {}
        try:
            if ask:
                work = None  # gone before the next one comes
                work, answer = prepare(ask)
            elif work is not None:
                seconds, others = observed(work)
                answer = {"seconds": seconds, "others": others, "peak_mib": peak_mib()}
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first}"[:200]}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
