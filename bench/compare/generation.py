"""Text, one sequence at a time: tokens a second after a prompt of 16, greedily.

The limit is reading every weight, as it is kept, once for each token: at the read bandwidth over as
many bytes, measured in turn with the texts.  PyTorch has no int8 that it would be fair to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compare.contest import OURS, Contender, Contest, Moving, Settings

PROMPT, TOKENS = 16, 64
ACTIVE = Contender("torch", "torch", (("OMP_WAIT_POLICY", "active"),))


class Words:
    """Stands for a tokenizer where the text does not matter: any prompt is PROMPT tokens."""

    eot = -1  # no token ends a text, so each is as long as was asked

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> Any:
        return np.arange(PROMPT, dtype=np.int32)

    def token_bytes(self, token: int) -> bytes:
        return b"."


def contests(s: Settings) -> list[Contest]:
    """The small and the large model in each precision."""
    from crystalline.config import PRESETS

    made = []
    for preset in ["nano"] if s.quick else ["seed", "m"]:
        tokens = min(TOKENS, PRESETS[preset].seq_len - PROMPT)
        for precision in ("fp32", "bf16", "int8"):
            size = weight_bytes(preset, precision)
            made.append(
                Contest(
                    f"{preset}, batch 1, {precision}", __name__,
                    {"preset": preset, "tokens": tokens, "precision": precision},
                    (Contender(OURS, OURS), *(() if precision == "int8" else (ACTIVE,))), tokens,
                    "tokens/s", Moving("read", size, 1e-9 * size), alone=True,
                )
            )  # fmt: skip
    return made


def weight_bytes(preset: str, precision: str) -> int:
    """What the weights of a ``Model`` take: ``Model.weight_bytes``."""
    from crystalline.config import PRESETS, parameter_shapes
    from crystalline.inference.weights import Weights
    from crystalline.team import make_team

    c = PRESETS[preset]
    nothing = {
        name: np.broadcast_to(np.float32(0), shape) for name, shape in parameter_shapes(c).items()
    }
    return Weights(c, nothing, make_team(1), precision).nbytes


def build(who: str, case: dict[str, Any], threads: int) -> Callable[[], Any]:
    """A whole text."""
    preset, tokens, precision = case["preset"], case["tokens"], case["precision"]
    if who == OURS:
        from crystalline.config import PRESETS
        from crystalline.decoder.decoder import Parameters, initialise
        from crystalline.inference.model import Model

        c, words = PRESETS[preset], Words(PRESETS[preset].vocab_size)
        parameters = Parameters(c)
        initialise(parameters, 0)
        model = Model(c, words, parameters.named, threads, precision)  # type: ignore[arg-type]
        return lambda: model.generate("", max_tokens=tokens, temperature=0)
    import torch
    from torch_generation import Generator

    torch.set_num_threads(threads)
    generator, prompt = Generator(preset, precision), list(range(PROMPT))
    return lambda: generator(prompt, tokens)
