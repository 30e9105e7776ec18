"""The steps of the decoder: each has its forward and, beside it, its hand-written backward.

A step reads and writes named arrays of a :class:`Workspace`: w weights, g their gradients (same
names), a activations (n those in bf16), one set per (batch, length); activations.py says which
share memory.  R = B T rows, in W windows if sequences are packed, D width, F feed-forward width,
E = (heads + 2 kv_heads) head_dim, V vocabulary.  ``dx`` (R, D) is the gradient of the residual
stream, handed from step to step backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crystalline._native import Team
from crystalline.config import ModelConfig

Floats = NDArray[np.float32]


@dataclass
class Workspace:
    """Everything the steps work on."""

    config: ModelConfig
    team: Team
    w: dict[str, Floats]
    g: dict[str, Floats]
    a: dict[str, Floats]
    n: dict[str, NDArray[np.uint16]]  # bf16 activations, of the steps in layers_bf16.py
    cosine: Floats
    sine: Floats
    groups: NDArray[np.int64]  # 13 row starts
    ids: NDArray[np.int32]  # (R,)
    targets: NDArray[np.int32]  # (R,), -1 where there is no loss
    lengths: NDArray[np.int64]  # (B,) or (W,), rows of each up to its last target
    T: int
    scale: float = 1.0  # of the loss, for its gradient
    accumulate: bool = False  # add to the gradients rather than set them
    log_expected: Floats | None = None  # (V,) of the sampled loss; None trains with the full one
    samples: NDArray[np.int32] | None = None  # (S,) rising, of the micro-step at hand
    starts: NDArray[np.int64] | None = None  # (W + 1,) of windows; None: sequences of T rows
    positions: NDArray[np.int32] | None = None  # (R,) with starts


class Step(Protocol):
    """One entry of the graph."""

    def forward(self, s: Workspace) -> None: ...

    def backward(self, s: Workspace) -> None: ...


def _token_lists(s: Workspace, dw: Floats) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Work space to sort the rows of a batch by token."""
    return np.empty(len(s.ids), np.int32), np.empty(len(dw) + 1, np.int64)


class Embed:
    """x = embedding of the ids."""

    def forward(self, s: Workspace) -> None:
        s.team.embedding(s.a["0.x"], s.w["model.embed_tokens.weight"], s.ids)

    def backward(self, s: Workspace) -> None:
        # Tied weights: the head has set this gradient already.  Sampled loss: its rows are zero.
        accumulate = s.accumulate or s.config.tied or s.log_expected is not None
        dw = s.g["model.embed_tokens.weight"]
        order, index = _token_lists(s, dw)
        s.team.embedding_bwd(dw, s.a["dx"], s.ids, s.groups, order, index, accumulate=accumulate)


class Attention:
    """mid = x + O attention(rope(QKV norm(x)))."""

    def __init__(self, layer: int, slot: int) -> None:
        self.w = f"model.layers.{layer}."
        self.a = f"{slot}."

    def forward(self, s: Workspace) -> None:
        team, a = s.team, self.a
        x, h, qkv = s.a[a + "x"], s.a["h"], s.a[a + "qkv"]
        self._norm(s, h)
        team.matmul(qkv, h, s.w[self.w + "self_attn.qkv"])
        self._turn(s, qkv)
        self._attend(s, s.a[a + "att"], qkv)
        team.matmul(s.a[a + "mid"], s.a[a + "att"], s.w[self.w + "self_attn.o_proj.weight"], x)

    def _norm(self, s: Workspace, h: Floats) -> None:
        x, r, norm = s.a[self.a + "x"], s.a[self.a + "r1"], self.w + "input_layernorm.weight"
        s.team.rmsnorm(h, r, x, s.w[norm], s.config.norm_eps)

    def _turn(self, s: Workspace, qkv: Floats, inverse: bool = False) -> None:
        turned = s.config.heads + s.config.kv_heads
        if s.positions is None:
            s.team.rope(qkv, s.cosine, s.sine, turned, s.T, inverse=inverse)
        else:
            s.team.rope_at(qkv, s.cosine, s.sine, turned, s.positions, inverse)

    def _attend(self, s: Workspace, out: Floats, qkv: Floats) -> None:
        heads, lse = (s.config.heads, s.config.kv_heads), s.a[self.a + "lse"]
        if s.starts is None:
            s.team.attention(out, lse, qkv, s.T, *heads, s.lengths)
        else:
            s.team.attention_windows(out, lse, qkv, s.starts, *heads, s.lengths)

    def _attend_bwd(
        self, s: Workspace, dqkv: Floats, dout: Floats, out: Floats, qkv: Floats
    ) -> None:
        heads, lse = (s.config.heads, s.config.kv_heads), s.a[self.a + "lse"]
        if s.starts is None:
            s.team.attention_bwd(dqkv, dout, out, qkv, lse, s.T, *heads, s.lengths)
        else:
            s.team.attention_windows_bwd(dqkv, dout, out, qkv, lse, s.starts, *heads, s.lengths)

    def backward(self, s: Workspace) -> None:
        team, a, more = s.team, self.a, s.accumulate
        dx, datt, dqkv, qkv = s.a["dx"], s.a["dh"], s.a["dqkv"], s.a[a + "qkv"]
        out, norm = self.w + "self_attn.o_proj.weight", self.w + "input_layernorm.weight"
        team.matmul_dw(s.g[out], dx, s.a[a + "att"], s.groups, accumulate=more)
        team.matmul_dx(datt, dx, s.w[out])
        self._attend_bwd(s, dqkv, datt, s.a[a + "att"], qkv)
        self._turn(s, dqkv, inverse=True)
        fused, dh = self.w + "self_attn.qkv", s.a["dh"]
        self._norm(s, dh)  # the norm's output stays in dh until its gradient takes its place
        team.matmul_dw(s.g[fused], dqkv, dh, s.groups, accumulate=more)
        team.matmul_dx(dh, dqkv, s.w[fused])
        team.rmsnorm_bwd(
            dx, s.g[norm], dh, s.a[a + "x"], s.w[norm], s.a[a + "r1"], s.groups,
            add=True, accumulate=more,
        )  # fmt: skip


class FeedForward:
    """x' = mid + down(silu(gate(norm(mid))) up(norm(mid)))."""

    def __init__(self, layer: int, slot: int, following: str) -> None:
        self.w = f"model.layers.{layer}."
        self.a = f"{slot}."
        self.out = following  # where the next step reads

    def forward(self, s: Workspace) -> None:
        team, a, w = s.team, self.a, self.w
        mid, h, gu, act = s.a[a + "mid"], s.a["h"], s.a[a + "gu"], s.a["act"]
        self._norm(s, h)
        team.matmul_swiglu(gu, act, h, s.w[w + "mlp.gate_up"])
        team.matmul(s.a[self.out], act, s.w[w + "mlp.down_proj.weight"], mid)

    def _norm(self, s: Workspace, h: Floats) -> None:
        mid, r = s.a[self.a + "mid"], s.a[self.a + "r2"]
        norm = s.w[self.w + "post_attention_layernorm.weight"]
        s.team.rmsnorm(h, r, mid, norm, s.config.norm_eps)

    def backward(self, s: Workspace) -> None:
        team, a, w, more = s.team, self.a, self.w, s.accumulate
        dx, dh, act, gu = s.a["dx"], s.a["dh"], s.a["act"], s.a[a + "gu"]
        down, fused, norm = (
            w + "mlp.down_proj.weight",
            w + "mlp.gate_up",
            w + "post_attention_layernorm.weight",
        )
        # The gradient takes gu's place, act that of its gradient.
        team.matmul_dx_swiglu(gu, act, dx, s.w[down])
        team.matmul_dw(s.g[down], dx, act, s.groups, accumulate=more)
        self._norm(s, dh)
        team.matmul_dw(s.g[fused], gu, dh, s.groups, accumulate=more)
        team.matmul_dx(dh, gu, s.w[fused])
        team.rmsnorm_bwd(
            dx, s.g[norm], dh, s.a[a + "mid"], s.w[norm], s.a[a + "r2"], s.groups,
            add=True, accumulate=more,
        )  # fmt: skip


class Head:
    """losses = cross-entropy of norm(x) W^T against the targets."""

    def __init__(self, tied: bool) -> None:
        self.weight = "model.embed_tokens.weight" if tied else "lm_head.weight"

    def _norm(self, s: Workspace) -> None:
        norm = s.w["model.norm.weight"]
        s.team.rmsnorm(s.a["h"], s.a["r"], s.a["x"], norm, s.config.norm_eps)

    def forward(self, s: Workspace) -> None:
        self._norm(s)
        s.team.head(s.a["losses"], s.a["h"], s.w[self.weight], s.targets, s.groups)

    def backward(self, s: Workspace) -> None:
        """Forward and backward in one: logits exist once, while their block is in the cache."""
        self._norm(s)
        self._losses_and_gradients(s)
        s.team.rmsnorm_bwd(
            s.a["dx"], s.g["model.norm.weight"], s.a["dh"], s.a["x"], s.w["model.norm.weight"],
            s.a["r"], s.groups, accumulate=s.accumulate,
        )  # fmt: skip

    def _losses_and_gradients(self, s: Workspace) -> None:
        s.team.head(
            s.a["losses"], s.a["h"], s.w[self.weight], s.targets, s.groups,
            s.a["dh"], s.g[self.weight], s.scale, accumulate=s.accumulate,
        )  # fmt: skip


class SampledHead(Head):
    """Trains among the sampled classes; ``forward``, which validates, is over all of them.

    The gradient is added to the rows that the step touches, which the optimizer has set to zero.
    """

    def _losses_and_gradients(self, s: Workspace) -> None:
        assert s.samples is not None and s.log_expected is not None
        dw = s.g[self.weight]
        s.team.head_sampled(
            s.a["losses"], s.a["h"], s.w[self.weight], s.targets, s.groups, s.samples,
            s.log_expected, s.a["dh"], dw, s.scale, *_token_lists(s, dw),
        )  # fmt: skip


Kinds = tuple[type[Attention], type[FeedForward], type[Head]]
FP32: Kinds = (Attention, FeedForward, Head)


def decoder_steps(c: ModelConfig, training: bool, kinds: Kinds = FP32) -> list[Step]:
    """The graph.  Without training all layers share the arrays of slot 0."""
    attention, feed_forward, head = kinds
    steps: list[Step] = [Embed()]
    for layer in range(c.layers):
        slot = layer if training else 0
        last = layer == c.layers - 1
        following = "x" if last else f"{layer + 1}.x" if training else "0.x"
        steps += [attention(layer, slot), feed_forward(layer, slot, following)]
    return [*steps, head(c.tied)]
