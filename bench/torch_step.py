"""The same training step in PyTorch, as well as it can be written: prints one JSON object.

Llama-style decoder, tied embeddings, scaled_dot_product_attention, fused AdamW, clipping at 1.0.
"""

from __future__ import annotations

import json
import resource
import statistics
import time

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystalline.config import PRESETS, ModelConfig


class Layer(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        kv = c.kv_heads * c.head_dim
        self.norm1 = nn.Parameter(torch.ones(c.dim))
        self.norm2 = nn.Parameter(torch.ones(c.dim))
        self.qkv = nn.Linear(c.dim, c.dim + 2 * kv, bias=False)
        self.out = nn.Linear(c.dim, c.dim, bias=False)
        self.gate_up = nn.Linear(c.dim, 2 * c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c, (B, T, D) = self.c, x.shape
        qkv = self.qkv(F.rms_norm(x, (D,), self.norm1, c.norm_eps)).view(B, T, -1, c.head_dim)
        q, k, v = qkv.transpose(1, 2).split([c.heads, c.kv_heads, c.kv_heads], dim=1)
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        grouped = c.heads != c.kv_heads
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = x + self.out(a.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(F.rms_norm(x, (D,), self.norm2, c.norm_eps)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Decoder(nn.Module):
    def __init__(self, c: ModelConfig, T: int) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocab_size, c.dim)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.dim))
        half = c.head_dim // 2
        w = c.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(T, dtype=torch.float64)[:, None] * w
        self.register_buffer("cos", angle.cos().float())
        self.register_buffer("sin", angle.sin().float())
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        x = F.rms_norm(x, x.shape[-1:], self.norm, self.c.norm_eps)
        logits = F.linear(x, self.embed.weight)
        return F.cross_entropy(logits.view(-1, self.c.vocab_size), targets.reshape(-1))


@click.command()
@click.option("--preset", default="seed", type=click.Choice(list(PRESETS)))
@click.option("--batch", default=12)
@click.option("--seq", default=256)
@click.option("--threads", default=2)
@click.option("--steps", default=8)
def main(preset: str, batch: int, seq: int, threads: int, steps: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Decoder(PRESETS[preset], seq)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(PRESETS[preset].vocab_size, (batch, seq + 1))
    seconds = []
    for _ in range(steps + 2):
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(ids[:, :-1], ids[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_s": batch * seq / median, "peak_rss_mib": peak}))


if __name__ == "__main__":
    main()
