"""The judge of memcheck's reports, on a short training and on mistakes made on purpose.

`make memcheck` does the same with whole trainings.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from memcheck import judged, start

LIMIT = 300  # seconds; a run takes about 15
BEGIN = """
import os
import numpy as np
from crystalline._native import Team
"""

# Kernels on sizes that are no multiple of anything, two threads, and their results to the system.
CLEAN = (
    BEGIN
    + """
from crystalline.config import ModelConfig
from crystalline.decoder.decoder import Decoder, Parameters, initialise
from crystalline.optimizers import AdamW, AdamWConfig
config = ModelConfig(
    vocab_size=300, dim=40, layers=1, heads=4, kv_heads=2, hidden=52, seq_len=23
)
team = Team(2, os.environ["CRYSTALLINE_ISA"])
weights, gradients = Parameters(config), Parameters(config)
initialise(weights, 0)
decoder, optimizer = Decoder(weights, team, 5, 23, gradients), AdamW(weights, team, AdamWConfig())
batch = np.random.default_rng(0).integers(0, 300, (5, 24), dtype=np.int32)
targets = batch[:, 1:].copy()
targets[1, 9:] = -1
targets[2] = -1
windows = np.tile(np.r_[0:9, 0:1, 0:13].astype(np.int32), (5, 1))
for step in range(3):
    positions = windows if step == 1 else None
    loss = decoder.gradient(batch[:, :-1], targets, 0.01, False, positions=positions)
    optimizer.step(gradients, 1e-2)
with open(os.devnull, "wb", buffering=0) as sink:
    for block in (weights, gradients, optimizer.m, optimizer.v):
        sink.write(block.flat.tobytes())
    sink.write(np.float64(loss).tobytes())
print("done")
"""
)
# Ids that nobody has set: our own check of them branches on what is not there.
UNSET = (
    BEGIN
    + """
ids = np.empty(64, np.int32)
try:
    Team(1, os.environ["CRYSTALLINE_ISA"]).embedding(
        np.zeros((64, 8), np.float32), np.zeros((300, 8), np.float32), ids
    )
except ValueError:
    pass
print("done")
"""
)
# Rows that nobody has set go through a product, which branches on nothing, and to the system.
UNSET_RESULT = (
    BEGIN
    + """
team, x = Team(1, os.environ["CRYSTALLINE_ISA"]), np.empty((9, 8), np.float32)
y = np.zeros((9, 7), np.float32)
team.matmul(y, x, np.ones((7, 8), np.float32))
with open(os.devnull, "wb", buffering=0) as sink:
    sink.write(y)
print("done")
"""
)
# A width that the arrays have not: the kernel reads beyond their ends.
BEYOND = (
    BEGIN
    + """
x = np.lib.stride_tricks.as_strided(np.zeros(10, np.float32), (10, 40), (160, 4))
Team(1, os.environ["CRYSTALLINE_ISA"]).swiglu(np.zeros((10, 20), np.float32), x)
print("done")
"""
)
RUNS = {
    "portable": (CLEAN, "portable"), "avx2": (CLEAN, "avx2"), "unset": (UNSET, "avx2"),
    "unset result": (UNSET_RESULT, "avx2"), "beyond": (BEYOND, "portable"),
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """All runs at once."""
    if not shutil.which("valgrind"):
        pytest.skip("there is no valgrind here")
    folder = tmp_path_factory.mktemp("memcheck")
    paths = {name: folder / f"{at}.xml" for at, name in enumerate(RUNS)}
    runs = {name: start(*RUNS[name], paths[name]) for name in RUNS}
    try:
        for name, run in runs.items():
            out, _ = run.communicate(timeout=LIMIT)
            assert (run.returncode, out) == (0, "done\n"), f"{name}: {out}"
        yield paths
    finally:
        for run in runs.values():
            if run.poll() is None:
                run.kill()
                run.wait()


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_a_training_step_reads_and_writes_only_what_is_its_own(
    reports: dict[str, Path], isa: str
) -> None:
    findings, noise = judged(reports[isa])
    print(dict(noise))
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize(
    ("mistake", "kind", "frame"),  # our functions have no names left in an installed library
    [
        ("unset", "Uninit", "_native.abi3.so"), ("unset result", "SyscallParam", "write"),
        ("beyond", "InvalidRead", "_native.abi3.so"),
    ],
)  # fmt: skip
def test_a_mistake_is_found(reports: dict[str, Path], mistake: str, kind: str, frame: str) -> None:
    findings, _ = judged(reports[mistake])
    assert any(f.startswith(kind) and frame in f for f in findings), findings
