"""What an import has read: a model whose weights are still where they were."""

from __future__ import annotations

from dataclasses import dataclass

from crystalline.checkpoints.pending import Pending
from crystalline.config import ModelConfig
from crystalline.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Source:
    """A model from elsewhere; ``weights`` are named and shaped as ``parameter_shapes`` says."""

    config: ModelConfig
    tokenizer: Tokenizer
    weights: dict[str, Pending]
    where: str
