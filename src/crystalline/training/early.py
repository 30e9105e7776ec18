"""Early stopping: validations that are no longer better end a training, and the best is the model.

A validation is better when its loss is below the last better one's by more than ``min_delta``.
After ``patience`` validations in a row that are not, the training is done.  Where a training with
patience is done, by that or by its last step, the best weights lie in the model's file; what they
displace there lies beside the moments, where resuming takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalline.checkpoints.checkpoint import load_model
from crystalline.checkpoints.kept import BEST
from crystalline.checkpoints.pending import Tensor
from crystalline.decoder.decoder import Parameters
from crystalline.decoder.layers import Floats
from crystalline.errors import CheckpointError

if TYPE_CHECKING:
    from crystalline.training.training import Training

LAST = "last."  # before the names of what the best displaced


def count(training: Training, loss: float) -> None:
    """Takes a validation into account."""
    p, r = training.progress, training.recipe
    if p.mark is None or loss < p.mark - r.min_delta:
        p.mark, p.stale = loss, 0
    else:
        p.stale += 1


def end_if_due(training: Training) -> bool:
    """Whether patience is at an end; then the course ends at this step."""
    p, r = training.progress, training.recipe
    if not r.patience or p.stale < r.patience or p.step >= p.course.steps:
        return False
    times = "validation" if p.stale == 1 else f"{p.stale} validations in a row"
    p.ended = (
        f"stopped early at step {p.step} of {p.course.steps}: {times} not below "
        f"{p.mark:.4f} by more than {r.min_delta:g}"
    )
    p.course = replace(p.course, steps=p.step)
    return True


def go_on(training: Training) -> None:
    """A training that was done is given more steps: patience begins anew."""
    training.progress.ended, training.progress.stale = None, 0


def model_to_save(training: Training) -> tuple[int, Mapping[str, Floats], dict[str, Any]]:
    """The step and the weights of the model's file, and the tensors that go beside the moments."""
    p, last = training.progress, training.offered.named
    done = p.step >= p.course.steps
    if not (training.recipe.patience and done and p.best is not None and p.best_step != p.step):
        return p.step, last, {}
    try:
        config, _, best = load_model(training.out / BEST)
    except CheckpointError:  # removed by somebody; the last weights are the best there is
        return p.step, last, {}
    if config != training.config:  # of before layers were added: it would not fit the moments
        return p.step, last, {}
    return p.best_step, best, {LAST + name: w for name, w in last.items()}


def load_last(
    weights: Parameters, model: Mapping[str, Tensor], beside: Mapping[str, Tensor]
) -> None:
    """Sets those of the last step, from the model's file and the tensors beside the moments."""
    for name, view in weights.named.items():
        last = beside[LAST + name] if LAST + name in beside else model[name]
        view[...] = np.asarray(last)
