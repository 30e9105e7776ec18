"""The examples that need no training run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_kernels_from_numpy() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "kernels_from_numpy.py"], capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    first, last = (float(x) for x in re.findall(r"loss ([\d.]+)", done.stdout))
    assert first > 1 and last < 0.1
