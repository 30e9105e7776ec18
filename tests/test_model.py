"""The decoder as a whole: losses and every gradient against the reference and transformers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from typing import Any

import mpmath
import numpy as np
import pytest
import reference as ref
import torch
from case import Array
from test_reference import DECODERS, decoder, llama, random_weights
from tolerance import U, assert_close
from torch.nn import functional

from crystalline._native import ISAS, Team, available_isas
from crystalline.config import ModelConfig, parameter_count, parameter_shapes
from crystalline.decoder.decoder import Decoder, Parameters, group_order, initialise
from crystalline.decoder.positions import rope_tables
from crystalline.optimizers.adamw import AdamW, AdamWConfig, power
from crystalline.training.schedule import cos_pi

# One head of three pairs, and a head wider than two vectors, beside the common kinds.
MODELS = {name: decoder(name) for name in DECODERS} | {
    "one head": ModelConfig(11, 6, 1, 1, 1, 5, 8, rope_theta=100.0),
    "two words": ModelConfig(2, 2, 1, 1, 1, 1, 8, tied=False),
    "wide head": ModelConfig(301, 68, 1, 2, 1, 33, 8),
    "lattice positions": ModelConfig(13, 104, 1, 2, 1, 9, 8, rope="lattice"),
}
BATCHES = [(1, 1), (1, 8), (1, 65), (5, 1), (5, 8), (12, 8), (13, 1), (13, 8), (13, 65)]
torch.set_num_threads(1)  # on models so small its threads would only wait for each other


def batch(c: ModelConfig, B: int, T: int, seed: int = 0) -> tuple[Array, Array]:
    """Random tokens, and random targets of which a fifth is masked (but not all)."""
    rng = np.random.default_rng([seed, B, T])
    targets = rng.integers(0, c.vocab_size, (B, T), np.int32)
    targets[rng.random((B, T)) < 0.2] = -1
    targets[-1, -1] = 0
    return rng.integers(0, c.vocab_size, (B, T), np.int32), targets


def planned(
    c: ModelConfig, B: int, T: int, team: Team, w: dict[str, Array] | None = None
) -> tuple[Decoder, Parameters, Parameters]:
    """A decoder with weights w, the weights, and gradients that nobody has written yet."""
    weights, gradients = Parameters(c), Parameters(c)
    weights.load(w or random_weights(c))
    gradients.flat[...] = np.nan
    return Decoder(weights, team, B, T, gradients), weights, gradients


def gradient(
    c: ModelConfig, B: int, T: int, team: Team, w: dict[str, Array] | None = None
) -> tuple[float, dict[str, Array]]:
    """The mean loss of the batch and its gradients."""
    model, _, gradients = planned(c, B, T, team, w)
    ids, targets = batch(c, B, T)
    count = int(np.sum(targets >= 0))
    return model.gradient(ids, targets, 1 / count, False) / count, gradients.named


@pytest.mark.parametrize(("B", "T"), BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_every_gradient_equal_the_reference(name: str, B: int, T: int) -> None:
    c = MODELS[name]
    # The reference reads the weights as the float32 numbers that the model was given.
    w = {n: a.astype(np.float32) for n, a in random_weights(c).items()}
    loss, got = gradient(c, B, T, Team(1), w)
    ids, targets = batch(c, B, T)
    want = ref.decoder_backward(c, w, ids, targets)
    assert loss == pytest.approx(ref.decoder_loss(c, w, ids, targets), rel=16 * U)
    assert set(got) == set(want) == set(parameter_shapes(c))
    for n, d in want.items():
        # Where a query sees few keys, the gradients of scores cancel, at T = 1 to nothing: what
        # cancels is of the size of the values' gradient.
        scored = n.endswith(("q_proj.weight", "k_proj.weight"))
        values = want[n.replace("q_proj", "v_proj").replace("k_proj", "v_proj")]
        assert_close("decoder", got[n], d, np.append(d, values) if scored else d)


@pytest.mark.parametrize(("B", "T"), [(1, 8), (5, 65), (13, 8)])
@pytest.mark.parametrize("name", DECODERS)
def test_loss_and_every_gradient_equal_transformers(name: str, B: int, T: int) -> None:
    c = dataclasses.replace(MODELS[name], seq_len=T)
    w = {n: a.astype(np.float32) for n, a in random_weights(c).items()}
    model = llama(c, w, torch.float32, True)
    ids, targets = batch(c, B, T)
    want = torch_loss(model, ids, targets)
    want.backward()
    loss, got = gradient(c, B, T, Team(1), w)
    assert loss == pytest.approx(want.item(), rel=16 * U)
    for n, p in model.named_parameters():
        assert_close("decoder", got[n], p.grad.numpy(), p.grad.numpy())


def torch_loss(model: Any, ids: Array, targets: Array) -> torch.Tensor:
    """The mean over targets that count."""
    logits = model(torch.tensor(ids.astype(np.int64))).logits
    flat = torch.tensor(targets.astype(np.int64)).reshape(-1)
    return functional.cross_entropy(logits.reshape(len(flat), -1), flat, ignore_index=-1)


@pytest.mark.parametrize("name", ["tied", "grouped-query"])
def test_accumulating_adds_the_gradients_of_micro_steps(name: str) -> None:
    c, (B, T) = MODELS[name], (5, 8)
    w = {n: a.astype(np.float32) for n, a in random_weights(c).items()}
    model, _, gradients = planned(c, B, T, Team(1), w)
    batches = [batch(c, B, T, seed) for seed in range(3)]
    count = sum(int((targets >= 0).sum()) for _, targets in batches)
    want = {n: np.zeros(shape) for n, shape in parameter_shapes(c).items()}
    for step, (ids, targets) in enumerate(batches):
        model.gradient(ids, targets, 1 / count, accumulate=step > 0)
        for n, d in ref.decoder_backward(c, w, ids, targets).items():
            want[n] += d * (np.sum(targets >= 0) / count)
    for n, d in want.items():
        assert_close("decoder", gradients.named[n], d, d)


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    c, team = MODELS["tied"], Team(1)
    model, _, gradients = planned(c, 5, 8, team)
    ids = batch(c, 5, 8)[0]
    assert model.gradient(ids, np.full((5, 8), -1, np.int32), 1.0, False) == 0
    assert np.all(gradients.flat == 0)


def trained_bits(c: ModelConfig, B: int, T: int, team: Team) -> str:
    """Losses, gradients and weights of two steps, as one hash."""
    model, weights, gradients = planned(c, B, T, team)
    optimizer, digest = AdamW(weights, team, AdamWConfig()), hashlib.sha256()
    for step in range(2):
        loss = model.gradient(*batch(c, B, T, step), 1 / (B * T), False)
        norm = optimizer.step(gradients, 1e-2)
        digest.update(np.array([loss, norm]).tobytes() + gradients.flat.tobytes())
    digest.update(weights.flat.tobytes() + optimizer.m.flat.tobytes() + optimizer.v.flat.tobytes())
    return digest.hexdigest()


@functools.cache
def portable_bits(name: str, B: int, T: int) -> str:
    """What all must equal."""
    return trained_bits(MODELS[name], B, T, Team(1, "portable"))


@pytest.mark.parametrize(("name", "B", "T"), [("tied", 13, 8), ("grouped-query", 5, 65)])
@pytest.mark.parametrize("isa", ISAS)
def test_training_has_the_same_bits_on_all_threads_and_instruction_sets(
    name: str, B: int, T: int, isa: str
) -> None:
    if isa not in available_isas():
        pytest.skip(f"this CPU cannot run {isa}, only {', '.join(available_isas())}")
    for threads in (1, 2, 3, 5, 12):
        got = trained_bits(MODELS[name], B, T, Team(threads, isa))
        assert got == portable_bits(name, B, T), f"{threads} threads"


@pytest.mark.parametrize("name", MODELS)
def test_planned_for_losses_only_a_decoder_gives_the_same_loss(name: str) -> None:
    c, team, (B, T) = MODELS[name], Team(1), (13, 8)
    model, weights, _ = planned(c, B, T, team)
    ids, targets = batch(c, B, T)
    want = model.gradient(ids, targets, 1.0, False)
    only = Decoder(weights, team, B, T)
    assert only.loss(ids, targets) == want == model.loss(ids, targets)


def test_the_rows_of_a_batch_may_stand_in_any_order() -> None:
    """Only sums over sequences may change, and those only by their roundings."""
    c, w = MODELS["grouped-query"], random_weights(MODELS["grouped-query"])
    ids, targets = batch(c, 13, 8)
    model, _, gradients = planned(c, 13, 8, Team(1), w)
    loss = model.gradient(ids, targets, 1.0, False)
    want = gradients.flat.copy()
    assert model.gradient(ids[::-1].copy(), targets[::-1].copy(), 1.0, False) == pytest.approx(loss)
    assert_close("decoder", gradients.flat, want, want)


def test_a_batch_of_another_shape_is_refused() -> None:
    c = MODELS["tied"]
    model, _, _ = planned(c, 5, 8, Team(1))
    with pytest.raises(ValueError, match=r"\(5, 7\).*planned as \(5, 8\)"):
        model.loss(*batch(c, 5, 7))


# --- Ten steps of AdamW.


@pytest.mark.parametrize("name", DECODERS)
def test_ten_steps_of_adamw_equal_torch(name: str) -> None:
    c, (B, T), lr = dataclasses.replace(MODELS[name], seq_len=8), (5, 8), 1e-2
    w = {n: a.astype(np.float32) for n, a in random_weights(c).items()}
    team, theirs = Team(1), llama(c, w, torch.float32, True)
    model, weights, gradients = planned(c, B, T, team, w)
    optimizer = AdamW(weights, team, AdamWConfig())
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    gains = [p for p in theirs.parameters() if p.ndim == 1]
    torch_adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=lr, betas=(0.9, 0.95), eps=1e-8,
    )  # fmt: skip
    losses = []
    for step in range(10):
        ids, targets = batch(c, B, T, step % 2)
        count = int(np.sum(targets >= 0))
        loss = model.gradient(ids, targets, 1 / count, False) / count
        norm = optimizer.step(gradients, lr)
        want = torch_loss(theirs, ids, targets)
        torch_adamw.zero_grad()
        want.backward()
        want_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        torch_adamw.step()
        assert loss == pytest.approx(want.item(), abs=1e-4), f"step {step}"
        assert norm == pytest.approx(float(want_norm), rel=1e-3), f"step {step}"
        losses.append(loss)
    assert losses[-1] < losses[0] - 0.5


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    weights, gradients = Parameters(MODELS["tied"]), Parameters(MODELS["tied"])
    initialise(weights, 0)
    optimizer, before = AdamW(weights, Team(1), AdamWConfig()), weights.flat.copy()
    gradients.flat[7] = np.nan
    assert not math.isfinite(optimizer.step(gradients, 1e-2))
    assert np.array_equal(weights.flat, before) and not optimizer.m.flat.any() and optimizer.t == 0


# --- Parameters, groups, tables and schedules.


def test_parameters_are_one_block_with_views() -> None:
    c = MODELS["grouped-query"]
    p = Parameters(c)
    assert p.flat.size == parameter_count(c)
    p.flat[...] = np.arange(p.flat.size)
    assert np.array_equal(np.concatenate([a.ravel() for a in p.named.values()]), p.flat)
    layer = {n.removeprefix("model.layers.1."): a for n, a in p.fused.items()}
    for fused, parts in {
        "self_attn.qkv": [f"self_attn.{n}_proj.weight" for n in "qkv"],
        "mlp.gate_up": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    }.items():
        assert np.array_equal(layer[fused], np.concatenate([layer[n] for n in parts]))


def test_initial_weights_have_the_stated_sizes_and_depend_on_the_seed_alone() -> None:
    c = ModelConfig(500, 64, 3, 4, 2, 160, 16, tied=False)
    p, again, other = Parameters(c), Parameters(c), Parameters(c)
    for parameters, seed in ((p, 1), (again, 1), (other, 2)):
        initialise(parameters, seed)
    assert np.array_equal(p.flat, again.flat) and not np.array_equal(p.flat, other.flat)
    for name, a in p.named.items():
        small = name.endswith(("o_proj.weight", "down_proj.weight"))
        sigma = 0.02 / math.sqrt(6) if small else 0.02
        assert np.all(a == 1) if a.ndim == 1 else a.std() == pytest.approx(sigma, rel=0.05), name
        assert a.ndim == 1 or abs(a.mean()) < 4 * sigma / math.sqrt(a.size), name


@pytest.mark.parametrize("B", [1, 5, 12, 13, 30])
def test_sequence_s_is_of_group_s_mod_12(B: int) -> None:
    order, starts = group_order(B)
    assert sorted(order) == list(range(B)) and starts[0] == 0 and starts[-1] == B
    for g in range(12):
        assert list(order[starts[g] : starts[g + 1]]) == list(range(g, B, 12))


@pytest.mark.parametrize("theta", [1.0, 100.0, 10000.0, 500000.0])
@pytest.mark.parametrize("Dh", [2, 6, 64, 130])
def test_rope_tables_are_cosine_and_sine(Dh: int, theta: float) -> None:
    positions = 700
    cosine, sine = rope_tables(positions, Dh, theta)
    angle = ref.rotary_angles(positions, Dh, theta)
    assert cosine.shape == sine.shape == angle.shape and cosine.dtype == sine.dtype == np.float32
    assert np.all(abs(cosine - np.cos(angle)) <= 2 * U)
    assert np.all(abs(sine - np.sin(angle)) <= 2 * U)
    with mpmath.workdps(30):  # far rows, where angles in float64 are themselves in doubt
        for at, i in ((positions - 1, 0), (positions - 2, Dh // 2 - 1), (511, Dh // 4)):
            true = at * mpmath.power(theta, -2 * mpmath.mpf(i) / Dh)
            assert abs(float(cosine[at, i] - mpmath.cos(true))) <= U
            assert abs(float(sine[at, i] - mpmath.sin(true))) <= U
    shorter = rope_tables(17, Dh, theta)
    assert np.array_equal(shorter[0], cosine[:17]) and np.array_equal(shorter[1], sine[:17])


def test_powers_and_cosines_are_those_of_math() -> None:
    for n in (0, 1, 2, 3, 10, 999, 100000):
        assert power(0.95, n) == pytest.approx(math.pow(0.95, n), rel=1e-12 * (1 + n / 1000))
    for x in np.linspace(0, 1, 101):
        assert cos_pi(float(x)) == pytest.approx(math.cos(math.pi * x), abs=1e-15)
