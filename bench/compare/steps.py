"""Whole training steps: forward, backward, clipping and AdamW on random tokens.

torch takes part with both allocators, eager and compiled; memory is the process's most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compare.contest import OURS, Contender, Contest, Settings

BATCHES = {"seed": 12, "nano": 12, "m": 4}
CONTENDERS = (
    Contender(OURS, OURS),
    Contender("torch", "torch"),
    Contender.tuned("torch, tuned allocator", "torch"),
    Contender.tuned("torch compiled", "compiled"),
)


def contests(s: Settings) -> list[Contest]:
    """All models, with the full loss in fp32."""
    from crystalline.config import PRESETS
    from crystalline.plan import flops_per_token

    made = []
    for preset in ["nano"] if s.quick else BATCHES:
        c, peak = PRESETS[preset], s.peak(s.isa)
        batch = BATCHES[preset]
        made.append(
            Contest(
                f"{preset}, {batch} x {c.seq_len}, fp32", __name__, {"preset": preset},
                CONTENDERS[:2] if s.quick else CONTENDERS, batch * c.seq_len, "tokens/s",
                peak and 1e9 * peak / flops_per_token(c), memory="peak", alone=True,
            )
        )  # fmt: skip
    return made


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """One step."""
    from crystalline.config import PRESETS

    preset = case["preset"]
    if who == OURS:
        from stepping import Stepper

        from crystalline.team import make_team

        return Stepper(make_team(threads), PRESETS[preset], BATCHES[preset]).step
    import torch
    from torch_step import Step

    torch.set_num_threads(threads)
    return Step(preset, BATCHES[preset], PRESETS[preset].seq_len, compiled=who == "compiled")
