"""The weights of a model in use, packed once in fp32, bf16 or int8; the cache of a sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crystalline._native import PRECISIONS, Stack, Team, Weight
from crystalline.config import ModelConfig
from crystalline.decoder.memory import arena
from crystalline.decoder.positions import model_tables
from crystalline.errors import UsageError

Floats = NDArray[np.float32]
NORMS = ("input", "post_attention")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def checked_precision(precision: str) -> str:
    """``precision``, if it is one that weights can be kept in."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    return precision


class _Room:
    """One block for all matrices of a model: the system gives huge pages in pieces of 2 MiB only,
    and many matrices of a layer are smaller."""

    def __init__(self, size: int) -> None:
        self._left = arena(-(-size // 4)).view(np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """The next bytes; after them it goes on with a cache line."""
        part, self._left = self._left[:size], self._left[_lines(size) :]
        return part


def _lines(size: int) -> int:
    return -(-size // 64) * 64


class Weights:
    """Everything a pass through the model reads.

    Matrices are rounded to the precision, norm gains stay float32.  The embedding is read from the
    same packed table as the output projection where they are tied, so no second copy is kept.
    """

    def __init__(
        self, c: ModelConfig, tensors: dict[str, Floats], team: Team, precision: str
    ) -> None:
        def size(*names: str) -> int:
            N = sum(tensors[name].shape[0] for name in names)
            return team.weight_bytes(N, tensors[names[0]].shape[1], precision)

        def packed(*names: str) -> Weight:
            parts = [np.asarray(tensors[name], np.float32) for name in names]
            matrix = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return team.weight(np.ascontiguousarray(matrix), precision, room.take(size(*names)))

        def gains(name: str) -> Floats:
            return np.array(tensors[name], np.float32)

        def names(p: str) -> list[tuple[str, ...]]:
            qkv = tuple(f"{p}self_attn.{part}_proj.weight" for part in "qkv")
            rest = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
            return [qkv, *((f"{p}{name}.weight",) for name in rest)]

        def layer(p: str) -> tuple[Floats, Weight, Weight, Floats, Weight, Weight, Weight]:
            qkv, out, gate, up, down = (packed(*of) for of in names(p))
            before, after = (gains(f"{p}{at}_layernorm.weight") for at in NORMS)
            return before, qkv, out, after, gate, up, down

        prefixes = [f"model.layers.{i}." for i in range(c.layers)]
        tables = [(EMBEDDING,)] if c.tied else [(EMBEDDING,), (HEAD,)]
        every = [*(of for p in prefixes for of in names(p)), *tables]
        room = _Room(sum(_lines(size(*of)) for of in every))
        layers = [layer(p) for p in prefixes]
        norm = gains("model.norm.weight")
        self.embedding = packed(EMBEDDING)
        self.head = self.embedding if c.tied else packed(HEAD)
        cosine, sine = model_tables(c, c.seq_len)
        self.stack = Stack(
            layers, norm, self.embedding, cosine, sine, c.heads, c.kv_heads, c.norm_eps
        )
        parts = [x for one in layers for x in one] + [norm, self.embedding]
        self.nbytes = sum(x.nbytes for x in parts) + (0 if c.tied else self.head.nbytes)


class Cache:
    """Keys (L, K, Dh, C) and values (L, K, C, Dh up to 32); C is ``positions`` rounded up to 64."""

    def __init__(self, c: ModelConfig, positions: int) -> None:
        room, wide = -(-positions // 64) * 64, -(-c.head_dim // 32) * 32
        self.keys = np.zeros((c.layers, c.kv_heads, c.head_dim, room), np.float32)
        self.values = np.zeros((c.layers, c.kv_heads, room, wide), np.float32)
        self.positions, self.used = positions, 0
