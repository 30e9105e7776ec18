"""Greedy generation in PyTorch, eager, as well as it can be written: a cache of keys and values
that is there from the start, no gradients, one fused product for queries, keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_step import Decoder, turn

from crystalline.config import PRESETS


class Generator:
    """A model of a preset with random weights, batch 1."""

    def __init__(self, preset: str, precision: str) -> None:
        torch.manual_seed(0)
        c = self.c = PRESETS[preset]
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = Decoder(c, c.seq_len).to(kind).requires_grad_(False)
        room = (c.layers, 1, c.kv_heads, c.seq_len, c.head_dim)
        self.keys, self.values = torch.zeros(room, dtype=kind), torch.zeros(room, dtype=kind)

    @torch.inference_mode()
    def __call__(self, prompt: list[int], most: int) -> list[int]:
        """``most`` tokens after the prompt, the likeliest each time."""
        ids, fresh, at = list(prompt), torch.tensor(prompt), 0
        for _ in range(most):
            token = int(self._logits(fresh, at).argmax())
            at += len(fresh)
            ids.append(token)
            fresh = torch.tensor([token])
        return ids[len(prompt) :]

    def _logits(self, fresh: Tensor, at: int) -> Tensor:
        """Logits after the last of the new tokens, which join the cache at position ``at``."""
        m, end = self.model, at + len(fresh)
        x = m.embed(fresh)
        cos, sin = m.cos[at:end], m.sin[at:end]
        for i, layer in enumerate(m.layers):
            x = self._layer(i, layer, x, cos, sin, at)
        last = F.rms_norm(x[-1:], (self.c.dim,), m.norm, self.c.norm_eps)
        return F.linear(last, m.embed.weight)[0]

    def _layer(
        self, i: int, layer: torch.nn.Module, x: Tensor, cos: Tensor, sin: Tensor, at: int
    ) -> Tensor:
        c, n = self.c, len(x)
        qkv = layer.qkv(F.rms_norm(x, (c.dim,), layer.norm1, c.norm_eps)).view(n, -1, c.head_dim)
        q, k, v = qkv.transpose(0, 1)[None].split([c.heads, c.kv_heads, c.kv_heads], dim=1)
        self.keys[i, :, :, at : at + n] = turn(k, cos, sin)
        self.values[i, :, :, at : at + n] = v
        a = F.scaled_dot_product_attention(
            turn(q, cos, sin), self.keys[i, :, :, : at + n], self.values[i, :, :, : at + n],
            is_causal=n > 1, enable_gqa=c.heads != c.kv_heads,
        )  # fmt: skip
        x = x + layer.out(a[0].transpose(0, 1).reshape(n, -1))
        gate_up = layer.gate_up(F.rms_norm(x, (c.dim,), layer.norm2, c.norm_eps))
        gate, up = gate_up.chunk(2, -1)
        return x + layer.down(F.silu(gate) * up)
