"""Every formula of the package in float64 NumPy: the textbook, and the judge of every kernel.

Written to be read beside the papers, never optimized: no blocking, no fusion, no in-place tricks.
Forward and backward stand together. Backward takes the gradient of the loss with respect to the
outputs (``dy`` for ``y``) and returns it with respect to the inputs.

Arguments may be float32; ``@float64`` widens them first, so that no reference is ever computed in
the precision it is meant to judge.

Shapes: R rows (any leading axes where the text says rows), B batch, T time, D width, H query heads,
K key/value heads, Dh head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from crystalline.config import ModelConfig

Array = NDArray[Any]
Weights = dict[str, Array]
Function = TypeVar("Function", bound=Callable[..., Any])

EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def widen(a: Any) -> Any:
    """A floating array as float64; token ids and scalars as they are."""
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a


def float64(f: Function) -> Function:
    """Widen every argument of f before it is called."""

    @functools.wraps(f)
    def wrapped(*args: Any, **named: Any) -> Any:
        return f(*map(widen, args), **{name: widen(a) for name, a in named.items()})

    return cast("Function", wrapped)


# --- Linear map.  y = x W^T;  dx = dy W;  dW = dy^T x, summed over rows.


@float64
def matmul(x: Array, w: Array) -> Array:
    """y(R,N) = x(R,K) w(N,K)^T."""
    return x @ w.T


@float64
def matmul_dx(dy: Array, w: Array) -> Array:
    """dx(R,K) = dy(R,N) w(N,K)."""
    return dy @ w


@float64
def matmul_dw(dy: Array, x: Array) -> Array:
    """dw(N,K) = dy(R,N)^T x(R,K)."""
    return dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


# --- RMSNorm (Zhang and Sennrich 2019).  r = 1 / sqrt(mean(x^2) + eps),  y = x r w.


@float64
def rmsnorm(x: Array, w: Array, eps: float) -> tuple[Array, Array]:
    """x(R,D), w(D) -> y(R,D), rrms(R)."""
    r = 1 / np.sqrt(np.mean(x**2, axis=-1) + eps)
    return x * r[..., None] * w, r


@float64
def rmsnorm_backward(dy: Array, x: Array, w: Array, rrms: Array) -> tuple[Array, Array]:
    """dx = r (w dy) - x r^3 mean(x w dy);  dw = sum over rows of dy x r.

    The second term of dx is there because r depends on every x of its row: dr/dx = -r^3 x / D.
    """
    r = rrms[..., None]
    dx = r * w * dy - x * r**3 * np.mean(x * w * dy, axis=-1, keepdims=True)
    dw = (dy * x * r).reshape(-1, w.size).sum(axis=0)
    return dx, dw


# --- Rotary positions (Su et al. 2021), paired as Hugging Face does: entry i with entry i + Dh/2.


def rotary_angles(T: int, Dh: int, theta: float | None) -> Array:
    """angle(T, Dh/2): pair i turns by theta^(-2i/Dh) for each position; None: the lattice's."""
    if theta is None:
        return np.arange(T)[:, None] * np.array([lattice_frequency(i) for i in range(Dh // 2)])
    inv_freq = theta ** (-2 * np.arange(Dh // 2) / Dh)
    return np.arange(T)[:, None] * inv_freq


DIMENSIONAL = (3, 7, 31, 12, 19, 5, 11, 13, 17, 23, 29, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79,
               83, 89)  # fmt: skip


def lattice_frequency(i: int) -> float:
    """phi_(i mod 24) 3^-(1 + i mod 8) pi (1 + sqrt 5) mod 2 pi."""
    with localcontext(prec=50):
        turns = DIMENSIONAL[i % 24] * (1 + Decimal(5).sqrt()) / 2 / Decimal(3) ** (1 + i % 8)
        return 2 * math.pi * float(turns % 1)


def rotate(x: Array, angle: Array) -> Array:
    """Turn each pair of x(B,T,H,Dh) by angle(B or 1,T,Dh/2), as complex a + ib would turn."""
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle)[..., None, :], np.sin(angle)[..., None, :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@float64
def rotary(x: Array, theta: float | None, positions: Array | None = None) -> Array:
    """x(B,T,H,Dh) -> y, positions(B,T) or 0..T-1 in every sequence."""
    return rotate(x, rotary_angles(x.shape[1], x.shape[3], theta)[positions])


@float64
def rotary_backward(dy: Array, theta: float | None, positions: Array | None = None) -> Array:
    """A rotation's transpose is the rotation back."""
    return rotate(dy, -rotary_angles(dy.shape[1], dy.shape[3], theta)[positions])


# --- Causal grouped-query attention (Vaswani et al. 2017; Ainslie et al. 2023).
#     s = q k^T / sqrt(Dh) where key <= query;  p = softmax(s) = exp(s - lse);  out = p v.
#     Query head h reads key/value head h // (H / K).  `seen` masks more than what comes later.


def same_window(positions: Array | None) -> Array | bool:
    """seen(B,1,T,T) of positions(B,T): each 0 begins a window, and nothing is seen outside it."""
    if positions is None:
        return True
    n = np.cumsum(positions == 0, axis=1)
    return n[:, None, :, None] == n[:, None, None, :]


def attention_probabilities(
    q: Array, k: Array, seen: Array | bool = True
) -> tuple[Array, Array]:
    """p(B,H,T,T) and lse(B,H,T), for k already repeated to H heads."""
    T, Dh = q.shape[1], q.shape[3]
    s = np.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(Dh)
    s = np.where(np.tri(T, dtype=bool) & seen, s, -np.inf)
    m = s.max(axis=-1, keepdims=True)
    lse = m + np.log(np.exp(s - m).sum(axis=-1, keepdims=True))
    return np.exp(s - lse), lse[..., 0]


@float64
def attention(
    q: Array, k: Array, v: Array, seen: Array | bool = True
) -> tuple[Array, Array]:
    """q(B,T,H,Dh), k, v(B,T,K,Dh) -> out(B,T,H,Dh), lse(B,T,H)."""
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    p, lse = attention_probabilities(q, k, seen)
    return np.einsum("bhij,bjhd->bihd", p, v), lse.transpose(0, 2, 1)


@float64
def attention_backward(
    dout: Array, q: Array, k: Array, v: Array, seen: Array | bool = True
) -> tuple[Array, Array, Array]:
    """dv = p^T dout;  dp = dout v^T;  ds = p (dp - rowsum(p dp));  dq = ds k / sqrt(Dh), dk alike.

    A kernel that keeps (out, lse) gets p = exp(s - lse) and rowsum(p dp) = rowsum(dout out) from
    them (Dao 2023); here both are computed from their definitions.
    """
    B, T, H, Dh = q.shape
    K = k.shape[2]
    k, v = np.repeat(k, H // K, axis=2), np.repeat(v, H // K, axis=2)
    p, _ = attention_probabilities(q, k, seen)
    dv = np.einsum("bhij,bihd->bjhd", p, dout)
    dp = np.einsum("bihd,bjhd->bhij", dout, v)
    ds = p * (dp - np.sum(p * dp, axis=-1, keepdims=True))
    dq = np.einsum("bhij,bjhd->bihd", ds, k) / math.sqrt(Dh)
    dk = np.einsum("bhij,bihd->bjhd", ds, q) / math.sqrt(Dh)

    def sum_over_group(dx: Array) -> Array:
        return dx.reshape(B, T, K, H // K, Dh).sum(axis=3)

    return dq, sum_over_group(dk), sum_over_group(dv)


# --- SwiGLU (Shazeer 2020).  silu(g) = g sigmoid(g);  act = silu(gate) * up.


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), through tanh, which cannot overflow."""
    return (1 + np.tanh(x / 2)) / 2


@float64
def swiglu(gu: Array) -> Array:
    """gu(R,2F), gate in the first F columns and up in the next F -> act(R,F)."""
    gate, up = np.split(gu, 2, axis=-1)
    return gate * sigmoid(gate) * up


@float64
def swiglu_backward(dact: Array, gu: Array) -> Array:
    """dgu(R,2F).  silu'(g) = sigmoid(g) (1 + g (1 - sigmoid(g)))."""
    gate, up = np.split(gu, 2, axis=-1)
    s = sigmoid(gate)
    dgate = dact * up * s * (1 + gate * (1 - s))
    dup = dact * gate * s
    return np.concatenate([dgate, dup], axis=-1)


# --- Embedding.  y[r] = w[ids[r]];  a row of dw is the sum over the places where its id stood.


@float64
def embedding(w: Array, ids: Array) -> Array:
    """w(V,D), ids(R) -> y(R,D)."""
    return w[ids]


@float64
def embedding_backward(dy: Array, ids: Array, V: int) -> Array:
    """dw(V,D)."""
    dw = np.zeros((V, dy.shape[-1]))
    np.add.at(dw, ids, dy)
    return dw


# --- Output projection and cross-entropy.  z = h W^T;  loss = logsumexp(z) - z[target].
#     dz = (softmax(z) - onehot(target)) scale;  dh = dz W;  dW = dz^T h.  Target -1 has no loss.


def log_softmax(z: Array) -> Array:
    """z - logsumexp(z) along the last axis, shifted by the maximum so that exp cannot overflow."""
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


@float64
def linear_cross_entropy(h: Array, w: Array, targets: Array) -> Array:
    """h(R,D), w(V,D), targets(R) -> losses(R) in nats, 0 where the target is -1."""
    rows = np.arange(targets.size)
    return np.where(targets == -1, 0.0, -log_softmax(matmul(h, w))[rows, targets])


@float64
def linear_cross_entropy_backward(
    h: Array, w: Array, targets: Array, scale: float
) -> tuple[Array, Array]:
    """dh(R,D), dw(V,D) of scale * sum(losses)."""
    dz = np.exp(log_softmax(matmul(h, w)))
    dz[np.arange(targets.size), targets] -= 1
    dz *= np.where(targets == -1, 0.0, scale)[:, None]
    return matmul_dx(dz, w), matmul_dw(dz, h)


# --- Optimizer: AdamW (Loshchilov and Hutter 2019), clipping by global norm (Pascanu et al. 2013).


@float64
def adamw(
    p: Array, g: Array, m: Array, v: Array, step: int,
    *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The new p, m, v; step counts from 1. Decay is decoupled: it never enters m or v."""
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


@float64
def squared_norm(x: Array) -> float:
    """The sum of the squares of all entries."""
    return float(np.sum(x**2))


def clip_factor(squared: float, max_norm: float) -> float:
    """What to multiply gradients by so that their norm is at most max_norm; 1e-6 as in torch."""
    return min(1.0, max_norm / (math.sqrt(squared) + 1e-6))


# --- The decoder: x += attention(norm(x)); x += mlp(norm(x)), L times; norm; output projection.


def decoder_layer(
    c: ModelConfig, w: Weights, x: Array, positions: Array | None = None
) -> tuple[Array, SimpleNamespace]:
    """One layer; w has the layer's own names. Returns the new x(B,T,D) and what backward needs."""
    B, T, D = x.shape
    a = SimpleNamespace(x=x, positions=positions, seen=same_window(positions))

    a.h, a.rrms = rmsnorm(x, w["input_layernorm.weight"], c.norm_eps)
    q = matmul(a.h, w["self_attn.q_proj.weight"]).reshape(B, T, c.heads, c.head_dim)
    k = matmul(a.h, w["self_attn.k_proj.weight"]).reshape(B, T, c.kv_heads, c.head_dim)
    a.v = matmul(a.h, w["self_attn.v_proj.weight"]).reshape(B, T, c.kv_heads, c.head_dim)
    a.theta = None if c.rope == "lattice" else c.rope_theta
    a.q, a.k = (rotary(y, a.theta, positions) for y in (q, k))
    out, _ = attention(a.q, a.k, a.v, a.seen)
    a.out = out.reshape(B, T, D)
    a.mid = x + matmul(a.out, w["self_attn.o_proj.weight"])

    a.h2, a.rrms2 = rmsnorm(a.mid, w["post_attention_layernorm.weight"], c.norm_eps)
    gate, up = matmul(a.h2, w["mlp.gate_proj.weight"]), matmul(a.h2, w["mlp.up_proj.weight"])
    a.gu = np.concatenate([gate, up], axis=-1)
    a.act = swiglu(a.gu)
    return a.mid + matmul(a.act, w["mlp.down_proj.weight"]), a


def decoder_layer_backward(
    c: ModelConfig, w: Weights, a: SimpleNamespace, dy: Array
) -> tuple[Array, Weights]:
    """The forward read from its last line to its first. A residual adds its branch's gradient."""
    B, T, D = dy.shape
    d: Weights = {}

    d["mlp.down_proj.weight"] = matmul_dw(dy, a.act)
    dgu = swiglu_backward(matmul_dx(dy, w["mlp.down_proj.weight"]), a.gu)
    dgate, dup = np.split(dgu, 2, axis=-1)
    d["mlp.gate_proj.weight"] = matmul_dw(dgate, a.h2)
    d["mlp.up_proj.weight"] = matmul_dw(dup, a.h2)
    dh = matmul_dx(dgate, w["mlp.gate_proj.weight"]) + matmul_dx(dup, w["mlp.up_proj.weight"])
    norm = "post_attention_layernorm.weight"
    dx, d[norm] = rmsnorm_backward(dh, a.mid, w[norm], a.rrms2)
    dmid = dy + dx

    d["self_attn.o_proj.weight"] = matmul_dw(dmid, a.out)
    dout = matmul_dx(dmid, w["self_attn.o_proj.weight"]).reshape(B, T, c.heads, c.head_dim)
    dq, dk, dv = attention_backward(dout, a.q, a.k, a.v, a.seen)
    dq, dk = (rotary_backward(dy, a.theta, a.positions) for dy in (dq, dk))
    dh = np.zeros((B, T, D))
    for name, dheads in (("q", dq), ("k", dk), ("v", dv)):
        weight, dz = f"self_attn.{name}_proj.weight", dheads.reshape(B, T, -1)
        d[weight] = matmul_dw(dz, a.h)
        dh += matmul_dx(dz, w[weight])
    norm = "input_layernorm.weight"
    dx, d[norm] = rmsnorm_backward(dh, a.x, w[norm], a.rrms)
    return dmid + dx, d


def layer_weights(w: Weights, i: int) -> Weights:
    """The weights of layer i under their names inside the layer."""
    prefix = f"model.layers.{i}."
    return {name.removeprefix(prefix): a for name, a in w.items() if name.startswith(prefix)}


def decoder_hidden(
    c: ModelConfig, w: Weights, ids: Array, positions: Array | None = None
) -> tuple[Array, list[SimpleNamespace]]:
    """ids(B,T) -> the hidden states h(B,T,D) that the output projection reads, and the tape."""
    x = embedding(w[EMBED], ids)
    tape = []
    for i in range(c.layers):
        x, a = decoder_layer(c, layer_weights(w, i), x, positions)
        tape.append(a)
    h, rrms = rmsnorm(x, w[FINAL_NORM], c.norm_eps)
    tape.append(SimpleNamespace(x=x, rrms=rrms))
    return h, tape


def decoder_logits(c: ModelConfig, w: Weights, ids: Array) -> Array:
    """ids(B,T) -> logits(B,T,V)."""
    h, _ = decoder_hidden(c, w, ids)
    return matmul(h, w[EMBED if c.tied else HEAD])


def decoder_loss(
    c: ModelConfig, w: Weights, ids: Array, targets: Array, positions: Array | None = None
) -> float:
    """Mean cross-entropy in nats over the targets(B,T) that are not -1; 0 if there are none."""
    h, _ = decoder_hidden(c, w, ids, positions)
    losses = linear_cross_entropy(
        h.reshape(-1, c.dim), w[EMBED if c.tied else HEAD], targets.reshape(-1)
    )
    return float(losses.sum()) / max(1, int(np.sum(targets != -1)))


def decoder_backward(
    c: ModelConfig, w: Weights, ids: Array, targets: Array, positions: Array | None = None
) -> Weights:
    """The gradient of decoder_loss for every weight, under the weight's name.

    A tied embedding is read twice, so its gradient is the sum of both uses.
    """
    h, tape = decoder_hidden(c, w, ids, positions)
    head = EMBED if c.tied else HEAD
    scale = 1 / max(1, int(np.sum(targets != -1)))
    dh, dhead = linear_cross_entropy_backward(
        h.reshape(-1, c.dim), w[head], targets.reshape(-1), scale
    )
    d: Weights = {}
    last = tape[-1]
    dx, d[FINAL_NORM] = rmsnorm_backward(dh.reshape(h.shape), last.x, w[FINAL_NORM], last.rrms)
    for i in reversed(range(c.layers)):
        dx, dlayer = decoder_layer_backward(c, layer_weights(w, i), tape[i], dx)
        d |= {f"model.layers.{i}.{name}": g for name, g in dlayer.items()}
    d[EMBED] = embedding_backward(dx, ids, c.vocab_size)
    d[head] = d[head] + dhead if c.tied else dhead
    return d
