"""Layers added to a model that has been trained: the function is unchanged to the last bit.

A layer adds o_proj(...) and then down_proj(...) to its input.  A new one begins with both at zero:
it adds +0, which changes no number but the sign of a zero, and no sum that begins with +0 sees
that.  Both get a gradient at once, since what they multiply is not zero; the layer's other weights
from the next step on.  New layers come last, before the final norm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from crystalline.checkpoints.kept import LAYERS
from crystalline.decoder.decoder import Parameters, draw_normal
from crystalline.errors import UsageError
from crystalline.forecast.fits import check_memory

if TYPE_CHECKING:
    from crystalline.training.trainer import Trainer

STREAM = 0x6C617972  # tells these draws from the others that the same seed begins
OUTPUTS = ("o_proj.weight", "down_proj.weight")  # of a layer: what is added to its input


def begin_layers(weights: Parameters, first: int, seed: int) -> None:
    """Sets the layers from ``first`` on as new ones; each follows from seed and number alone."""
    for layer in range(first, weights.config.layers):
        bits = np.random.PCG64(np.random.SeedSequence([seed % 2**64, layer, STREAM]))
        for name, view in weights.named.items():
            if not name.startswith(f"model.layers.{layer}."):
                continue
            if view.ndim == 1:
                view[...] = 1.0
            elif name.endswith(OUTPUTS):
                view[...] = 0.0
            else:
                draw_normal(view, bits, 0.02)


def add_layers(trainer: Trainer, layers: int) -> None:
    """The training goes on with so many layers; the checkpoint of before is kept for ever.

    UsageError refuses fewer, more than there is memory for, and what cannot be kept.
    """
    before = trainer.config
    if layers < before.layers:
        raise UsageError(
            f"layers is {layers}, but the model has {before.layers}: layers can be added and never "
            f"removed, as those above have learnt from what they give; choose {before.layers + 1} "
            "or more"
        )
    if layers == before.layers:
        return
    config = replace(before, layers=layers)
    check_memory(config, trainer.recipe, trainer.team, length=trainer.batches.seq_len)
    trainer.saving.keep_before(LAYERS)
    trainer.optimizer.settle()
    offered, beside, updates = trainer.offered, trainer.beside(), trainer.optimizer.t
    trainer.config = config
    trainer.plan_model()
    begin_layers(trainer.weights, before.layers, trainer.recipe.seed)
    if trainer.average is not None:
        trainer.average.start()
    # What stands beside the new layers' weights is as at the beginning: moments of zero.
    beside = {name: beside.get(name, new) for name, new in trainer.beside().items()}
    trainer.load(trainer.offered.named | offered.named, beside, updates)
    trainer.plan_batches()
    trainer.saving.changed = True
    trainer.show_again()
