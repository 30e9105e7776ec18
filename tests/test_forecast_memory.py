"""The forecast of memory against what real trainings take, each in a process of its own.

CRYSTALLINE_MEMORY=1 runs all of the grid, a quarter of an hour on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from crystalline.demo import bundled_text

ALL = bool(os.environ.get("CRYSTALLINE_MEMORY"))
# The peak of the process itself: that of its parent, which a child is born with, does not count.
CHILD = """
import json, sys
from crystalline.__main__ import main
code = main(sys.argv[1:])
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(json.dumps({"code": code, "peak": peak * 1024}), file=sys.stderr)
"""
LIBRARY = Path(sysconfig.get_path("stdlib"))
SHORT: dict[str, tuple[str, str]] = {  # text, options
    "tiny": ("plays", "--steps 3 --dim 64 --layers 2 --seq-len 64 --batch-size 4"),
    "small": ("plays", "--steps 3 --dim 128 --layers 4 --seq-len 64 --batch-size 24"),
    "nano": ("plays", "--steps 3 --preset nano --batch-size 48 --accumulate 2"),
    "seed": ("plays", "--steps 2 --preset seed --batch-size 12"),
    "seed in bf16": ("plays", "--steps 2 --preset seed --batch-size 4 --precision bf16"),
    "odd": ("code", "--steps 2 --dim 250 --layers 3 --heads 5 --hidden 602 --seq-len 100 "
            "--batch-size 13"),
    "muon": ("plays", "--steps 2 --dim 256 --layers 4 --seq-len 128 --batch-size 8 "
             "--optimizer muon --ema 0.99"),
}  # fmt: skip
LONG: dict[str, tuple[str, str]] = {
    "seed, large batch": ("plays", "--steps 2 --preset seed --batch-size 48"),
    "seed, accumulated": ("plays", "--steps 2 --preset seed --batch-size 12 --accumulate 2"),
    "seed, sampled": ("plays", "--steps 2 --preset seed --batch-size 12 --loss sampled"),
    "seed, sampled, bf16": ("plays", "--steps 2 --preset seed --batch-size 24 --loss sampled "
                            "--precision bf16 --accumulate 2"),
    "large vocabulary": ("code", "--steps 2 --dim 128 --layers 2 --vocab-size 20000 "
                         "--batch-size 8"),
    "small vocabulary": ("plays", "--steps 2 --dim 128 --layers 2 --vocab-size 300 "
                         "--batch-size 8"),
    "much code": ("more code", "--steps 2 --dim 128 --layers 4 --batch-size 24"),
    "m": ("plays", "--steps 1 --preset m --vocab-size 4096 --batch-size 4 --precision bf16"),
    "in minutes": ("plays", "--minutes 0.4"),
    "lion": ("plays", "--steps 2 --dim 384 --layers 4 --seq-len 128 --batch-size 8 "
             "--optimizer lion"),
}  # fmt: skip
CASES = SHORT | LONG


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    plays = tmp_path_factory.mktemp("text") / "plays.txt"
    plays.write_bytes(bundled_text())
    return {"plays": str(plays), "code": str(LIBRARY / "asyncio"), "more code": str(LIBRARY)}


def trained(text: str, options: str, out: Path) -> tuple[list[dict[str, Any]], int]:
    """A whole training by the command: its events, and its peak in bytes."""
    paths = [text] if text else []
    args = ["train", *paths, "--out", str(out), "--json", "--threads", "2", *options.split()]
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, *args], capture_output=True, text=True, check=True
    )
    end = json.loads(ran.stderr.splitlines()[-1])
    assert end["code"] == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()], int(end["peak"])


@pytest.mark.parametrize("name", CASES if ALL else SHORT)
def test_the_peak_is_within_five_percent_of_the_forecast(
    texts: dict[str, str], tmp_path: Path, name: str
) -> None:
    text, options = CASES[name]
    events, peak = trained(texts[text], options, tmp_path / "m")
    plan = next(e for e in events if e["event"] == "plan")
    if "bf16" in options and plan["isa"] != "avx512":
        pytest.skip("no AVX512_BF16 here")
    forecast = plan["memory_mib"]
    print(f"{name}: forecast {forecast:.1f} MiB, peak {peak / 2**20:.1f} MiB")
    assert any(e["event"] == "checkpoint" for e in events)
    assert any(e["event"] == "validation" for e in events)
    assert forecast == pytest.approx(peak / 2**20, rel=0.05)


def test_resuming_takes_no_more(texts: dict[str, str], tmp_path: Path) -> None:
    """The checkpoint is read tensor by tensor, not beside what it is read into."""
    options = "--dim 384 --layers 6 --seq-len 32 --batch-size 1"
    first, peak = trained(texts["code"], f"--steps 1 {options}", tmp_path / "m")
    events, again = trained("", "--steps 2 --resume", tmp_path / "m")
    plan = next(e for e in events if e["event"] == "plan")
    assert plan["step"] == 1 and first[-1]["event"] == "done"
    assert again <= 1.02 * peak
    assert plan["memory_mib"] == pytest.approx(again / 2**20, rel=0.05)
