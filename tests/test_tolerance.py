"""The tolerances have room for an independent float32 program (torch), and none for bfloat16."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference as ref
import reference_optim as optim
import reference_softmax as soft
import torch
from numpy.typing import NDArray
from sampled_cases import head_sampled
from sampled_reference import sampled_cross_entropy, sampled_cross_entropy_backward
from tolerance import SHAPES, TOLERANCE, assert_close, ratio
from torch.nn import functional

Array = NDArray[Any]
EPS, THETA = 1e-5, 10000.0

Shape = tuple[int, ...]
Case = tuple[str, Array, Array, tuple[Any, ...], dict[str, Any]]  # family, got, want, inputs


def single(*shape: int, seed: int = 0) -> Array:
    """Standard normal float32 numbers, a different draw for every shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def run_torch(
    f: Callable[..., torch.Tensor], dy: Array, *inputs: Array, bf16: bool
) -> list[Array]:
    """f's output and the gradient of every input, in float32, from operands rounded if bf16."""
    tensors = [torch.tensor(x) for x in inputs]
    if bf16:
        tensors = [t.bfloat16().float() for t in tensors]
    y = f(*(t.requires_grad_() for t in tensors))
    y.backward(torch.tensor(dy))
    return [y.detach().numpy(), *(t.grad.numpy() for t in tensors if t.grad is not None)]


def matmul_cases(shape: Shape, bf16: bool) -> list[Case]:
    R, N, K = shape
    x, w, dy = single(R, K), single(N, K, seed=1), single(R, N, seed=2)
    y, dx, dw = run_torch(functional.linear, dy, x, w, bf16=bf16)
    return [
        ("matmul", y, ref.matmul(x, w), (x, w), {}),
        ("matmul", dx, ref.matmul_dx(dy, w), (dy, w.T), {}),
        ("matmul", dw, ref.matmul_dw(dy, x), (dy.T, x.T), {}),
    ]


def rmsnorm_cases(shape: Shape, bf16: bool) -> list[Case]:
    R, D = shape
    x, w, dy = single(R, D), single(D, seed=1), single(R, D, seed=2)
    y, dx, dw = run_torch(
        lambda x, w: functional.rms_norm(x, (D,), w, EPS), dy, x, w, bf16=bf16
    )
    r, _ = run_torch(lambda x: (x.square().mean(-1) + EPS).rsqrt(), dy[:, 0], x, bf16=bf16)
    want_y, want_r = ref.rmsnorm(x, w, EPS)
    want_dx, want_dw = ref.rmsnorm_backward(dy, x, w, want_r)
    return [
        ("rmsnorm.y", y, want_y, (x, w, EPS), {}),
        ("rmsnorm.rrms", r, want_r, (x, w, EPS), {}),
        ("rmsnorm.dx", dx, want_dx, (dy, x, w, EPS), {}),
        ("rmsnorm.dw", dw, want_dw, (dy, x, w, EPS), {}),
    ]


def attention_cases(shape: Shape, bf16: bool) -> list[Case]:
    B, T, H, K, Dh = shape
    q, k, v = (single(B, T, n, Dh, seed=i) for i, n in enumerate((H, K, K)))
    dout = single(B, T, H, Dh, seed=3)

    def sdpa(*qkv: torch.Tensor) -> torch.Tensor:
        heads = (t.transpose(1, 2) for t in qkv)
        out = functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)

    def lse(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        s = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(H // K, 2)) / math.sqrt(Dh)
        causal = torch.ones(T, T, dtype=torch.bool).tril()
        return s.masked_fill(~causal, -math.inf).logsumexp(-1).transpose(1, 2)

    out, dq, dk, dv = run_torch(sdpa, dout, q, k, v, bf16=bf16)
    got_lse, *_ = run_torch(lse, dout[..., 0], q, k, bf16=bf16)
    want_out, want_lse = ref.attention(q, k, v)
    want_dq, want_dk, want_dv = ref.attention_backward(dout, q, k, v)
    return [
        ("attention.out", out, want_out, (q, k, v), {}),
        ("attention.lse", got_lse, want_lse, (q, k, v), {}),
        ("attention.dq", dq, want_dq, (dout, q, k, v), {}),
        ("attention.dk", dk, want_dk, (dout, q, k, v), {}),
        ("attention.dv", dv, want_dv, (dout, q, k, v), {}),
    ]


def rotary_cases(shape: Shape, bf16: bool) -> list[Case]:
    B, T, H, _, Dh = shape
    x, dy = single(B, T, H, Dh), single(B, T, H, Dh, seed=1)
    angle = torch.tensor(ref.rotary_angles(T, Dh, THETA))[:, None, :]
    cos, sin = angle.cos().float(), angle.sin().float()

    def turn(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    y, dx = run_torch(turn, dy, x, bf16=bf16)
    return [
        ("rotary", y, ref.rotary(x, THETA), (x, THETA), {}),
        ("rotary", dx, ref.rotary_backward(dy, THETA), (dy, THETA), {}),
    ]


def swiglu_cases(shape: Shape, bf16: bool) -> list[Case]:
    R, F = shape
    gu, dact = 3 * single(R, 2 * F), single(R, F, seed=1)

    def act(gu: torch.Tensor) -> torch.Tensor:
        gate, up = gu.chunk(2, -1)
        return functional.silu(gate) * up

    y, dgu = run_torch(act, dact, gu, bf16=bf16)
    return [
        ("swiglu.act", y, ref.swiglu(gu), (gu,), {}),
        ("swiglu.dgu", dgu, ref.swiglu_backward(dact, gu), (dact, gu), {}),
    ]


def embedding_cases(shape: Shape, bf16: bool) -> list[Case]:
    R, V, D = shape
    dy, ids = single(R, D), np.random.default_rng(0).integers(0, V, R)
    rows = torch.tensor(dy)
    rows = rows.bfloat16().float() if bf16 else rows
    dw = torch.zeros(V, D).index_add_(0, torch.tensor(ids), rows).numpy()
    return [("embedding.dw", dw, ref.embedding_backward(dy, ids, V), (dy, ids, V), {})]


def cross_entropy_cases(shape: Shape, bf16: bool) -> list[Case]:
    R, D, V = shape
    h, w, rng = single(R, D), single(V, D, seed=1), np.random.default_rng(0)
    targets, scale = np.where(rng.random(R) < 0.2, -1, rng.integers(0, V, R)), 1 / R

    def loss(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        t = torch.tensor(targets)
        return functional.cross_entropy(h @ w.T, t, ignore_index=-1, reduction="none")

    y, dh, dw = run_torch(loss, np.full(R, scale, np.float32), h, w, bf16=bf16)
    want_dh, want_dw = ref.linear_cross_entropy_backward(h, w, targets, scale)
    want = ref.linear_cross_entropy(h, w, targets)
    return [
        ("cross_entropy.loss", y, want, (h, w, targets), {}),
        ("cross_entropy.dh", dh, want_dh, (h, w, targets, scale), {}),
        ("cross_entropy.dw", dw, want_dw, (h, w, targets, scale), {}),
    ]


def sampled_cases(shape: Shape, bf16: bool) -> list[Case]:
    c = head_sampled(shape)
    h, w, targets, samples, log_expected = (
        c.reads[name] for name in ("h", "w", "targets", "samples", "log_expected")
    )
    samples = np.repeat(samples, np.diff(c.reads["groups"]), 0)
    R, t, ids = len(h), torch.tensor(targets).long(), torch.tensor(samples).long()
    offset, scale = torch.tensor(log_expected), 1 / R

    def loss(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        z = (w[ids] @ h[:, :, None])[..., 0] - offset[ids]
        z = z.masked_fill(t[:, None] == ids, -math.inf)
        own = (h * w[t]).sum(1) - offset[t]
        place = torch.where(t < 0, -1, ids.shape[1])
        z = torch.cat([z, own[:, None]], 1)
        return functional.cross_entropy(z, place, ignore_index=-1, reduction="none")

    y, dh, dw = run_torch(loss, np.full(R, scale, np.float32), h, w, bf16=bf16)
    inputs = (h, w, targets, samples, log_expected)
    want_dh, want_dw = sampled_cross_entropy_backward(*inputs, scale)
    return [
        ("sampled.loss", y, sampled_cross_entropy(*inputs), inputs, {}),
        ("sampled.dh", dh, want_dh, (*inputs, scale), {}),
        ("sampled.dw", dw, want_dw, (*inputs, scale), {}),
    ]
def softmax_cases(shape: Shape, bf16: bool) -> list[Case]:
    R, V = shape
    x, dy, d = 5 * single(R, V), single(R, V, seed=1), single(R, seed=2)
    t = np.random.default_rng(R).integers(0, V, R)
    lse, _ = run_torch(lambda x: x.logsumexp(-1), d, x, bf16=bf16)
    losses, dz = run_torch(
        lambda x: functional.cross_entropy(x, torch.tensor(t), reduction="none"), d, x, bf16=bf16
    )
    cases: list[Case] = [
        ("logsumexp", lse, soft.logsumexp(x), (x,), {}),
        ("cross_entropy.of_logits", losses, soft.cross_entropy(x, t), (x, t), {}),
        ("cross_entropy.dz", dz, soft.cross_entropy_backward(d, x, t), (d, x, t), {}),
    ]
    for name in ("softmax", "log_softmax"):
        y, dx = run_torch(functools.partial(getattr(torch, name), dim=-1), dy, x, bf16=bf16)
        want = getattr(soft, name)(x)
        kept = want if bf16 else y  # backward is judged from the forward's y, as it is
        want_dx = getattr(soft, f"{name}_backward")(dy, kept)
        cases += [(f"{name}.y", y, want, (x,), {}), (f"{name}.dx", dx, want_dx, (dy, kept), {})]
    return cases


def flat_cases(shape: Shape, bf16: bool) -> list[Case]:
    (n,) = shape
    x, g, m, v = single(n), single(n, seed=1), single(n, seed=2), single(n, seed=3) ** 2
    hyper = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1}
    p, tg, tm, tv = (torch.tensor(a) for a in (x, g, m, v))
    if bf16:
        p, tg, tm, tv = (t.bfloat16().float() for t in (p, tg, tm, tv))
    squared = float(p.square().sum())
    parameter = torch.nn.Parameter(p)
    parameter.grad = tg
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.999), **hyper)
    optimizer.state[parameter] = {"step": torch.tensor(2.0), "exp_avg": tm, "exp_avg_sq": tv}
    optimizer.step()
    named = {**hyper, "beta1": 0.9, "beta2": 0.999}
    want = ref.adamw(x, g, m, v, 3, **named)
    got = (p.numpy(), tm.numpy(), tv.numpy())
    adamw: list[Case] = [
        (f"adamw.{letter}", got[i], want[i], (x, g, m, v, 3), named)
        for i, letter in enumerate("pmv")
    ]
    return [*adamw, ("squared_norm", np.array(squared), ref.squared_norm(x), (x,), {})]


def momentum_cases(shape: Shape, bf16: bool) -> list[Case]:
    """torch's SGD, and Lion and the average by its arithmetic."""
    (n,) = shape
    p, g, m = single(n), single(n, seed=1), single(n, seed=2)
    tp, tg, tm = (torch.tensor(a) for a in (p, g, m))
    if bf16:
        tp, tg, tm = (t.bfloat16().float() for t in (tp, tg, tm))
    parameter, named = torch.nn.Parameter(tp.clone()), {"lr": 1e-2, "momentum": 0.9}
    parameter.grad = tg
    sgd = torch.optim.SGD([parameter], nesterov=True, **named)
    sgd.state[parameter] = {"momentum_buffer": tm.clone()}
    sgd.step()
    want = optim.sgd(p, g, m, **named, nesterov=True, weight_decay=0.0)
    got = (parameter.detach().numpy(), sgd.state[parameter]["momentum_buffer"].numpy())
    cases: list[Case] = [(f"sgd.{x}", got[i], want[i], (p, g, m), {}) for i, x in enumerate("pm")]
    hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
    want = optim.lion(p, g, m, **hyper)
    moved = tp * (1 - 1e-4) - 1e-3 * torch.sign(0.9 * tm + 0.1 * tg)
    got = (moved.numpy(), (0.99 * tm + 0.01 * tg).numpy())
    cases += [(f"lion.{x}", got[i], want[i], (p, g, m), {}) for i, x in enumerate("pm")]
    average = torch.lerp(tm, tp, 0.1).numpy()
    return [*cases, ("ema", average, optim.ema(m, p, decay=0.9), (m, p), {"decay": 0.9})]


def muon_cases(shape: Shape, bf16: bool) -> list[Case]:
    """torch's own rounds to bfloat16 inside; here are its operations without that."""
    p, g, m = single(*shape), single(*shape, seed=1), single(*shape, seed=2)
    tp, tg, tm = (torch.tensor(a) for a in (p, g, m))
    if bf16:
        tp, tg, tm = (t.bfloat16().float() for t in (tp, tg, tm))
    named = {
        "step_size": 0.02, "momentum": 0.95, "nesterov": True, "decay": 0.99,
        "coefficients": ((3.4445, -4.7750, 2.0315),) * 5,
    }  # fmt: skip
    tm = 0.95 * tm + tg
    x = tg + 0.95 * tm
    x = x / x.norm()
    for a, b, c in named["coefficients"]:  # type: ignore[attr-defined]
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    want = optim.muon(p, g, m, **named)
    got = (0.99 * tp - 0.02 * x, tm)
    inputs = (p, g, m)
    return [
        ("muon.p", got[0].numpy(), want[0], inputs, named),
        ("muon.m", got[1].numpy(), want[1], inputs, {}),
    ]


CASES: list[tuple[Callable[[Shape, bool], list[Case]], str]] = [
    (matmul_cases, "matmul"),
    (rmsnorm_cases, "rows"),
    (attention_cases, "attention"),
    (rotary_cases, "attention"),
    (swiglu_cases, "swiglu"),
    (embedding_cases, "embedding"),
    (cross_entropy_cases, "cross_entropy"),
    (sampled_cases, "cross_entropy"),
    (flat_cases, "flat"),
    (softmax_cases, "rows"),
    (momentum_cases, "flat"),
    (muon_cases, "muon"),
]
GRID = [(cases, shape) for cases, grid in CASES for shape in SHAPES[grid]]


@pytest.mark.parametrize(("cases", "shape"), GRID)
def test_torch_in_float32_is_within_tolerance(
    cases: Callable[[Shape, bool], list[Case]], shape: Shape
) -> None:
    for family, got, want, inputs, named in cases(shape, False):
        assert_close(family, got, want, *inputs, **named)


def test_operands_in_bfloat16_break_every_tolerance() -> None:
    worst = dict.fromkeys(TOLERANCE.keys() - {"decoder"}, 0.0)
    for cases, shape in GRID:
        for family, got, want, inputs, named in cases(shape, True):
            r = ratio(family, got, want, *inputs, **named)
            worst[family] = max(worst[family], float(r.max()))
    assert {family for family, r in worst.items() if r <= 1} == set()


def test_a_number_that_is_none_is_never_close() -> None:
    with pytest.raises(AssertionError, match=r"matmul: at \(0, 1\) got .*nan.* 1 of 2 entries"):
        x, w = np.ones((1, 1)), np.ones((2, 1))
        assert_close("matmul", np.array([[1.0, np.nan]]), ref.matmul(x, w), x, w)
