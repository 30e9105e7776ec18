"""The reference against calculus, against torch and against transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from numpy.typing import NDArray
from reference_sums import fixed_tree, lane_sum
from sampled_reference import sampled_cross_entropy, sampled_cross_entropy_backward
from tolerance import assert_close
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from crystalline.config import ModelConfig, parameter_shapes

Array = NDArray[Any]
EPS, THETA = 1e-5, 10000.0


def normal(*shape: int, seed: int = 0) -> Array:
    """Standard normal numbers, a different draw for every shape and seed."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def ids_and_targets(c: ModelConfig, B: int, T: int) -> tuple[Array, Array]:
    """Random tokens, and random targets of which some are masked."""
    rng = np.random.default_rng(3)
    targets = rng.integers(0, c.vocab_size, (B, T))
    targets[rng.random((B, T)) < 0.2] = -1
    return rng.integers(0, c.vocab_size, (B, T)), targets


def random_weights(c: ModelConfig) -> dict[str, Array]:
    """Matrices that keep the size of what they map, gains around 1: no term is negligible."""
    w = {}
    for i, (name, shape) in enumerate(parameter_shapes(c).items()):
        x = normal(*shape, seed=i)
        w[name] = 1 + 0.3 * x if len(shape) == 1 else x / math.sqrt(shape[1])
    return w


# --- Calculus: every backward is the derivative of its forward.


def numeric_gradient(f: Callable[[], float], x: Array, step: float = 1e-5) -> Array:
    """The central difference of f for every entry of x, which f reads."""
    d = np.empty_like(x)
    for at in np.ndindex(x.shape):
        old = x[at]
        x[at] = old + step
        above = f()
        x[at] = old - step
        d[at] = (above - f()) / (2 * step)
        x[at] = old
    return d


def assert_near(got: Array, want: Array, relative: float, what: str) -> None:
    """Every entry within relative times the largest entry wanted."""
    assert got.shape == want.shape, what
    assert np.all(abs(got - want) <= relative * np.max(abs(want))), what


IDS, TARGETS = np.array([3, 0, 3, 1, 3]), np.array([2, -1, 0, 5, 2])
POSITIONS = np.array([[0, 1, 0, 1, 2], [0, 0, 1, 2, 0]])
SAMPLES, LOG_EXPECTED = np.array([0, 2, 3]), -np.arange(6) / 4  # two of the targets are sampled
# Name: inputs, forward(*inputs), backward(dy, *inputs) with one gradient for each input.
GRADIENTS: dict[str, tuple[list[Array], Callable[..., Any], Callable[..., Any]]] = {
    "matmul": (
        [normal(3, 4), normal(5, 4)],
        ref.matmul,
        lambda dy, x, w: (ref.matmul_dx(dy, w), ref.matmul_dw(dy, x)),
    ),
    "rmsnorm": (
        [normal(2, 3, 6), normal(6)],
        lambda x, w: ref.rmsnorm(x, w, EPS)[0],
        lambda dy, x, w: ref.rmsnorm_backward(dy, x, w, ref.rmsnorm(x, w, EPS)[1]),
    ),
    "rotary": (
        [normal(2, 5, 3, 6)],
        lambda x: ref.rotary(x, THETA),
        lambda dy, x: (ref.rotary_backward(dy, THETA),),
    ),
    "attention, one head": (
        [normal(1, 5, 1, 2, seed=i) for i in range(3)],
        lambda q, k, v: ref.attention(q, k, v)[0],
        ref.attention_backward,
    ),
    "attention, grouped": (
        [normal(2, 4, H, 4, seed=i) for i, H in enumerate((6, 2, 2))],
        lambda q, k, v: ref.attention(q, k, v)[0],
        ref.attention_backward,
    ),
    "rotary, windows": (
        [normal(2, 5, 3, 6)],
        lambda x: ref.rotary(x, THETA, POSITIONS),
        lambda dy, x: (ref.rotary_backward(dy, THETA, POSITIONS),),
    ),
    "attention, windows": (
        [normal(2, 5, H, 4, seed=i) for i, H in enumerate((2, 1, 1))],
        lambda q, k, v: ref.attention(q, k, v, ref.same_window(POSITIONS))[0],
        lambda dy, q, k, v: ref.attention_backward(dy, q, k, v, ref.same_window(POSITIONS)),
    ),
    "swiglu": ([3 * normal(3, 8)], ref.swiglu, lambda dy, gu: (ref.swiglu_backward(dy, gu),)),
    "embedding": (
        [normal(6, 3)],
        lambda w: ref.embedding(w, IDS),
        lambda dy, w: (ref.embedding_backward(dy, IDS, len(w)),),
    ),
    "linear_cross_entropy": (
        [normal(5, 4), normal(6, 4)],
        lambda h, w: ref.linear_cross_entropy(h, w, TARGETS).sum(),
        lambda scale, h, w: ref.linear_cross_entropy_backward(h, w, TARGETS, float(scale)),
    ),
    "sampled_cross_entropy": (
        [normal(5, 4), normal(6, 4)],
        lambda h, w: sampled_cross_entropy(h, w, TARGETS, SAMPLES, LOG_EXPECTED).sum(),
        lambda scale, h, w: sampled_cross_entropy_backward(
            h, w, TARGETS, SAMPLES, LOG_EXPECTED, float(scale)
        ),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_backward_is_the_derivative_of_forward(name: str) -> None:
    inputs, forward, backward = GRADIENTS[name]
    inputs = [x.copy() for x in inputs]
    dy = normal(*np.shape(forward(*inputs)), seed=9)
    got = backward(dy, *inputs)
    assert len(got) == len(inputs)
    for i, x in enumerate(inputs):
        want = numeric_gradient(lambda: float(np.sum(dy * forward(*inputs))), x)
        assert_near(got[i], want, 1e-8, f"{name}: input {i}")


@pytest.mark.parametrize("positions", [None, POSITIONS[:, :4]])
@pytest.mark.parametrize("tied", [False, True])
def test_decoder_backward_is_the_derivative_of_its_loss(
    tied: bool, positions: Array | None
) -> None:
    c = ModelConfig(
        vocab_size=7, dim=4, layers=2, heads=2, kv_heads=1, hidden=5, seq_len=4, tied=tied
    )
    w = random_weights(c)
    ids, targets = ids_and_targets(c, 2, 4)
    got = ref.decoder_backward(c, w, ids, targets, positions)
    assert set(got) == set(w)
    for name, x in w.items():
        want = numeric_gradient(lambda: ref.decoder_loss(c, w, ids, targets, positions), x)
        assert_near(got[name], want, 1e-7, name)


def test_rows_without_a_target_have_no_loss_and_no_gradient() -> None:
    h, w, targets = normal(3, 4), normal(6, 4), np.array([-1, -1, -1])
    assert not ref.linear_cross_entropy(h, w, targets).any()
    assert not any(d.any() for d in ref.linear_cross_entropy_backward(h, w, targets, 1.0))


def test_extreme_numbers_do_not_overflow() -> None:
    h, w = np.array([[1000.0]]), np.array([[1.0], [-1.0]])
    assert ref.linear_cross_entropy(h, w, np.array([1]))[0] == pytest.approx(2000)
    assert np.array_equal(ref.swiglu(np.array([[-1000.0, 1.0]])), [[0.0]])
    q = np.full((1, 2, 1, 2), 1000.0)
    assert ref.attention(q, q, q)[1][0, 0, 0] == pytest.approx(2e6 / math.sqrt(2))


# --- transformers: the same weights give the same logits and the same gradients.


class Float64Rotary(torch.nn.Module):
    """The module as shipped computes its angles in float32, whatever the model's type."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        exponent = torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim
        self.inv_freq = 1 / c.rope_theta**exponent

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        angle = position_ids[..., None] * self.inv_freq
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def llama(c: ModelConfig, w: dict[str, Array], dtype: torch.dtype, shipped: bool) -> Any:
    """LlamaForCausalLM with the weights w; unless as shipped, its float32 islands are widened."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.dim, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
            intermediate_size=c.hidden, max_position_embeddings=c.seq_len,
            rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied, attn_implementation="sdpa",
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )
    ).to(dtype)  # fmt: skip
    if not shipped:
        model.model.rotary_emb = Float64Rotary(c)
        for parent in [model.model, *model.model.layers]:
            for name in ("norm", "input_layernorm", "post_attention_layernorm"):
                if hasattr(parent, name):
                    setattr(parent, name, torch.nn.RMSNorm(c.dim, c.norm_eps, dtype=dtype))
    missing, unexpected = model.load_state_dict(
        {name: torch.tensor(a, dtype=dtype) for name, a in w.items()}, strict=False
    )
    assert not unexpected
    assert missing == (["lm_head.weight"] if c.tied else [])
    return model


DECODERS = {
    "plain": (4, 4, False),
    "grouped-query": (4, 2, False),
    "one key head": (6, 1, False),
    "tied": (2, 2, True),
}  # heads, kv_heads, tied


def decoder(name: str) -> ModelConfig:
    heads, kv_heads, tied = DECODERS[name]
    return ModelConfig(
        vocab_size=67, dim=6 * heads, layers=3, heads=heads, kv_heads=kv_heads, hidden=37,
        seq_len=16, rope_theta=500.0, norm_eps=1e-4, tied=tied,
    )  # fmt: skip


def compare_with_llama(
    c: ModelConfig, dtype: torch.dtype, shipped: bool, near: Callable[[Array, Array, str], None]
) -> None:
    """Logits, loss and every gradient, through near(got from transformers, want, name)."""
    w = random_weights(c)
    ids, targets = ids_and_targets(c, 3, c.seq_len)
    model = llama(c, w, dtype, shipped)
    logits = model(torch.tensor(ids)).logits
    loss = functional.cross_entropy(
        logits.reshape(-1, c.vocab_size), torch.tensor(targets).reshape(-1), ignore_index=-1
    )
    loss.backward()
    near(logits.detach().numpy(), ref.decoder_logits(c, w, ids), "logits")
    near(np.array(loss.item()), np.array(ref.decoder_loss(c, w, ids, targets)), "loss")
    got = {name: p.grad.numpy() for name, p in model.named_parameters()}
    want = ref.decoder_backward(c, w, ids, targets)
    assert set(got) == set(want)
    for name, d in want.items():
        near(got[name], d, name)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_equals_transformers_in_float64(name: str) -> None:
    compare_with_llama(
        decoder(name), torch.float64, False, lambda got, want, n: assert_near(got, want, 1e-12, n)
    )


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_equals_transformers_as_shipped(name: str) -> None:
    compare_with_llama(
        decoder(name), torch.float64, True, lambda got, want, n: assert_near(got, want, 4e-6, n)
    )


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_in_float32_is_within_the_decoders_tolerance(name: str) -> None:
    compare_with_llama(
        decoder(name), torch.float32, True,
        lambda got, want, _: assert_close("decoder", got, want, want),
    )  # fmt: skip


# --- torch: ten AdamW steps, and clipping.


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_ten_adamw_steps_equal_torch(weight_decay: float) -> None:
    hyper = {"lr": 3e-2, "eps": 1e-6, "weight_decay": weight_decay}
    p, m, v = normal(37), np.zeros(37), np.zeros(37)
    parameter = torch.nn.Parameter(torch.tensor(p))
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.95), **hyper)
    for step in range(1, 11):
        g = normal(37, seed=step) * 10.0 ** np.linspace(-8, 3, 37)
        parameter.grad = torch.tensor(g)
        optimizer.step()
        p, m, v = ref.adamw(p, g, m, v, step, beta1=0.9, beta2=0.95, **hyper)
        state = optimizer.state[parameter]
        for got, want in ((parameter.detach(), p), (state["exp_avg"], m), (state["exp_avg_sq"], v)):
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_clipping_equals_torch(size: float) -> None:
    g = size * normal(50) / 7
    parameter = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    parameter.grad = torch.tensor(g)
    norm = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    assert math.sqrt(ref.squared_norm(g)) == pytest.approx(float(norm), rel=1e-14)
    clipped = g * ref.clip_factor(ref.squared_norm(g), 1.0)
    np.testing.assert_allclose(clipped, parameter.grad.numpy(), rtol=1e-14)


# --- The fixed orders, against the same order written out with scalars.


def test_fixed_tree_adds_in_the_written_order() -> None:
    b = 2.0**30  # So large that b + 1 is b in float32: each order of these terms has its own sum.
    threes = np.array([b, -b, 1, b, 1, -b, 1, b, -b, 1, 1, 0])
    across = np.array([b, 0, 0, 1, 0, 0, -b, 0, 0, 1, 0, 0])
    assert fixed_tree(threes) == 3
    assert fixed_tree(across) == 1
    assert np.array_equal(fixed_tree(np.stack([threes, across], axis=1)), [3, 1])
    assert fixed_tree(threes).dtype == np.float32


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100, 1003])
def test_lane_sum_adds_in_the_written_order(n: int) -> None:
    x = (normal(n) * 10 ** normal(n, seed=1)).astype(np.float32)
    lanes = [np.float32(0)] * 16
    for i in range(n):
        lanes[i % 16] = lanes[i % 16] + x[i]
    for half in (8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    got = lane_sum(x)
    assert got.dtype == np.float32
    assert got == lanes[0]
    assert np.array_equal(lane_sum(np.stack([x, 2 * x])), [got, 2 * got])
