"""Causal attention, forward and backward, against scaled_dot_product_attention.

Arithmetic counts what is below the diagonal: 2 products forward and 5 backward, 7 B D T^2 in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compare.contest import OURS, Contender, Contest, Settings

CASES = [(12, 256, 8, 32), (3, 1024, 8, 32), (1, 4096, 8, 32), (3, 1024, 12, 64)]  # B, T, H, Dh
CONTENDERS = (
    Contender(OURS, OURS),
    Contender("torch", "torch"),
    Contender.tuned("torch, tuned allocator", "torch"),
)


def contests(s: Settings) -> list[Contest]:
    """All lengths."""
    return [
        Contest(
            f"T {T}: {B} x {H} heads of {Dh}", __name__, {"sizes": [B, T, H, Dh]}, CONTENDERS,
            7e-9 * B * H * Dh * T * T, "GFLOP/s", s.peak(),
        )
        for B, T, H, Dh in (CASES[:1] if s.quick else CASES)
    ]  # fmt: skip


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """Forward and backward."""
    B, T, H, Dh = case["sizes"]
    R, D = B * T, H * Dh
    rng = np.random.default_rng(0)
    qkv, dout = (rng.standard_normal((R, n), np.float32) for n in (3 * D, D))
    if who == OURS:
        from crystalline.team import make_team

        team = make_team(threads)
        out, dqkv, lse = np.empty_like(dout), np.empty_like(qkv), np.empty(R * H, np.float32)

        def ours() -> None:
            team.attention(out, lse, qkv, T, H, H)
            team.attention_bwd(dqkv, dout, out, qkv, lse, T, H, H)

        return ours
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    heads = torch.from_numpy(qkv).view(B, T, 3, H, Dh).permute(2, 0, 3, 1, 4)
    q, k, v = (part.contiguous().requires_grad_() for part in heads)
    up = torch.from_numpy(dout).view(B, T, H, Dh).transpose(1, 2).contiguous()

    def torchs() -> None:
        q.grad = k.grad = v.grad = None
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(up)

    return torchs
