"""Whole training steps and generation by the clock: pytest bench/ --benchmark-only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stepping import Stepper

import crystalline
from crystalline.config import PRESETS
from crystalline.decoder.decoder import Decoder, Parameters, initialise
from crystalline.team import make_team


@pytest.mark.parametrize(("preset", "batch"), [("nano", 12), ("seed", 12), ("m", 4)])
def test_step(benchmark: Any, preset: str, batch: int) -> None:
    c = PRESETS[preset]
    step = Stepper(make_team(), c, batch).step
    benchmark.pedantic(step, rounds=20 if preset == "nano" else 5, warmup_rounds=2)
    benchmark.extra_info["tokens_per_s"] = batch * c.seq_len / benchmark.stats["median"]


def test_validation(benchmark: Any) -> None:
    c = PRESETS["seed"]
    weights = Parameters(c)
    initialise(weights, 0)
    decoder = Decoder(weights, make_team(), 12, c.seq_len)
    ids = np.random.default_rng(0).integers(0, c.vocab_size, (12, c.seq_len + 1), np.int32)
    benchmark(decoder.loss, ids[:, :-1], ids[:, 1:])


def test_generation(benchmark: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a text that has {i * i} words\n" for i in range(3000)))
    model = crystalline.train(text, tmp_path / "m", steps=1, dim=256, layers=4, seq_len=256)
    benchmark(model.generate, "line", max_tokens=100)
