"""Whole training steps and generation by the clock: pytest bench/ --benchmark-only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crystalline
from crystalline.config import PRESETS
from crystalline.model import Decoder, Parameters, initialise
from crystalline.optim import AdamW, AdamWConfig
from crystalline.team import make_team


@pytest.mark.parametrize("preset", ["nano", "seed"])
def test_step(benchmark: Any, preset: str) -> None:
    c, team = PRESETS[preset], make_team()
    weights, gradients = Parameters(c), Parameters(c)
    initialise(weights, 0)
    decoder = Decoder(weights, team, 12, c.seq_len, gradients)
    optimizer = AdamW(weights, team, AdamWConfig())
    ids = np.random.default_rng(0).integers(0, c.vocab_size, (12, c.seq_len + 1)).astype(np.int32)

    def step() -> None:
        decoder.gradient(ids[:, :-1], ids[:, 1:], 1 / (12 * c.seq_len), False)
        optimizer.step(gradients, 1e-3)

    benchmark(step)
    benchmark.extra_info["tokens_per_s"] = 12 * c.seq_len / benchmark.stats["median"]


def test_generation(benchmark: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a text that has {i * i} words\n" for i in range(3000)))
    model = crystalline.train(text, tmp_path / "m", steps=1, dim=256, layers=4, seq_len=256)
    benchmark(model.generate, "line", max_tokens=100)
