"""kill -9 at random moments: each time the folder is whole, and resuming ends in the same bits.

CRYSTALLINE_KILLS says how many times (4; `make kill`: 100).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from conftest import TINY, prose
from test_training import fingerprint

import crystalline
from crystalline.checkpoint import load_training

KILLS = int(os.environ.get("CRYSTALLINE_KILLS", "4"))

# Saves after every step, so that many kills fall into a save.
SCRIPT = """
import sys
import crystalline, crystalline.trainer as t
from pathlib import Path
from conftest import TINY
t.SAVE_SHARE = 1e9
real = t.Trainer._between_steps
def between(self, before):
    real(self, before)
    self.save()
t.Trainer._between_steps = between
out, text, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if (out / "checksums.json").exists() or (out / "commit.json").exists():
    crystalline.train(out=out, resume=True)
else:
    crystalline.train(text, out, steps=steps, **TINY)
"""


def test_killed_at_random_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    steps = 30 + 15 * KILLS
    text = tmp_path / "prose.txt"
    text.write_text(prose(4000))
    crystalline.train(text, tmp_path / "whole", steps=steps, **TINY)
    out, rng, kills = tmp_path / "killed", random.Random(1), 0
    command = [sys.executable, "-c", SCRIPT, str(out), str(text), str(steps)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    while kills < KILLS:
        child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        # Wait until it trains, so that the kill meets steps and saves rather than imports.
        before = out.stat().st_mtime_ns if out.exists() else 0
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            if out.exists() and out.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        if child.poll() is not None:
            assert child.stderr is not None
            error = child.stderr.read().decode()
            # Finished before all kills were spent, perhaps killed after its last checkpoint.
            assert child.returncode == 0 or "finished at step" in error, error
            break
        child.kill()
        child.communicate()
        kills += 1
    assert kills > 0
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "finished at step" in done.stderr, done.stderr
    assert load_training(out)[1]["progress"]["step"] == steps
    assert fingerprint(out) == fingerprint(tmp_path / "whole")
    print(f"{kills} kills in {steps} steps")
