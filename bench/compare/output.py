"""The output layer of 3072 tokens of width 256: among 512 samples, against the full loss.

Both are ours, forward, backward and update; the sampled one draws its samples and catches rows up,
as in training.  Tokens follow Zipf's law, as those of a text do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compare.contest import OURS, Contender, Contest, Settings

SIZES = (10000, 50000)
CONTENDERS = (Contender(OURS, "sampled"), Contender("full loss", "full"))


def contests(s: Settings) -> list[Contest]:
    """Each vocabulary."""
    from sampled import SAMPLES, TOKENS

    return [
        Contest(
            f"V {V}, {SAMPLES} samples", __name__, {"V": V}, CONTENDERS, TOKENS, "tokens/s",
            alone=True,
        )
        for V in ((2000,) if s.quick else SIZES)
    ]  # fmt: skip


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """One update."""
    from sampled import Layer

    from crystalline.team import make_team

    layer = Layer(make_team(threads), case["V"], uniform=False)
    return layer.sampled if who == "sampled" else layer.full
