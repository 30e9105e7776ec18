"""The same training step in PyTorch, as well as it can be written: prints one JSON object.

Llama-style decoder, tied embeddings, scaled_dot_product_attention, fused AdamW, clipping at 1.0.

bf16           weights and activations in bf16, with fp32 masters that AdamW updates
bf16-autocast  fp32 weights under torch.autocast
sampled        softmax over the target and samples that all tokens share, drawn from the log-uniform
               law, their logits less the logarithm of how often each is expected
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import time

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystalline.config import PRESETS, ModelConfig

PRECISIONS = ("fp32", "bf16", "bf16-autocast")
LOSSES = ("full", "sampled")


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

    def hidden(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        cos, sin = (table[: x.shape[1]].to(x.dtype) for table in (self.cos, self.sin))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.rms_norm(x, x.shape[-1:], self.norm, self.c.norm_eps).flatten(0, 1)

    def forward(self, ids: Tensor, targets: Tensor, samples: Tensor | None) -> Tensor:
        x, w, targets = self.hidden(ids), self.embed.weight, targets.flatten()
        if samples is None:
            return F.cross_entropy(F.linear(x, w), targets)
        V, S = len(w), len(samples)
        due = (x * self.embed(targets)).sum(-1) - expected(targets, S, V)
        others = F.linear(x, self.embed(samples)) - expected(samples, S, V).to(x.dtype)
        others = others.masked_fill(samples == targets[:, None], -math.inf)
        # The target beside the samples, without the copy that a joined matrix would be.
        return (torch.logaddexp(due, others.logsumexp(-1)) - due).mean()


def expected(ids: Tensor, S: int, V: int) -> Tensor:
    """Logarithm of how many of S samples of the log-uniform law are expected to be each of ids."""
    c = ids.float()
    return torch.log(torch.log((c + 2) / (c + 1)) * (S / math.log(V + 1)))


class Step:
    """A model, its optimizer and a batch; call it for one training step."""

    def __init__(
        self, preset: str, batch: int, seq: int, precision: str = "fp32", loss: str = "full",
        samples: int = 512, compiled: bool = False,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        c = PRESETS[preset]
        self.autocast, self.samples = precision == "bf16-autocast", samples
        self.V, self.sampled = c.vocab_size, loss == "sampled"
        self.model = Decoder(c, seq)
        self.masters = list(self.model.parameters())
        if precision == "bf16":
            self.masters = [nn.Parameter(p.detach().clone()) for p in self.masters]
            self.model.to(torch.bfloat16)
        self.weights = list(self.model.parameters())
        # In place, since a compiled copy of the module would be one more name for each weight.
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(self.masters, 1e-3, betas=(0.9, 0.95), fused=True)
        self.ids = torch.randint(c.vocab_size, (batch, seq + 1))

    def drawn(self) -> Tensor | None:
        """This step's samples."""
        if not self.sampled:
            return None
        u = torch.rand(self.samples, dtype=torch.float64)
        return (torch.exp(u * math.log(self.V + 1)) - 1).long().clamp_(0, self.V - 1)

    def __call__(self) -> float:
        """One step; returns the loss."""
        for p in (*self.weights, *self.masters):
            p.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.forward(self.ids[:, :-1], self.ids[:, 1:], self.drawn())
        loss.backward()
        split = self.weights[0] is not self.masters[0]
        if split:
            for master, p in zip(self.masters, self.weights, strict=True):
                master.grad, p.grad = p.grad.float(), None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        if split:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)
        return float(loss.detach())


@click.command()
@click.option("--preset", default="seed", type=click.Choice(list(PRESETS)))
@click.option("--batch", default=12)
@click.option("--seq", default=256)
@click.option("--threads", default=2)
@click.option("--steps", default=8)
@click.option("--precision", default="fp32", type=click.Choice(PRECISIONS))
@click.option("--loss", default="full", type=click.Choice(LOSSES))
@click.option("--samples", default=512, help="shared by all tokens of a step, with --loss sampled")
@click.option("--compile", "compiled", is_flag=True)
def main(
    preset: str, batch: int, seq: int, threads: int, steps: int, precision: str, loss: str,
    samples: int, compiled: bool,
) -> None:  # fmt: skip
    """Times steps after two that warm up."""
    torch.set_num_threads(threads)
    step = Step(preset, batch, seq, precision, loss, samples, compiled)
    seconds, losses = [], []
    for _ in range(steps + 2):
        begun = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = batch * seq / statistics.median(seconds[2:])
    print(json.dumps({"tokens_per_s": speed, "peak_rss_mib": peak, "losses": losses}))


if __name__ == "__main__":
    main()
