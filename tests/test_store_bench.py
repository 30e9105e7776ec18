"""The bench of the store runs and says what it is for; how fast anything is, is not asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent.parent / "bench" / "store_rates.py"


def test_the_bench_runs(tmp_path: Path) -> None:
    for words in (["--json"], []):
        command = [sys.executable, PROGRAM, "--files", "1300", "--folder", tmp_path, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        if words:
            rows = {row["what"]: row for row in json.loads(done.stdout)}
            assert all(row["got"] > 0 for row in rows.values())
            assert rows["add"]["asked"] == 5000 and rows["list"]["asked"] == 0.1
        else:
            assert "a second, asked 5,000" in done.stdout and "ms, asked 100" in done.stdout
    assert not list(tmp_path.iterdir())
