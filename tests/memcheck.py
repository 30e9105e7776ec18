"""Our C under valgrind's memcheck: training, step by step, on one instruction set.

    python tests/memcheck.py portable avx2

CPython is not clean under memcheck (its small integers and the loader's string functions are
reported by the thousand), and a suppression cannot say "unless one of ours is on the stack".  So
nothing is suppressed; every report is read and judged:

* One with a frame of ours on its stack counts, whatever it is and wherever it happened.
* Uninitialised bytes handed to the system count wherever they come from: the checkpoint holds all
  weights and moments, so that a number that no kernel has set is found when it is written.
* Invalid accesses, frees and jumps count, but for reads by the dynamic loader, whose vector
  instructions look past the ends of strings.
* Memory that our own C asked for and lost counts; what CPython leaves at its end does not.
* What is left, uninitialised values in code of others, is noise; its sources are printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
OURS = ("/_native.", "/_queue.", "/_region.", "/_sieve.")  # extension modules
UNSET = ("UninitValue", "UninitCondition")
LOADER = "/ld-linux"
VALGRIND = [
    "valgrind", "--xml=yes", "--error-limit=no", "--fair-sched=yes", "--num-callers=40",
    "--leak-check=full", "--show-leak-kinds=definite",
]  # fmt: skip

# A whole training: tokenizer, batches, steps, validation, checkpoint.
TRAIN = """
import pathlib, sys, tempfile
from conftest import prose
import crystalline
with tempfile.TemporaryDirectory() as folder:
    text = pathlib.Path(folder, "text.txt")
    text.write_text(prose(1500))
    crystalline.train(
        text, pathlib.Path(folder, "model"), steps=3, threads=2, vocab_size=300, dim=40, layers=2,
        heads=4, kv_heads=2, hidden=52, seq_len=24, batch_size=13,
    )
print("trained")
"""


def environment(isa: str) -> dict[str, str]:
    """One malloc for every block, so that each has ends that can be watched."""
    path = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return os.environ | {
        "PYTHONMALLOC": "malloc", "CRYSTALLINE_ISA": isa, "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip


def start(code: str, isa: str, report: Path) -> subprocess.Popen[str]:
    """Python on ``code`` under memcheck, which writes its report as XML."""
    return subprocess.Popen(
        [*VALGRIND, f"--xml-file={report}", sys.executable, "-c", code],
        env=environment(isa), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def is_ours(frame: ElementTree.Element) -> bool:
    place = frame.findtext("obj", "")
    return "crystalline" in place and any(name in place for name in OURS)


def counts(kind: str, frames: list[ElementTree.Element]) -> bool:
    """Whether a report is a finding."""
    if kind.startswith("Leak"):
        return len(frames) > 1 and is_ours(frames[1])
    if any(is_ours(frame) for frame in frames):
        return True
    innermost = frames[0].findtext("obj", "") if frames else ""
    return kind not in UNSET and not (kind == "InvalidRead" and LOADER in innermost)


def judged(report: Path) -> tuple[list[str], Counter[str]]:
    """The findings of a report in words, and where the noise comes from."""
    findings, noise = [], Counter[str]()
    for error in ElementTree.parse(report).getroot().iter("error"):
        frames = error.findall("stack/frame")
        kind = error.findtext("kind", "")
        if not counts(kind, frames):
            place = frames[0].findtext("obj", "?") if frames else "?"
            noise[f"{kind} in {Path(place).name}"] += 1
            continue
        told = error.findtext("what") or error.findtext("xwhat/text") or ""
        stack = [f"  {f.findtext('fn', '?')} ({f.findtext('obj', '?')})" for f in frames]
        findings.append("\n".join([f"{kind}: {told}", *stack]))
    return findings, noise


def main(isas: list[str]) -> int:
    """Runs each, prints what was found, and returns how many runs were not clean."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        reports = {isa: Path(folder) / f"{isa}.xml" for isa in isas}
        runs = {isa: start(TRAIN, isa, report) for isa, report in reports.items()}
        for isa, run in runs.items():
            out, _ = run.communicate()
            whole = run.returncode == 0 and "trained" in out
            findings, noise = judged(reports[isa]) if whole else ([out], Counter())
            failed += bool(findings) or not whole
            print(f"{isa}: {len(findings)} findings", *findings, sep="\n")
            print(f"{isa}: not ours:", ", ".join(f"{n} x {what}" for what, n in noise.items()))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["portable", "avx2"]))
