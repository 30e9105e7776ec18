"""The steps of the decoder with bf16 operands, float32 sums and float32 weights and gradients.

What a product reads is bf16: the norms' outputs, attention's output, the feed-forward's inside, and
the gradients of all these.  q, k and v are bf16 where they are kept, before they are turned;
attention itself works in float32, as does the residual stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crystalline.decoder.layers import Attention, FeedForward, Floats, Head, Kinds, Workspace

Narrow = NDArray[np.uint16]


class AttentionBf16(Attention):
    def forward(self, s: Workspace) -> None:
        team, a = s.team, self.a
        h, kept, att = s.n["h"], s.n[a + "qkv"], s.a["att"]
        self._narrow_norm(s, h)
        team.matmul_bf16(kept, h, s.w[self.w + "self_attn.qkv"])
        self._turned(s, s.a["qkv"], kept)
        self._attend(s, att, s.a["qkv"])
        team.to_bf16(s.n[a + "att"].reshape(-1), att.reshape(-1))
        out = s.w[self.w + "self_attn.o_proj.weight"]
        team.matmul_bf16(s.a[a + "mid"], s.n[a + "att"], out, s.a[a + "x"])

    def _narrow_norm(self, s: Workspace, h: Narrow) -> None:
        x, r, norm = s.a[self.a + "x"], s.a[self.a + "r1"], self.w + "input_layernorm.weight"
        s.team.rmsnorm_bf16(h, r, x, s.w[norm], s.config.norm_eps)

    def _turned(self, s: Workspace, qkv: Floats, kept: Narrow) -> None:
        turned = s.config.heads + s.config.kv_heads
        if s.positions is None:
            s.team.rope_bf16(qkv, kept, s.cosine, s.sine, turned, s.T)
        else:
            s.team.rope_at_bf16(qkv, kept, s.cosine, s.sine, turned, s.positions)

    def _turned_bwd(self, s: Workspace, narrow: Narrow, dqkv: Floats) -> None:
        turned = s.config.heads + s.config.kv_heads
        if s.positions is None:
            s.team.rope_bwd_bf16(narrow, dqkv, s.cosine, s.sine, turned, s.T)
        else:
            s.team.rope_bwd_at_bf16(narrow, dqkv, s.cosine, s.sine, turned, s.positions)

    def backward(self, s: Workspace) -> None:
        team, a, more = s.team, self.a, s.accumulate
        dx, datt, dqkv, qkv, att = (s.a[name] for name in ("dx", "dh", "dqkv", "qkv", "att"))
        out, norm = self.w + "self_attn.o_proj.weight", self.w + "input_layernorm.weight"
        fused = self.w + "self_attn.qkv"
        team.to_bf16(s.n["dx"].reshape(-1), dx.reshape(-1))
        team.matmul_dw_bf16(s.g[out], s.n["dx"], s.n[a + "att"], s.groups, accumulate=more)
        team.matmul_dx_bf16(datt, s.n["dx"], s.w[out])
        team.from_bf16(att.reshape(-1), s.n[a + "att"].reshape(-1))
        self._turned(s, qkv, s.n[a + "qkv"])
        self._attend_bwd(s, dqkv, datt, att, qkv)
        self._turned_bwd(s, s.n["dqkv"], dqkv)
        self._narrow_norm(s, s.n["h"])
        team.matmul_dw_bf16(s.g[fused], s.n["dqkv"], s.n["h"], s.groups, accumulate=more)
        team.matmul_dx_bf16(s.a["dh"], s.n["dqkv"], s.w[fused])
        team.rmsnorm_bwd(
            dx, s.g[norm], s.a["dh"], s.a[a + "x"], s.w[norm], s.a[a + "r1"], s.groups,
            add=True, accumulate=more,
        )  # fmt: skip


class FeedForwardBf16(FeedForward):
    def forward(self, s: Workspace) -> None:
        team, a, w = s.team, self.a, self.w
        mid, h, gu, act = s.a[a + "mid"], s.n["h"], s.n[a + "gu"], s.n["act"]
        self._narrow_norm(s, h)
        team.matmul_bf16(gu, h, s.w[w + "mlp.gate_up"])
        team.swiglu_bf16(act, gu)
        team.matmul_bf16(s.a[self.out], act, s.w[w + "mlp.down_proj.weight"], mid)

    def _narrow_norm(self, s: Workspace, h: Narrow) -> None:
        mid, r = s.a[self.a + "mid"], s.a[self.a + "r2"]
        norm = s.w[self.w + "post_attention_layernorm.weight"]
        s.team.rmsnorm_bf16(h, r, mid, norm, s.config.norm_eps)

    def backward(self, s: Workspace) -> None:
        team, a, w, more = s.team, self.a, self.w, s.accumulate
        dx, h, act, gu = s.a["dx"], s.n["h"], s.n["act"], s.n[a + "gu"]
        down, fused, norm = (
            w + "mlp.down_proj.weight",
            w + "mlp.gate_up",
            w + "post_attention_layernorm.weight",
        )
        team.to_bf16(s.n["dx"].reshape(-1), dx.reshape(-1))
        team.matmul_dx_bf16(act, s.n["dx"], s.w[down])
        team.swiglu_bwd_act_bf16(gu, act, gu)  # the gradient takes gu's place, act its gradient's
        team.matmul_dw_bf16(s.g[down], s.n["dx"], act, s.groups, accumulate=more)
        self._narrow_norm(s, h)
        team.matmul_dw_bf16(s.g[fused], gu, h, s.groups, accumulate=more)
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
