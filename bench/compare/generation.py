"""Text, one sequence at a time: tokens a second after a prompt of 16, greedily, fp32.

The limit is reading every weight once for each token, at the read bandwidth over as many bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compare.contest import OURS, Contender, Contest, Settings

PROMPT, TOKENS = 16, 64
ACTIVE = Contender("torch", "torch", (("OMP_WAIT_POLICY", "active"),))


class Words:
    """Stands for a tokenizer where the text does not matter: any prompt is PROMPT tokens."""

    eot = -1  # no token ends a text, so each is as long as was asked

    def encode(self, text: str) -> Any:
        import numpy as np

        return np.arange(PROMPT, dtype=np.int32)

    def token_bytes(self, token: int) -> bytes:
        return b"."


def contests(s: Settings) -> list[Contest]:
    """The small and the large model."""
    from crystalline.config import PRESETS, parameter_count

    made = []
    for preset in ["nano"] if s.quick else ["seed", "m"]:
        size = 4 * parameter_count(PRESETS[preset])
        tokens = min(TOKENS, PRESETS[preset].seq_len - PROMPT)
        made.append(
            Contest(
                f"{preset}, batch 1, fp32", __name__, {"preset": preset, "tokens": tokens},
                (Contender(OURS, OURS), ACTIVE), tokens, "tokens/s",
                1e9 * s.bandwidth("read", size) / size, alone=True,
            )
        )  # fmt: skip
    return made


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """A whole text."""
    preset, tokens = case["preset"], case["tokens"]
    if who == OURS:
        from crystalline.config import PRESETS
        from crystalline.inference import Model
        from crystalline.model import Parameters, initialise

        parameters = Parameters(PRESETS[preset])
        initialise(parameters, 0)
        model = Model(PRESETS[preset], Words(), parameters.named, threads)  # type: ignore[arg-type]
        return lambda: model.generate("", max_tokens=tokens, temperature=0)
    import torch
    from torch_generation import Generator

    torch.set_num_threads(threads)
    generator, prompt = Generator(preset, "fp32"), list(range(PROMPT))
    return lambda: generator(prompt, tokens)
