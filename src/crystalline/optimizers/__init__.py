"""Optimizers: what turns gradients into new weights.  ``docs/optimizers.md`` has the formulas."""

from __future__ import annotations

from collections.abc import Sequence

from crystalline._native import Team
from crystalline.config import ModelConfig, parameter_count
from crystalline.decoder.decoder import Parameters
from crystalline.optimizers.adamw import AdamW, AdamWConfig
from crystalline.optimizers.base import Optimizer
from crystalline.optimizers.momentum import SGD, Lion, LionConfig, SGDConfig
from crystalline.optimizers.muon import Muon, MuonConfig, others_floats

__all__ = [
    "SGD", "AdamW", "AdamWConfig", "Lion", "LionConfig", "Muon", "MuonConfig", "Optimizer",
    "SGDConfig", "make_optimizer", "moment_floats",
]  # fmt: skip


def make_optimizer(
    name: str, weights: Parameters, team: Team, sparse: Sequence[str] = (), *,
    weight_decay: float, embedding_decay: float | None, norm_decay: float, clip: float,
    lambda_correction: float = 0.0,
) -> Optimizer:  # fmt: skip
    """The optimizer of a name of ``config.OPTIMIZERS``, with its own settings as they ship."""
    shared = (weight_decay, embedding_decay, norm_decay, clip, lambda_correction)
    if name == "muon":
        return Muon(weights, team, MuonConfig(*shared), sparse)
    if name == "lion":
        return Lion(weights, team, LionConfig(*shared), sparse)
    if name == "sgd":
        return SGD(weights, team, SGDConfig(*shared), sparse)
    return AdamW(weights, team, AdamWConfig(*shared), sparse)


def moment_floats(c: ModelConfig, name: str) -> int:
    """Numbers that an optimizer keeps between steps."""
    second = {"adamw": parameter_count(c), "muon": others_floats(c)}
    return parameter_count(c) + second.get(name, 0)
