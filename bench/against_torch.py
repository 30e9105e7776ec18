"""Our training step against PyTorch's: processes in alternation, medians and ratios.

    python bench/against_torch.py --preset seed --batch 12 --seq 256 --threads 2

PyTorch runs twice, with the allocator as it comes and with one that keeps its pages, since page
faults cost it up to a third; the better median counts.  A sample during which other processes used
more than a tenth of a CPU is taken again, and said.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import click

TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
STEP = [sys.executable, str(Path(__file__).with_name("torch_step.py"))]
OURS = [sys.executable, "-m", "crystalline", "bench", "step", "--json"]


def _busy() -> float:
    """CPU seconds that the whole machine has spent not idle."""
    numbers = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    used = sum(int(n) for i, n in enumerate(numbers) if i not in (3, 4))
    return used / os.sysconf("SC_CLK_TCK")


def _sample(command: list[str], environment: dict[str, str]) -> tuple[dict[str, float], float]:
    """One process's result, and the CPUs that others used meanwhile."""
    before, own = _busy(), os.times()
    begun = own.elapsed
    out = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout
    now = os.times()
    ours = (now.children_user + now.children_system) - (own.children_user + own.children_system)
    others = max(0.0, _busy() - before - ours) / (now.elapsed - begun)
    return json.loads(out.splitlines()[-1]), others


@click.command()
@click.option("--preset", default="seed")
@click.option("--batch", default=12)
@click.option("--seq", default=256)
@click.option("--threads", default=2)
@click.option("--samples", default=5)
@click.option("--json", "as_json", is_flag=True)
def main(preset: str, batch: int, seq: int, threads: int, samples: int, as_json: bool) -> None:
    """Alternates the three and prints medians and ratios."""
    sizes = [
        "--preset",
        preset,
        "--batch",
        str(batch),
        "--seq",
        str(seq),
        "--threads",
        str(threads),
    ]
    contenders = {
        "crystalline": (OURS + sizes, {}),
        "torch": (STEP + sizes, {}),
        "torch, tuned allocator": (STEP + sizes, TUNED),
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    disturbed = 0
    for _ in range(samples):
        for name, (command, environment) in contenders.items():
            for _ in range(3):
                result, others = _sample(command, environment)
                if others <= 0.1:
                    break
                disturbed += 1
            results[name].append(result)
    table = {
        name: {
            key: statistics.median(r[key] for r in rows) for key in ("tokens_per_s", "peak_rss_mib")
        }
        for name, rows in results.items()
    }
    ours = table["crystalline"]
    peers = [row for name, row in table.items() if name != "crystalline"]
    fastest = max(row["tokens_per_s"] for row in peers)
    leanest = min(row["peak_rss_mib"] for row in peers)
    summary = {
        "speed_ratio": ours["tokens_per_s"] / fastest,
        "memory_ratio": ours["peak_rss_mib"] / leanest,
        "samples": samples, "disturbed": disturbed,
    }  # fmt: skip
    if as_json:
        print(json.dumps({"table": table, **summary}))
        return
    for name, row in table.items():
        print(f"{name:24} {row['tokens_per_s']:9.0f} tokens/s {row['peak_rss_mib']:7.0f} MiB")
    print(
        f"speed {summary['speed_ratio']:.2f} times the best torch, memory "
        f"{summary['memory_ratio']:.2f} of the leanest; {samples} samples each, "
        f"{disturbed} taken again because others were using the machine"
    )


if __name__ == "__main__":
    main()
