"""The sampled loss over NumPy arrays: output projection and softmax over a part of the vocabulary.

Bengio and Senecal 2008; Jean, Cho, Memisevic and Bengio 2015; docs/losses.md has the formula.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from crystalline.numpy_kernels.arrays import (
    Floats,
    Ids,
    apart,
    floats,
    ids,
    output,
    outputs,
    rows,
    starts,
)
from crystalline.numpy_kernels.products import Isa, Pair, Threads, head_operands
from crystalline.team import shared_team


def _operands(
    op: str, h: ArrayLike, w: ArrayLike, targets: ArrayLike, samples: ArrayLike,
    log_expected: ArrayLike,
) -> tuple[Floats, Floats, Ids, Ids, Floats]:  # fmt: skip
    x, b, t = head_operands(op, h, w, targets)
    s = ids(op, "samples", samples, 0, len(b))
    if s.ndim != 1 or s.size == 0:
        raise ValueError(f"{op}: samples has shape {s.shape}, but must be (S,) with one or more")
    s = np.sort(s)
    if np.any(s[1:] == s[:-1]):
        twice = s[1:][s[1:] == s[:-1]][0]
        raise ValueError(f"{op}: samples has {twice} twice, but must be different classes")
    # The team takes a list for each of its twelve spans of rows.
    each = np.tile(s, (12, 1))
    return x, b, t, each, floats(op, "log_expected", log_expected, (len(b),))


def sampled_softmax(
    h: ArrayLike, w: ArrayLike, targets: ArrayLike, samples: ArrayLike, log_expected: ArrayLike, *,
    out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Floats:  # fmt: skip
    """Losses (...) in nats of targets (...) among ``samples`` (S), different classes in any order,
    and the target itself, 0 where target is -1. Logits h (..., D) @ w (V, D).T, less
    ``log_expected`` (V,), the log of how often each class is expected among the samples. With all V
    classes and zeros there it is ``linear_cross_entropy``."""
    op = "sampled_softmax"
    x, b, t, s, e = _operands(op, h, w, targets, samples, log_expected)
    losses = output(op, "out", out, t.shape)
    if losses.size:
        x, b, t, e = (apart(a, losses) for a in (x, b, t, e))
        with shared_team(threads, isa) as team:
            team.head_sampled(
                losses.reshape(-1), rows(x, x.shape[-1]), b, t.reshape(-1), starts(t.size), s, e
            )
    return losses


def sampled_softmax_backward(
    h: ArrayLike, w: ArrayLike, targets: ArrayLike, samples: ArrayLike, log_expected: ArrayLike,
    scale: float = 1.0, *,
    losses: Any = None, out: Any = None, threads: Threads = None, isa: Isa = None,
) -> Pair:  # fmt: skip
    """dh (..., D) and dw (V, D) of ``scale`` times the sum of the losses; rows of dw that are
    neither sampled nor targets are zero. float32 ``losses`` (...) gets those too: forward and
    backward in one."""
    op = "sampled_softmax_backward"
    x, b, t, s, e = _operands(op, h, w, targets, samples, log_expected)
    told = output(op, "losses", losses, t.shape)
    dh, dw = outputs(op, out, dh=x.shape, dw=b.shape)
    if any(np.may_share_memory(told, a) for a in (dh, dw)):
        raise ValueError(f"{op}: losses overlaps a gradient; give it memory of its own")
    x, b, t, e = (apart(a, told, dh, dw) for a in (x, b, t, e))
    dw.fill(0)
    if t.size:
        D, work = x.shape[-1], (np.empty(t.size, np.int32), np.empty(len(b) + 1, np.int64))
        with shared_team(threads, isa) as team:
            team.head_sampled(
                told.reshape(-1), rows(x, D), b, t.reshape(-1), starts(t.size), s, e,
                rows(dh, D), dw, scale, *work,
            )  # fmt: skip
    return dh, dw
