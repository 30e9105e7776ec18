"""Output projection and cross-entropy, forward and backward, and the memory that takes.

Extra memory is what a call takes beyond its inputs, outputs included, in a process of its own.
torch's own chunked ``linear_cross_entropy`` takes part too.  In bf16 torch has h and w in it; we
have h, and round w in the call, as a step does; our gradients stay fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compare.contest import OURS, Contender, Contest, Settings

CASES = [(3072, 256, 10000), (2048, 768, 32000)]
CONTENDERS = (
    Contender(OURS, OURS),
    Contender("torch", "torch"),
    Contender.tuned("torch, tuned allocator", "torch"),
    Contender.tuned("torch chunked", "chunked"),
    Contender.tuned("torch compiled", "compiled"),
)


def contests(s: Settings) -> list[Contest]:
    """Both models' heads."""
    return [
        Contest(
            f"({R}, {D} -> {V}), {precision}", __name__,
            {"sizes": [R, D, V], "precision": precision}, CONTENDERS,
            6e-9 * R * D * V, "GFLOP/s", s.peak(precision), memory="extra", alone=True,
        )
        for precision in s.precisions
        for R, D, V in ([(384, 256, 2000)] if s.quick else CASES)
    ]  # fmt: skip


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """Loss and both gradients."""
    (R, D, V), narrow = case["sizes"], case["precision"] == "bf16"
    rng = np.random.default_rng(0)
    h, w = (rng.standard_normal((n, D), np.float32) for n in (R, V))
    w *= np.float32(0.05)
    targets = rng.integers(0, V, R, dtype=np.int32)
    if who == OURS:
        from crystalline.team import make_team

        team, groups = make_team(threads), np.linspace(0, R, 13).astype(np.int64)
        losses, dh, dw = np.empty(R, np.float32), np.empty_like(h), np.empty_like(w)
        if narrow:
            x = np.empty(h.shape, np.uint16)
            team.to_bf16(x.reshape(-1), h.reshape(-1))
            return lambda: team.head_bf16(losses, x, w, targets, groups, dh, dw, 1.0 / R)
        return lambda: team.head(losses, h, w, targets, groups, dh, dw, 1.0 / R)
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    kind = torch.bfloat16 if narrow else torch.float32
    x, weight = (torch.from_numpy(a).to(kind).requires_grad_() for a in (h, w))
    ids = torch.from_numpy(targets).long()

    def loss(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if who == "chunked":
            options = torch.nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(x, weight, ids, options=options)
        return F.cross_entropy(F.linear(x, weight), ids)

    forward = torch.compile(loss) if who == "compiled" else loss

    def both() -> None:
        forward(x, weight).backward()
        x.grad = weight.grad = None  # now, so that the next call's are memory taken anew

    return both
