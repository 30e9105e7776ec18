"""Every size that is promised: batches of 1 x 8 to 48 x 512 tokens, vocabularies of 300 to 50,000,
odd widths, one head, one position.  Each trains two steps on random ids, and its loss is checked
against the uniform guess it must start near."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crystalline.config import ModelConfig
from crystalline.decoder.decoder import Decoder, Parameters, initialise
from crystalline.optimizers import AdamW, AdamWConfig
from crystalline.team import make_team

SIZES = {
    # name: (B, T, V, D, L, H, K, F)
    "1 x 8": (1, 8, 300, 16, 1, 2, 1, 20),
    "1 x 1": (1, 1, 300, 16, 1, 1, 1, 16),
    "48 x 1": (48, 1, 300, 16, 2, 2, 2, 33),
    "48 x 512": (48, 512, 300, 16, 1, 1, 1, 16),
    "1 x 512, large vocabulary": (1, 512, 50000, 16, 1, 1, 1, 16),
    "48 x 512, large vocabulary": (48, 512, 50000, 2, 1, 1, 1, 1),
    "width 22, one head of 22": (5, 17, 1003, 22, 2, 1, 1, 59),
    "width 6, heads of 2": (12, 9, 301, 6, 1, 3, 1, 7),
    "width 250, heads of 50": (3, 33, 777, 250, 1, 5, 5, 601),
    "width 2": (2, 3, 300, 2, 1, 1, 1, 1),
    "a batch of 25": (25, 31, 512, 48, 2, 3, 1, 100),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_trains(name: str) -> None:
    B, T, V, D, L, H, K, F = SIZES[name]
    c = ModelConfig(V, D, L, H, K, F, T)
    team, weights, gradients = make_team(), Parameters(c), Parameters(c)
    initialise(weights, 0)
    decoder = Decoder(weights, team, B, T, gradients)
    optimizer = AdamW(weights, team, AdamWConfig())
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, T)).astype(np.int32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    losses = []
    for _ in range(3):
        losses.append(decoder.gradient(ids, targets, 1 / ids.size, False) / ids.size)
        assert math.isfinite(optimizer.step(gradients, 1e-2))
    assert losses[0] == pytest.approx(math.log(V), rel=0.02)
    assert losses[2] < losses[0]
    assert decoder.loss(ids, targets) / ids.size < losses[0]
