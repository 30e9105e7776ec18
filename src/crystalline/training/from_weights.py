"""Training that begins from weights that are there: an imported model, or another one's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crystalline.checkpoints.checkpoint import CHECKSUMS, COMMIT, holds_training, open_model
from crystalline.checkpoints.pending import Pending
from crystalline.config import PRESETS, ModelConfig, TrainConfig
from crystalline.data.tokenizer import Tokenizer
from crystalline.errors import ConfigError

SIZES = ("vocab_size", "dim", "layers", "heads", "kv_heads", "hidden")
LONGEST = 512  # tokens of a training sequence where nothing is said and the model knows more


@dataclass(frozen=True)
class Start:
    """Weights to begin from, and what belongs to them."""

    config: ModelConfig
    tokenizer: Tokenizer
    weights: Mapping[str, Pending]
    where: str

    def length(self, said: TrainConfig) -> int:
        """T of the training: what was said, or up to LONGEST."""
        return said.seq_len or min(self.config.seq_len, LONGEST)


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, whole or about to be."""
    return (folder / CHECKSUMS).exists() or (folder / COMMIT).exists()


def starting_point(folder: Path, said: TrainConfig) -> Start | None:
    """What a new training in ``folder`` begins from: the model of ``start_from``, or one without
    training state that lies in the folder itself; None where it begins with random weights.

    Raises ConfigError for sizes that are not those of the model, CheckpointError for a damaged one.
    """
    here = holds_model(folder) and not holds_training(folder)
    if said.start_from is None and not here:
        return None
    if said.start_from is not None and here:
        raise ConfigError(
            f"start_from is {said.start_from!r}, but {folder} holds a model of its own to begin "
            "from; choose another out, or leave out start_from"
        )
    where = os.fspath(folder) if said.start_from is None else said.start_from
    config, tokenizer, weights = open_model(where)
    _check(said, config, where)
    return Start(config, tokenizer, weights, where)


def _check(said: TrainConfig, c: ModelConfig, where: str) -> None:
    """What was said of the model must be what it is."""
    wanted = {name: getattr(said, name) for name in SIZES}
    if said.preset is not None:
        wanted = {n: getattr(PRESETS[said.preset], n) if v is None else v
                  for n, v in wanted.items()}  # fmt: skip
    wanted["rope"] = said.rope
    for name, value in wanted.items():
        own = getattr(c, name)
        if value not in (None, own):
            raise ConfigError(
                f"{name} is {value}, but the weights of {where} have {own}, which training "
                f"cannot change; choose {own}, or leave it out"
            )
    if said.init is not None:
        raise ConfigError(
            f"init is {said.init!r}, but training begins from the weights of {where}; leave it out"
        )
    if said.tokenizer is not None:
        raise ConfigError(
            f"tokenizer is {said.tokenizer!r}, but the weights of {where} know the ids of their "
            "own; leave it out"
        )
    if said.seq_len is not None and said.seq_len > c.seq_len:
        raise ConfigError(
            f"seq_len is {said.seq_len}, but the model of {where} knows {c.seq_len} positions; "
            f"choose {c.seq_len} or fewer"
        )
