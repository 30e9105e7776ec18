"""How much memory a training takes at its peak, by purpose, before any of it is taken.

Arenas are counted exactly, by the code that lays them out.  What the interpreter and the libraries
add was measured (docs/forecast.md): the constants below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from crystalline._native import Team
from crystalline.config import ModelConfig, parameter_count
from crystalline.decoder.activations import decoder_arrays, layout
from crystalline.decoder.decoder import group_starts
from crystalline.decoder.memory import arena_bytes
from crystalline.forecast.machine import shared_room
from crystalline.optimizers import moment_floats

if TYPE_CHECKING:
    from crystalline.training.plan import Recipe

MIB = 1 << 20
MB = 1e6
# Measured, in bytes: what is added to a process that has loaded the libraries.
WORKING = 10 * MIB  # their code as it is used, threads, the interpreter's own
LEFTOVERS = 4 * MIB, 5.0, 8.0 * MB  # of making tokens, at first and for each byte of text up to so
# many: what cannot be given back, on one or two threads
A_THREAD = 4 * MIB, 1.8, 5.0 * MB  # more of it, and at the peak before, for each thread above two
READY = 4.5 * MIB, 400  # of a training that is ready to begin: what comes yet, and for each word
PAGES = 1 << 16  # bytes of a token file that come with the first of them
A_WORD = 1200  # of the vocabulary: the tokenizer's tables, and their text in every checkpoint
A_WORD_SAMPLED = 400  # more with the sampled loss
A_SEQUENCE = 100  # of an epoch: where it begins, and the order
A_DOCUMENT = 100
LEARNING = 20 * MIB, 15.0, 8.0 * MB  # a vocabulary: at first, and for each byte up to so many
LEARNT = 8 * MIB, 2.8, 8.0 * MB  # what of that stays
TURNING = 15 * MIB, 4.5, 4.2 * MB  # text into tokens, beside what stayed


@dataclass(frozen=True)
class Text:
    """What is trained on, as far as memory depends on it: bytes and tokens of all of it, documents,
    whether its vocabulary is still to be learnt, and how many sequences are read, if it is known.
    """

    bytes: int = 0
    tokens: int = 0
    documents: int = 1
    fresh: bool = True
    sequences: int | None = None


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


GROWN = ("libraries", "vocabulary", "tokens", "order of text")  # which grow bit by bit


def blocks(
    c: ModelConfig, recipe: Recipe, team: Team, length: int | None = None
) -> dict[str, list[int]]:
    """What a training asks for in large blocks, by purpose: the float32 numbers of each.  Its
    sequences have ``length`` tokens now, if not as many as when it began."""
    B, bf16 = recipe.batch_size, recipe.precision == "bf16"
    T = length or recipe.seq_len or c.seq_len
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
        "measuring": _measuring(c, recipe, team) if (recipe.seq_len or c.seq_len) != T else [],
    }


def _measuring(c: ModelConfig, recipe: Recipe, team: Team) -> list[int]:
    """What validates at the length that training began with."""
    B, T, bf16 = recipe.batch_size, recipe.seq_len or c.seq_len, recipe.precision == "bf16"
    work = team.work_floats(group_starts(B) * T, T, c.dim, c.heads, c.kv_heads, c.hidden,
                            c.vocab_size, 0, False, bf16)  # fmt: skip
    arrays = decoder_arrays(c, B, T, False, bf16, False)
    return [layout(arrays, c, False).floats, int(work)]


def arenas(
    c: ModelConfig, recipe: Recipe, team: Team, length: int | None = None
) -> dict[str, int]:
    """The bytes that these blocks take once they are touched, and the weights once more in shared
    memory, for others to look at, if there is room."""
    held = {
        name: sum(arena_bytes(n) for n in sizes if n)
        for name, sizes in blocks(c, recipe, team, length).items()
    }
    shown = 4 * parameter_count(c)
    return held | {"live view": shown if shown < shared_room() else 0}


def memory(c: ModelConfig, recipe: Recipe, team: Team, text: Text, base: int) -> Memory:
    """The forecast for a process that holds ``base`` bytes when it begins, libraries loaded."""
    word = A_WORD + (A_WORD_SAMPLED if recipe.samples else 0)
    threads = max(0, team.threads - 2) * _of(text, *A_THREAD)  # the tokenizer has as many
    training = {
        "libraries": base + WORKING + _of(text, *LEFTOVERS) + threads,
        **arenas(c, recipe, team),
        "vocabulary": word * c.vocab_size,
        **_read(c, text),
    }
    stayed = _of(text, *LEARNT) if text.fresh else LEARNT[0]
    before = {"turning text into tokens": base + stayed + _of(text, *TURNING) + threads}
    if text.fresh:
        before["learning a vocabulary"] = base + _of(text, *LEARNING) + threads
    return Memory(training, before)


def memory_when_ready(
    c: ModelConfig, recipe: Recipe, team: Team, text: Text, held: int, peak: int
) -> Memory:
    """The same when the tokens are made: the process has held ``peak`` bytes at most so far, and
    held so many when it began to lay out its arenas."""
    first, word = READY
    training = {
        "libraries": held + round(first),
        **arenas(c, recipe, team),
        "vocabulary": (word + (A_WORD_SAMPLED if recipe.samples else 0)) * c.vocab_size,
        **_read(c, text),
    }
    return Memory(training, {"so far": peak})


def _read(c: ModelConfig, text: Text) -> dict[str, int]:
    """What grows with the text that is read."""
    tokens = (2 if c.vocab_size <= 1 << 16 else 4) * text.tokens
    if text.sequences is not None:
        tokens = min(tokens, text.sequences * PAGES)
    order = A_SEQUENCE * (text.tokens // c.seq_len) + A_DOCUMENT * text.documents
    return {"tokens": tokens, "order of text": order}


def _of(text: Text, first: float, each: float, most: float) -> int:
    return round(first + each * min(text.bytes, most))
