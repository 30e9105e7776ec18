"""The steps of the decoder with bf16 operands, float32 sums and float32 weights and gradients.

What a product reads is bf16: the norms' outputs, attention's output, the feed-forward's inside, and
the gradients of all these.  The residual stream, q, k, v and the attention itself stay float32.
"""

from __future__ import annotations

from crystalline.config import ModelConfig
from crystalline.layers import (
    Attention,
    FeedForward,
    Head,
    Kinds,
    Workspace,
    activation_shapes,
)

ONLY_BF16 = ("h1", "h2", "gu", "act", "h", "dact")  # that the steps in float32 keep as float32


def float_shapes(c: ModelConfig, B: int, T: int, training: bool) -> dict[str, tuple[int, ...]]:
    """The float32 arrays that these steps keep."""
    shapes = activation_shapes(c, B, T, training)
    return {name: s for name, s in shapes.items() if name.split(".")[-1] not in ONLY_BF16}


def bf16_shapes(c: ModelConfig, B: int, T: int, training: bool) -> dict[str, tuple[int, ...]]:
    """Every bf16 array that these steps keep, beside those of ``float_shapes``."""
    R, D, F = B * T, c.dim, c.hidden
    E = (c.heads + 2 * c.kv_heads) * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(c.layers if training else 1):
        shapes |= {
            f"{layer}.h1": (R, D), f"{layer}.h2": (R, D), f"{layer}.gu": (R, 2 * F),
            f"{layer}.act": (R, F),
        }  # fmt: skip
    shapes |= {"h": (R, D), "att": (R, D)}
    if training:
        shapes |= {"dx": (R, D), "dqkv": (R, E), "dact": (R, F)}
    return shapes


class AttentionBf16(Attention):
    def forward(self, s: Workspace) -> None:
        c, team, a = s.config, s.team, self.a
        x, h, qkv, att = s.a[a + "x"], s.n[a + "h1"], s.a[a + "qkv"], s.a[a + "att"]
        norm = s.w[self.w + "input_layernorm.weight"]
        team.rmsnorm_bf16(h, s.a[a + "r1"], x, norm, c.norm_eps)
        team.matmul_bf16(qkv, h, s.w[self.w + "self_attn.qkv"])
        team.rope(qkv, s.cosine, s.sine, c.heads + c.kv_heads, s.T)
        team.attention(att, s.a[a + "lse"], qkv, s.T, c.heads, c.kv_heads, s.lengths)
        team.to_bf16(s.n["att"].reshape(-1), att.reshape(-1))
        out = s.w[self.w + "self_attn.o_proj.weight"]
        team.matmul_bf16(s.a[a + "mid"], s.n["att"], out, x)

    def backward(self, s: Workspace) -> None:
        c, team, a, more = s.config, s.team, self.a, s.accumulate
        dx, datt, dqkv, qkv = s.a["dx"], s.a["dh"], s.a["dqkv"], s.a[a + "qkv"]
        out, norm = self.w + "self_attn.o_proj.weight", self.w + "input_layernorm.weight"
        fused, att = self.w + "self_attn.qkv", s.a[a + "att"]
        team.to_bf16(s.n["dx"].reshape(-1), dx.reshape(-1))
        team.to_bf16(s.n["att"].reshape(-1), att.reshape(-1))
        team.matmul_dw_bf16(s.g[out], s.n["dx"], s.n["att"], s.groups, accumulate=more)
        team.matmul_dx_bf16(datt, s.n["dx"], s.w[out])
        team.attention_bwd(
            dqkv, datt, att, qkv, s.a[a + "lse"], s.T, c.heads, c.kv_heads, s.lengths
        )
        team.rope(dqkv, s.cosine, s.sine, c.heads + c.kv_heads, s.T, inverse=True)
        team.to_bf16(s.n["dqkv"].reshape(-1), dqkv.reshape(-1))
        team.matmul_dw_bf16(s.g[fused], s.n["dqkv"], s.n[a + "h1"], s.groups, accumulate=more)
        team.matmul_dx_bf16(s.a["dh"], s.n["dqkv"], s.w[fused])
        team.rmsnorm_bwd(
            dx, s.g[norm], s.a["dh"], s.a[a + "x"], s.w[norm], s.a[a + "r1"], s.groups,
            add=True, accumulate=more,
        )  # fmt: skip


class FeedForwardBf16(FeedForward):
    def forward(self, s: Workspace) -> None:
        team, a, w = s.team, self.a, self.w
        mid, h, gu, act = s.a[a + "mid"], s.n[a + "h2"], s.n[a + "gu"], s.n[a + "act"]
        norm = s.w[w + "post_attention_layernorm.weight"]
        team.rmsnorm_bf16(h, s.a[a + "r2"], mid, norm, s.config.norm_eps)
        team.matmul_bf16(gu, h, s.w[w + "mlp.gate_up"])
        team.swiglu_bf16(act, gu)
        team.matmul_bf16(s.a[self.out], act, s.w[w + "mlp.down_proj.weight"], mid)

    def backward(self, s: Workspace) -> None:
        team, a, w, more = s.team, self.a, self.w, s.accumulate
        dx, dact, gu = s.a["dx"], s.n["dact"], s.n[a + "gu"]
        down, fused, norm = (
            w + "mlp.down_proj.weight",
            w + "mlp.gate_up",
            w + "post_attention_layernorm.weight",
        )
        team.to_bf16(s.n["dx"].reshape(-1), dx.reshape(-1))
        team.matmul_dw_bf16(s.g[down], s.n["dx"], s.n[a + "act"], s.groups, accumulate=more)
        team.matmul_dx_bf16(dact, s.n["dx"], s.w[down])
        team.swiglu_bwd_bf16(gu, dact, gu)  # the gradient takes gu's place
        team.matmul_dw_bf16(s.g[fused], gu, s.n[a + "h2"], s.groups, accumulate=more)
        team.matmul_dx_bf16(s.a["dh"], gu, s.w[fused])
        team.rmsnorm_bwd(
            dx, s.g[norm], s.a["dh"], s.a[a + "mid"], s.w[norm], s.a[a + "r2"], s.groups,
            add=True, accumulate=more,
        )  # fmt: skip


class HeadBf16(Head):
    def _norm(self, s: Workspace) -> None:
        norm = s.w["model.norm.weight"]
        s.team.rmsnorm_bf16(s.n["h"], s.a["r"], s.a["x"], norm, s.config.norm_eps)

    def forward(self, s: Workspace) -> None:
        self._norm(s)
        s.team.head_bf16(s.a["losses"], s.n["h"], s.w[self.weight], s.targets, s.groups)

    def backward(self, s: Workspace) -> None:
        self._norm(s)
        s.team.head_bf16(
            s.a["losses"], s.n["h"], s.w[self.weight], s.targets, s.groups,
            s.a["dh"], s.g[self.weight], s.scale, accumulate=s.accumulate,
        )  # fmt: skip
        s.team.rmsnorm_bwd(
            s.a["dx"], s.g["model.norm.weight"], s.a["dh"], s.a["x"], s.w["model.norm.weight"],
            s.a["r"], s.groups, accumulate=s.accumulate,
        )  # fmt: skip


BF16: Kinds = (AttentionBf16, FeedForwardBf16, HeadBf16)
