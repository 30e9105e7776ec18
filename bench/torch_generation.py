"""Generation in PyTorch eager with a cache that is allocated once: prints one JSON object."""

from __future__ import annotations

import json
import time

import click
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_step import Decoder, turn

from crystalline.config import PRESETS


def decode(model: Decoder, ids: Tensor, cache: Tensor, at: int) -> Tensor:
    """Logits (B, V) after ids (B, T), whose keys and values go to cache (L, 2, B, H, C, Dh)."""
    c, (B, T) = model.c, ids.shape
    x, end = model.embed(ids), at + ids.shape[1]
    cos, sin = model.cos[at:end].to(x.dtype), model.sin[at:end].to(x.dtype)
    for layer, (keys, values) in zip(model.layers, cache, strict=True):
        qkv = layer.qkv(F.rms_norm(x, (c.dim,), layer.norm1, c.norm_eps)).view(B, T, -1, c.head_dim)
        q, k, v = qkv.transpose(1, 2).split([c.heads, c.kv_heads, c.kv_heads], dim=1)
        q, keys[:, :, at:end], values[:, :, at:end] = turn(q, cos, sin), turn(k, cos, sin), v
        past = keys[:, :, :end], values[:, :, :end]
        grouped = c.heads != c.kv_heads
        a = F.scaled_dot_product_attention(q, *past, is_causal=T > 1, enable_gqa=grouped)
        x = x + layer.out(a.transpose(1, 2).reshape(B, T, c.dim))
        gate, up = layer.gate_up(F.rms_norm(x, (c.dim,), layer.norm2, c.norm_eps)).chunk(2, -1)
        x = x + layer.down(F.silu(gate) * up)
    return F.linear(F.rms_norm(x[:, -1], (c.dim,), model.norm, c.norm_eps), model.embed.weight)


@click.command()
@click.option("--model", "name", default="seed", type=click.Choice(list(PRESETS)))
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "bf16"]))
@click.option("--batch", default=1)
@click.option("--tokens", default=48)
@click.option("--threads", default=2)
def main(name: str, precision: str, batch: int, tokens: int, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    c = PRESETS[name]
    model = Decoder(c, c.seq_len)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    model = model.to(kind)
    cache = torch.zeros(c.layers, 2, batch, c.kv_heads, 16 + tokens, c.head_dim, dtype=kind)
    seconds = []
    with torch.inference_mode():
        token = decode(model, torch.arange(16).repeat(batch, 1), cache, 0).argmax(-1)
        for at in range(16, 16 + tokens):
            begun = time.perf_counter()
            token = decode(model, token[:, None], cache, at).argmax(-1)
            seconds.append(time.perf_counter() - begun)
    # The least disturbed token: what others do on the machine is not its fault.
    print(json.dumps({"tokens_per_s": batch / min(seconds)}))


if __name__ == "__main__":
    main()
