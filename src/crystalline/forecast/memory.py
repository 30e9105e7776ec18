"""How much memory a training takes at its peak, by purpose, before any of it is taken.

Arenas are counted exactly, by the code that lays them out.  What the interpreter and the libraries
add was measured (docs/forecast.md): the constants below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crystalline._native import Team
from crystalline.activations import decoder_arrays, layout
from crystalline.config import ModelConfig, parameter_count
from crystalline.forecast.machine import shared_room
from crystalline.memory import arena_bytes
from crystalline.model import group_starts
from crystalline.optimizers import moment_floats

if TYPE_CHECKING:
    from crystalline.plan import Recipe

MIB = 1 << 20
PAGE_AROUND = 1 << 16  # bytes that come into memory with a page of a mapped file
SAMPLE = 8_000_000  # bytes at most that a vocabulary is learnt from
GROUP = 4 << 20  # bytes of text that are turned into tokens together


@dataclass(frozen=True)
class Text:
    """What is trained on, as far as memory depends on it: bytes of all of it, the predictions of
    one epoch, documents, and whether its vocabulary is still to be learnt."""

    bytes: int = 0
    tokens: int = 0
    documents: int = 1
    fresh: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose: ``training`` while steps are made, ``before`` the most that each part of
    the preparation takes.  The peak is the largest of these sums."""

    training: dict[str, int]
    before: dict[str, int]

    @property
    def peak(self) -> int:
        return max([sum(self.training.values()), *self.before.values()])

    @property
    def arenas(self) -> int:
        """What will be asked for in large blocks: all of training but what is there already."""
        return sum(n for name, n in self.training.items() if name not in GROWN)


GROWN = ("libraries", "vocabulary", "text")  # purposes that grow with the process, bit by bit


def blocks(c: ModelConfig, recipe: Recipe, team: Team) -> dict[str, list[int]]:
    """What a training asks for in large blocks, by purpose: the float32 numbers of each."""
    B, T, bf16 = recipe.batch_size, c.seq_len, recipe.precision == "bf16"
    P = parameter_count(c)
    arrays = decoder_arrays(c, B, T, True, bf16, recipe.samples > 0)
    starts = group_starts(B) * T
    work = team.work_floats(starts, T, c.dim, c.heads, c.kv_heads, c.hidden, c.vocab_size,
                            recipe.samples, recipe.optimizer == "muon", bf16)  # fmt: skip
    return {
        "weights": [P],
        "gradients": [P],
        "moments": [P, moment_floats(c, recipe.optimizer) - P],
        "average": [P if recipe.ema else 0],
        "activations": [layout(arrays, c, recipe.lends_gradients).floats],
        "work space": [int(work)],
    }


def arenas(c: ModelConfig, recipe: Recipe, team: Team) -> dict[str, int]:
    """The bytes that these blocks take once they are touched, and the weights once more in shared
    memory, for others to look at, if there is room."""
    held = {
        name: sum(arena_bytes(n) for n in sizes if n)
        for name, sizes in blocks(c, recipe, team).items()
    }
    shown = 4 * parameter_count(c)
    return held | {"live view": shown if shown < shared_room() else 0}


def memory(c: ModelConfig, recipe: Recipe, team: Team, text: Text, base: int) -> Memory:
    """The forecast for a process that holds ``base`` bytes when it begins, libraries loaded."""
    return Memory({"libraries": base, **arenas(c, recipe, team)}, {})
