"""kill -9 at random moments: each time the folder is whole, and resuming ends in the same bits.

CRYSTALLINE_KILLS says how many times (4; `make kill`: 200).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from conftest import TINY, prose
from test_training import fingerprint

import crystalline
from crystalline.checkpoints.checkpoint import CHECKSUMS, load_model, load_training
from crystalline.checkpoints.kept import listed

KILLS = int(os.environ.get("CRYSTALLINE_KILLS", "4"))
LIMIT = 100  # seconds until a child counts as hung

# Saves after every step, so that many kills fall into a save; keeps some, so that many fall there.
SCRIPT = """
import sys
import crystalline
from pathlib import Path
from conftest import TINY
out, text, steps, often = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if (out / "checksums.json").exists() or (out / "commit.json").exists():
    crystalline.train(out=out, resume=True)
else:
    crystalline.train(text, out, steps=steps, save_steps=1, keep=2, milestones=often,
                      evaluation_interval=7, **TINY)
"""


def waited(child: subprocess.Popen[bytes], path: Path) -> float:
    """Until a path changes, or the child ends: the seconds it took."""

    def version() -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    begun, before = time.monotonic(), version()
    while child.poll() is None and version() == before:
        assert time.monotonic() < begun + LIMIT, f"{path} does not change"
        time.sleep(0.002)
    return time.monotonic() - begun


def killed_and_resumed(
    command: Sequence[str], out: Path, kills: int, after_each: Callable[[], None]
) -> int:
    """Runs ``command``, which trains in ``out`` or goes on there, again and again and kills it each
    time; at last lets it end.  ``after_each`` looks at what every kill left.  Returns the kills."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    rng, done = random.Random(1), 0
    while done < kills:
        child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        # Wait until it trains, so that the kill meets steps and saves rather than imports; every
        # tenth until it writes anything, so that it meets the beginning too.
        if done % 10 == 9:
            waited(child, out)
            time.sleep(rng.random() * 0.1)
        else:
            waited(child, out / CHECKSUMS)
            time.sleep(rng.random() * 5 * waited(child, out / CHECKSUMS))
        if child.poll() is not None:
            assert child.stderr is not None
            error = child.stderr.read().decode()
            # Finished before all kills were spent, perhaps killed after its last checkpoint.
            assert child.returncode == 0 or "finished at step" in error, error
            break
        child.kill()
        child.communicate()
        done += 1
        after_each()
        if done % 20 == 0:
            print(f"{done} kills", flush=True)
    last = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert last.returncode == 0 or "finished at step" in last.stderr, last.stderr
    return done


def test_killed_at_random_and_resumed_to_the_same_bits(tmp_path: Path) -> None:
    steps = 30 + 15 * KILLS
    often = steps // 6
    text, out = tmp_path / "prose.txt", tmp_path / "killed"
    text.write_text(prose(4000))
    crystalline.train(text, tmp_path / "whole", steps=steps, evaluation_interval=7, **TINY)
    steps_kept: list[int] = []

    def look() -> None:
        """What is kept is whole, and milestones stay."""
        kept = listed(out)
        for one in kept:
            assert load_training(one.path)[1]["progress"]["step"] == one.step
            load_model(one.path)
        assert set(steps_kept) <= {one.step for one in kept}
        steps_kept[:] = [one.step for one in kept if one.why == "milestone"]

    command = [sys.executable, "-c", SCRIPT, str(out), str(text), str(steps), str(often)]
    kills = killed_and_resumed(command, out, KILLS, look)
    assert kills > 0
    assert load_training(out)[1]["progress"]["step"] == steps
    assert fingerprint(out) == fingerprint(tmp_path / "whole")
    best, want = (load_model(m / "best")[2] for m in (out, tmp_path / "whole"))
    assert all((best[n] == want[n]).all() for n in want)
    look()
    assert steps_kept == list(range(often, steps + 1, often))
    print(f"{kills} kills in {steps} steps")
