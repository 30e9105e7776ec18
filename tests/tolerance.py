"""How far a float32 kernel may stray from the float64 reference, and the shapes it is tested on.

The rule of every family is |got - want| <= k U scale. U is one rounding of float32; scale is the
size of the terms that were added up (not of their sum, which may have cancelled), with the
conditioning of exp where there is one; k is what is left: how many such roundings are allowed.
Inputs are drawn with mean zero, so chain errors grow slowly and k need not grow with the length.
Every k is one and a half to five times the worst that an independent float32 program (torch)
shows on these shapes; test_tolerance.py holds that operands rounded to bfloat16 break every rule.

Where equality is due (EXACT) no rule applies: compare bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import reference as ref
import reference_optim as optim
import sampled_reference as sampled
from numpy.typing import NDArray

Array = NDArray[Any]

U = 2.0**-24
TINY = 2.0**-126  # Team threads flush anything smaller to zero, so no bound is below it.


@dataclass(frozen=True)
class Rule:
    """|got - want| <= k U scale(inputs); the inputs are those of the reference, in its order."""

    k: float
    scale: Callable[..., Any]
    why: str


def chain(n: int) -> float:
    """How the error of a sum of n positive terms grows in 16 lanes: a random walk along a lane."""
    return 1 + math.sqrt(n / 16)


# --- Scales too long for a line. Each is the reference's formula on absolute values.


def rmsnorm_dx(dy: Array, x: Array, w: Array, eps: float) -> Array:
    """The two terms of dx, which cancel when dy is nearly parallel to x."""
    r = ref.rmsnorm(x, w, eps)[1][..., None]
    mean = np.mean(abs(x * w * dy), axis=-1, keepdims=True)
    return r * abs(w * dy) + abs(x) * r**3 * mean


def rmsnorm_dw(dy: Array, x: Array, w: Array, eps: float) -> Array:
    """The sum over rows of |dy x r|."""
    _, r = ref.rmsnorm(x, w, eps)
    return ref.rmsnorm_backward(abs(dy), abs(x), w, r)[1]


def rotary(x: Array, _theta: float) -> Array:
    """|a| + |b| for both entries of a pair: cos and sin are at most 1 and good to U each."""
    a, b = np.split(abs(x), 2, axis=-1)
    return np.concatenate([a + b, a + b], axis=-1)


def attention(q: Array, k: Array, v: Array, dout: Array | None = None) -> dict[str, Array]:
    """All scales of attention. A score is wrong by U |q||k| / sqrt(Dh); exp makes that relative.

    c(i) = 1 + max_j |q_i||k_j| / sqrt(Dh) is therefore the error of row i of p, in U.
    """
    B, T, H, Dh = q.shape
    K = k.shape[2]
    q, k, v = (np.repeat(a, H // a.shape[2], axis=2).astype(np.float64) for a in (q, k, v))
    p, lse = ref.attention_probabilities(q, k)
    size = np.einsum("bihd,bjhd->bhij", abs(q), abs(k)) / math.sqrt(Dh)
    c = 1 + np.max(np.where(np.tri(T, dtype=bool), size, 0), axis=-1)
    cp = c[..., None] * p
    out = np.einsum("bhij,bjhd->bihd", cp, abs(v))
    scale = {"out": out, "lse": (c + abs(lse)).transpose(0, 2, 1)}
    if dout is None:
        return scale
    dp = np.einsum("bihd,bjhd->bhij", abs(dout), abs(v))
    ds = cp * (dp + np.sum(p * dp, axis=-1, keepdims=True)) / math.sqrt(Dh)
    scale["dq"] = np.einsum("bhij,bjhd->bihd", ds, abs(k))
    per_head = {
        "dk": np.einsum("bhij,bihd->bjhd", ds, abs(q)),
        "dv": np.einsum("bhij,bihd->bjhd", cp, abs(dout)),
    }
    return scale | {n: a.reshape(B, T, K, H // K, Dh).sum(axis=3) for n, a in per_head.items()}


def swiglu_dgu(dact: Array, gu: Array) -> Array:
    """silu' = s (1 + g (1 - s)): a sum that cancels near g = -1.278; 1 - s is only good to U."""
    gate, up = np.split(gu, 2, axis=-1)
    s = ref.sigmoid(gate)
    dgate = abs(dact * up) * s * (1 + abs(gate))
    return np.concatenate([dgate, abs(dact * gate) * s], axis=-1)


def logit_condition(h: Array, w: Array) -> Array:
    """1 + max_v |h||w_v|: the error of a row of logits, which exp makes relative, in U."""
    return 1 + ref.matmul(abs(h), abs(w)).max(axis=-1)


def cross_entropy_dz(h: Array, w: Array, targets: Array, scale: float) -> Array:
    """Softmax and one-hot side by side: their difference may cancel."""
    dz = np.exp(ref.log_softmax(ref.matmul(h, w)))
    dz[np.arange(targets.size), targets] += 1
    has_loss = np.where(targets == -1, 0.0, abs(scale))
    return dz * (has_loss * logit_condition(h, w))[:, None]


def sampled_condition(h: Array, w: Array, log_expected: Array) -> Array:
    """As ``logit_condition``, with the correction that is taken off."""
    return logit_condition(h, w) + np.max(abs(log_expected))


def sampled_products(
    h: Array, w: Array, targets: Array, samples: Array, log_expected: Array, scale: float
) -> tuple[Array, Array]:
    """The scales of dh and dw: softmax and one-hot side by side, and the sums of absolute terms."""
    z = sampled.sampled_logits(h, w, targets, samples, log_expected)
    dz = np.exp(ref.log_softmax(z))
    dz[:, -1] += 1
    has_loss = np.where(targets == -1, 0.0, abs(scale))
    dz *= (has_loss * sampled_condition(h, w, log_expected))[:, None]
    return sampled.sampled_products(dz, abs(h), abs(w), targets, samples)
def below(x: Array) -> Array:
    """What makes exp(x - max x) wrong, in U: the rounding of x - max, and the sum of a row."""
    return chain(x.shape[-1]) + abs(x - x.max(axis=-1, keepdims=True))


def logits_dz(dlosses: Array, z: Array, targets: Array) -> Array:
    """As cross_entropy_dz, where logits are given and not computed."""
    dz = np.exp(ref.log_softmax(z)) * below(z)
    dz[np.arange(targets.size), targets] += 1
    return dz * np.where(targets == -1, 0.0, abs(dlosses))[:, None]


def adamw_p(
    p: Array, g: Array, m: Array, v: Array, step: int,
    *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> Array:  # fmt: skip
    """The parameter and the update added to it, the update's m without cancellation."""
    hyper = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    return ref.adamw(abs(p), -abs(g), -abs(m), v, step, lr=lr, **hyper)[0]


def sgd_m(p: Array, g: Array, m: Array, **_: float) -> Array:
    """The two terms of the momentum."""
    return abs(m) + abs(g)


def lion_p(p: Array, g: Array, m: Array, **_: float) -> Array:
    """The parameter, and a step of one size."""
    return abs(p) + 1e-3


def muon_p(
    p: Array, g: Array, m: Array, *, step_size: float, momentum: float, nesterov: bool,
    decay: float, coefficients: optim.Coefficients,
) -> Array:  # fmt: skip
    """Singular values near zero grow by the product of the slopes there, and their roundings with
    them: those of entries of root mean square 1 / sqrt(size), summed along the short side."""
    slope = math.prod(a for a, _, _ in coefficients)
    return abs(p) + step_size * (1 + slope * math.sqrt(min(p.shape) / p.size))


# --- The table.

TOLERANCE: dict[str, Rule] = {
    "matmul": Rule(
        8, lambda x, w: ref.matmul(abs(x), abs(w)),
        "one chain in k order; for dx pass (dy, w.T), for dw (dy.T, x.T)",
    ),
    "rmsnorm.rrms": Rule(
        8, lambda x, w, eps: ref.rmsnorm(x, w, eps)[1],
        "16 lanes of squares, mean, eps, square root (which halves the error), division",
    ),
    "rmsnorm.y": Rule(
        10, lambda x, w, eps: abs(ref.rmsnorm(x, w, eps)[0]), "rrms and two products"
    ),
    "rmsnorm.dx": Rule(12, rmsnorm_dx, "rrms to the third power, one mean, four products"),
    "rmsnorm.dw": Rule(8, rmsnorm_dw, "rrms, two products, a sum over tokens"),
    "rotary": Rule(4, rotary, "cos and sin rounded from float64, two products, one sum"),
    "attention.out": Rule(6, lambda q, k, v: attention(q, k, v)["out"], "chain, exp, chain"),
    "attention.lse": Rule(5, lambda q, k, v: attention(q, k, v)["lse"], "exp, sum, log"),
    "attention.dq": Rule(2.5, lambda dout, q, k, v: attention(q, k, v, dout)["dq"], "p, dp, chain"),
    "attention.dk": Rule(2.5, lambda dout, q, k, v: attention(q, k, v, dout)["dk"], "as dq"),
    "attention.dv": Rule(8, lambda dout, q, k, v: attention(q, k, v, dout)["dv"], "p, chain"),
    "swiglu.act": Rule(8, lambda gu: abs(ref.swiglu(gu)), "exp, a division, two products"),
    "swiglu.dgu": Rule(8, swiglu_dgu, "exp, a division, five products and sums"),
    "embedding.dw": Rule(
        8, lambda dy, ids, V: ref.embedding_backward(abs(dy), ids, V), "a sum over tokens"
    ),
    "cross_entropy.loss": Rule(
        1.5,
        lambda h, w, targets: chain(len(w)) * logit_condition(h, w)
        + abs(ref.linear_cross_entropy(h, w, targets)),
        "logits are chains; a sum of V positive exps; log; the target's logit taken off",
    ),
    "cross_entropy.dh": Rule(
        8, lambda h, w, t, scale: ref.matmul_dx(cross_entropy_dz(h, w, t, scale), abs(w)),
        "softmax less one-hot, then a chain over V",
    ),
    "cross_entropy.dw": Rule(
        8, lambda h, w, t, scale: ref.matmul_dw(cross_entropy_dz(h, w, t, scale), abs(h)),
        "softmax less one-hot, then a sum over tokens",
    ),
    "sampled.loss": Rule(
        1.5,
        lambda h, w, targets, samples, log_expected: chain(samples.shape[-1])
        * sampled_condition(h, w, log_expected)
        + abs(sampled.sampled_cross_entropy(h, w, targets, samples, log_expected)),
        "as cross_entropy.loss, over the samples and the target",
    ),
    "sampled.dh": Rule(8, lambda *a: sampled_products(*a)[0], "as cross_entropy.dh"),
    "sampled.dw": Rule(8, lambda *a: sampled_products(*a)[1], "as cross_entropy.dw"),
    "softmax.y": Rule(
        3, lambda x: below(x) * np.exp(ref.log_softmax(x)), "exp, a sum, its reciprocal, a product"
    ),
    "softmax.dx": Rule(
        3,
        lambda dy, y: chain(y.shape[-1]) * y * (abs(dy) + np.sum(y * abs(dy), -1, keepdims=True)),
        "a sum along the row, a difference that may cancel",
    ),
    "log_softmax.y": Rule(
        3, lambda x: below(x) + abs(ref.log_softmax(x)), "exp, a sum, log, two differences"
    ),
    "log_softmax.dx": Rule(
        3, lambda dy, y: abs(dy) + (chain(y.shape[-1]) + abs(y)) * np.exp(y)
        * np.sum(abs(dy), -1, keepdims=True),
        "a sum along the row, exp, a difference that may cancel",
    ),
    "logsumexp": Rule(
        2, lambda x: chain(x.shape[-1]) + abs(x).max(-1), "a sum of positive exps, log, the maximum"
    ),
    "cross_entropy.of_logits": Rule(
        2, lambda z, targets: chain(z.shape[-1]) + abs(z).max(-1), "logsumexp less one logit"
    ),
    "cross_entropy.dz": Rule(3, logits_dz, "softmax less one-hot, times the loss's gradient"),
    "adamw.p": Rule(
        8, adamw_p, "bias corrections and 1 - beta are due in float64: 1 - 0.999f is off by 200 U"
    ),
    "adamw.m": Rule(
        6, lambda p, g, m, v, step, **h: ref.adamw(p, abs(g), abs(m), v, step, **h)[1],
        "the clipped gradient, two products and a sum",
    ),
    "adamw.v": Rule(
        8, lambda p, g, m, v, step, **h: ref.adamw(p, g, m, v, step, **h)[2],
        "the clipped gradient squared, two products and a sum",
    ),
    "squared_norm": Rule(
        1.5, lambda x: chain(x.size) * ref.squared_norm(x), "positive terms: nothing cancels"
    ),
    "sgd.p": Rule(6, lambda p, g, m, **_: abs(p) + 2e-2 * (abs(m) + abs(g)), "five roundings"),
    "sgd.m": Rule(3, sgd_m, "a product and a sum, of a clipped gradient"),
    "lion.p": Rule(4, lion_p, "a product and a sum; the sign is exact"),
    "lion.m": Rule(4, lambda p, g, m, **_: abs(m) + 0.01 * abs(g), "two products and a sum"),
    "ema": Rule(3, lambda a, p, *, decay: abs(a) + abs(p), "a difference, a product and a sum"),
    "muon.p": Rule(6, muon_p, "twenty products of matrices"),
    "muon.m": Rule(3, sgd_m, "as sgd.m"),
    "decoder": Rule(
        128, lambda want: np.max(abs(want)),
        "whole tensors (logits, gradients) after some ten operations a layer; pass want",
    ),
}  # fmt: skip

# Bits, not bounds: these may not change a result, or only move or order what is given.
EXACT = {"threads", "isa", "resume", "gather", "tree", "lanes"}


def ratio(family: str, got: Any, want: Any, *inputs: Any, **named: Any) -> Array:
    """|got - want| over what the family's rule allows, entry by entry; at most 1 passes."""
    rule = TOLERANCE[family]
    bound = rule.k * (U * np.asarray(rule.scale(*map(ref.widen, inputs), **named)) + TINY)
    return np.asarray(abs(np.asarray(got, np.float64) - want) / bound)


def assert_close(family: str, got: Any, want: Any, *inputs: Any, **named: Any) -> None:
    """Fail, naming the worst entry, unless every entry of got is as near to want as the rule says.

    ``assert_close("rmsnorm.y", y, reference.rmsnorm(x, w, eps)[0], x, w, eps)``
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{family}: shape {got.shape}, expected {want.shape}"
    r = ratio(family, got, want, *inputs, **named)
    if np.all(r <= 1):  # A NaN is no number's neighbour: the comparison fails, as it should.
        return
    at = tuple(int(i) for i in np.unravel_index(np.argmax(np.nan_to_num(r, nan=np.inf)), r.shape))
    raise AssertionError(
        f"{family}: at {at} got {got[at]!r}, expected {want[at]!r}: {r[at]:.3g} times the bound "
        f"(k = {TOLERANCE[family].k}: {TOLERANCE[family].why}); {int(np.sum(~(r <= 1)))} of "
        f"{r.size} entries are outside"
    )


# --- Shapes. Never only multiples of a tile; always the smallest, and more than 12 sequences.

SHAPES: dict[str, list[tuple[int, ...]]] = {
    # R, D
    "rows": [(1, 1), (3, 5), (12, 16), (37, 1003), (252, 507)],
    # R, N, K: y(R,N) = x(R,K) w(N,K)^T. Across tiles of 6 x 16 and 12 x 32, and a k-block of 512;
    # the rows of the last are 8 KiB apart, so that they are copied first.
    "matmul": [
        (1, 1, 1), (1, 17, 5), (3, 5, 7), (12, 32, 256), (13, 33, 257), (37, 1003, 65),
        (252, 31, 507), (65, 48, 600), (100, 33, 2048),
    ],
    # The same for so many rows that three threads pack small weights for themselves; of dW the
    # first is cut along its rows and the second along its columns.  The last weight is not small.
    "tall": [(640, 150, 33), (640, 33, 200), (577, 290, 240)],
    # The same for few rows: one panel and several, tails of each.
    "few": [
        (1, 1, 1), (1, 130, 17), (1, 1003, 65), (2, 200, 33), (3, 65, 70), (4, 97, 130),
        (5, 33, 257), (8, 130, 48), (12, 64, 19), (13, 300, 21), (16, 47, 64), (17, 70, 40),
    ],
    # B, T: batches that leave groups empty, fill each once, and fill some twice.
    "batch": [(1, 1), (1, 8), (5, 3), (12, 8), (13, 5), (37, 2)],
    # B, T, H, K, Dh
    "attention": [
        (1, 1, 1, 1, 2), (2, 7, 4, 2, 6), (13, 5, 3, 1, 10), (1, 65, 2, 2, 32), (3, 130, 6, 3, 18),
        (12, 33, 8, 8, 16), (1, 530, 8, 4, 6),
    ],
    # R, F
    "swiglu": [(1, 1), (3, 5), (12, 16), (37, 688), (65, 1003)],
    # R, V, D
    "embedding": [(1, 1, 1), (7, 3, 5), (37, 1003, 17), (252, 31, 48)],
    # R, D, V
    "cross_entropy": [
        (1, 1, 2), (3, 5, 7), (13, 16, 300), (37, 33, 1003), (65, 17, 5001), (252, 64, 257)
    ],
    # rows, columns
    "muon": [(1, 1), (1, 7), (3, 5), (17, 17), (16, 48), (100, 33), (65, 130), (96, 96)],
    # entries
    "flat": [(1,), (15,), (16,), (17,), (1003,), (65537,)],
}  # fmt: skip
