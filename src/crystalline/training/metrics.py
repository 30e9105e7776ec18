"""metrics.jsonl: one JSON object a line for every step and validation of a model's life."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


class Metrics:
    """Appends to the file; what a crash left after the last checkpoint is dropped on resuming."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []

    def write(self, row: dict[str, Any]) -> None:
        """Keeps a row; every hundredth goes to the file with those before it."""
        self._lines.append(json.dumps(row))
        if len(self._lines) >= 100:
            self.flush()

    def flush(self) -> None:
        """Appends what was kept.  Where the disk takes it not, or in part, it is kept for the next
        time: measurements are no reason to end a training."""
        if not self._lines:
            return
        text = ("\n".join(self._lines) + "\n").encode()
        with contextlib.suppress(OSError), open(self.path, "ab", buffering=0) as f:
            before = os.fstat(f.fileno()).st_size
            if f.write(text) == len(text):
                self._lines.clear()
            else:
                f.truncate(before)

    def forget_after(self, step: int) -> None:
        """Drops rows of later steps, and a line that was cut short."""
        if not self.path.exists():
            return
        kept, lines = [], self.path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        if len(kept) == len(lines):
            return
        beside = self.path.with_suffix(".new")
        beside.write_text("".join(kept), encoding="utf-8")
        beside.replace(self.path)
