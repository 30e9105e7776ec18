"""Draws docs/run.svg: what a training shows on a terminal 100 columns wide."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from rich.console import Console

import crystalline
from crystalline.demo import bundled_text
from crystalline.progress import Screen


def main() -> None:
    """Trains for a minute on the bundled text and writes the picture beside this file."""
    console = Console(
        record=True, width=100, force_terminal=True, highlight=False, file=io.StringIO()
    )
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "shakespeare.txt"
        text.write_bytes(bundled_text())
        # The live part is not started: of it the record would hold every frame.
        screen = Screen(console)
        crystalline.train(text, Path(folder) / "shakespeare", minutes=1, on_event=screen)
        svg = console.export_svg(title="crystalline train shakespeare.txt --minutes 1")
    (Path(__file__).parent / "run.svg").write_text(svg.replace(folder, "models"))


if __name__ == "__main__":
    main()
