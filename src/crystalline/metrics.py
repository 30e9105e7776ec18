"""metrics.jsonl: one JSON object a line for every step and validation of a model's life."""

from __future__ import annotations

import json
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
        """Appends what was kept."""
        if self._lines:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write("\n".join(self._lines) + "\n")
            self._lines.clear()

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
