"""Optimizers step by step: against float64, against torch, decay by groups, what they keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference as ref
import reference_optim as optim
import torch
from case import Array, draw
from momentum_cases import JORDAN

from crystalline._native import ISAS, Team, available_isas
from crystalline.config import OPTIMIZERS, ModelConfig
from crystalline.decoder.decoder import Parameters, initialise
from crystalline.decoder.sparse import vocabulary_weights
from crystalline.errors import CheckpointError
from crystalline.optimizers import (
    SGD,
    AdamW,
    AdamWConfig,
    Muon,
    MuonConfig,
    Optimizer,
    SGDConfig,
    make_optimizer,
    moment_floats,
)
from crystalline.optimizers.ema import Average
from crystalline.optimizers.muon import COEFFICIENTS, is_matrix

CONFIG = ModelConfig(37, 20, 2, 2, 1, 54, 8, tied=False)
STEPS, LR = 6, 3e-3
DECAYS = {"weight_decay": 0.3, "embedding_decay": 0.2, "norm_decay": 0.1}


def decay_of(name: str, view: Array) -> float:
    """Of DECAYS."""
    if view.ndim == 1:
        return 0.1
    return 0.2 if name in vocabulary_weights(CONFIG) else 0.3


class Exact:
    """An optimizer's weights in float64, every one by its reference."""

    def __init__(self, name: str, weights: Parameters) -> None:
        self.name = name
        self.p = {n: w.astype(np.float64) for n, w in weights.named.items()}
        self.m = {n: np.zeros_like(w) for n, w in self.p.items()}
        self.v = {n: np.zeros_like(w) for n, w in self.p.items()}

    def step(self, gradients: dict[str, Array], t: int) -> None:
        """Update ``t``."""
        total = sum(float(np.sum(g.astype(np.float64) ** 2)) for g in gradients.values())
        scale = min(1.0, 1.0 / math.sqrt(total))
        for n, g in gradients.items():
            self._one(n, g.astype(np.float64) * scale, t)

    def _one(self, n: str, g: Array, t: int) -> None:
        p, m, decay = self.p[n], self.m[n], decay_of(n, self.p[n])
        if self.name == "lion":
            self.p[n], self.m[n] = optim.lion(
                p, g, m, lr=LR, beta1=0.9, beta2=0.99, weight_decay=decay
            )
        elif self.name == "sgd":
            self.p[n], self.m[n] = optim.sgd(
                p, g, m, lr=LR, momentum=0.9, nesterov=True, weight_decay=decay
            )
        elif self.name == "muon" and is_matrix(n, p.shape):
            self.p[n], self.m[n] = optim.muon(
                p, g, m, step_size=LR * 0.2 * math.sqrt(max(p.shape)), momentum=0.95,
                nesterov=True, decay=1 - LR * decay, coefficients=COEFFICIENTS,
            )  # fmt: skip
        else:
            self.p[n], self.m[n], self.v[n] = ref.adamw(
                p, g, m, self.v[n], t, lr=LR, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=decay
            )


def some_gradients(t: int) -> Parameters:
    gradients = Parameters(CONFIG)
    gradients.flat[...] = draw(gradients.flat.size, seed=t)
    return gradients


def made(name: str, **settings: Any) -> tuple[Parameters, Optimizer]:
    weights = Parameters(CONFIG)
    initialise(weights, 0)
    shared = {"weight_decay": 0.0, "embedding_decay": None, "norm_decay": 0.0, "clip": 1.0}
    return weights, make_optimizer(name, weights, Team(2), **{**shared, **settings})


# --- Against the reference and torch.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_is_that_of_the_papers(name: str) -> None:
    """Clipped, each group with a decay of its own.  A step's roundings are two a weight, and some
    of the step, which by Muon are those of twenty products of matrices."""
    near = 1e-4 if name == "muon" else 1e-5
    weights, optimizer = made(name, **DECAYS)
    exact, before = Exact(name, weights), {n: w.copy() for n, w in weights.named.items()}
    for t in range(1, STEPS + 1):
        gradients = some_gradients(t)
        exact.step(gradients.named, t)
        optimizer.step(gradients, LR)
        for n, w in weights.named.items():
            moved = np.abs(exact.p[n] - before[n]).max()
            worst = np.abs(w - exact.p[n]).max()
            rounding = 2.0**-24 * np.abs(w).max()
            assert worst <= near * moved + (2 + 2 * t) * rounding, (n, t)
            tiny = 2.0**-24 * np.abs(exact.m[n]).max()
            assert np.abs(optimizer.m.named[n] - exact.m[n]).max() <= 8 * tiny, (n, t)


def torch_optimizer(name: str, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(weights, lr=LR, momentum=0.9, nesterov=True)
    if name == "muon":
        return torch.optim.Muon(
            weights, lr=LR, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
    return torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3)


@pytest.mark.parametrize(("name", "near"), [("adamw", 1e-4), ("sgd", 1e-5), ("muon", 0.1)])
def test_torch_makes_the_same_steps(name: str, near: float) -> None:
    """torch's Muon multiplies in bfloat16: its steps differ by percents, not by a rule."""
    weights = Parameters(CONFIG)
    initialise(weights, 0)
    matrices = [n for n, w in weights.named.items() if is_matrix(n, w.shape)]
    # Unclipped: torch's Muon clips nothing.
    settings = {"weight_decay": 0.0 if name == "sgd" else 0.3, "clip": 0.0}
    optimizer: Optimizer
    if name == "muon":
        optimizer = Muon(weights, Team(2), MuonConfig(coefficients=JORDAN, **settings))
    else:
        kind: Callable[..., Optimizer] = AdamW if name == "adamw" else SGD
        config: Any = AdamWConfig if name == "adamw" else SGDConfig
        optimizer = kind(weights, Team(2), config(**settings))
    before = {n: weights.named[n].copy() for n in matrices}
    theirs = {n: torch.nn.Parameter(torch.tensor(before[n])) for n in matrices}
    other = torch_optimizer(name, list(theirs.values()))
    for t in range(STEPS):
        gradients = some_gradients(t)
        for n, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients.named[n])
        other.step()
        optimizer.step(gradients, LR)
        for n in matrices:
            moved = theirs[n].detach().numpy() - before[n]
            difference = np.linalg.norm(weights.named[n] - theirs[n].detach().numpy())
            assert difference <= near * np.linalg.norm(moved), (n, t)


@pytest.mark.parametrize("shape", [(24, 24), (24, 100), (100, 24)])
def test_muon_makes_singular_values_equal_and_keeps_their_vectors(shape: tuple[int, int]) -> None:
    u, s, vt = np.linalg.svd(draw(*shape).astype(np.float64), full_matrices=False)
    s = np.geomspace(1.0, 0.02, len(s))
    g, p = ((u * s) @ vt).astype(np.float32).reshape(-1), np.zeros(math.prod(shape), np.float32)
    Team(2).muon_step(
        p, np.zeros_like(p), g, np.array([(0, *shape)], np.int64), np.ones(1, np.float32),
        np.array(COEFFICIENTS, np.float32), grad_scale=1.0, momentum=0.0, nesterov=False,
        decay=1.0,
    )  # fmt: skip
    inside = u.T @ -p.reshape(shape).astype(np.float64) @ vt.T
    values = np.diag(inside)
    assert values.min() > 0.6 and values.max() < 1.25
    assert np.abs(inside - np.diag(values)).max() < 1e-4


# --- What they share.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipping_can_be_turned_off(name: str) -> None:
    gradients, moments = some_gradients(1), {}
    for clip in (0.0, 1.0, 1e9):
        _, optimizer = made(name, clip=clip)
        norm = optimizer.step(gradients, LR)
        moments[clip] = optimizer.m.flat.copy()
    assert norm == pytest.approx(math.sqrt(ref.squared_norm(gradients.flat)), rel=1e-6)
    assert np.array_equal(moments[0.0], moments[1e9])
    assert moments[1.0] == pytest.approx(moments[0.0] / norm, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_norm_that_is_not_finite_changes_nothing(name: str) -> None:
    weights, optimizer = made(name)
    before, gradients = weights.flat.copy(), some_gradients(1)
    gradients.flat[7] = np.inf
    assert not math.isfinite(optimizer.step(gradients, LR))
    assert optimizer.t == 0 and np.array_equal(weights.flat, before)
    assert not optimizer.m.flat.any()


@pytest.mark.parametrize("sparse", [(), vocabulary_weights(CONFIG)], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lambda_correction_multiplies_every_gradient(name: str, sparse: tuple[str, ...]) -> None:
    """By 3/4, which is exact: the bits are those of gradients that were so small before."""
    results = []
    for correction, factor in ((0.25, 1.0), (0.0, 0.75), (0.0, 1.0)):
        weights = Parameters(CONFIG)
        initialise(weights, 0)
        settings = DECAYS | {"clip": 0.0, "lambda_correction": correction}
        optimizer = make_optimizer(name, weights, Team(2), sparse, **settings)
        for t in range(3):
            gradients, rows = Parameters(CONFIG), np.array([1, 5 + t], np.int32)
            whole = np.random.default_rng(t).integers(-99, 100, gradients.flat.size)
            optimizer.begin(gradients, dict.fromkeys(sparse, rows))
            gradients.flat[...] = whole * factor
            optimizer.step(gradients, LR)
        optimizer.settle()
        results.append(weights.flat.tobytes() + optimizer.m.flat.tobytes())
    assert results[0] == results[1] != results[2]


def test_lambda_correction_goes_into_the_factor_of_clipping() -> None:
    """The norm that is told, and clipped by, is that of the gradient itself."""
    seen: list[float] = []
    for clip, correction in ((1.0, 3 / 144000), (1e6, 3 / 144000), (1.0, 0.0), (0.0, 0.0)):
        optimizer = made("sgd", clip=clip, lambda_correction=correction)[1]
        optimizer._update = lambda gradients, lr, scale: seen.append(scale)  # type: ignore[method-assign]
        norm = optimizer.step(some_gradients(1), LR)
    assert norm > 1
    exact = 1 - 3 / 144000
    assert seen == [1 / norm * exact, exact, 1 / norm, 1.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_threads_and_instruction_set_give_the_same_bits(name: str) -> None:
    found = set()
    for isa in ISAS:
        if isa not in available_isas():
            continue
        for threads in (1, 2, 5):
            weights = Parameters(CONFIG)
            initialise(weights, 0)
            optimizer = make_optimizer(name, weights, Team(threads, isa), **DECAYS, clip=1.0)
            for t in range(3):
                optimizer.step(some_gradients(t), LR)
            kept = optimizer.tensors().values()
            found.add(weights.flat.tobytes() + b"".join(a.tobytes() for a in kept))
    assert len(found) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_kept_is_all_it_needs(name: str) -> None:
    weights, optimizer = made(name, **DECAYS)
    for t in range(3):
        optimizer.step(some_gradients(t), LR)
    kept = {n: a.copy() for n, a in optimizer.tensors().items()}
    assert sum(a.size for a in kept.values()) == moment_floats(CONFIG, name)
    other, fresh = made(name, **DECAYS)
    other.flat[...] = weights.flat
    fresh.load(kept, 3)
    for o in (optimizer, fresh):
        o.step(some_gradients(3), LR)
    assert np.array_equal(weights.flat, other.flat)
    del kept["m.model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"m.model.norm.weight is missing or not \(20,\)"):
        fresh.load(kept, 3)


@pytest.mark.parametrize("name", ["lion", "sgd"])
def test_rows_that_a_step_does_not_touch_have_a_gradient_of_zero(name: str) -> None:
    """With the sampled loss their gradients hold what earlier steps left."""
    sparse = vocabulary_weights(CONFIG)
    results = []
    for begins in (True, False):
        weights = Parameters(CONFIG)
        initialise(weights, 0)
        optimizer = make_optimizer(name, weights, Team(1), sparse, **DECAYS, clip=1.0)
        for t in range(3):
            gradients = some_gradients(t)
            rows = np.array([1, 5 + t], np.int32)
            if begins:
                fresh = {n: gradients.named[n][rows].copy() for n in sparse}
                optimizer.begin(gradients, dict.fromkeys(sparse, rows))
                for n in sparse:
                    gradients.named[n][rows] += fresh[n]
            else:
                others = np.setdiff1d(np.arange(CONFIG.vocab_size), rows)
                for n in sparse:
                    gradients.named[n][others] = 0.0
            optimizer.step(gradients, LR)
        results.append(weights.flat.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("op", ["lion_spans", "sgd_spans"])
def test_spans_and_sizes_that_do_not_fit_are_refused(op: str) -> None:
    named: dict[str, Any] = {"grad_scale": 1.0, "step_size": 0.1, "decay": 1.0}
    named |= {"beta1": 0.9, "beta2": 0.99} if op == "lion_spans" else {"momentum": 0.9}
    named |= {} if op == "lion_spans" else {"nesterov": True}
    call, state = getattr(Team(1), op), [draw(8) for _ in range(3)]
    for spans, told in (
        ([(0, 4, 1), (3, 8, 0)], "span 1 is 3 .. 8, expected within 4 .. 8"),
        ([(0, 9, 1)], "span 0 is 0 .. 9, expected within 0 .. 8"),
        ([(0, 4)], "columns of spans is 2"),
    ):
        with pytest.raises(ValueError, match=f"{op}: {told}"):
            call(*state, np.array(spans, np.int64), **named)
    with pytest.raises(ValueError, match=f"{op}: entries of m is 7"):
        call(state[0], state[1][:7], state[2], np.zeros((0, 3), np.int64), **named)


def test_matrices_that_do_not_fit_are_refused() -> None:
    named = {"grad_scale": 1.0, "momentum": 0.9, "nesterov": True, "decay": 1.0}
    state, steps, team = [draw(12) for _ in range(3)], np.ones(1, np.float32), Team(1)
    coefficients = np.array(JORDAN, np.float32)
    for matrices, told in (
        ([(1, 3, 4)], "matrix 0 is 3 x 4 at 1, expected within 0 .. 12"),
        ([(-1, 3, 3)], "matrix 0 is 3 x 3 at -1"),
        ([(0, 0, 3)], "matrix 0 is 0 x 3 at 0"),
        ([(0, 2, 2), (3, 2, 2)], "step_sizes is 1, but matrices is 2"),
    ):
        with pytest.raises(ValueError, match=f"muon_step: {told}"):
            team.muon_step(*state, np.array(matrices, np.int64), steps, coefficients, **named)
    both, two = np.array([(0, 2, 2), (3, 2, 2)], np.int64), np.ones(2, np.float32)
    with pytest.raises(ValueError, match="muon_step: matrix 1 is 2 x 2 at 3, expected within 4"):
        team.muon_step(*state, both, two, coefficients, **named)
    for wrong in (coefficients[:0], np.repeat(coefficients[:1], 7, axis=0)):
        with pytest.raises(ValueError, match=f"coefficients has {len(wrong)} rows, .* give 1 to 6"):
            team.muon_step(*state, both[:1], steps, wrong, **named)


# --- The average of the weights.


def test_the_average_follows_the_weights() -> None:
    weights = Parameters(CONFIG)
    initialise(weights, 0)
    average = Average(weights, Team(2), 0.8)
    average.start()
    want = weights.flat.astype(np.float64)
    for t in range(1, 60):
        weights.flat[...] = draw(weights.flat.size, seed=t)
        average.update(t)
        want = optim.ema(want, weights.flat, decay=min(0.8, (1 + t) / (10 + t)))
    assert np.abs(average.parameters.flat - want).max() < 1e-6
    before = (weights.flat.copy(), average.parameters.flat.copy())
    with average.in_place():
        assert np.array_equal(weights.flat, before[1])
        assert np.array_equal(average.parameters.flat, before[0])
    assert np.array_equal(weights.flat, before[0])
    assert np.array_equal(average.parameters.flat, before[1])


def test_the_first_weights_are_soon_forgotten() -> None:
    """Of them 2/11 are left after update 1, whatever the decay."""
    weights = Parameters(CONFIG)
    average = Average(weights, Team(1), 0.999)
    average.parameters.flat[...] = 1.0
    average.update(1)
    assert average.parameters.flat == pytest.approx(2 / 11)
