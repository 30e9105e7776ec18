"""Whole training steps: forward, backward, clipping and AdamW on random tokens.

torch takes part with both allocators, eager and compiled; memory is the process's most.  The
sampled loss is over 512 classes that all tokens share, for torch as for us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from compare.contest import OURS, Contender, Contest, Settings

BATCHES = {"seed": 12, "nano": 12, "m": 4}
SAMPLES = 512
CONTENDERS = (
    Contender(OURS, OURS),
    Contender("torch", "torch"),
    Contender.tuned("torch, tuned allocator", "torch"),
    Contender.tuned("torch compiled", "compiled"),
)
# Preset, precision, loss; the whole steps first, then the one of 64 tokens a sequence.
CASES = [
    *(("seed", p, loss) for loss in ("full", "sampled") for p in ("fp32", "bf16")),
    ("nano", "fp32", "full"), ("m", "fp32", "full"), ("m", "bf16", "full"),
]  # fmt: skip
SHORT, SHORT_CASES = 64, [("seed", "bf16", "full"), ("seed", "fp32", "sampled")]
QUICK = [("nano", "fp32", "full"), ("nano", "bf16", "full"), ("nano", "fp32", "sampled")]


def contests(s: Settings) -> list[Contest]:
    """All models, then the time of a short batch."""
    made = [
        contest(s, *case, None) for case in (QUICK if s.quick else CASES) if case[1] in s.precisions
    ]
    short = [] if s.quick else [case for case in SHORT_CASES if case[1] in s.precisions]
    return made + [replace(contest(s, *case, SHORT), unit="ms", limit=None) for case in short]


def contest(s: Settings, preset: str, precision: str, loss: str, seq: int | None) -> Contest:
    """One step against torch's; ``seq`` None is the preset's own length."""
    from crystalline.config import PRESETS
    from crystalline.training.plan import flops_per_token

    c = PRESETS[preset] if seq is None else replace(PRESETS[preset], seq_len=seq)
    samples = min(SAMPLES, c.vocab_size) if loss == "sampled" else 0
    name = f"{preset}, {BATCHES[preset]} x {c.seq_len}, {precision}"
    peak = s.peak(precision)
    case = {"preset": preset, "precision": precision, "samples": samples, "seq": c.seq_len}
    return Contest(
        name + (f", {samples} samples" if samples else ""), __name__, case,
        CONTENDERS[:2] if s.quick else CONTENDERS, BATCHES[preset] * c.seq_len, "tokens/s",
        peak and 1e9 * peak / flops_per_token(c, samples),
        memory="peak" if seq is None else None, alone=True,
    )  # fmt: skip


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """One step."""
    preset, precision, samples, seq = (
        case[name] for name in ("preset", "precision", "samples", "seq")
    )
    if who == OURS:
        from stepping import Stepper

        from crystalline.config import PRESETS
        from crystalline.team import make_team

        c = replace(PRESETS[preset], seq_len=seq)
        return Stepper(
            make_team(threads), c, BATCHES[preset], precision=precision, samples=samples
        ).step
    import torch
    from torch_step import Step

    torch.set_num_threads(threads)
    loss = "sampled" if samples else "full"
    return Step(preset, BATCHES[preset], seq, precision, loss, samples, who == "compiled")
