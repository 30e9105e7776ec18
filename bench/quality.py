"""Time to quality on Tiny Shakespeare, as a user would run it:

    python bench/quality.py --minutes 1.5 --minutes 3 --threads 2

`crystalline train FILE --minutes M` and nothing else (but the threads), last tenth held out; the
figure is the last validation of the run, over all held-out bytes, and the clock is the whole
process's: start, tokenizer, training, validations, checkpoints.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from crystalline.demo import bundled_text


@click.command()
@click.option("--minutes", multiple=True, default=[1.5, 3.0], type=float)
@click.option("--threads", default=2)
@click.option("--repeat", default=1)
def main(minutes: list[float], threads: int, repeat: int) -> None:
    """Runs each and prints bits per byte, seconds and what was chosen."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "tinyshakespeare.txt"
        text.write_bytes(bundled_text())
        for m in [m for m in minutes for _ in range(repeat)]:
            out = Path(folder) / f"model-{time.monotonic_ns()}"
            command = [sys.executable, "-m", "crystalline", "train", str(text), "--out", str(out)]
            command += ["--minutes", str(m), "--threads", str(threads), "--json"]
            begun = time.monotonic()
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds = time.monotonic() - begun
            events = [json.loads(line) for line in run.stdout.splitlines()]
            plan = next(e for e in events if e["event"] == "plan")
            done = events[-1]
            print(
                f"{m:g} minutes: {done['validation']['bits_per_byte']:.3f} bits per byte (best "
                f"{done['best_bits_per_byte']:.3f}) after {seconds:.1f} s; {done['step']} steps, "
                f"vocabulary {plan['vocab_size']}, width {plan['dim']}, {plan['layers']} layers, "
                f"weight decay {plan['weight_decay']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
